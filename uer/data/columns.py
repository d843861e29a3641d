"""What can be told of a table as a whole alone, before its rows are read one by one, and the rows of CSV."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

from uer.data.packed import damage_told, decompressed, head_and_packing, opened
from uer.errors import UserError
from uer.files import BYTE_ORDER_MARK, CR_ALONE, ends_in_cr, is_csv, refuse_foreign
from uer.tabular import (
    HEADER_AGAIN,
    LONGEST_LINE,
    csv_rows,
    delimiter_of,
    is_quoted_below,
    is_quoted_header,
    names_of,
    wrong_width,
)


class Columns(NamedTuple):
    """The names in a table's header; what stands between the fields of CSV, "" of a table with nothing quoted."""

    names: list[str]
    delimiter: str = ""


def looked_through(table: Path) -> Columns:
    """What a table's lines are. `UserError` for what can be told of the whole alone, as the readers of
    `uer.finetuning.tsv` tell it: NULs, an empty line in between, a header and nothing else; of CSV, of any row."""
    with opened_lines(table) as (_, lines):
        header = next(lines, (1, ""))[1]
        if not header.strip():
            raise UserError(f"{table}: the file is empty, or its first line, where a table names its columns")
        fields = header.split("\t")
        if is_csv(table):
            return _of_csv(table, delimiter_of(header))
        if is_quoted_header(fields):
            return _of_csv(table, "\t")
        below = _Below(lines)
        try:
            quoted = is_quoted_below(below, len(fields))
        except ValueError as error:
            raise UserError(f"{table}, {error}") from None
        deque(below, maxlen=0)  # what is left, where the first quotes told
    if quoted:
        return _of_csv(table, "\t")
    if not below.there:
        raise UserError(f"{table}: there is a header and nothing else")
    if below.broken and len(fields) > 1:
        raise UserError(f"{table}, line {below.broken}: an empty line between rows")
    return Columns(_names(fields, table))


def _of_csv(table: Path, delimiter: str) -> Columns:
    with opened_lines(table) as (_, lines):
        columns = Columns(_names(next(_csv(lines, delimiter, table))[1], table), delimiter)
    deque(csv_texts(table, columns, ()), maxlen=0)
    return columns


def _names(fields: list[str], table: Path) -> list[str]:
    try:
        return names_of(fields)
    except ValueError as error:
        raise UserError(f"{table}, line 1: {error}") from None


class _Below:
    """The lines below the header, and what is found on the way.

    Attributes:
        there: whether one has something in it; broken: the first empty one with another below it (0: none).
    """

    def __init__(self, lines: Iterator[tuple[int, str]]):
        self.lines, self.there, self.broken, self.empty = lines, False, 0, 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self.lines:
            self.there = self.there or bool(line)
            if line:
                self.broken = self.broken or self.empty
            else:
                self.empty = self.empty or number
            yield line


def csv_texts(table: Path, columns: Columns, fields: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """The fields of these names of each row, and how many bytes of the file it used up.
    `UserError` for a row with more or fewer fields than the header, the header once more, and a header alone."""
    places = {name: place for place, name in enumerate(columns.names)}
    with opened_lines(table) as (raw, lines):
        rows, before = _csv(lines, columns.delimiter, table), 0
        next(rows)  # the header
        number = 0
        for number, row in rows:
            if wrong := wrong_width(len(row), places, len(places)):
                raise UserError(f"{table}, line {number}: {wrong}")
            if [field.strip() for field in row] == columns.names:
                raise UserError(f"{table}, line {number}: {HEADER_AGAIN}")
            now = raw.tell()
            yield [row[places[field]] for field in fields], now - before
            before = now
        if not number:
            raise UserError(f"{table}: there is a header and nothing else")


def _csv(lines: Iterator[tuple[int, str]], delimiter: str, table: Path) -> Iterator[tuple[int, list[str]]]:
    try:
        yield from csv_rows((line for _, line in lines), delimiter)
    except ValueError as error:
        raise UserError(f"{table}, {error}") from None


@contextmanager
def opened_lines(table: Path, wanted: str = "a table") -> Iterator[tuple[BinaryIO, Iterator[tuple[int, str]]]]:
    """A file, packed or not, and its lines with their numbers, without their ends; `wanted`: what it is to be."""
    with opened(table) as raw:
        head, kind = head_and_packing(raw)
        if kind is None:
            refuse_foreign(head, str(table), wanted)
        with damage_told(kind, str(table)):
            yield raw, _lines(decompressed(raw, kind, str(table)), str(table))


def _lines(file: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The lines of a table with their numbers, without their ends."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), 1):
        if len(line) == LONGEST_LINE:
            raise UserError(f"{name}, line {number}: longer than {LONGEST_LINE >> 20} MB")
        if b"\0" in line:
            raise UserError(f"{name}, line {number}: holds a NUL; text in UTF-8 is needed (is it UTF-16, or damaged?)")
        try:
            text = line.decode("utf-8").removeprefix(BYTE_ORDER_MARK)
        except UnicodeDecodeError:
            raise UserError(f"{name}, line {number}: not UTF-8; convert the file to UTF-8") from None
        if not line.endswith(b"\n") and ends_in_cr(text):
            raise UserError(f"{name}: {CR_ALONE}")
        yield number, text.rstrip("\r\n")
