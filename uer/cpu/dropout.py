"""Dropout with a generator of its own on CPUs, where torch draws one number after the other, the costliest part of it.

Sixteen random bits decide on an entry, so that rates are rounded to 1/65536; what is kept is divided by the share that
is kept, as usual. Each call takes its seed from torch's generator: `torch.manual_seed` makes it repeatable.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

BITS = 16


def new_seed() -> int:
    """A seed from torch's generator."""
    return int(torch.randint(1 << 62, ()).item())


class Keep:
    """Random masks, one after the other; a second one with the same seed gives the same ones."""

    def __init__(self, rate: float, seed: int):
        dropped = min(round(rate * (1 << BITS)), (1 << BITS) - 1)
        self.bits = np.random.SFC64(seed)
        self.first = dropped - (1 << (BITS - 1))  # the smallest signed number that keeps an entry
        self.scale = (1 << BITS) / ((1 << BITS) - dropped)

    def mask(self, shape: torch.Size) -> torch.Tensor:
        """uint8 of this shape, 1 = kept: torch compares and multiplies with bytes three times as fast as with bool."""
        drawn = self.bits.random_raw(-(-shape.numel() * BITS // 64)).view(np.int16)[: shape.numel()]
        return torch.ge(torch.from_numpy(drawn).view(shape), self.first, out=torch.empty(shape, dtype=torch.uint8))


class Dropout(nn.Module):
    """In training, entries become 0 with probability `rate`, the others are scaled up."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training or not self.rate:
            return x
        if x.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(x, self.rate)
        return _Dropout.apply(x, self.rate)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, rate: float) -> torch.Tensor:
        keep = Keep(rate, new_seed())
        mask, ctx.scale = keep.mask(x.shape), keep.scale
        ctx.save_for_backward(mask)
        return (x * mask).mul_(keep.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None
