"""Tables of texts with labels: tab-separated without quoting, where a quote is a character like any other, or CSV.

A row in is a row out. One policy for all readers. Every row has as many fields as the header names; blanks around
labels and scores do not count; a text is more than blanks. Whatever is otherwise is refused by file and line: nothing
is left out, filled up or renumbered. A published file may be known for a few flaws (`Task.flawed`), which are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError
from uer.files import is_csv, read_lines
from uer.tabular import HEADER_AGAIN, csv_rows, delimiter_of, is_quoted, is_quoted_header, names_of, wrong_width


class Row(NamedTuple):
    """The number of its (first) line in the file, from 1, and its fields."""

    number: int
    fields: list[str]


def read_rows(path: str | Path, header: bool = True) -> list[Row]:
    """The rows of a file, its header too where it has one; LF or CRLF, a byte order mark is skipped.

    Empty lines at the end are no rows where a row has several fields; where it has one, each of them is one.
    `UserError` where there is no such file, or it is empty or no text, or CSV with quotes that are none of CSV's.
    """
    lines = read_lines(path, wanted="a table")
    if not any(map(str.strip, lines)):
        raise UserError(f"{path}: the file is empty")
    rows = [Row(number, line.split("\t")) for number, line in enumerate(lines, 1)]
    first, named = rows[0].fields, is_csv(path)
    try:
        quoted = named or (header and is_quoted_header(first)) or is_quoted((row.fields for row in rows[header:]),
                                                                            len(first))
        if quoted:
            return [Row(*row) for row in csv_rows(lines, delimiter_of(lines[0]) if named else "\t")]
    except ValueError as error:
        raise UserError(f"{path}, {error}") from None
    while not lines[-1] and "\t" in lines[0]:
        lines.pop()
    return rows[:len(lines)]


class Table:
    """A file's rows under named columns.

    Args:
        names: the columns of a file without header; None: the first line names them.
    Raises:
        UserError: a file without rows, with two columns of one name, or with the header once more in the middle.
    """

    def __init__(self, path: str | Path, names: dict[str, int] | None = None):
        self.path = path
        self.rows = read_rows(path, names is None)
        if names is None:
            try:
                head = names_of(self.rows.pop(0).fields)
            except ValueError as error:
                raise UserError(f"{path}, line 1: {error}") from None
            self.columns, self.width = {name: index for index, name in enumerate(head)}, len(head)
            if not self.rows:
                raise UserError(f"{path}: there is a header and nothing else")
            again = next((row.number for row in self.rows if [name.strip() for name in row.fields] == head), None)
            if again:
                raise UserError(f"{path}, line {again}: {HEADER_AGAIN}")
        else:
            self.columns, self.width = names, max(names.values()) + 1

    def require(self, *names: str) -> None:
        """`UserError` where the header lacks one of these columns."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UserError(f"{self.path}, line 1: the header lacks the column(s) {', '.join(missing)}; it has "
                            f"{', '.join(self.columns)}")

    def select(self, *names: str, skip: frozenset[int] = frozenset()) -> Iterator[tuple[int, list[str]]]:
        """(line number, the fields of these columns), without the lines of the numbers in `skip`.
        `UserError` for a line with more or fewer fields than columns."""
        indices = [self.columns[name] for name in names]
        for number, fields in self.rows:
            if number in skip:
                continue
            if wrong := wrong_width(len(fields), self.columns, self.width):
                raise UserError(f"{self.path}, line {number}: {wrong}")
            yield number, [fields[index] for index in indices]
