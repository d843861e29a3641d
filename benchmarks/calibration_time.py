#!/usr/bin/env python3
"""Seconds and peak memory of calibrating a BERT-base (12 × 768, 30,522 words, random weights) on 64 sequences of 128.

    python3 benchmarks/calibration_time.py [--target_dim 384] [--layers_num 12] [--threads 2]
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from uer.calibration.student import calibrate
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.models.bert import from_scratch
from uer.squeeze.groups import build_groups


def random_batches(vocab: int, count: int = 4, rows: int = 16, width: int = 128) -> list[MlmBatch]:
    """Batches of random tokens without padding."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(count):
        src = torch.randint(5, vocab, (rows, width), generator=generator)
        positions = torch.arange(0, rows * width, 7)
        made.append(MlmBatch(src, torch.ones_like(src), positions, src.flatten()[positions], rows * width))
    return made


def main() -> None:
    """Calibrate once and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target_dim", type=int, default=384)
    parser.add_argument("--layers_num", type=int, default=12)
    parser.add_argument("--compactor_mask_strategy", choices=("dim", "head"), default="dim")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    config = ModelConfig(768, args.layers_num, 12, 3072, dropout=0.0)
    teacher = {name: tensor.detach() for name, tensor in from_scratch(config, 30522, 0).state_dict().items()}
    groups = build_groups(config, args.target_dim, args.compactor_mask_strategy)
    begun = time.perf_counter()

    def progress(part: str) -> None:
        print(f"{time.perf_counter() - begun:7.1f} s  {part}", flush=True)

    calibration = calibrate(config, teacher, groups, random_batches(30522), progress)
    seconds = time.perf_counter() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{args.layers_num} × 768 to {args.target_dim} ({args.compactor_mask_strategy}), {calibration.tokens:,} "
          f"tokens, {args.threads} threads, torch {torch.__version__}: {seconds:.0f} s, peak memory {peak:.1f} GiB")


if __name__ == "__main__":
    main()
