"""One layer of the BERT encoder (post-LayerNorm)."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.dropout import Dropout
from uer.cpu.padding import RealTokens
from uer.layers.layer_norm import LayerNorm
from uer.layers.multi_headed_attn import MultiHeadedAttention
from uer.layers.position_ffn import PositionwiseFeedForward
from uer.sizes import BertSizes, LayerSizes


class TransformerLayer(nn.Module):
    """hidden -> LN(hidden + attention(hidden)) -> LN(. + ffn(.))"""

    def __init__(self, sizes: BertSizes, layer: LayerSizes, *, hidden_act: str, dropout: float, layernorm: str,
                 layernorm_eps: float):
        super().__init__()
        self.self_attn = MultiHeadedAttention(sizes.hidden, layer.heads, layer.head_size, dropout)
        self.dropout_1 = Dropout(dropout)
        self.layer_norm_1 = LayerNorm(sizes.hidden, layernorm, layernorm_eps)
        self.feed_forward = PositionwiseFeedForward(sizes.hidden, layer.feedforward, hidden_act)
        self.dropout_2 = Dropout(dropout)
        self.layer_norm_2 = LayerNorm(sizes.hidden, layernorm, layernorm_eps)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None,
                real: RealTokens | None = None) -> torch.Tensor:
        """hidden [batch, seq, hidden] or packed [n, hidden], the rest as in `MultiHeadedAttention` -> rows as it has
        them, or [n, hidden] of these positions"""
        attended = self.self_attn(hidden, mask, positions, real)
        if positions is not None:
            rows = positions if real is None or real.wanted is None else real.wanted
            hidden = hidden.flatten(0, -2).index_select(0, rows)
        hidden = self.layer_norm_1(hidden + self.dropout_1(attended))
        return self.layer_norm_2(hidden + self.dropout_2(self.feed_forward(hidden)))
