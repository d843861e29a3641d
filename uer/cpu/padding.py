"""Padding left out: on a CPU, layers work on the real tokens of a batch, one after another, and only attention sees
instances side by side."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

WORTH = 0.8  # share of tokens that are left, up to which it pays
TOGETHER = 32  # so many, or a multiple: products are prepared anew for every number of rows


class RealTokens(NamedTuple):
    """Where the real tokens of a padded batch are.

    Attributes:
        rows: flat indices (row * seq + column), int64 [n]; the last ones may be padding, see `TOGETHER`.
        batch, seq: the batch's shape.
        wanted: which of `rows` the positions asked for are, int64 [m]; None = nothing was asked for.
    """

    rows: torch.Tensor
    batch: int
    seq: int
    wanted: torch.Tensor | None = None

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, seq, width] -> [n, width]"""
        return _Pack.apply(x.flatten(0, 1), self.rows)

    def unpack(self, x: torch.Tensor) -> torch.Tensor:
        """[n, width] -> [batch, seq, width], 0 where nothing is."""
        return _Unpack.apply(x, self.rows, self.batch * self.seq).view(self.batch, self.seq, -1)


def real_tokens(seg: torch.Tensor, positions: torch.Tensor | None = None) -> RealTokens | None:
    """The real tokens of a batch whose padding is worth leaving out.

    Elsewhere than on a CPU, where the host would have to wait for their number, and in a compiled graph, none is.

    Args:
        seg: segment ids, int [batch, seq]; 0 is padding.
        positions: flat indices, int [n], of tokens that are wanted, whether they are real or not.
    """
    if seg.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    flat, wanted = seg.flatten() > 0, None
    if positions is not None:
        flat[positions] = True
    count = -(-int(flat.sum()) // TOGETHER) * TOGETHER
    if count > WORTH * len(flat):
        return None
    rows = flat.logical_not().to(torch.uint8).sort(stable=True).indices[:count]
    if positions is not None:
        wanted = torch.empty_like(flat, dtype=torch.long).index_copy_(0, rows, torch.arange(count))[positions]
    batch, seq = seg.shape
    return RealTokens(rows, batch, seq, wanted)


class _Pack(torch.autograd.Function):
    """Rows of a matrix, each taken once at most: torch's own gradient goes row by row."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(rows)
        ctx.count = len(x)
        return x.index_select(0, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        [rows] = ctx.saved_tensors
        return gradient.new_zeros(ctx.count, gradient.shape[1]).index_copy_(0, rows, gradient), None


class _Unpack(torch.autograd.Function):
    """The inverse of `_Pack`, 0 elsewhere."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
        ctx.save_for_backward(rows)
        return x.new_zeros(count, x.shape[1]).index_copy_(0, rows, x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        [rows] = ctx.saved_tensors
        return gradient.index_select(0, rows), None, None
