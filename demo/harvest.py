#!/usr/bin/env python3
"""English text that every installation already has: the docstrings of Python packages, as corpus and held-out text.

A document is a module: its docstrings in the order of the source, a paragraph a line; a blank line ends it. Text that
occurred before (a docstring, or a paragraph of some length) is left out wherever it comes again, so that nothing of the
held-out documents is in the corpus.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import os
import sys
import sysconfig
import tempfile
import warnings
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.errors import UserError, run_script

STANDARD_LIBRARY = "stdlib"
LONG = 40  # characters from which a paragraph counts as one of its own, to be had once only
Document = tuple[str, list[str]]  # name and docstrings


class Harvest(NamedTuple):
    """What was written: documents and characters of the corpus and of the held-out text."""

    documents: int
    characters: int
    held_out_documents: int
    held_out_characters: int


def docstrings(source: bytes) -> list[str]:
    """The docstrings of a module, its classes and functions, top to bottom; none where it is no valid Python."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError):
            return []
    return list(_docstrings(tree))


def _docstrings(node: ast.AST) -> Iterator[str]:
    """Looks at statements only: that is several times faster than a walk over every expression."""
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        text = ast.get_docstring(node)
        if text:
            yield text
    for part in ("body", "orelse", "handlers", "finalbody"):
        below = getattr(node, part, None)
        if isinstance(below, list):
            for child in below:
                yield from _docstrings(child)


def paragraphs(docstring: str) -> Iterator[str]:
    """Paragraphs, each in one line of single spaces; those without a word are dropped."""
    lines: list[str] = []
    for line in [*docstring.splitlines(), ""]:
        if line.strip():
            lines.append(line)
        elif lines:
            text = " ".join(" ".join(lines).split())
            if any(c.isalpha() for c in text):
                yield text
            lines = []


def package_folder(name: str) -> Path:
    """Where the sources of a package are.

    Raises:
        UserError: it is not installed.
    """
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"--packages: {name} is not an installed package; install it or leave it out")
    return Path(next(iter(spec.submodule_search_locations)))


def modules(package: str) -> Iterator[tuple[str, Path]]:
    """(name, file) of every module of a package, in the order of the names."""
    folder = package_folder(package)
    found = []
    for file in folder.rglob("*.py"):
        parts = file.relative_to(folder).parts
        if not {"site-packages", "dist-packages", "__pycache__"} & set(parts):
            found.append(("/".join((package, *parts)), file))
    return iter(sorted(found))


def topics() -> list[Document]:
    """The chapters of Python's reference that `help()` shows."""
    try:
        from pydoc_data.topics import topics as texts
    except ImportError:  # some distributions leave it out
        return []
    return [(f"topics/{name}", [text]) for name, text in sorted(texts.items())]


def read_module(module: tuple[str, Path]) -> Document:
    """A module, (name, file), as a document."""
    return module[0], docstrings(module[1].read_bytes())


def read_modules(found: Iterable[tuple[str, Path]], processes: int = 1) -> Iterator[Document]:
    """Modules as documents, in their order."""
    found = list(found)
    if processes > 1 and len(found) > 500:
        with ProcessPoolExecutor(processes) as pool:
            yield from pool.map(read_module, found, chunksize=50)
    else:
        yield from map(read_module, found)


def documents(packages: Iterable[str], processes: int = 1) -> Iterator[Document]:
    """All documents: package by package, then the topics."""
    yield from read_modules((module for package in packages for module in modules(package)), processes)
    yield from topics()


def without_repeats(texts: Iterable[Document]) -> Iterator[tuple[str, list[str]]]:
    """(name, paragraphs) of each document that has anything new in it."""
    seen: set[str] = set()
    for name, strings in texts:
        fresh: list[str] = []
        for text in strings:
            if text in seen:
                continue
            seen.add(text)
            for paragraph in paragraphs(text):
                if len(paragraph) < LONG or paragraph not in seen:
                    seen.add(paragraph)
                    fresh.append(paragraph)
        if fresh:
            yield name, fresh


def held_out(name: str, one_in: int) -> bool:
    """Whether a document is kept for evaluation; hangs on its name alone."""
    return zlib.crc32(name.encode()) % one_in == 0


def harvest(corpus: Path, dev: Path, packages: Iterable[str], one_in: int, processes: int = 1) -> Harvest:
    """Write both files; each appears whole or not at all."""
    count = [0, 0, 0, 0]
    files = []
    try:
        for path in (corpus, dev):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.append(tempfile.NamedTemporaryFile(  # noqa: SIM115
                "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False))
        for name, lines in without_repeats(documents(packages, processes)):
            which = int(held_out(name, one_in))
            text = "\n".join(lines) + "\n\n"
            files[which].write(text.encode("utf-8", "replace").decode("utf-8"))
            count[2 * which] += 1
            count[2 * which + 1] += len(text)
        for file, path in zip(files, (corpus, dev)):
            file.close()
            os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"{error.filename or corpus}: cannot be written ({error.strerror})") from None
    finally:
        for file in files:
            file.close()
            Path(file.name).unlink(missing_ok=True)
    return Harvest(*count)


def add_processes(parser: argparse.ArgumentParser) -> None:
    """How many read modules."""
    parser.add_argument("--processes_num", type=int, default=os.cpu_count() or 1, metavar="N",
                        help="worker processes (default: one a core)")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--corpus_path", required=True, type=Path, metavar="FILE", help="text to train on")
    out.add_argument("--dev_path", required=True, type=Path, metavar="FILE", help="text held out")
    out.add_argument("--packages", nargs="+", default=[STANDARD_LIBRARY, "torch", "numpy"], metavar="NAME",
                     help="installed packages (default: stdlib torch numpy)")
    out.add_argument("--held_out", type=int, default=40, metavar="N", help="hold out one document in N (default: 40)")
    add_processes(out)
    return out


def main() -> None:
    """Parse, harvest, say what there is."""
    args = parser().parse_args()
    if args.held_out < 2:
        raise UserError(f"--held_out is {args.held_out}, at least 2 is needed")
    if args.corpus_path.absolute() == args.dev_path.absolute():
        raise UserError(f"--corpus_path and --dev_path are the same file, {args.dev_path}; give two")
    found = harvest(args.corpus_path, args.dev_path, args.packages, args.held_out, args.processes_num)
    for path, count, size in ((args.corpus_path, found.documents, found.characters),
                              (args.dev_path, found.held_out_documents, found.held_out_characters)):
        print(f"{path}: {count:,} documents, {size / 1e6:.2f} M characters")


if __name__ == "__main__":
    run_script(main)
