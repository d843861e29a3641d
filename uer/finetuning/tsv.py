"""Tab-separated text without quoting: a quote is a character like any other. A row in is a row out.

One policy for all readers. Every row has as many fields as the header names; blanks around labels and scores
do not count; a text is more than blanks. Whatever is otherwise is refused by file and line: nothing is left out, filled
up or renumbered. A published file may be known for a few flaws (`Task.flawed`), which are told.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError
from uer.files import read_lines
from uer.tabular import AS_CSV, HEADER_AGAIN, is_quoted, names_of, wrong_width


class Row(NamedTuple):
    """A line: its number in the file (from 1) and its fields."""

    number: int
    fields: list[str]


def read_rows(path: str | Path) -> list[Row]:
    """The lines of a file; LF or CRLF, a byte order mark is skipped.

    Empty lines at the end are no rows where a row has several fields; where it has one, each of them is one.
    `UserError` where there is no such file, or it is empty or no text.
    """
    lines = read_lines(path, wanted="tab-separated text")
    if not any(map(str.strip, lines)):
        raise UserError(f"{path}: the file is empty")
    while not lines[-1] and "\t" in lines[0]:
        lines.pop()
    return [Row(number, line.split("\t")) for number, line in enumerate(lines, 1)]


class Table:
    """A file's rows under named columns.

    Args:
        names: the columns of a file without header; None: the first line names them.
    Raises:
        UserError: a file without rows, with two columns of one name, with the header once more in the middle, or quoted
            as CSV is.
    """

    def __init__(self, path: str | Path, names: dict[str, int] | None = None):
        self.path = path
        self.rows = read_rows(path)
        if names is None:
            try:
                head = names_of("\t".join(self.rows.pop(0).fields))
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
        if is_quoted([row.fields for row in self.rows], self.width):
            number = next(row.number for row in self.rows if any('"' in field for field in row.fields))
            raise UserError(f"{path}, line {number}: {AS_CSV}")

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
