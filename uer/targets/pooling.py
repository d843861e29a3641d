"""One vector of a text from the states of its tokens, and how alike such vectors are."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def position_of(seg: torch.Tensor, pooling: str) -> torch.Tensor | None:
    """Flat index (row * seq + column) of the one token that a pooling takes of each instance, int64 [batch]; None where
    it takes all real tokens."""
    if pooling in ("mean", "max"):
        return None
    starts = torch.arange(seg.shape[0], device=seg.device) * seg.shape[1]  # len() would fix the batch in an export
    return starts + (seg > 0).sum(1) - 1 if pooling == "last" else starts


def pool(hidden: torch.Tensor, seg: torch.Tensor, pooling: str) -> torch.Tensor:
    """Mean or max, [batch, seq, hidden] -> [batch, hidden], over real tokens (seg > 0)."""
    real = (seg > 0).unsqueeze(-1)
    if pooling == "mean":
        return (hidden * real).sum(1) / real.sum(1)
    return hidden.masked_fill(~real, float("-inf")).amax(1)


def pooled(hidden: torch.Tensor, seg: torch.Tensor, pooling: str) -> torch.Tensor:
    """One vector of each text, [batch, seq, hidden] -> [batch, hidden], however it is pooled."""
    positions = position_of(seg, pooling)
    return pool(hidden, seg, pooling) if positions is None else hidden.flatten(0, 1)[positions]


def cosines(rows: torch.Tensor, others: torch.Tensor | None = None) -> torch.Tensor:
    """Cosines of all pairs, [n, width] and [m, width] -> [n, m]; `others` are by default the rows themselves.
    In their own dtype under autocast, too: what is compared differs by less than half a number tells."""
    with torch.autocast(rows.device.type, enabled=False):
        rows = F.normalize(rows, dim=1)
        return rows @ (rows if others is None else F.normalize(others, dim=1)).T
