#!/usr/bin/env python3
"""Passes of a classifier over padded texts, as they are and with padding left out (`uer.cpu.padding`), on a CPU.

Both take turns in one process; medians of the CPU clock of one thread. Lengths are even from 2 to the longest.

    python3 benchmarks/padding.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from cpu_attention import compare
from step_time import machine

from uer.config import ModelConfig
from uer.cpu import padding
from uer.models.bert import Bert, from_scratch

WIDTHS = ((384, 12), (192, 6), (96, 3))  # with heads of 32, 6 layers
SHAPES = ((64, 24), (32, 128))  # texts, tokens of the longest


def passes(model: Bert, src: torch.Tensor, seg: torch.Tensor, training: bool, worth: float) -> None:
    """Forward, and backward in training; padding is left out where less than `worth` is real."""
    with mock.patch.object(padding, "WORTH", worth), torch.set_grad_enabled(training):
        out = model(src, seg)
        if training:
            out.sum().backward()


def texts(count: int, most: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids and segments of which about this share is real."""
    lengths = torch.linspace(2 * share * most - most if share > 0.5 else 2, most, count).round().clamp(2, most)
    seg = (torch.arange(most) < lengths[:, None]).long()
    return torch.randint(5, 1000, (count, most)), seg


def main() -> None:
    """Print a line a shape."""
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    options.add_argument("--turns", type=int, default=7, metavar="N", help="(default: 7)")
    args = options.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for width, heads in WIDTHS:
        model = from_scratch(ModelConfig(width, 6, heads, 4 * width, 128, dropout=0.0, target="cls", pooling="mean",
                                         outputs=2), 1000, 1)
        for count, most in SHAPES:
            for share in (0.5, 0.75, 0.9):
                line(model, texts(count, most, share), args.turns)


def line(model: Bert, batch: tuple[torch.Tensor, torch.Tensor], turns: int) -> None:
    """Both passes, and the forward pass alone."""
    src, seg = batch
    told = f"6 x {model.config.hidden_size}, {len(src)} x {src.shape[1]}, {(seg > 0).float().mean():.0%} real"
    for training in (True, False):
        ways: dict[str, Callable[[], object]] = {name: partial(passes, model, src, seg, training, worth)
                                                 for name, worth in (("padded", 0.0), ("left out", 2.0))}
        found = compare(ways, turns)
        print(f"{told:32} {'training' if training else 'inference':9} padded {found['padded']:7.1f} ms   left out "
              f"{found['left out']:7.1f} ms   {found['padded'] / found['left out']:4.2f}x", flush=True)


if __name__ == "__main__":
    main()
