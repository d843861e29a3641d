"""Queries of some positions only, where finding out how many an instance has makes nobody wait."""

from __future__ import annotations

from collections.abc import Callable

import torch

from uer.cpu.padding import RealTokens


def queries_of(to_query: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, positions: torch.Tensor | None,
               real: RealTokens | None = None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Queries among which are those of the positions wanted.

    On a CPU only these are computed. Elsewhere, where the host would have to wait for how many an instance has, and in
    a compiled graph, all are.

    Args:
        to_query: float [..., hidden] -> [..., width]
        hidden: float [batch, seq, hidden], or packed [n, hidden]
        positions: flat indices (row * seq + column), int [n]; None = all.
        real: where packed rows are, and these positions among them.
    Returns:
        [batch, some, width], and where those wanted are, flat indices (row * some + column), int [n]; None = all.
    """
    if real is not None and positions is None:
        return real.unpack(to_query(hidden)), None
    if real is not None and real.wanted is not None and positions is not None:
        return _side_by_side(to_query(hidden.index_select(0, real.wanted)), positions, real.batch, real.seq)
    if positions is None or hidden.device.type != "cpu" or torch.compiler.is_compiling():
        return to_query(hidden), positions
    return _side_by_side(to_query(hidden.flatten(0, 1).index_select(0, positions)), positions, *hidden.shape[:2])


def _side_by_side(query: torch.Tensor, positions: torch.Tensor, batch: int,
                  seq: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries [n, width] by instance, as `queries_of` returns them."""
    places, most = places_of(positions, batch, seq)
    query = query.new_zeros(batch * most, query.shape[1]).index_copy(0, places, query)
    return query.view(batch, most, -1), places


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
