#!/usr/bin/env python3
"""A classification task from what every installation already has: which package does a docstring come from?

Writes UER's TSV (label, text_a): a paragraph of a docstring, and `stdlib`, `torch` or `numpy`; as many of each. Modules
whose paragraphs are in the dev file have none in the training file. Then, for instance,

    finetune/run_classifier.py --train_path train.tsv --dev_path dev.tsv --pretrained_model_path student.bin ...
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.harvest import (
    LONG,
    STANDARD_LIBRARY,
    Document,
    add_processes,
    held_out,
    modules,
    paragraphs,
    read_modules,
)
from uer.errors import UserError, run_script

HELD_OUT = 6  # one module in so many is for the dev file


def examples(texts: Iterable[Document]) -> Iterator[tuple[bool, str]]:
    """(whether it is for the dev file, paragraph), each paragraph once, in an order that its text alone decides."""
    found = {paragraph: held_out(name, HELD_OUT) for name, strings in texts for text in strings
             for paragraph in paragraphs(text) if len(paragraph) >= LONG and "\t" not in paragraph}
    for paragraph in sorted(found, key=lambda text: zlib.crc32(text.encode("utf-8", "replace"))):
        yield found[paragraph], paragraph.encode("utf-8", "replace").decode("utf-8").replace("\0", "")


def task(packages: list[str], train: int, dev: int, processes: int = 1) -> tuple[list[str], list[str]]:
    """The lines of both files, classes in turn.

    Args:
        train, dev: examples of each package.
        processes: that read modules.
    Raises:
        UserError: a package that has fewer, or is not installed.
    """
    lines: tuple[list[list[str]], list[list[str]]] = ([], [])
    for package in packages:
        kinds: tuple[list[str], list[str]] = ([], [])
        for for_dev, text in examples(read_modules(modules(package), processes)):
            kinds[for_dev].append(f"{package}\t{text}\n")
        if len(kinds[0]) < train or len(kinds[1]) < dev:
            raise UserError(f"{package}: {len(kinds[0])} and {len(kinds[1])} paragraphs in its docstrings, {train} and "
                            f"{dev} are wanted; lower --train_examples or --dev_examples")
        lines[0].append(kinds[0][:train])
        lines[1].append(kinds[1][:dev])
    train_lines, dev_lines = ([line for turn in zip(*columns) for line in turn] for columns in lines)
    return train_lines, dev_lines


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--train_path", required=True, type=Path, metavar="FILE", help="TSV to write")
    out.add_argument("--dev_path", required=True, type=Path, metavar="FILE", help="TSV to write")
    out.add_argument("--packages", nargs="+", default=[STANDARD_LIBRARY, "torch", "numpy"], metavar="NAME",
                     help="installed packages (default: stdlib torch numpy)")
    out.add_argument("--train_examples", type=int, default=1000, metavar="N", help="a package (default: 1000)")
    out.add_argument("--dev_examples", type=int, default=200, metavar="N", help="a package (default: 200)")
    add_processes(out)
    return out


def main() -> None:
    """Parse, read, write."""
    args = parser().parse_args()
    if len(set(args.packages)) < max(2, len(args.packages)):
        raise UserError("--packages: two or more different packages are needed to tell apart")
    if min(args.train_examples, args.dev_examples) < 1:
        raise UserError("--train_examples and --dev_examples are at least 1")
    found = task(args.packages, args.train_examples, args.dev_examples, args.processes_num)
    from uer.formats.storage import PendingFiles

    with PendingFiles() as pending:
        for path, lines in zip((args.train_path, args.dev_path), found):
            pending.add(path).write_text("label\ttext_a\n" + "".join(lines), encoding="utf-8")
        pending.publish()
    for path, lines in zip((args.train_path, args.dev_path), found):
        print(f"{path}: {len(lines):,} examples of {', '.join(args.packages)}")


if __name__ == "__main__":
    run_script(main)
