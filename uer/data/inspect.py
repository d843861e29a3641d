"""Look into dataset files: `python3 -m uer.data.inspect dataset.pt --vocab_path vocab.txt`.

Prints the header, the counts, a histogram of instance lengths, and instances as text (with --vocab_path).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

import numpy as np

from uer.data.options import add_tokenizer_options
from uer.errors import run_script

if TYPE_CHECKING:
    from uer.data.dataset import Dataset
    from uer.tokenizers import Tokenizer

BINS = 16
BAR = 40  # characters of the longest bar
BLOCK = 1 << 20


def histogram(dataset: Dataset) -> list[str]:
    """A line for each of up to 16 ranges of lengths: the range in tokens, instances, a bar."""
    width = -(-dataset.header["seq_length"] // BINS)
    counts = np.zeros(BINS, dtype=np.int64)
    for start in range(0, len(dataset), BLOCK):
        lengths = dataset.lengths(np.arange(start, min(start + BLOCK, len(dataset))))
        counts += np.bincount((lengths - 1) // width, minlength=BINS)
    return [f"{i * width + 1:6}-{min((i + 1) * width, dataset.header['seq_length']):<6}{count:12,} "
            + "#" * round(BAR * count / counts.max())
            for i, count in enumerate(counts.tolist()) if i * width < dataset.header["seq_length"]]


def instance_text(dataset: Dataset, index: int, tokenizer: Tokenizer | None) -> str:
    """One instance, decoded or as ids; with static masking also what its first masks show."""
    tokens = dataset.instances(np.array([index])).values["tokens"].tolist()
    text = tokenizer.decode(tokens) if tokenizer else " ".join(map(str, tokens))
    if not dataset.dynamic:
        masks = dataset.masks(np.array([index])).values
        shown = [f"{position}: {tokenizer.vocab.tokens[token] if tokenizer else token}"
                 for position, token in zip(masks["mask_positions"].tolist(), masks["mask_tokens"].tolist())]
        text += "\n      masked: " + ", ".join(shown)
    return text


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(prog="python3 -m uer.data.inspect", description="Look into dataset files.")
    out.add_argument("dataset_path", nargs="+", metavar="FILE", help="dataset files or globs, read as one")
    out.add_argument("--instances", type=int, default=10, metavar="N", help="how many to print (default: 10)")
    add_tokenizer_options(out)
    return out


def main() -> None:
    args = parser().parse_args()

    from uer.data.dataset import Dataset
    from uer.data.header import summary
    from uer.tokenizers import build_tokenizer

    dataset = Dataset.open(args.dataset_path)
    tokenizer = None
    if args.vocab_path or args.spm_model_path:
        tokenizer = build_tokenizer(args, dataset.rules)
    lines = [str(path) for path in dataset.paths]
    lines += [f"  {key}: {json.dumps(value)}" for key, value in dataset.header.items()]
    lines += ["", summary(dataset.header), "", "length (tokens)  instances", *histogram(dataset), ""]
    numbers = np.unique(np.linspace(0, len(dataset) - 1, max(0, args.instances)).astype(np.int64))
    lines += [f"{number:>8}: {instance_text(dataset, number, tokenizer)}" for number in numbers.tolist()]
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    run_script(main)
