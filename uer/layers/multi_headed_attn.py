"""Multi-headed self-attention."""

from __future__ import annotations

import torch
from torch import nn

from uer.layers.attention import attention
from uer.products import Linear


class MultiHeadedAttention(nn.Module):
    """softmax(q kᵀ / sqrt(head_size)) v, then a linear.

    The heads together may be wider or narrower than `hidden_size`, as happens while dimensions leave one group earlier
    than another.
    """

    def __init__(self, hidden_size: int, heads_num: int, head_size: int, dropout: float):
        super().__init__()
        self.heads_num = heads_num
        self.head_size = head_size
        self.dropout = dropout
        inner = heads_num * head_size
        self.linear_layers = nn.ModuleList([Linear(hidden_size, inner) for _ in range(3)])  # query, key, value
        self.final_linear = Linear(inner, hidden_size)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """hidden [batch, seq, hidden] -> the same; mask bool [batch, 1, 1, seq], True = attend, None = to all."""
        return self.final_linear(self.context(hidden, mask))

    def linears(self) -> list[Linear]:
        """Query, key and value."""
        return list(self.linear_layers)  # type: ignore[arg-type]

    def context(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The heads' outputs side by side, before the last linear: [batch, seq, heads * head_size]."""
        batch, seq, _ = hidden.shape
        query, key, value = (
            linear(hidden).view(batch, seq, self.heads_num, self.head_size).transpose(1, 2)  # [batch, heads, seq, size]
            for linear in self.linears()
        )
        dropout = self.dropout if self.training else 0.0
        context = attention(query, key, value, mask, dropout)
        return context.transpose(1, 2).reshape(batch, seq, self.heads_num * self.head_size)
