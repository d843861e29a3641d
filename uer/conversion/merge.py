"""From a stage-1 checkpoint to a student that stands alone.

    W_student = R[keep_out, :] W C[:, keep_in]      b_student = R[keep_out, :] b      q · √(new / old head size)

The composition is the master's own, so merged = trained; `merge` says how far that holds, against the compactors
applied to activations one by one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from uer.calibration.pooler import last_gamma, squeeze_pooler
from uer.config import ModelConfig
from uer.conversion.sandwich import Sandwich, real_rows
from uer.errors import UserError
from uer.formats import shapes
from uer.layer_sizes import LayerWish
from uer.models.bert import Bert
from uer.squeeze.fold import fold
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.master import Master
from uer.squeeze.wiring import EMBEDDING_TABLES, compactor_sizes, masked_compactors, state_columns

TOLERANCE = 1e-4  # of the largest logit (at least 1): merged against sparse, in float32
EXACT = 1e-9  # the same in float64
DECAYED = 1e-3  # dropped entries above this still take part in what the checkpoint computes
FOLLOWERS_OF_HIDDEN = ("attention.", "mlm")
TOO_EARLY = ("; before its schedule ends (k = step // w_step is 16, under head at least twice the heads to drop) a "
             "checkpoint has no plain student: take a later --mask_step and its checkpoint")


class UnfoldedMaster(Master):
    """A master whose students do not have the attention scale folded in, as the published conversion writes them."""

    def query_scale(self, attention: MaskGroup) -> float:
        return 1.0


@dataclass
class MergeReport:
    """How merged and trained compare on a batch, in float32.

    Attributes:
        scale: largest magnitude of a logit.
        sparse_difference: merged against the checkpoint with its dropped entries set to zero; rounding only.
        trained_difference: merged against the checkpoint as it is.
        largest_dropped: largest magnitude of a dropped compactor entry, and `largest_dropped_group` where it sits.
        exact_difference: merged against sparse in float64, found where they differ in float32 and the weights do not.
    """

    scale: float
    sparse_difference: float
    trained_difference: float
    largest_dropped: float
    largest_dropped_group: str
    exact_difference: float | None = None

    @property
    def agrees(self) -> bool:
        """Whether the merged student is the sparse model, up to rounding."""
        scale = max(1.0, self.scale)
        return self.sparse_difference <= TOLERANCE * scale or \
            (self.exact_difference is not None and self.exact_difference <= EXACT * scale)

    @property
    def decayed(self) -> bool:
        """Whether the dropped entries were as good as gone."""
        return self.largest_dropped < DECAYED and self.trained_difference <= DECAYED * max(1.0, self.scale)


@dataclass
class Merged:
    """A student: its config, its tensors under published names, how it was checked, and its pooler."""

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    report: MergeReport
    extras: dict[str, torch.Tensor] = field(default_factory=dict)


# -- the checkpoint ----------------------------------------------------------------------------------------------------


def squeezed_widths(state: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, int]:
    """The width of every group that has been squeezed already, as its compactors' shapes tell.
    `UserError` for compactors of one group that disagree."""
    sizes = compactor_sizes(config)
    widths: dict[str, dict[int, str]] = {}
    for tensor in masked_compactors(config):
        if tensor.name in state and state[tensor.name].dim() == 2:
            width = state[tensor.name].shape[tensor.dim]
            widths.setdefault(tensor.group, {}).setdefault(width, tensor.name)
    torn = [f"{group} ({', '.join(f'{name}: {width}' for width, name in found.items())})"
            for group, found in widths.items() if len(found) > 1]
    if torn:
        raise UserError("the checkpoint's compactors disagree on the width of group " + "; ".join(torn))
    teacher = {tensor.group: sizes[tensor.name] for tensor in masked_compactors(config)}
    return {group: width for group, found in widths.items() for width in found if width != teacher[group]}


def master_from_checkpoint(state: Mapping[str, torch.Tensor], config: ModelConfig, groups: dict[str, MaskGroup],
                           **load: int) -> Master:
    """The master of a checkpoint before, amid or after a squeeze.

    Args:
        state: published names -> tensors; not copied, not changed.
        config: the teacher's.
        groups: from `build_groups`, with the masks set where they are known; those whose compactors have been narrowed
            are marked as squeezed here.
        load: `tokens` and `predicted` of `Master`.
    Raises:
        UserError: tensors that are missing, unexpected or misshapen; a squeezed group of another width than its target.
    """
    squeezed = squeezed_widths(state, config)
    problems = shapes.tensor_problems(state, config, widths=squeezed)
    for name, width in squeezed.items():
        group = groups[name]
        if width != group.target:
            problems.append(f"group {name} has been squeezed to {width} dimensions, its target is {group.target}")
        group.squeezed = True
    if problems:
        raise UserError("the checkpoint does not fit its config: " + "; ".join(problems))
    return Master(config, dict(state), groups, **load)


# -- masks -------------------------------------------------------------------------------------------------------------


def groups_for(state: Mapping[str, torch.Tensor], config: ModelConfig, strategy: str,
               masks: Mapping[str, list[int]], where: str,
               mlm_target_dim: int | None = None, target_feedforward_size: int | None = None,
               target_heads: int | None = None, layers: Sequence[LayerWish] | None = None,
               target_dim: int | None = None) -> tuple[dict[str, MaskGroup], list[str]]:
    """Groups with their masks, for a checkpoint and what the mask file has for its step.

    The target is what the masks (or the squeezed shapes) leave of `hidden`; every other group must agree with it. A
    group that the file does not name and that has not been squeezed takes hidden's mask if it has the same dimensions
    (attention, mlm) and the checkpoint's own scores bear that out.

    Args:
        masks: from `read_masks`; may be empty if everything has been squeezed.
        where: names the mask file and step in messages.
        mlm_target_dim: dimensions of the student's MLM head, where they are not those of its hidden states.
        target_feedforward_size: neurons of its feed-forward layers, where they are not the teacher's in proportion.
        target_heads: its heads, where they are not those of the strategy.
        layers: of its layers, where they differ.
        target_dim: the run's, where it is known: of a student as wide as its teacher nothing else tells it.
    Returns:
        the groups, and notes on what was resolved.
    Raises:
        UserError: masks that do not make a plain BERT, are absent, or contradict the checkpoint.
    """
    squeezed = squeezed_widths(state, config)
    entries = _by_group(masks, config, where)
    target = _target(squeezed, entries, config, strategy, where, target_dim)
    try:
        groups = build_groups(config, target, strategy, mlm_target_dim, target_feedforward_size, target_heads, layers)
    except UserError as error:
        raise UserError(f"{where}: leaves {target} of {config.hidden_size} hidden dimensions under strategy {strategy} "
                        f"({error}); was the run one of the other strategy?") from None
    notes: list[str] = []
    problems: list[str] = []
    for group in groups.values():
        if group.name in squeezed:
            if squeezed[group.name] != group.target:
                problems.append(f"{group.name} has been squeezed to {squeezed[group.name]} dimensions, {group.target} "
                                f"would fit")
        elif group.name in entries:
            group.set_keep(group.keep_from_entry(entries[group.name], where))
            problems += _misfit(group)
        elif group.target == group.size:
            group.set_keep(torch.ones(group.size, dtype=torch.bool))  # nothing to drop, so nothing was recorded
        elif _follows_hidden(group, groups["hidden"], state):
            group.set_keep(groups["hidden"].keep.clone())  # type: ignore[union-attr]
            notes.append(f"{group.name} is not in the mask file; it follows hidden")
        else:
            problems.append(f"{group.name} ({group.scored_by}) is not there")
    if problems:
        more = TOO_EARLY if any(" keeps " in problem for problem in problems) else ""
        raise UserError(f"{where}: no plain BERT comes of these masks: " + "; ".join(problems) + more)
    return groups, notes


def _by_group(masks: Mapping[str, list[int]], config: ModelConfig, where: str) -> dict[str, list[int]]:
    owners = {tensor.name.removesuffix(".weight"): tensor.group for tensor in masked_compactors(config)}
    entries: dict[str, list[int]] = {}
    strangers = [name for name in masks if name not in owners]
    if strangers:
        raise UserError(f"{where}: names compactors that the checkpoint has not: {', '.join(strangers[:5])}; is it "
                        f"from a teacher of {config.layers_num} layers?")
    for name, dropped in masks.items():
        group = owners[name]
        if entries.setdefault(group, dropped) != dropped:
            raise UserError(f"{where}: group {group} has two different masks (one of them for {name})")
    return entries


def _target(squeezed: Mapping[str, int], entries: Mapping[str, list[int]], config: ModelConfig, strategy: str,
            where: str, wanted: int | None) -> int:
    if "hidden" in squeezed:
        return squeezed["hidden"]
    if "hidden" not in entries and wanted == config.hidden_size:
        return wanted
    if "hidden" not in entries:
        raise UserError(f"{where}: nothing on group hidden (encoder.transformer.0.self_attn.left_compactor.2), and the "
                        f"checkpoint has not been squeezed; give the --mask_path and --mask_step that belong to it")
    unit = config.head_size if strategy == "head" else 1
    return config.hidden_size - unit * len(entries["hidden"])


def _misfit(group: MaskGroup) -> list[str]:
    assert group.keep is not None
    problems = []
    if group.kept != group.target:
        problems.append(f"{group.name} keeps {group.kept} of {group.size} dimensions, {group.target} would fit")
    elif group.blocks and not group.whole_blocks:
        kept = group.keep.view(group.blocks, -1).sum(1)
        if int(kept.min()) != int(kept.max()):
            problems.append(f"{group.name} keeps {int(kept.min())} dimensions of one head and {int(kept.max())} of "
                            f"another")
    return problems


def _follows_hidden(group: MaskGroup, hidden: MaskGroup, state: Mapping[str, torch.Tensor]) -> bool:
    """Whether a group without a mask of its own has dropped what hidden has: its scores are lowest there."""
    weight = state.get(f"{group.scored_by}.weight")
    if not group.name.startswith(FOLLOWERS_OF_HIDDEN) or hidden.keep is None or weight is None:
        return False
    if (group.size, group.target) != (hidden.size, hidden.target) or weight.shape[1] != group.size:
        return False
    scores = weight.double().norm(dim=0)
    return bool(hidden.keep.all()) or bool(scores[~hidden.keep].max() < scores[hidden.keep].min())


# -- merging -----------------------------------------------------------------------------------------------------------


def probe_batch(vocab: int, positions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch that conversions are checked on, always the same: src, seg int64 [4, seq], one row with padding."""
    seq = min(48, positions)
    src = torch.randint(0, vocab, (4, seq), generator=torch.Generator().manual_seed(20))
    seg = torch.ones_like(src)
    seg[1, seq // 2:] = 2
    seg[2, seq - seq // 4:] = 0
    return src, seg


def student_model(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    """A plain BERT with these tensors, in evaluation mode.
    `UserError` for tensors that are missing, unexpected or misshapen."""
    with torch.device("meta"):
        model = Bert(shapes.sizes_of(config, **shapes.table_sizes(weights)), replace(config, tie_weights=False))
    try:
        model.load_state_dict(dict(weights), assign=True)
    except RuntimeError as error:
        raise UserError(f"the tensors do not make a BERT of this config: {error}") from None
    return model.eval()


@torch.no_grad()
def merge(master: Master, *, keep_attention_scale: bool = False,
          pooler: Mapping[str, torch.Tensor] | None = None) -> Merged:
    """Merge the compactors into a student of uniform size. The master is left as it is.

    Args:
        master: from `master_from_checkpoint`; every group squeezed or with a mask that leaves its target.
        keep_attention_scale: do not fold √(new / old head size) into the query: what the published conversion writes,
            another function than the one that was trained.
        pooler: the checkpoint's, of the teacher's size.
    Returns:
        the student and a report, which compares it with the trained model; with `keep_attention_scale` with the
        trained model under the student's attention scale.
    """
    squeezed = _squeezed(master, keep_attention_scale)
    config, weights = fold(squeezed)
    report = _report(master, config, weights, keep_attention_scale)
    if not report.agrees and master.like.dtype != torch.float64:  # a deep or restless model multiplies rounding
        exact = Master(master.config, {name: x.double() for name, x in master.state_dict().items()}, master.groups)
        _, exact_weights = fold(_squeezed(exact, keep_attention_scale))
        if all((weights[name] - x).abs().max() <= TOLERANCE * x.abs().max() for name, x in exact_weights.items()):
            report.exact_difference = _report(exact, config, exact_weights, keep_attention_scale).sparse_difference
    extras = squeeze_pooler(pooler or {}, squeezed.parameters[state_columns(config.target)],
                            weights[last_gamma(config.layers_num)])
    return Merged(config, weights, report, extras)


def _squeezed(master: Master, keep_attention_scale: bool) -> Master:
    """The same with every group's masked dimensions left out."""
    kind = UnfoldedMaster if keep_attention_scale else Master
    squeezed = kind(master.config, master.state_dict(), {name: copy.copy(g) for name, g in master.groups.items()})
    for group in squeezed.groups.values():
        if group.kept != group.target:
            raise UserError(f"group {group.name} keeps {group.kept} dimensions, not the student's {group.target}: its "
                            f"masks are needed")
        if group.keep is None:
            group.set_keep(torch.ones(group.size, dtype=torch.bool, device=master.like.device))
        squeezed.squeeze(group)
    return squeezed


def _report(master: Master, config: ModelConfig, weights: Mapping[str, torch.Tensor],
            student_scale: bool) -> MergeReport:
    table = weights[EMBEDDING_TABLES[0]]
    src, seg = probe_batch(len(table), len(weights[EMBEDDING_TABLES[1]]))
    real = real_rows(config, seg)
    merged = student_model(config, weights)(src, seg)[real]
    sparse = Sandwich(master, zero_dropped=True, student_scale=student_scale).logits(src, seg)[real]
    trained = Sandwich(master, student_scale=student_scale).logits(src, seg)[real]
    largest = {name: float(master.largest_dropped(group)) for name, group in master.groups.items()}
    where = max(largest, key=lambda name: largest[name])
    return MergeReport(float(sparse.abs().max()), float((merged - sparse).abs().max()),
                       float((merged - trained).abs().max()), largest[where], where)
