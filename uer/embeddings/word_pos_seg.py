"""Word, position and segment embedding, summed and normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from uer.cpu.products import linear
from uer.layers.dropout import Dropout
from uer.layers.layer_norm import LayerNorm
from uer.sizes import BertSizes


class WordPosSegEmbedding(nn.Module):
    """LN(word[src] + position[0..seq) + segment[seg]).

    `projection` [hidden, width], when set, is applied to the gathered rows: tables of another width then serve without
    being multiplied out (cheaper while a batch has fewer tokens than the vocabulary has rows). On a CPU every row that
    a batch needs is projected once: of 128 x 128 tokens of English a quarter are distinct. Not so on a GPU, where the
    host would have to wait for their number, nor in a compiled graph.
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
        positions, segments = self.position_embedding.weight[: src.shape[1]], self.segment_embedding
        if self.projection is None or src.is_cuda or torch.compiler.is_compiling():
            rows = self.word_embedding(src) + positions + segments(seg)
            return rows if self.projection is None else linear(rows, self.projection)
        tokens, places = src.unique(return_inverse=True)
        rows = torch.cat([self.word_embedding(tokens), positions, segments.weight])
        projected = linear(rows, self.projection).to(rows.dtype)  # three addends: no sum of rounded sums
        word, position, segment = projected.split([len(tokens), len(positions), len(segments.weight)])
        return F.embedding(places, word) + position + F.embedding(seg, segment)


def _table(rows: int, width: int) -> nn.Embedding:
    """An empty table: weights always come from somewhere, and torch takes seconds to draw the first ones for `meta`."""
    return nn.Embedding.from_pretrained(torch.zeros(rows, width), freeze=False)
