"""Multi-headed self-attention, of all positions or of those that are wanted."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.attention import attention
from uer.cpu.padding import RealTokens
from uer.cpu.products import Linear
from uer.cpu.queries import queries_of


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

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None,
                real: RealTokens | None = None) -> torch.Tensor:
        """What every position, or each of those wanted, takes from the others.

        Args:
            hidden: float [batch, seq, hidden], or packed [n, hidden]
            mask: bool [batch, 1, 1, seq], True = attend; None = to all.
            positions: those wanted, flat indices (row * seq + column), int [n]; None = all.
            real: where packed rows are.
        Returns:
            rows as `hidden` has them, or [n, hidden] of the positions wanted
        """
        return self.final_linear(self.context(hidden, mask, positions, real))

    def linears(self) -> list[Linear]:
        """Query, key and value."""
        return list(self.linear_layers)  # type: ignore[arg-type]

    def context(self, hidden: torch.Tensor, mask: torch.Tensor | None, positions: torch.Tensor | None = None,
                real: RealTokens | None = None) -> torch.Tensor:
        """The heads' outputs side by side, before the last linear; arguments and rows as for `forward`."""
        to_query, to_key, to_value = self.linears()
        key, value = to_key(hidden), to_value(hidden)
        if real is not None:
            key, value = real.unpack(key), real.unpack(value)
        key, value = self._heads(key), self._heads(value)
        query, places = queries_of(to_query, hidden, positions, real)
        context = attention(self._heads(query), key, value, mask, self.dropout if self.training else 0.0)
        context = context.transpose(1, 2).flatten(2)  # [batch, some, heads * size]
        if real is not None and positions is None:
            return real.pack(context)
        return context if places is None else context.flatten(0, 1).index_select(0, places)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, seq, heads * size] -> [batch, heads, seq, size]"""
        return x.unflatten(-1, (self.heads_num, self.head_size)).transpose(1, 2)
