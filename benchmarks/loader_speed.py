"""How fast masks and batches are made, and whether a trainer waits for them.

    python3 benchmarks/loader_speed.py [--dataset_path dataset.pt]

Masking alone in tokens a second on one core; batches of a dataset (a synthetic one without --dataset_path); and the
share of time that a loop of the given step length spends waiting for `MlmLoader.stream`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.data.masking import Masker, MaskingOptions, generator
from uer.data.options import preprocess_parser

VOCAB_SIZE, SPECIAL, MASK = 30522, [0, 100, 101, 102, 103], 103
MODES = {"plain": {}, "whole words": {"whole_word_masking": True}, "spans": {"span_masking": True}}


def masking_speed() -> None:
    """Tokens a second of each mode, in batches of 120 instances of up to 128 tokens."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(30, 129, 120)
    tokens = rng.integers(1000, VOCAB_SIZE, lengths.sum())
    ends = np.cumsum(lengths)
    tokens[ends - 1], tokens[ends - lengths] = 102, 101
    for name, mode in MODES.items():
        masker = Masker(
            MaskingOptions(**mode), vocab_size=VOCAB_SIZE, special_ids=SPECIAL, mask_id=MASK,
            continues=np.arange(VOCAB_SIZE) > 24_000,
        )  # fmt: skip
        start = time.process_time()
        for number in range(300):
            masker(tokens, lengths, generator(number))
        rate = 300 * len(tokens) / (time.process_time() - start)
        sys.stdout.write(f"masking, {name}: {rate / 1e6:.1f} M tokens/s\n")


def synthetic(folder: str) -> Dataset:
    """A dataset of 40,000 lines of random words."""
    rng = np.random.default_rng(1)
    words = [f"w{i}" for i in range(5000)]
    path = Path(folder)
    (path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]) + "\n")
    with open(path / "corpus.txt", "w") as file:
        for length in rng.integers(5, 120, 40_000):
            file.write(" ".join(f"w{i}" for i in rng.integers(0, 5000, length)) + "\n")
    arguments = ["--corpus_path", f"{folder}/corpus.txt", "--vocab_path", f"{folder}/vocab.txt", "--dynamic_masking"]
    build_dataset(preprocess_parser().parse_args([*arguments, "--dataset_path", f"{folder}/d.pt"]))
    return Dataset.open(f"{folder}/d.pt")


def waiting(loader: MlmLoader, step_seconds: float, steps: int = 150) -> float:
    """Seconds that a step waits for its batch, on average, when it computes for about `step_seconds`."""
    a = torch.randn(400, 400)
    stream = loader.stream()
    next(stream)
    waited = 0.0
    for _ in range(steps):
        end = time.perf_counter() + step_seconds
        while time.perf_counter() < end:
            a @ a
        start = time.perf_counter()
        next(stream)
        waited += time.perf_counter() - start
    stream.close()
    return waited / steps


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("--dataset_path", nargs="+")
    parser.add_argument("--batch_size", type=int, default=120)
    parser.add_argument("--step_ms", type=float, default=20.0, help="length of the trainer's step (default: 20)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    masking_speed()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset.open(args.dataset_path) if args.dataset_path else synthetic(folder)
        for grouped in (True, False):
            loader = MlmLoader(dataset, args.batch_size, seed=1, group_by_length=grouped)
            start, tokens, room = time.process_time(), 0, 0
            for index in range(300):
                batch = loader.batch(index)
                tokens, room = tokens + batch.tokens, room + batch.src.numel()
            seconds = time.process_time() - start
            sys.stdout.write(
                f"batches of {args.batch_size}, {'grouped' if grouped else 'mixed'} lengths: {seconds / 0.3:.2f} ms "
                f"each, {tokens / seconds / 1e6:.1f} M tokens/s, padding {1 - tokens / room:.1%}\n"
            )
        start = time.perf_counter()
        MlmLoader(dataset, args.batch_size, seed=1).batch(10**7)
        sys.stdout.write(f"first batch of a run resumed at batch 10^7: {1000 * (time.perf_counter() - start):.1f} ms\n")
        waited = waiting(MlmLoader(dataset, args.batch_size, seed=1), args.step_ms / 1000)
        sys.stdout.write(f"a step of {args.step_ms} ms waits {1000 * waited:.3f} ms for its batch\n")


if __name__ == "__main__":
    main()
