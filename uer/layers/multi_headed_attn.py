"""Multi-headed self-attention, of all positions or of those that are wanted."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.products import Linear
from uer.layers.attention import attention


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

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None,
                positions: torch.Tensor | None = None) -> torch.Tensor:
        """What every position, or each of those wanted, takes from the others.

        Args:
            hidden: float [batch, seq, hidden]
            mask: bool [batch, 1, 1, seq], True = attend; None = to all.
            positions: those wanted, flat indices (row * seq + column), int [n]; None = all.
        Returns:
            [batch, seq, hidden], or [n, hidden]
        """
        return self.final_linear(self.context(hidden, mask, positions))

    def linears(self) -> list[Linear]:
        """Query, key and value."""
        return list(self.linear_layers)  # type: ignore[arg-type]

    def context(self, hidden: torch.Tensor, mask: torch.Tensor | None,
                positions: torch.Tensor | None = None) -> torch.Tensor:
        """The heads' outputs side by side, before the last linear; arguments and rows of the result as for `forward`.

        On a CPU only the queries wanted are computed. Elsewhere, where the host would have to wait for how many an
        instance has, and in a compiled graph all are, and the wanted ones taken out of the context.
        """
        to_query, to_key, to_value = self.linears()
        key, value = self._heads(to_key(hidden)), self._heads(to_value(hidden))
        dropout = self.dropout if self.training else 0.0
        if positions is None or hidden.device.type != "cpu" or torch.compiler.is_compiling():
            context = self._side_by_side(attention(self._heads(to_query(hidden)), key, value, mask, dropout))
            return context if positions is None else context.flatten(0, 1).index_select(0, positions)
        places, most = places_of(positions, *hidden.shape[:2])
        query = to_query(hidden.flatten(0, 1).index_select(0, positions))  # [n, heads * size]
        query = query.new_zeros(len(hidden) * most, query.shape[1]).index_copy(0, places, query)
        context = attention(self._heads(query.view(len(hidden), most, -1)), key, value, mask, dropout)
        return self._side_by_side(context).flatten(0, 1).index_select(0, places)

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, seq, heads * size] -> [batch, heads, seq, size]"""
        return x.unflatten(-1, (self.heads_num, self.head_size)).transpose(1, 2)

    def _side_by_side(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse of `_heads`."""
        return x.transpose(1, 2).flatten(2)


def places_of(positions: torch.Tensor, batch: int, seq: int) -> tuple[torch.Tensor, int]:
    """Where positions go if every instance has room for as many as the one with most of them.

    Args:
        positions: flat indices (row * seq + column) in any order, int64 [n], on the CPU.
    Returns:
        flat indices (row * most + 0, 1, …), int64 [n], and most, at least 1.
    """
    rows = positions // seq
    counts = rows.bincount(minlength=batch)
    ordered, order = rows.sort(stable=True)
    within = torch.empty_like(rows)
    within[order] = torch.arange(len(rows)) - (counts.cumsum(0) - counts)[ordered]
    most = max(1, int(counts.max()))
    return rows * most + within, most
