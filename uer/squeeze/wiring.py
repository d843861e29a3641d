"""Which compactor sits where, and which group each side of a linear belongs to.

    y = R (W (C x) + b)      R = right_compactor (row), C = left_compactor (column), both stored as `weight` [out, in]

Names are those of the published stage-1 files.
"""

from __future__ import annotations

from typing import NamedTuple

from uer.config import ModelConfig

EMBEDDING_COMPACTOR = "embedding.emb_compactor"
EMBEDDING_TABLES = tuple(f"embedding.{kind}_embedding.weight" for kind in ("word", "position", "segment"))
VOCABULARY_LINEAR = "target.mlm_linear_2"


class WrappedLinear(NamedTuple):
    """A linear of the teacher, its compactors and the groups of its two sides (None: not squeezed)."""

    name: str
    left: str
    right: str | None
    enters: str
    leaves: str | None

    @property
    def is_query(self) -> bool:
        return self.name.endswith("self_attn.linear_layers.0")


def encoder_linears(layer: int) -> list[WrappedLinear]:
    """The six linears of an encoder layer: query, key, value, attention output, linear_1, linear_2."""
    attn, ffn = f"encoder.transformer.{layer}.self_attn", f"encoder.transformer.{layer}.feed_forward"
    attention, inner = f"attention.{layer}", f"ffn.{layer}"
    return [
        *(WrappedLinear(f"{attn}.linear_layers.{j}", f"{attn}.left_compactor.{j}", f"{attn}.right_compactor.{j}",
                        "hidden", attention) for j in range(3)),
        WrappedLinear(f"{attn}.final_linear", f"{attn}.final_linear_left_compactor",
                      f"{attn}.final_linear_right_compactor", attention, "hidden"),
        WrappedLinear(f"{ffn}.linear_1", f"{ffn}.linear_1_left_compactor", f"{ffn}.linear_1_right_compactor",
                      "hidden", inner),
        WrappedLinear(f"{ffn}.linear_2", f"{ffn}.linear_2_left_compactor", f"{ffn}.linear_2_right_compactor",
                      inner, "hidden")]


def target_linears(target: str) -> list[WrappedLinear]:
    """The linears of a target; the first reads the last layer's states, the last one's outputs all stay."""
    if target in ("states", "tokens"):
        return [WrappedLinear("target.output_layer", "target.output_layer_left_compactor", None, "hidden", None)]
    first, last = ("mlm_linear_1", "mlm_linear_2") if target == "mlm" else ("output_layer_1", "output_layer_2")
    return [WrappedLinear(f"target.{first}", f"target.{first}_left_compactor", f"target.{first}_right_compactor",
                          "hidden", target),
            WrappedLinear(f"target.{last}", f"target.{last}_left_compactor", None, target, None)]


def features_group(target: str) -> str | None:
    """The group of the dimensions inside a target; None where it has none of its own."""
    enters = target_linears(target)[-1].enters
    return None if enters == "hidden" else enters


def state_columns(target: str) -> str:
    """The column compactor that reads the last layer's states."""
    return f"{target_linears(target)[0].left}.weight"


def wrapped_linears(config: ModelConfig) -> list[WrappedLinear]:
    """Every linear that has compactors, in the order of the forward pass."""
    return [*(linear for i in range(config.layers_num) for linear in encoder_linears(i)),
            *target_linears(config.target)]


def layer_norms(config: ModelConfig) -> list[tuple[str, str]]:
    """(name, group) of every LayerNorm."""
    return [
        ("embedding.layer_norm", "hidden"),
        *((f"encoder.transformer.{i}.layer_norm_{j}", "hidden") for i in range(config.layers_num) for j in (1, 2)),
        *([("target.layer_norm", "mlm")] if config.target == "mlm" else [])]


class MaskedTensor(NamedTuple):
    """A tensor of which a group masks the entries along `dim`."""

    name: str
    dim: int
    group: str


def masked_compactors(config: ModelConfig) -> list[MaskedTensor]:
    """The compactors: rows of R, columns of C."""
    tensors = [MaskedTensor(f"{EMBEDDING_COMPACTOR}.weight", 0, "hidden")]
    for linear in wrapped_linears(config):
        tensors.append(MaskedTensor(f"{linear.left}.weight", 1, linear.enters))
        if linear.right and linear.leaves:
            tensors.append(MaskedTensor(f"{linear.right}.weight", 0, linear.leaves))
    return tensors


def masked_vectors(config: ModelConfig) -> list[MaskedTensor]:
    """Biases, gammas and betas that follow a group's mask. The bias of the target's outputs follows none."""
    biases = [MaskedTensor(f"{x.name}.bias", 0, x.leaves) for x in wrapped_linears(config) if x.leaves]
    norms = [MaskedTensor(f"{name}.{part}", 0, group) for name, group in layer_norms(config)
             for part in ("gamma", "beta")]
    return biases + norms


def compactor_sizes(config: ModelConfig) -> dict[str, int]:
    """name -> teacher dimensions of every compactor (square before a squeeze)."""
    sizes = {"hidden": config.hidden_size, features_group(config.target): config.mlm_width}
    for i in range(config.layers_num):
        sizes[f"attention.{i}"] = config.hidden_size
        sizes[f"ffn.{i}"] = config.feedforward_size
    return {tensor.name: sizes[tensor.group] for tensor in masked_compactors(config)}
