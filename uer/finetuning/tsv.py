"""Tab-separated text without quoting: a quote is a character like any other. Every fault is named by file and line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError


class Row(NamedTuple):
    """A line: its number in the file (from 1) and its fields."""

    number: int
    fields: list[str]


def read_rows(path: str | Path) -> list[Row]:
    """The lines of a file; LF or CRLF, a byte order mark is skipped, blank lines at the end as well.

    Raises:
        UserError: no such file, empty, not UTF-8, or with a NUL.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if b"\0" in data:
        raise UserError(f"{path}, line {_line_of(data, data.index(0))}: holds a NUL; text is needed (is the file "
                        f"damaged, compressed or UTF-16?)")
    try:
        lines = data.decode("utf-8").removeprefix("\ufeff").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}, line {_line_of(data, error.start)}: not UTF-8") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise UserError(f"{path}: the file is empty")
    return [Row(number, line.removesuffix("\r").split("\t")) for number, line in enumerate(lines, 1)]


def _line_of(data: bytes, position: int) -> int:
    return data.count(b"\n", 0, position) + 1


class Table:
    """A file's rows under named columns.

    Args:
        names: the columns of a file without header; None: the first line names them.
    """

    def __init__(self, path: str | Path, names: dict[str, int] | None = None):
        self.path = path
        self.rows = read_rows(path)
        if names is None:
            self.columns = {name.strip(): index for index, name in enumerate(self.rows.pop(0).fields)}
            if not self.rows:
                raise UserError(f"{path}: there is a header and nothing else")
        else:
            self.columns = names

    def require(self, *names: str) -> None:
        """`UserError` where the header lacks one of these columns."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UserError(f"{self.path}, line 1: the header lacks the column(s) {', '.join(missing)}; it has "
                            f"{', '.join(self.columns)}")

    def short_rows(self, *names: str) -> list[int]:
        """Numbers of the lines that do not reach all of these columns."""
        last = max(self.columns[name] for name in names)
        return [row.number for row in self.rows if len(row.fields) <= last]

    def select(self, *names: str, skip: frozenset[int] = frozenset()) -> Iterator[tuple[int, list[str]]]:
        """(line number, the fields of these columns), without the lines of the numbers in `skip`.

        Raises:
            UserError: a line with too few columns.
        """
        indices = [self.columns[name] for name in names]
        for number, fields in self.rows:
            if number in skip:
                continue
            if len(fields) <= max(indices):
                name = next(name for name, index in zip(names, indices) if index >= len(fields))
                raise UserError(f"{self.path}, line {number}: column {name} is missing ({len(fields)} column(s) "
                                f"there, at least {max(indices) + 1} are needed, separated by tabs)")
            yield number, [fields[index] for index in indices]
