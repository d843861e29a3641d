"""BERTs under other names: DistilBERT (no segments), ELECTRA (where it embeds at full width).

Their classifiers of texts have relu and gelu where BERT's have tanh, so a student of one is written as one of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from uer.config import RELATIVES
from uer.formats.shapes import POSITIONS, SEGMENTS

PREFIXES = ("electra.", "distilbert.")
DISTIL_LAYER = re.compile(r"transformer\.layer\.(\d+)\.(attention\.\w+|ffn\.lin[12]|\w+)\.(\w+)")
DISTIL_PARTS = {
    "attention.q_lin": "attention.self.query", "attention.k_lin": "attention.self.key",
    "attention.v_lin": "attention.self.value", "attention.out_lin": "attention.output.dense",
    "sa_layer_norm": "attention.output.LayerNorm", "ffn.lin1": "intermediate.dense", "ffn.lin2": "output.dense",
    "output_layer_norm": "output.LayerNorm"}
DISTIL_BACK = {theirs: ours for ours, theirs in DISTIL_PARTS.items()}
BERT_LAYER = re.compile(r"bert\.encoder\.layer\.(\d+)\.(.+)\.(\w+)")
DISTIL_KEYS = ("architectures", "initializer_range", "max_position_embeddings", "pad_token_id", "vocab_size",
               "id2label", "label2id", "problem_type")  # that are called as BERT's
HEADS = {
    "vocab_transform": "cls.predictions.transform.dense", "vocab_layer_norm": "cls.predictions.transform.LayerNorm",
    "vocab_projector": "cls.predictions.decoder",
    "generator_predictions.dense": "cls.predictions.transform.dense",
    "generator_predictions.LayerNorm": "cls.predictions.transform.LayerNorm",
    "generator_lm_head": "cls.predictions.decoder"}


def cls_act(names: Iterable[str], model_type: str = "") -> str:
    """What stands between the linears of a classifier of texts with these tensors; `model_type`: as its config says."""
    names = list(names)
    if "pre_classifier.weight" in names:
        return "relu"
    electra = model_type == "electra" or any(name.startswith("electra.") for name in names)
    return "gelu" if electra and "classifier.dense.weight" in names else "tanh"


def one_segment(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Our tensors with segment 1 in the positions and no other: what DistilBERT has a place for."""
    segments = weights[SEGMENTS]
    return {**weights, POSITIONS: weights[POSITIONS] + segments[1], SEGMENTS: torch.zeros_like(segments)}


def to_distilbert(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """BERT's tensors of one segment, which is zeros, under DistilBERT's names."""
    out = {}
    for name, tensor in tensors.items():
        layer = BERT_LAYER.fullmatch(name)
        if layer:
            name = f"distilbert.transformer.layer.{layer[1]}.{DISTIL_BACK[layer[2]]}.{layer[3]}"
        if "token_type_embeddings" not in name:
            out[f"distilbert.{name.removeprefix('bert.')}" if name.startswith("bert.") else name] = tensor
    return out


def as_relative(settings: Mapping[str, Any], family: str) -> dict[str, Any]:
    """The config.json of a stock BERT as that of an ELECTRA or a DistilBERT."""
    if family == "electra":
        return {**settings, "model_type": family, "embedding_size": settings["hidden_size"]}
    dropouts = dict.fromkeys(("attention_dropout", "seq_classif_dropout"), settings["hidden_dropout_prob"])
    return {**{key: settings[key] for key in DISTIL_KEYS if key in settings}, "model_type": family, **dropouts,
            **{theirs: settings[ours] for theirs, ours in RELATIVES[family].items()}, "sinusoidal_pos_embds": False}


def bert_name(name: str) -> str:
    """BERT's name of a relative's tensor (without the prefix of its family); other names stay."""
    layer = DISTIL_LAYER.fullmatch(name)
    if layer and layer[2] in DISTIL_PARTS:
        return f"encoder.layer.{layer[1]}.{DISTIL_PARTS[layer[2]]}.{layer[3]}"
    module, _, attribute = name.rpartition(".")
    return f"{HEADS[module]}.{attribute}" if module in HEADS else name
