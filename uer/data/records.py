"""Records: JSON lines, Parquet and tables, where one field of every record is a document, or two are a pair.

A document is a text without blank lines, which would end it, and a blank line after it; a pair is a line of two texts
with a tab between them. So records run through the same path as plain text. Lines are parsed by the workers; of Parquet
and CSV documents and pairs are written out for them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uer.data.columns import Columns, csv_texts
from uer.data.conll import is_conll_file
from uer.errors import UserError
from uer.files import PARQUET, head_of, is_table, unpacked
from uer.tabular import HEADER_AGAIN, wrong_width

TEXT_FIELD = "text"
PAIR = "two texts with a tab between them are needed"
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_BLANK_LINES = re.compile(r"\n\s*\n")
_ENDS = re.compile(r"[\t\r\n]+")
_ROWS = 64  # of a Parquet file in memory at once
_SHOWN, _WIDEST = 20, 40  # names in a message, characters of each


@dataclass(frozen=True)
class JsonLine:
    """A line that is an object with these fields, one or two."""

    fields: tuple[str, ...]
    blank = None  # what a line consists of that is none: any blanks

    @property
    def pair(self) -> bool:
        return len(self.fields) == 2

    def document(self, line: str) -> str:
        """Its document or pair, "" where there is no text; `ValueError` says what is wrong with it."""
        return _of_texts(_json_texts(line, self.fields))


@dataclass(frozen=True)
class TableRow:
    """A row of a table with these names in its header, and the places of one or two fields in it."""

    header: tuple[str, ...]
    places: tuple[int, ...]
    blank = " \r"

    @property
    def pair(self) -> bool:
        return len(self.places) == 2

    def document(self, line: str) -> str:
        """As of a `JsonLine`."""
        fields = line.removesuffix("\r").split("\t")
        if len(fields) != len(self.header):
            columns = {name: place for place, name in enumerate(self.header)}
            raise ValueError(wrong_width(len(fields), columns, len(self.header)))
        if tuple(name.strip() for name in fields) == self.header:
            raise ValueError(HEADER_AGAIN)
        texts = [fields[place] for place in self.places]
        return _as_pair(*texts) if self.pair else f"{texts[0]}\n\n" if texts[0].strip() else ""


@dataclass(frozen=True)
class PairLine:
    """A line of plain text that is a pair."""

    blank = " \r"
    pair = True

    def document(self, line: str) -> str:
        """As of a `JsonLine`."""
        texts = line.removesuffix("\r").split("\t")
        if len(texts) != 2:
            raise ValueError(f"{len(texts) - 1} tab(s) in there; {PAIR}")
        return _as_pair(*texts)


Record = JsonLine | TableRow | PairLine


def record_of(source: Path | None, kind: str, table: Columns | None, fields: Sequence[str],
              pairs: bool) -> Record | None:
    """What the lines of a source of this kind are, or what is written out for it; None: plain text."""
    if kind == "json":
        return JsonLine(tuple(fields) or (TEXT_FIELD,))
    if table:
        if absent := [field for field in fields if field not in table.names]:
            raise UserError(f"{source}, line 1: {_no_field(absent[0], table.names)}")
        if not table.delimiter:
            return TableRow(tuple(table.names), tuple(map(table.names.index, fields)))
    return PairLine() if pairs else None


def is_json_lines(source: Path | None, fields: Sequence[str]) -> bool:
    """Whether a name says that JSON lines are in there; of standard input and pipes, a field that is asked for, too."""
    named = source is not None and unpacked(source).lower().endswith(_JSON_LINES)
    return named or (bool(fields) and (source is None or not source.is_file()))


def is_parquet(source: Path | None) -> bool:
    """Whether a file's name or beginning says that it is Parquet."""
    return source is not None and (source.suffix.lower() == ".parquet" or (
        source.is_file() and head_of(source).startswith(PARQUET)))


def kind_of(source: Path | None, fields: Sequence[str]) -> str:
    """parquet, json (lines), conll, table or text."""
    if is_parquet(source):
        return "parquet"
    if is_json_lines(source, fields):
        return "json"
    if is_conll_file(source):
        return "conll"
    return "table" if source is not None and is_table(source) else "text"


