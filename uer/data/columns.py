"""What can be told of a table as a whole alone, before its rows are read one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from uer.data.packed import damage_told, decompressed, head_and_packing, opened
from uer.errors import UserError
from uer.files import BYTE_ORDER_MARK, CR_ALONE, ends_in_cr, refuse_foreign
from uer.tabular import AS_CSV, first_quoted, names_of

LONGEST_LINE = 64 << 20  # bytes


def looked_through(table: Path) -> list[str]:
    """The names in a table's header. `UserError` for what can be told of the whole alone, as the readers of
    `uer.finetuning.tsv` tell it: quotes as in CSV, NULs, an empty line in between, a header and nothing else."""
    with opened(table) as raw:
        head, kind = head_and_packing(raw)
        if kind is None:
            refuse_foreign(head, str(table), "a table")
        with damage_told(kind, str(table)):
            lines = _lines(decompressed(raw, kind, str(table)), str(table))
            names = _names(next(lines, (1, ""))[1], str(table))
            rows = _rows(lines, len(names), str(table))
            quoted = first_quoted(rows, len(names))
            deque(rows, maxlen=0)  # what is left, where the first quotes told
    if quoted:
        raise UserError(f"{table}, line {quoted}: {AS_CSV}")
    return names


def _names(header: str, table: str) -> list[str]:
    if not header.strip():
        raise UserError(f"{table}: the file is empty, or its first line, where a table has the names of its columns")
    try:
        names = names_of(header)
    except ValueError as error:
        raise UserError(f"{table}, line 1: {error}") from None
    if all(name[:1] == name[-1:] == '"' for name in names):
        raise UserError(f"{table}, line 1: {AS_CSV}")
    return names


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


def _rows(lines: Iterator[tuple[int, str]], width: int, name: str) -> Iterator[tuple[int, str]]:
    """The lines below the header."""
    there, empty = False, 0
    for number, line in lines:
        there = there or bool(line)
        if line and empty and width > 1:
            raise UserError(f"{name}, line {empty}: an empty line between rows")
        empty = empty or (0 if line else number)
        yield number, line
    if not there:
        raise UserError(f"{name}: there is a header and nothing else")
