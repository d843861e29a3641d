"""Word, position and segment embedding, summed and normalised."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.dropout import Dropout
from uer.cpu.projection import projected_sum
from uer.layers.layer_norm import LayerNorm
from uer.sizes import BertSizes


class WordPosSegEmbedding(nn.Module):
    """LN(word[src] + position[0..seq) + segment[seg]).

    `projection` [hidden, width], when set, is applied to the gathered rows: tables of another width then serve without
    being multiplied out (cheaper while a batch has fewer tokens than the vocabulary has rows).
    """

    def __init__(self, sizes: BertSizes, *, dropout: float, layernorm: str, layernorm_eps: float):
        super().__init__()
        self.word_embedding = _table(sizes.vocab, sizes.hidden)
        self.position_embedding = _table(sizes.positions, sizes.hidden)
        self.segment_embedding = _table(sizes.segments, sizes.hidden)
        self.projection: nn.Parameter | None
        self.register_parameter("projection", None)
        self.layer_norm = LayerNorm(sizes.hidden, layernorm, layernorm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """src, seg int [batch, seq] -> [batch, seq, hidden]"""
        return self.dropout(self.layer_norm(self.sum(src, seg)))

    def sum(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """The embedding before its LayerNorm: [batch, seq, hidden]."""
        words, segments = self.word_embedding, self.segment_embedding
        positions = self.position_embedding.weight[: src.shape[1]]
        if self.projection is None:
            return words(src) + positions + segments(seg)
        return projected_sum(src, seg, words.weight, positions, segments.weight, self.projection)


def _table(rows: int, width: int) -> nn.Embedding:
    """An empty table: weights always come from somewhere, and torch takes seconds to draw the first ones for `meta`."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
