#!/usr/bin/env python3
"""Attention and dropout of `uer.layers` against torch's on a CPU: kernels alone, and whole training steps.

Both take turns in one process; medians of the CPU clock of one thread.

    python3 benchmarks/cpu_attention.py
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from step_time import machine
from torch import nn

from uer.config import ModelConfig
from uer.cpu.attention import attention
from uer.cpu.dropout import Dropout
from uer.cpu.memory import keep_freed_memory
from uer.layers import multi_headed_attn
from uer.models.bert import Bert, initialise
from uer.sizes import BertSizes

SHAPES = ((16, 12, 128, 16), (16, 12, 128, 32), (16, 12, 128, 64), (4, 12, 512, 64))  # batch, heads, seq, head size
WIDTHS = (192, 384)  # of 6 layers with 12 heads
VOCABULARY, BATCH, SEQ = 30522, 16, 128


def torchs(query, key, value, mask, dropout: float = 0.0) -> torch.Tensor:
    """As `attention`."""
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


def compare(ways: dict[str, Callable[[], object]], turns: int,
            clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Milliseconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(turns + 1):
        for name, run in ways.items():
            begun = clock()
            run()
            if turn:
                times[name].append(1000 * (clock() - begun))
    return {name: statistics.median(values) for name, values in times.items()}


def line(what: str, found: dict[str, float]) -> None:
    theirs, ours = found["torch"], found["here"]
    print(f"{what:52} torch {theirs:7.1f} ms   here {ours:7.1f} ms   {theirs / ours:4.1f}x", flush=True)


def backward(way: Callable, arguments: tuple, gradient: torch.Tensor) -> None:
    """Both passes of attention."""
    way(*arguments).backward(gradient)


def kernels(turns: int) -> None:
    """Forward and backward pass of attention."""
    for shape in SHAPES:
        batch, heads, seq, size = shape
        padding = (torch.arange(seq) < torch.arange(seq - batch, seq)[:, None])[:, None, None, :]
        for dtype, dropout, mask in ((torch.bfloat16, 0.0, None), (torch.bfloat16, 0.1, None),
                                     (torch.float32, 0.1, None), (torch.float32, 0.1, padding)):
            query, key, value = (torch.randn(batch, seq, heads, size, dtype=dtype).transpose(1, 2).requires_grad_()
                                 for _ in range(3))
            gradient = torch.randn_like(query)
            arguments = (query, key, value, mask, dropout)
            found = compare({"torch": partial(backward, torchs, arguments, gradient),
                             "here": partial(backward, attention, arguments, gradient)}, turns)
            line(f"attention {' x '.join(map(str, shape))}, {str(dtype)[6:]}, dropout {dropout}"
                 + ("" if mask is None else ", padded"), found)


def with_torchs_dropout(module: nn.Module) -> nn.Module:
    """The same module with every dropout replaced."""
    for name, child in module.named_children():
        if isinstance(child, Dropout):
            setattr(module, name, nn.Dropout(child.rate))
        else:
            with_torchs_dropout(child)
    return module


def step(model: Bert, way: Callable, bf16: bool, batch: tuple) -> None:
    """Both passes of a model with this attention."""
    multi_headed_attn.attention = way
    both_passes(model, bf16, batch)


def both_passes(model: Bert, bf16: bool, batch: tuple) -> None:
    """A step without its update."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = model.loss(*batch, padded=False)
    loss.backward()
    model.zero_grad()


def steps(turns: int) -> None:
    """Forward and backward pass of a model with its loss."""
    generator = torch.Generator().manual_seed(1)
    src = torch.randint(5, VOCABULARY, (BATCH, SEQ), generator=generator)
    positions = torch.randperm(src.numel(), generator=generator)[: src.numel() * 15 // 100].sort().values
    labels, seg = src.flatten()[positions], torch.ones_like(src)
    for width in WIDTHS:
        for bf16, dropout in ((True, 0.0), (True, 0.1), (False, 0.1)):
            config = ModelConfig(width, 6, 12, 4 * width, 512, dropout=dropout)
            sizes = BertSizes.uniform(vocab=VOCABULARY, hidden=width, layers=6, heads=12, feedforward=4 * width,
                                      positions=512)
            ours, theirs = (Bert(sizes, config).train() for _ in range(2))
            initialise(ours, generator)
            with_torchs_dropout(theirs).load_state_dict(ours.state_dict())

            batch = (src, seg, positions, labels)
            found = compare({"torch": partial(step, theirs, torchs, bf16, batch),
                             "here": partial(step, ours, attention, bf16, batch)}, turns)
            line(f"step of 6 x {width}, {'bfloat16' if bf16 else 'float32'}, dropout {dropout}", found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=9, help="timed turns of each way (default: 9)")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    print(machine())
    kernels(args.turns)
    steps(args.turns)


if __name__ == "__main__":
    main()
