"""Where the text comes from, and how it is cut into segments that workers can take one by one.

A segment is a byte range of a plain file that begins at a line (or document) start and ends at a line (or document)
end, at least `SEGMENT` bytes after its beginning. Compressed files, Parquet, CSV and standard input cannot be entered
in the middle: their text is written, a segment at a time, to temporary files. Where the cuts fall depends on the text
alone, so the dataset does not depend on the number of workers.
"""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO

from uer.data.columns import looked_through
from uer.data.conll import conll_documents
from uer.data.packed import damage_told, decompressed, head_and_packing, opened
from uer.data.records import TEXT_FIELD, Record, csv_documents, kind_of, parquet_documents, record_of
from uer.errors import UserError
from uer.files import PARQUET, files_below, head_of, refuse_foreign, unpacked

SEGMENT = 1 << 20  # bytes of text
BLOCK = 1 << 20


@dataclass(frozen=True)
class Segment:
    """A piece of one source, as one task.

    Attributes:
        number: of the segment in the whole corpus.
        source, source_number: name for messages, and which of the sources it is.
        path, start, end: the bytes to read.
        offset: where these bytes stand in the source's (decompressed) text.
        lines_before: lines of the source before this segment; None if they have to be counted.
        progress: bytes of the source as it lies on disk that this segment used up.
        without_text: records of the source that had no text, and so are not in there.
        temporary: the file is to be removed once it has been read.
        record: what its lines are; None: plain text.
    """

    number: int
    source: str
    source_number: int
    path: Path
    start: int
    end: int
    offset: int
    lines_before: int | None
    progress: int
    without_text: int = 0
    temporary: bool = False
    record: Record | None = None


def ending(file: Path) -> str:
    """What a name says of a text, compressed or not: .txt; numbers (part.01, wiki_00) say nothing."""
    *rest, last = unpacked(file).split(".")
    return f".{last.lower()}" if rest and last.isalnum() and not last.isdecimal() else "without an ending"


def expand(paths: list[str]) -> list[Path | None]:
    """The files that --corpus_path names; None stands for standard input. Folders and globs in sorted order.

    A folder stands for all files in it and below, behind links too, hidden ones apart. `UserError` for something that
    is not there, a glob or a folder without files, or one file twice.
    """
    found: list[Path | None] = []
    for name in paths:
        path = Path(name)
        if name == "-":
            found.append(None)
        elif path.is_dir():
            found += _files(name, [path])
        elif path.exists():
            found.append(path)
        elif glob.has_magic(name):
            found += _files(name, sorted(map(Path, glob.glob(name, recursive=True))))
        else:
            raise UserError(f"--corpus_path {name}: no such file or folder")
    for real, count in Counter(file and os.path.realpath(file) for file in found).items():
        if count > 1:
            raise UserError(f"--corpus_path: {real or 'standard input (-)'} is named twice, and its text would count "
                            f"twice; name it once")
    for file in found:
        if file is not None and not os.access(file, os.R_OK):
            raise UserError(f"--corpus_path {file}: the file may not be read")
    return found


def _files(name: str, paths: Iterable[Path]) -> list[Path]:
    """The files of these names, and below them, each once, under however many names."""
    files: dict[str, Path] = {}
    for file in (file for path in paths for file in (files_below(path, _refuse_folder) if path.is_dir() else [path])):
        if not file.exists():
            raise UserError(f"--corpus_path {name}: {file} is a link to {os.readlink(file)}, which is not there")
        if file.is_file():
            files.setdefault(os.path.realpath(file), file)
    if not files:
        raise UserError(f"--corpus_path {name}: no file there")
    return list(files.values())


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"--corpus_path {error.filename}: the folder cannot be read ({error.strerror})")


def total_bytes(sources: list[Path | None]) -> int | None:
    """Bytes on disk of all sources; None if that is not known before they end."""
    if any(source is None or not stat.S_ISREG(source.stat().st_mode) for source in sources):
        return None
    return sum(source.stat().st_size for source in sources if source is not None)


