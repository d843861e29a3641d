"""The two generations of names in UER files. Inside this project the first one is used.

    published (until 2021, and the WID code)     UER-py since 2022
    embedding.word_embedding.weight              embedding.word.embedding.weight
    embedding.position_embedding.weight          embedding.pos.embedding.weight
    embedding.segment_embedding.weight           embedding.seg.embedding.weight
    target.mlm_linear_1.weight                   target.mlm.linear_1.weight
    target.layer_norm.gamma                      target.mlm.layer_norm.gamma
    target.nsp_linear_1.weight                   target.sp.linear_1.weight
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

GENERATIONS = ("published", "uer-py")
PREFIXES = {
    "embedding.word_embedding.": "embedding.word.embedding.",
    "embedding.position_embedding.": "embedding.pos.embedding.",
    "embedding.segment_embedding.": "embedding.seg.embedding.",
    "target.mlm_linear_1.": "target.mlm.linear_1.",
    "target.mlm_linear_2.": "target.mlm.linear_2.",
    "target.layer_norm.": "target.mlm.layer_norm.",
    "target.nsp_linear_1.": "target.sp.linear_1.",
    "target.nsp_linear_2.": "target.sp.linear_2.",
}

BETWEEN = {  # what the next-sentence head was called for a while
    "target.sp_linear_1.": "target.nsp_linear_1.",
    "target.sp_linear_2.": "target.nsp_linear_2.",
}


def to_published(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of either generation -> published names."""
    back = {new: old for old, new in PREFIXES.items()} | BETWEEN
    return {_renamed(name, back): tensor for name, tensor in tensors.items()}


def to_uer_py(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Published names -> those of UER-py since 2022."""
    return {_renamed(name, PREFIXES): tensor for name, tensor in tensors.items()}


def heads_in(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A fine-tuned head's `output_layer…` -> `target.output_layer…`, where every target is here."""
    return {_renamed(name, {"output_layer": "target.output_layer"}): tensor for name, tensor in tensors.items()}


def heads_out(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The names of files again."""
    return {_renamed(name, {"target.output_layer": "output_layer"}): tensor for name, tensor in tensors.items()}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name[len(old):]
    return name


def is_uer(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether the names are UER's, of either generation."""
    return any(name.startswith(("embedding.", "encoder.transformer.", "target.")) for name in tensors)
