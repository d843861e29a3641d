"""Tables with tabs between the fields and nothing quoted: what every reader of them refuses, in the same words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

INSIDE = re.compile(r'(?:[^"]|"")*')  # of a field as CSV quotes it
MANY = 10  # fields in quotes, where no other field of the column is without: that is no chance
AS_CSV = "quoted as in CSV; nothing is quoted here: write the fields as they are, without tabs and line ends in them"
HEADER_AGAIN = "the header once more; files that were put together keep one"


def names_of(header: str) -> list[str]:
    """The names of the columns in a header; `ValueError` for two alike."""
    names = [name.strip() for name in header.split("\t")]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"more than one column is called {twice!r}")
    return names


def wrong_width(found: int, columns: Mapping[str, int], width: int) -> str:
    """What is wrong with a row of `found` fields where `width` are needed; "": nothing. `columns`: name -> place."""
    absent = [name for name, place in columns.items() if place >= found]
    return "" if found == width else (f"column {absent[0]} is missing: " if absent else "") + (
        f"{found} field(s) there, {width} are needed, separated by tabs")


def is_quoted(rows: Iterable[list[str]], width: int) -> bool:
    """Whether all quotes in rows are as CSV has them, so that they are no characters: some field has a quote written
    twice or goes on behind a tab or line end, or all of a column are quoted.

    Where all rows have their `width` fields (more than one), none goes on: there are quotations of several rows.
    """
    told = begun = went_on = False
    apart = width > 1
    bare: set[int] = set()
    whole: Counter[int] = Counter()
    for fields in rows:
        apart = apart and len(fields) == width
        for index, field in enumerate(fields):
            if '"' not in field:
                if not begun:
                    bare.add(index)
                continue
            inner = field if begun else field[1:]
            ends = inner.endswith('"') and bool(INSIDE.fullmatch(inner[:-1]))
            if not (begun or field.startswith('"')) or not (ends or INSIDE.fullmatch(inner)):
                return False
            told = told or begun or (ends and '""' in inner[:-1])
            whole[index] += ends and not begun
            begun = not ends
            went_on = went_on or begun
    if begun or (went_on and apart):
        return False
    return told or any(count >= MANY and index not in bare for index, count in whole.items())


def first_quoted(lines: Iterable[tuple[int, str]], width: int) -> int | None:
    """The number of the first line with a quote, where `is_quoted` says so of all; None where it does not.
    `lines`: with their numbers. Lines without quotes are not kept, and not cut into fields."""
    first: int | None = None
    plain = False

    def telling() -> Iterator[list[str]]:
        nonlocal first, plain
        for number, line in lines:
            if '"' in line:
                first = first or number
                yield line.split("\t")
            elif not plain:  # says that no column is quoted throughout, and no more of them do
                plain = True
                yield line.split("\t")

    return first if is_quoted(telling(), width) else None