def check_records(sources: list[Path | None], fields: Sequence[str], pairs: bool) -> None:
    """Say early what is missing, or cannot be read as text.
    `UserError` for a table whose column is not named, Parquet without pyarrow, and for fields where nothing has
    any, or more or fewer than a text or a pair has."""
    by_kind: dict[str, list[Path]] = {}
    for source in sources:
        by_kind.setdefault(kind_of(source, fields), []).append(source or Path("-"))
    parquets, tables = by_kind.get("parquet", []), by_kind.get("table", [])
    if pairs and "conll" in by_kind:
        raise UserError(f"--corpus_path {by_kind['conll'][0]}: tokens with tags (CoNLL), whose sentences are no pairs; "
                        f"leave --data_processor pairs out")
    for table in sorted(set(tables)):
        if not fields:
            raise UserError(f"--corpus_path {table}: a table; --text_field names its column with the text"
                            + (", or here the two" if pairs else ""), page="compress")
        if not table.is_file():
            raise UserError(f"--corpus_path {table}: a table has to be a file, whose header is read first")
    if parquets and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"--corpus_path {parquets[0]}: Parquet needs the package pyarrow (pip install pyarrow)",
                        page="compress")
    records = by_kind.keys() & {"parquet", "table", "json"}
    if fields and not records:
        raise UserError(f"--text_field {' '.join(fields)} goes with .jsonl, .parquet, .tsv or .csv, and --corpus_path "
                        f"names none", page="compress")
    if records and len(fields) != 2 and pairs:
        raise UserError("--data_processor pairs: --text_field names the two fields of a record that are a pair")
    if pairs and len(set(fields)) < len(fields):
        raise UserError(f"--text_field {' '.join(fields)}: a pair of a text with itself")
    if len(fields) > 1 and not pairs:
        raise UserError(f"--text_field {' '.join(fields)}: one field has the text; two are a pair, with  "
                        f"--data_processor pairs", page="compress")


def _of_texts(texts: Sequence[str]) -> str:
    """A record's text as a document of plain text, or its two as a pair; "" where it has none, or one of two."""
    if len(texts) == 1:
        text = texts[0].strip()
        return _BLANK_LINES.sub("\n", text) + "\n\n" if text else ""
    return _as_pair(*(_ENDS.sub(" ", text) for text in texts))


def _as_pair(first: str, second: str) -> str:
    return f"{first}\t{second}\n" if first.strip() and second.strip() else ""


def csv_documents(table: Path, columns: Columns, fields: Sequence[str]) -> Iterator[tuple[str, int]]:
    """As `parquet_documents`; blanks around a text stay, as in a table with nothing quoted."""
    for texts, size in csv_texts(table, columns, fields):
        if len(texts) == 1:
            text = _BLANK_LINES.sub("\n", texts[0]).strip("\r\n")
            yield f"{text}\n\n" if text.strip() else "", size
        else:
            yield _of_texts(texts), size


def _json_texts(line: str, fields: Sequence[str]) -> list[str]:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}); one object a line is needed") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; an object with a field {fields[0]!r} is needed")
    texts = []
    for field in fields:
        if field not in record:
            raise ValueError(_no_field(field, list(record)))
        text = record[field]
        if not isinstance(text, str | None):
            raise ValueError(f"its {field!r} is a {type(text).__name__}; text is needed")
        text = text or ""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"its {field!r} has {text[error.start]!a}, half of a character") from None
        texts.append(text)
    return texts


def _no_field(field: str, there: Sequence[str]) -> str:
    names = [name if len(name) <= _WIDEST else f"{name[:_WIDEST]}…" for name in there[:_SHOWN]]
    more = f" and {len(there) - _SHOWN} more" if len(there) > _SHOWN else ""
    return f"no field {field!r}; --text_field names the one with the text, of {', '.join(names) or 'none'}{more}"


def parquet_documents(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, int]]:
    """The documents or pairs of a Parquet file and how many of its bytes each used up, in the order of its rows.
    `UserError` for a file that is damaged, or has no such column of text."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for field in fields:
                _check_column(path, file.schema_arrow, field)
            rows, size, done = max(1, file.metadata.num_rows), path.stat().st_size, 0
            for batch in file.iter_batches(_ROWS, columns=list(fields), use_threads=False):
                for values in zip(*(batch.column(field) for field in fields)):
                    document = _of_values(values, f"{path}: row {done + 1}")
                    yield document, size * (done + 1) // rows - size * done // rows
                    done += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not the data's fault
        raise UserError(f"{path}: damaged or truncated Parquet ({str(error).splitlines()[0]})") from None


def _check_column(path: Path, schema: Any, field: str) -> None:
    import pyarrow

    if schema.names.count(field) != 1:
        raise UserError(f"{path}: " + (f"more than one field is called {field!r}" if field in schema.names else
                                       _no_field(field, schema.names)))
    kind = schema.field(field).type
    if pyarrow.types.is_dictionary(kind):
        kind = kind.value_type
    if str(kind) not in ("string", "large_string", "string_view"):
        raise UserError(f"{path}: its {field!r} is {kind}; text is needed")


def _of_values(values: Sequence[Any], where: str) -> str:
    try:
        return _of_texts([value.as_py() or "" for value in values])
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason})") from None
