"""CoNLL's files, which taggers are trained on: a token a line with its tags, an empty line behind each sentence.

    EU      NNP  B-NP  B-ORG        columns with blanks or tabs between them, as many in every line; the last is a
    rejects VBZ  B-VP  O            chunk's tag. A model that reads text reads the sentences: tokens with blanks between
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from uer.data.columns import opened_lines
from uer.data.packed import MAGIC
from uer.errors import UserError
from uer.files import BYTE_ORDER_MARK, head_of

TAG = re.compile(r"O|[BIESLMU]-\S+")
LOOKED_AT = 2000  # lines, until what they are is clear
BLANKS = re.compile("[ \t]+")
DOCUMENT = "-DOCSTART-"  # stands where a document begins, as a token of its own


def is_conll(lines: Iterable[str]) -> bool:
    """Whether the first lines are tokens with tags, O among them and others."""
    width, seen = 0, set[bool]()
    for row in (_columns(line) for line in itertools.islice(lines, LOOKED_AT) if line.strip()):
        if row[0] != DOCUMENT:
            width = width or len(row)
            if not (len(row) == width and _tagged(row)):
                return False
            seen.add(row[-1] == "O")
    return len(seen) == 2


def _columns(line: str) -> list[str]:
    return BLANKS.split(line.strip())


def _tagged(row: list[str]) -> bool:
    """Whether columns are a token and its tags."""
    return len(row) > 1 and TAG.fullmatch(row[-1]) is not None


def is_conll_file(path: Path | None) -> bool:
    """Whether a file is one; what is wrong with others, who reads them tells."""
    if path is None or not path.is_file():
        return False
    head = head_of(path)
    first, ended, _ = head.decode("utf-8", "replace").removeprefix(BYTE_ORDER_MARK).lstrip().partition("\n")
    if ended and not head.startswith(tuple(MAGIC)) and not (
            _tagged(row := _columns(first)) or row[0] == DOCUMENT):
        return False  # most files, at the price of their first bytes
    try:
        with opened_lines(path, "text") as (_, lines):
            return is_conll(line for _, line in lines)
    except UserError:
        return False


def sentences(lines: Iterable[tuple[int, str]]) -> Iterator[str]:
    """The sentences of numbered lines; `ValueError` for a line with more or fewer columns than the first one."""
    tokens, width = list[str](), 0
    for number, line in lines:
        row = _columns(line) if line.strip() else []
        if row and row[0] != DOCUMENT:
            width = width or len(row)
            if len(row) != width:
                raise ValueError(f"line {number}: {len(row)} columns, the first token has {width}")
            tokens.append(row[0])
        elif tokens:
            yield " ".join(tokens)
            tokens = []
    if tokens:
        yield " ".join(tokens)


def conll_documents(path: Path) -> Iterator[tuple[str, int]]:
    """The sentences of a file, a document each, and how many of its bytes each used up. `UserError` as `sentences`."""
    with opened_lines(path, "text") as (raw, lines):
        before = 0
        try:
            for sentence in sentences(lines):
                now = raw.tell()
                yield f"{sentence}\n\n", now - before
                before = now
        except ValueError as error:
            raise UserError(f"{path}, {error}") from None
