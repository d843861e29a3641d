"""Tables: with tabs between the fields and nothing quoted, or CSV. How every reader tells which, and what each refuses.

A file called .csv is CSV, and so is any other table where all quotes are as CSV has them (`is_quoted`).
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

INSIDE = re.compile(r'(?:[^"]|"")*')  # of a field as CSV quotes it
MANY = 10  # fields in quotes, where no other field of the column is without: that is no chance
DELIMITERS = ",;\t|"  # of CSV
LONGEST_LINE = 64 << 20  # bytes
csv.field_size_limit(LONGEST_LINE)
HEADER_AGAIN = "the header once more; files that were put together keep one"


def names_of(header: Sequence[str]) -> list[str]:
    """The names of the columns, of the fields of a header; `ValueError` for two alike."""
    names = [name.strip() for name in header]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"more than one column is called {twice!r}")
    return names


def delimiter_of(header: str) -> str:
    """What stands between the fields of a CSV that begins with this line: of `DELIMITERS` what makes most fields."""
    return max(DELIMITERS, key=lambda delimiter: len(next(csv.reader([header], delimiter=delimiter), [])))


def csv_rows(lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV, each with the number of its first line, without the empty lines at the end (of several
    columns). `ValueError` for quotes that are not as CSV has them, and for an empty line between rows.

    Args:
        lines: without their ends.
    """
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True)
    number, empty, width = 1, 0, 0
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"line {number}: no CSV ({error}); fields with {delimiter!r}, quotes or line ends in them "
                             f"stand in quotes, their own twice; what has nothing quoted is called .tsv") from None
        if fields is None:
            return
        width = width or len(fields)
        if empty and fields:
            raise ValueError(f"line {empty}: an empty line between rows")
        if not fields and width > 1:
            empty = empty or number
        else:
            yield number, fields or [""]
        number = reader.line_num + 1


def wrong_width(found: int, columns: Mapping[str, int], width: int) -> str:
    """What is wrong with a row of `found` fields where `width` are needed; "": nothing. `columns`: name -> place."""
    absent = [name for name, place in columns.items() if place >= found]
    return "" if found == width else (f"column {absent[0]} is missing: " if absent else "") + (
        f"{found} field(s) there, {width} are needed")


def is_quoted(rows: Iterable[list[str]], width: int) -> bool:
    """Whether all quotes in rows are as CSV has them, so that they are no characters: some field has a quote written
    twice or goes on behind a tab or line end.

    Where all rows have their `width` fields (more than one), none goes on: there are quotations of several rows.
    `ValueError` where nothing tells: fields of one column that go on, or a column whose fields are all quoted.
    """
    told = begun = went_on = False
    apart = width > 1
    bare: set[int] = set()
    whole: Counter[int] = Counter()
    for fields in rows:
        apart = apart and (len(fields) == width or fields == [""])  # an empty line at the end, or a fault told later
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
    if went_on and width == 1:
        raise ValueError("quotes hold several lines together, or are quotations of several lines; call the file .csv "
                         "if a text has line ends in it, or write each text on a line without them")
    if not told and any(count >= MANY and index not in bare for index, count in whole.items()):
        raise ValueError("all fields of a column are in quotes; call the file .csv if these are not part of the text")
    return told


def is_quoted_header(fields: Sequence[str]) -> bool:
    """Whether all names in a header are quoted: with CSV's quotes, then."""
    return all(len(name) > 1 and name[0] == name[-1] == '"' for name in fields)


def is_quoted_below(lines: Iterable[str], width: int) -> bool:
    """Whether `is_quoted` says so of lines. Those without quotes are not kept, and but one not cut into fields."""

    def telling() -> Iterator[list[str]]:
        plain = False
        for line in lines:
            if '"' in line or not plain:  # one says that no column is quoted throughout, and no more of them do
                yield line.split("\t")
            plain = plain or '"' not in line

    return is_quoted(telling(), width)
