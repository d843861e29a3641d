"""The master: teacher weights and compactors; it composes the student's weights and owns what the optimizer sees.

    W_student = R[keep, :] W C[:, keep]        b_student = R[keep, :] b   (the whole b)

Composing costs products that do not grow with the batch. The query of a student whose heads are narrower than the
teacher's is multiplied by √(new / old): a plain student divides by √new where training divided by √old.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import nn

from uer.config import ModelConfig
from uer.cpu.products import aligned, product
from uer.models.bert import Bert
from uer.sizes import BertSizes, LayerSizes
from uer.squeeze.composition import applies_to_features, applies_to_rows, effective
from uer.squeeze.groups import MaskGroup
from uer.squeeze.wiring import (
    EMBEDDING_COMPACTOR,
    EMBEDDING_TABLES,
    VOCABULARY_LINEAR,
    WrappedLinear,
    compactor_sizes,
    features_group,
    layer_norms,
    masked_compactors,
    wrapped_linears,
)

MANY = 1 << 40  # tokens: more than any table has rows
Moments = Mapping[torch.Tensor, dict[str, torch.Tensor]]  # an optimizer's state by parameter


def sizes_from_groups(config: ModelConfig, groups: Mapping[str, MaskGroup], vocab: int, positions: int,
                      segments: int) -> BertSizes:
    """The student's sizes as its groups are now, for a teacher of this config and tables of these many rows."""
    def layer_sizes(layer: int) -> LayerSizes:
        attention, ffn = groups[f"attention.{layer}"], groups[f"ffn.{layer}"]
        return LayerSizes(attention.heads, attention.width // attention.heads, ffn.width)

    layers = tuple(layer_sizes(i) for i in range(config.layers_num))
    features = features_group(config.target)
    inner = config.mlm_width if features is None else groups[features].width
    return BertSizes(vocab, positions, segments, groups["hidden"].width, layers, inner, config.outputs)


class Master:
    """Teacher weights + compactors + mask groups.

    Args:
        config: the teacher's config.
        weights: the teacher's tensors under the published names; compactors that are absent start as identity.
        groups: the mask groups; of one from which some have left early only the others' weights are taken over.
        tokens: tokens of one optimizer step on this process, and `predicted` those of them to predict: they decide
            whether the vocabulary's tables are multiplied out, as they always are by default.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor], groups: dict[str, MaskGroup],
                 tokens: int = MANY, predicted: int = MANY):
        self.config = config
        self.groups = groups
        self.linears = wrapped_linears(config)
        self.norms = layer_norms(config)
        self.load = (tokens, predicted)
        self.parameters: dict[str, nn.Parameter] = {name: nn.Parameter(tensor) for name, tensor in weights.items()}
        if config.tie_weights:
            self.parameters[f"{VOCABULARY_LINEAR}.weight"] = self.parameters[EMBEDDING_TABLES[0]]
        like = self.parameters[EMBEDDING_TABLES[0]]
        self.like = like.new_empty(0)  # of the master's dtype, on its device
        self.compactors = masked_compactors(config)
        self.masked = {tensor.name: (tensor.dim, tensor.group) for tensor in self.compactors} | {
            f"{name}.{part}": (0, owner) for name, owner in self.norms for part in ("gamma", "beta")}
        for name, size in compactor_sizes(config).items():
            if name not in self.parameters:
                self.parameters[name] = nn.Parameter(torch.eye(size, dtype=like.dtype, device=like.device))
        self._composed: list[torch.Tensor] = []
        self._targets: list[nn.Parameter] = []
        self._spare = False
        for group in groups.values():
            if group.there is not None and not group.squeezed:
                self._narrow(group, group.there)

    # -- what there is ---------------------------------------------------------------------------------------------

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(published name, parameter), a tied table once."""
        seen: set[int] = set()
        for name, parameter in self.parameters.items():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield name, parameter

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Published names -> tensors, with zeros where dimensions have left early."""
        return {name: self.widened(name, parameter.detach()) for name, parameter in self.parameters.items()}

    def whole(self, name: str) -> torch.Tensor:
        """A parameter as all processes are to know it."""
        return self.parameters[name].detach()

    @property
    def has_left(self) -> bool:
        """Whether nothing is left to drop: the student has its final size."""
        return all(group.width == group.target for group in self.groups.values())

    def multiply_out(self) -> None:
        """From the next student on, multiply the vocabulary's tables out whatever it costs: it is a plain one."""
        self.load = (MANY, MANY)

    def sizes(self) -> BertSizes:
        vocab, positions, segments = (self.parameters[name].shape[0] for name in EMBEDDING_TABLES)
        return sizes_from_groups(self.config, self.groups, vocab, positions, segments)

    # -- composition -----------------------------------------------------------------------------------------------

    def build_student(self) -> Bert:
        """A plain BERT of the current sizes; its parameters are filled by `compose_into`."""
        with torch.device("meta"):
            student = Bert(self.sizes(), replace(self.config, tie_weights=False))
        with torch.no_grad():
            for name, tensor in self.compose().items():
                module, _, attribute = name.rpartition(".")
                setattr(student.get_submodule(module), attribute, nn.Parameter(tensor.detach()))
        self.set_norm_masks(student)
        return student

    def set_norm_masks(self, student: Bert) -> None:
        """Let the student's LayerNorms count the kept dimensions only, where a group is masked and not squeezed."""
        kept = {}
        for name in {owner for _, owner in layer_norms(self.config)}:
            group = self.groups[name]
            keep = group.keep_there().to(self.like.device, self.like.dtype) if group.masked else None
            kept[name] = keep, group.kept
        for name, owner in layer_norms(self.config):
            student.get_submodule(name).set_keep(*kept[owner])  # type: ignore[operator]

    def compose(self) -> dict[str, torch.Tensor]:
        """The student's parameters by name, with their autograd graph."""
        out = self._compose_embedding()
        for linear in self.linears:
            if linear.name == VOCABULARY_LINEAR:
                out.update(self._compose_vocabulary())
                continue
            weight, bias = self._compose_linear(linear)
            out[f"{linear.name}.weight"], out[f"{linear.name}.bias"] = weight, bias
        for name, _ in self.norms:
            out[f"{name}.gamma"] = self.parameters[f"{name}.gamma"]
            out[f"{name}.beta"] = self.parameters[f"{name}.beta"]
        return out

    def _compose_linear(self, linear: WrappedLinear) -> tuple[torch.Tensor, torch.Tensor]:
        p = self.parameters
        if linear.right is None or linear.leaves is None:
            return product(p[f"{linear.name}.weight"], p[f"{linear.left}.weight"]), p[f"{linear.name}.bias"]
        weight, bias = effective(p[f"{linear.right}.weight"], p[f"{linear.name}.weight"], p[f"{linear.left}.weight"],
                                 p[f"{linear.name}.bias"], lambda: self._wanted(linear))
        if linear.is_query:
            scale = self.query_scale(self.groups[linear.leaves])
            if scale != 1:
                weight, bias = weight * scale, bias * scale
        return weight, bias

    def _wanted(self, linear: WrappedLinear) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Rows of R and columns of C whose gradient the running `backward` is to find."""
        assert linear.leaves
        leaves, enters = self.groups[linear.leaves], self.groups[linear.enters]
        return (leaves.kept_index() if self._spare and leaves.masked else None,
                enters.kept_index() if self._spare and enters.masked else None)

    def query_scale(self, attention: MaskGroup) -> float:
        """√(new / old) head size: what a plain student's own attention scale needs the query multiplied by."""
        return (attention.width / attention.heads / attention.block_size) ** 0.5

    def _compose_embedding(self) -> dict[str, torch.Tensor]:
        rows = self.parameters[f"{EMBEDDING_COMPACTOR}.weight"]  # [hidden now, hidden of the teacher]
        tables = {name: self.parameters[name] for name in EMBEDDING_TABLES}
        tokens, _ = self.load
        if applies_to_rows(tokens, sum(table.shape[0] for table in tables.values())):
            return {**tables, "embedding.projection": rows}
        return {name: product(table, rows.T) for name, table in tables.items()}

    def _compose_vocabulary(self) -> dict[str, torch.Tensor]:
        weight = self.parameters[f"{VOCABULARY_LINEAR}.weight"]  # [vocab, inner]
        columns = self.parameters[f"{self.linears[-1].left}.weight"]  # [inner, mlm now]
        bias = self.parameters[f"{VOCABULARY_LINEAR}.bias"]
        (vocab, inner), width = weight.shape, columns.shape[1]
        _, predicted = self.load
        if applies_to_features(predicted, vocab, inner, width):
            return {f"{VOCABULARY_LINEAR}.weight": weight, f"{VOCABULARY_LINEAR}.bias": bias,
                    "target.projection": columns}
        return {f"{VOCABULARY_LINEAR}.weight": product(weight, columns), f"{VOCABULARY_LINEAR}.bias": bias}

    def compose_into(self, student: Bert) -> None:
        """Give the student the composed weights (no copy) and keep the graph for `backward`."""
        self._composed, self._targets = [], []  # while it lives, the last graph expects gradients of its own shapes
        composed = self.compose()
        for name, parameter in student.named_parameters():
            tensor = composed[name]
            parameter.data = tensor.detach()
            parameter.grad = None
            if tensor.requires_grad:
                self._composed.append(tensor)
                self._targets.append(parameter)

    def backward(self, spare_dropped: bool = False) -> None:
        """Carry the gradients of the student given to `compose_into` on to the master's parameters.
        `spare_dropped`: leave the gradients of dropped entries of the encoder's compactors at 0, for a penalty that
        replaces them."""
        self._spare = spare_dropped
        pairs = [(tensor, aligned(parameter.grad)) for tensor, parameter in zip(self._composed, self._targets)
                 if parameter.grad is not None]
        composed = [(tensor, gradient) for tensor, gradient in pairs if not tensor.is_leaf]
        for tensor, gradient in pairs:
            if tensor.is_leaf:  # taken over as it is: its gradient is the student's, which needs no copy
                tensor.grad = gradient if tensor.grad is None else tensor.grad + gradient
        torch.autograd.backward([tensor for tensor, _ in composed], [gradient for _, gradient in composed])
        self._composed, self._targets = [], []

    # -- squeeze ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, group: MaskGroup) -> torch.Tensor:
        """Column norms of the compactor that scores a group: float64 [width]."""
        return self.parameters[f"{group.scored_by}.weight"].double().norm(dim=0)

    def told(self, group: MaskGroup, scores: torch.Tensor) -> torch.Tensor:
        """Scores of a group as all processes are to know them: here everybody has found the same ones."""
        return scores

    def largest_dropped(self, group: MaskGroup) -> torch.Tensor:
        """Largest magnitude among the dropped compactor entries of a group (0 where none): a scalar."""
        return self.largest_of_each(group).max() if group.masked else self.like.new_zeros(())

    @torch.no_grad()
    def largest_of_each(self, group: MaskGroup) -> torch.Tensor:
        """Largest magnitude among the compactor entries of each dropped dimension of a group: [dropped]."""
        largest = self.like.new_zeros(len(group.dropped))
        for tensor in self.compactors:
            if tensor.group == group.name:
                entries = self.parameters[tensor.name].index_select(tensor.dim, group.dropped)
                largest = torch.maximum(largest, entries.abs().amax(1 - tensor.dim))
        return largest

    @torch.no_grad()
    def squeeze(self, group: MaskGroup, moments: Moments | None = None) -> None:
        """Drop a group's masked dimensions for good: from compactors, LayerNorms and the optimizer's moments."""
        if not group.squeezed:
            staying = group.kept_index()
            group.squeeze()
            self._narrow(group, staying, moments)

    @torch.no_grad()
    def thin(self, group: MaskGroup, staying: torch.Tensor, moments: Moments | None = None) -> None:
        """Drop all but the dimensions at these positions, some of the masked ones, before the group is squeezed."""
        group.thin(staying)
        self._narrow(group, staying, moments)

    def _narrow(self, group: MaskGroup, index: torch.Tensor, moments: Moments | None = None) -> None:
        for name, (dim, owner) in self.masked.items():
            if owner != group.name:
                continue
            parameter = self.parameters[name]
            shape = parameter.shape
            parameter.data = parameter.data.index_select(dim, index)
            parameter.grad = None
            state = moments.get(parameter, {}) if moments else {}
            for key, value in state.items():
                if value.shape == shape:
                    state[key] = value.index_select(dim, index)

    def widened(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A parameter, or a moment of it, as files have it: with zeros where dimensions have left early."""
        dim, there = self._there(name)
        if there is None or not tensor.dim():
            return tensor
        shape = list(tensor.shape)
        shape[dim] = self.groups[self.masked[name][1]].size
        return tensor.new_zeros(shape).index_copy_(dim, there.to(tensor.device), tensor)

    def narrowed(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of `widened`."""
        dim, there = self._there(name)
        return tensor if there is None or not tensor.dim() else tensor.index_select(dim, there.to(tensor.device))

    def _there(self, name: str) -> tuple[int, torch.Tensor | None]:
        """Along which of its axes dimensions of a group leave this tensor, and who is there where some have."""
        dim, owner = self.masked.get(name, (0, None))
        group = self.groups[owner] if owner is not None else None
        return dim, group.there if group is not None and not group.squeezed else None
