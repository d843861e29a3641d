"""Numbers that are too small to be normal ones."""

from __future__ import annotations

import torch


def flush_denormals() -> None:
    """Let CPUs take what is too small for a normal number (in float32, below 1e-38) for 0.

    Adam's first moment of a word that comes in no batch shrinks to a tenth every 22 steps and has become that small
    after some 700. There it stays, as 0.9 of the smallest numbers is rounded up to them again, and x86 takes a hundred
    cycles and more for every operation on one: AdamW needs ten times as long for such rows (`benchmarks/denormals.py`).

    For this thread and those that it starts: call it before the first operation that torch gives to several threads.
    Where a CPU cannot do it, nothing happens.
    """
    torch.set_flush_denormal(True)
