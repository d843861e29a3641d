#!/usr/bin/env python3
"""Float32 products of `uer.cpu.products` against torch's on a CPU: alone, and in whole training steps.

Both take turns in one process; medians of the wall clock. On CPUs where `uer.cpu.products` keeps to torch's products,
only `--anyway` shows anything.

    python3 benchmarks/cpu_products.py
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from cpu_attention import both_passes, compare
from step_time import by_torch, machine, random_batch

from uer.config import ModelConfig
from uer.cpu import products
from uer.cpu.memory import keep_freed_memory
from uer.models.bert import Bert, initialise
from uer.sizes import BertSizes

# m, k, n: layers of a student and of a teacher and their gradients, composing, a block of logits
SHAPES = ((16384, 192, 192), (192, 16384, 192), (4096, 768, 3072), (768, 4096, 3072), (192, 768, 768), (768, 3072, 768),
          (30522, 768, 192), (768, 30522, 192), (1229, 192, 1796))
WIDTHS = (192, 384, 768)  # of 2 layers with heads of 32
VOCABULARY, BATCH, SEQ = 30522, 32, 128


def alone(turns: int) -> None:
    """GFLOP/s of both, and how far apart the results are."""
    print(f"{'GFLOP/s: torch, here':20}" + "".join(f"{name:>26}" for name in ("a bᵀ", "a b", "aᵀ b")))
    for m, k, n in SHAPES:
        line, apart = f"{f'{m} x {k} x {n}':20}", 0.0
        for a, b in ((torch.randn(m, k), torch.randn(n, k).t()), (torch.randn(m, k), torch.randn(k, n)),
                     (torch.randn(k, m).t(), torch.randn(k, n))):
            found = compare({"torch": partial(torch.mm, a, b), "here": partial(products.mm, a, b)}, turns,
                            time.perf_counter)
            theirs, ours = (2e-6 * m * k * n / found[name] for name in ("torch", "here"))
            line += f"{theirs:10.0f} {ours:7.0f} ({ours / theirs:.1f}x)"
            exact = a.double() @ b.double()
            apart = max(apart, ((products.mm(a, b) - exact).norm() / exact.norm()).item())
        print(f"{line}   error at most {apart:.0e}", flush=True)


def steps(turns: int) -> None:
    """Forward and backward pass of a model with its loss."""
    batch = random_batch(argparse.Namespace(batch_size=BATCH, seq_length=SEQ, vocabulary=VOCABULARY))
    for width in WIDTHS:
        config = ModelConfig(width, 2, width // 32, 4 * width, 512, dropout=0.0)
        sizes = BertSizes.uniform(vocab=VOCABULARY, hidden=width, layers=2, heads=width // 32, feedforward=4 * width,
                                  positions=512)
        model = Bert(sizes, config).train()
        initialise(model, torch.Generator().manual_seed(1))
        run, half = (partial(both_passes, model, bf16, batch) for bf16 in (False, True))
        found = compare({"torch": by_torch(run), "here": run, "bfloat16": half}, turns, time.perf_counter)
        print(f"step of 2 x {width}, {BATCH} x {SEQ} tokens: torch {found['torch']:.0f} ms, here "
              f"{found['here']:.0f} ms ({found['torch'] / found['here']:.1f}x), bfloat16 "
              f"{found['bfloat16']:.0f} ms", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=7, help="timed turns of each way (default: 7)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="default: all cores")
    parser.add_argument("--anyway", action="store_true", help="convolutions on any CPU")
    args = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    print(machine())
    faster = args.anyway or products.convolutions_are_faster()
    with mock.patch.object(products, "convolutions_are_faster", lambda: faster):
        print("products as convolutions" if faster else "torch's products on this CPU: both sides are the same")
        alone(args.turns)
        steps(args.turns)


if __name__ == "__main__":
    main()
