"""Files as they come: packed or not, standard input."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from uer.data.zstd import reader as zstd_reader
from uer.errors import UserError
from uer.files import HEAD

BUFFER = 1 << 20
MAGIC = {b"\x1f\x8b\x08": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstd",
          b"\x50\x2a\x4d\x18": "zstd"}  # the last begins what pzstd writes


def opened(source: Path | None) -> BinaryIO:
    """A file, or for None standard input, as bytes; `UserError` where that cannot be read."""
    if source is None and sys.stdin is None:
        raise UserError("--corpus_path -: stdin is closed")
    try:
        return sys.stdin.buffer if source is None else open(source, "rb")
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error.strerror})") from None


def head_and_packing(raw: BinaryIO) -> tuple[bytes, str | None]:
    """A file's first bytes, which are still to be read, and how they say that it is packed."""
    head = raw.peek(HEAD)[:HEAD] if isinstance(raw, io.BufferedReader) else b""
    return head, next((kind for magic, kind in MAGIC.items() if head.startswith(magic)), None)


@contextlib.contextmanager
def damage_told(kind: str | None, name: str) -> Iterator[None]:
    """What reading packed data raises where they are damaged, as a `UserError`; a disk's own errors as they are."""
    try:
        yield
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # not the data's fault: a full disk, a vanished folder
        raise UserError(f"{name}: damaged or truncated {kind} data ({error})") from None


def decompressed(raw: BinaryIO, kind: str | None, name: str) -> IO[bytes]:
    """What is packed in a file in the way that `kind` names; None: the file itself."""
    if kind == "gzip":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw))
    if kind == "bzip2":
        return bz2.BZ2File(raw)
    if kind == "xz":
        return lzma.LZMAFile(raw)
    if kind == "zstd":
        return io.BufferedReader(zstd_reader(raw, name), BUFFER)
    return raw
