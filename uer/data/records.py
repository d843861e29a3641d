"""Records: JSON lines and Parquet, where one field of every record is a document.

A document is a text without blank lines, which would end it, and a blank line after it; so records run through the
same path as plain text. JSON lines are parsed by the workers; of Parquet the documents are written out for them.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uer.errors import UserError
from uer.files import PARQUET, head_of, is_table, unpacked

TEXT_FIELD = "text"
_JSON_LINES = (".jsonl", ".ndjson", ".json")
_BLANK_LINES = re.compile(r"\n\s*\n")
_ROWS = 64  # of a Parquet file in memory at once


def is_json_lines(source: Path | None, field: str | None) -> bool:
    """Whether a name says that JSON lines are in there; of standard input and pipes, a field that is asked for, too."""
    named = source is not None and unpacked(source).lower().endswith(_JSON_LINES)
    return named or (field is not None and (source is None or not source.is_file()))


def is_parquet(source: Path | None) -> bool:
    """Whether a file's name or beginning says that it is Parquet."""
    return source is not None and (source.suffix.lower() == ".parquet" or (
        source.is_file() and head_of(source).startswith(PARQUET)))


def check_records(sources: list[Path | None], field: str | None) -> None:
    """Say early what is missing, or cannot be read as text.
    `UserError` for a table, for Parquet without pyarrow, and for a field to read where nothing has fields."""
    table = next((source for source in sources if source is not None and is_table(source)), None)
    if table:
        raise UserError(f"--corpus_path {table}: a table, of which no column would be told from another; take the text "
                        f"out of it, a line each (.txt) or as records (.jsonl, .parquet)", page="compress")
    parquet = next(filter(is_parquet, sources), None)
    if parquet and importlib.util.find_spec("pyarrow") is None:
        raise UserError(f"--corpus_path {parquet}: Parquet needs the package pyarrow (pip install pyarrow)",
                        page="compress")
    if field and not (parquet or any(is_json_lines(source, field) for source in sources)):
        raise UserError(f"--text_field {field} goes with .jsonl or .parquet, and --corpus_path names none",
                        page="compress")


def as_document(text: str) -> str:
    """A record's text as a document of plain text; empty where it has none."""
    text = text.strip()
    return _BLANK_LINES.sub("\n", text) + "\n\n" if text else ""


def json_document(line: str, field: str) -> str:
    """The document of a JSON line; `ValueError` says what is wrong with it."""
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error}); one object a line is needed") from None
    if not isinstance(record, dict):
        raise ValueError(f"a {type(record).__name__}; an object with a field {field!r} is needed")
    if field not in record:
        raise ValueError(_no_field(field, list(record)))
    text = record[field]
    if not isinstance(text, str | None):
        raise ValueError(f"its {field!r} is a {type(text).__name__}; text is needed")
    document = as_document(text or "")
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"its {field!r} has {document[error.start]!a}, half of a character") from None
    return document


def _no_field(field: str, there: list[str]) -> str:
    return f"no field {field!r}; --text_field names the one with the text, of {', '.join(there) or 'none'}"


def parquet_documents(path: Path, field: str) -> Iterator[tuple[str, int]]:
    """The documents of a Parquet file and how many of its bytes each used up, in the order of its rows.
    `UserError` for a file that is damaged, or has no such column of text."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            schema = file.schema_arrow
            if schema.names.count(field) != 1:
                raise UserError(f"{path}: " + (f"more than one field is called {field!r}" if field in schema.names else
                                               _no_field(field, schema.names)))
            kind = schema.field(field).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if str(kind) not in ("string", "large_string", "string_view"):
                raise UserError(f"{path}: its {field!r} is {kind}; text is needed")
            rows, size, done = max(1, file.metadata.num_rows), path.stat().st_size, 0
            for batch in file.iter_batches(_ROWS, columns=[field], use_threads=False):
                for value in batch.column(0):
                    document = _parquet_document(value, f"{path}: row {done + 1}")
                    yield document, size * (done + 1) // rows - size * done // rows
                    done += 1
    except (pyarrow.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not the data's fault
        raise UserError(f"{path}: damaged or truncated Parquet ({str(error).splitlines()[0]})") from None


def _parquet_document(value: Any, where: str) -> str:
    try:
        return as_document(value.as_py() or "")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 ({error.reason})") from None
