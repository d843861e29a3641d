#!/usr/bin/env python3
"""Milliseconds of AdamW on a table of embeddings by the steps since its words were last seen, with and without
`uer.cpu.denormals`: two processes that take turns.

    python3 benchmarks/denormals.py                      # 30522 x 768
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from uer.cpu.denormals import flush_denormals
from uer.cpu.memory import keep_freed_memory
from uer.training.optimizers import AdamW

STEPS = (100, 200, 400, 600, 700, 800, 1000, 1500)  # since the words were seen
TIMED = 5  # steps up to each of them
GRADIENT = 1e-4  # of the last batch that had them


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--words", type=int, default=30522, help="default: 30522")
    parser.add_argument("--hidden_size", type=int, default=768, help="default: 768")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--way", choices=("kept", "flushed"), help="measure one way in this process")
    return parser.parse_args()


def measure(args: argparse.Namespace) -> None:
    """Print a median for each of `STEPS` as it is reached, whenever a line comes in."""
    if args.way == "flushed":
        flush_denormals()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    table = torch.nn.Parameter(torch.full((args.words, args.hidden_size), 0.02))
    optimizer = AdamW([{"params": [table], "lr": 1e-4, "weight_decay": 0.01}])
    optimizer.set_factor(1.0)
    table.grad = torch.full_like(table, GRADIENT)
    optimizer.step()
    table.grad.zero_()

    def timed_step() -> float:
        start = time.perf_counter()
        optimizer.step()
        return time.perf_counter() - start

    for before, steps in itertools.pairwise((0, *STEPS)):
        input()
        seconds = [timed_step() for _ in range(steps - before)]
        print(1e3 * statistics.median(seconds[-TIMED:]), flush=True)


def main() -> None:
    args = parse_args()
    if args.way:
        measure(args)
        return
    print(f"AdamW, {args.words} x {args.hidden_size}, {args.threads} threads: ms per step\n"
          f"{'steps since seen':>16} {'kept':>8} {'flushed':>8}")
    processes = [subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--way", way], text=True,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE) for way in ("kept", "flushed")]
    for steps in STEPS:
        found = []
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
            found.append(float(process.stdout.readline()))
        print(f"{steps:16,} {found[0]:8.1f} {found[1]:8.1f}", flush=True)
    for process in processes:
        process.communicate()


if __name__ == "__main__":
    main()