def segments(sources: list[Path | None], by_document: bool, folder: Path, fields: Sequence[str] = (),
             pairs: bool = False) -> Iterator[Segment]:
    """Cut all sources, lazily; spooled text goes to `folder`.

    Args:
        fields: of records (default: text); where they are given, standard input and pipes are JSON lines.
        pairs: whether records, or the lines of plain text, are pairs.
    Raises:
        UserError: a file that cannot be read, is damaged, or needs a package that is not installed.
    """
    kinds = [kind_of(source, fields) for source in sources]
    tables = [looked_through(source) if source and kind == "table" else None
              for source, kind in zip(sources, kinds)]  # what is wrong is told before any text is read
    records = [record_of(source, kind, table, fields, pairs) for source, kind, table in zip(sources, kinds, tables)]
    number = 0
    for source_number, (source, what, table, record) in enumerate(zip(sources, kinds, tables, records)):
        name = "standard input" if source is None else str(source)
        with opened(source) as raw:
            head, kind = head_and_packing(raw)
            if kind is None and not (what == "parquet" and head.startswith(PARQUET)):
                refuse_foreign(head, name, "text")
            plain = source is not None and kind is None and stat.S_ISREG(source.stat().st_mode)
            if source is not None and what == "parquet":
                plain, cuts = False, _cut_documents(parquet_documents(source, fields or (TEXT_FIELD,)), folder, number)
            elif source is not None and what == "conll":
                plain, cuts = False, _cut_documents(conll_documents(source), folder, number)
            elif source is not None and table and table.delimiter:
                plain, cuts = False, _cut_documents(csv_documents(source, table, fields), folder, number)
            elif plain:
                assert source is not None
                cuts = _cut_file(raw, source, by_document and record is None)
            else:
                cuts = _cut_stream(raw, kind, name, by_document and record is None, folder, number)
            for segment in cuts:
                yield Segment(number, name, source_number, *segment, temporary=not plain, record=record)
                number += 1


def _consume_to_cut(file: IO[bytes], by_document: bool, sink: IO[bytes] | None = None) -> tuple[int, int]:
    """Read on to the next place where a segment may end; the file stands anywhere inside a line.

    Returns bytes and lines read. A document ends after a blank line that was read whole.
    """
    count = lines = 0
    whole = False
    while part := file.readline(BLOCK):
        count += len(part)
        if sink is not None:
            sink.write(part)
        ended = part.endswith(b"\n")
        lines += ended
        if ended and (not by_document or (whole and not part.strip())):
            break
        whole = ended
    return count, lines


Cut = tuple[Path, int, int, int, "int | None", int, int]  # path, start, …, without_text of a `Segment`


def _cut_file(file: BinaryIO, path: Path, by_document: bool) -> Iterator[Cut]:
    start, size = 0, os.fstat(file.fileno()).st_size
    while start < size:
        end = start + SEGMENT - 1
        if end < size:
            file.seek(end)
            end += _consume_to_cut(file, by_document)[0]
        end = min(end, size)
        yield path, start, end, start, None, end - start, 0
        start = end


def _cut_stream(raw: BinaryIO, kind: str | None, name: str, by_document: bool, folder: Path,
                number: int) -> Iterator[Cut]:
    with damage_told(kind, name):
        stream = decompressed(raw, kind, name)
        offset = lines = raw_before = 0
        while True:
            path = folder / f"text-{number}"
            with open(path, "wb") as sink:
                count, new_lines = _copy(stream, sink, SEGMENT - 1)
                if count == SEGMENT - 1:
                    more, more_lines = _consume_to_cut(stream, by_document, sink)
                    count, new_lines = count + more, new_lines + more_lines
            if not count:
                path.unlink()
                return
            if not offset:
                refuse_foreign(head_of(path), name, "text")  # an archive that was compressed
            raw_now = raw.tell() if raw.seekable() else raw_before + count
            yield path, 0, count, offset, lines, raw_now - raw_before, 0
            offset, lines, raw_before, number = offset + count, lines + new_lines, raw_now, number + 1


def _cut_documents(documents: Iterator[tuple[str, int]], folder: Path, number: int) -> Iterator[Cut]:
    offset = 0
    while True:
        path = folder / f"text-{number}"
        count = progress = without_text = 0
        with open(path, "wb") as sink:
            while count < SEGMENT and (found := next(documents, None)):
                count += sink.write(found[0].encode())
                progress += found[1]
                without_text += not found[0]
        yield path, 0, count, offset, 0, progress, without_text
        if not found:
            return
        offset, number = offset + count, number + 1


def _copy(stream: IO[bytes], sink: IO[bytes], size: int) -> tuple[int, int]:
    count = lines = 0
    while count < size and (block := stream.read(min(BLOCK, size - count))):
        sink.write(block)
        count += len(block)
        lines += block.count(b"\n")
    return count, lines
