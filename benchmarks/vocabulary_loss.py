#!/usr/bin/env python3
"""The vocabulary's projection and loss of `uer.targets` against torch's linear layer and cross entropy, on a CPU.

Both take turns in one process and count right predictions; medians of the wall clock. In bfloat16 as well, but on CPUs
without units for it, where a turn would take half a minute.

    python3 benchmarks/vocabulary_loss.py
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from cpu_attention import compare, line
from step_time import machine

from uer.cpu.memory import keep_freed_memory
from uer.models.bert import mlm_loss
from uer.targets.vocabulary_loss import vocabulary_loss
from uer.training.precision import slowdown

VOCABULARY = 30522
BEARABLE = 5.0  # times as long as in float32
SHAPES = ((608, 192), (2432, 192), (608, 768))  # rows (19 of 128 positions in 32 or 128 instances), width


def torchs(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
           labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `vocabulary_loss`, all logits at once."""
    return mlm_loss(F.linear(features, weight, bias), labels)


def run(way, training: bool, bf16: bool, arguments: tuple[torch.Tensor, ...]) -> None:
    """The forward pass, in training the backward pass as well."""
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, _ = way(*arguments)
    if training:
        torch.autograd.grad(loss, arguments[:3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=15, help="timed turns of each way (default: 15)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    print(machine())
    formats = (False, True) if slowdown(torch.bfloat16, torch.device("cpu")) < BEARABLE else (False,)
    generator = torch.Generator().manual_seed(1)
    for rows, width in SHAPES:
        features = torch.randn(rows, width, generator=generator).requires_grad_()
        weight = torch.randn(VOCABULARY, width, generator=generator).mul_(0.02).requires_grad_()
        labels = torch.randint(VOCABULARY, (rows,), generator=generator)
        arguments = (features, weight, torch.zeros(VOCABULARY, requires_grad=True), labels)
        for training in (True, False):
            for bf16 in formats:
                found = compare({"torch": partial(run, torchs, training, bf16, arguments),
                                 "here": partial(run, vocabulary_loss, training, bf16, arguments)}, args.turns,
                                time.perf_counter)
                line(f"{'training' if training else 'evaluation'}, {rows} x {width}, "
                     f"{'bfloat16' if bf16 else 'float32'}", found)


if __name__ == "__main__":
    main()
