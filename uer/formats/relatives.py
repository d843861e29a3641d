"""Encoders that are BERTs under other names: DistilBERT (no segments), ELECTRA (where it embeds at full width)."""

from __future__ import annotations

import re
from collections.abc import Iterable

PREFIXES = ("electra.", "distilbert.")
FOREIGN_HEAD = ("pre_classifier.", "classifier.dense.")  # with relu or gelu behind it, where BERT's has tanh
DISTIL_LAYER = re.compile(r"transformer\.layer\.(\d+)\.(attention\.\w+|ffn\.lin[12]|\w+)\.(\w+)")
DISTIL_PARTS = {
    "attention.q_lin": "attention.self.query", "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value", "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm", "ffn.lin1": "intermediate.dense", "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm"}
HEADS = {
    "vocab_transform": "cls.predictions.transform.dense", "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector": "cls.predictions.decoder",
    "generator_predictions.dense": "cls.predictions.transform.dense",
    "generator_predictions.LayerNorm": "cls.predictions.transform.LayerNorm",
    "generator_lm_head": "cls.predictions.decoder"}


def has_foreign_head(names: Iterable[str]) -> bool:
    """Whether these tensors are a relative's with a classifier of texts, which is not BERT's."""
    names = list(names)
    return any(name.startswith(PREFIXES) for name in names) and any(name.startswith(FOREIGN_HEAD) for name in names)


def bert_name(name: str) -> str:
    """BERT's name of a relative's tensor (without the prefix of its family); other names stay."""
    layer = DISTIL_LAYER.fullmatch(name)
    if layer and layer[2] in DISTIL_PARTS:
        return f"encoder.layer.{layer[1]}.{DISTIL_PARTS[layer[2]]}.{layer[3]}"
    module, _, attribute = name.rpartition(".")
    return f"{HEADS[module]}.{attribute}" if module in HEADS else name
