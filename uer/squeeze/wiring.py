"""Which compactor sits where, and which group each side of a linear belongs to.

    y = R (W (C x) + b)      R = right_compactor (row), C = left_compactor (column), both stored as `weight` [out, in]

Names are those of the published stage-1 files.
"""

from __future__ import annotations

from typing import NamedTuple

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
                      inner, "hidden"),
    ]


def wrapped_linears(layers_num: int) -> list[WrappedLinear]:
    """Every linear that has compactors, in the order of the forward pass."""
    return [
        *(linear for i in range(layers_num) for linear in encoder_linears(i)),
        WrappedLinear("target.mlm_linear_1", "target.mlm_linear_1_left_compactor",
                      "target.mlm_linear_1_right_compactor", "hidden", "mlm"),
        WrappedLinear(VOCABULARY_LINEAR, "target.mlm_linear_2_left_compactor", None, "mlm", None),
    ]


def layer_norms(layers_num: int) -> list[tuple[str, str]]:
    """(name, group) of every LayerNorm."""
    return [
        ("embedding.layer_norm", "hidden"),
        *((f"encoder.transformer.{i}.layer_norm_{j}", "hidden") for i in range(layers_num) for j in (1, 2)),
        ("target.layer_norm", "mlm"),
    ]


class MaskedTensor(NamedTuple):
    """A tensor of which a group masks the entries along `dim`."""

    name: str
    dim: int
    group: str


def masked_compactors(layers_num: int) -> list[MaskedTensor]:
    """The compactors: rows of R, columns of C."""
    tensors = [MaskedTensor(f"{EMBEDDING_COMPACTOR}.weight", 0, "hidden")]
    for linear in wrapped_linears(layers_num):
        tensors.append(MaskedTensor(f"{linear.left}.weight", 1, linear.enters))
        if linear.right and linear.leaves:
            tensors.append(MaskedTensor(f"{linear.right}.weight", 0, linear.leaves))
    return tensors


def masked_vectors(layers_num: int) -> list[MaskedTensor]:
    """Biases, gammas and betas that follow a group's mask. The vocabulary's bias follows none."""
    biases = [MaskedTensor(f"{x.name}.bias", 0, x.leaves) for x in wrapped_linears(layers_num) if x.leaves]
    norms = [MaskedTensor(f"{name}.{part}", 0, group) for name, group in layer_norms(layers_num)
             for part in ("gamma", "beta")]
    return biases + norms


def compactor_sizes(config) -> dict[str, int]:
    """name -> teacher dimensions of every compactor (square before a squeeze)."""
    sizes = {"hidden": config.hidden_size, "mlm": config.mlm_width}
    for i in range(config.layers_num):
        sizes[f"attention.{i}"] = config.hidden_size
        sizes[f"ffn.{i}"] = config.feedforward_size
    return {tensor.name: sizes[tensor.group] for tensor in masked_compactors(config.layers_num)}
