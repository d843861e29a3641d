"""Write the file that `torch.load(path, mmap=True, weights_only=True)` opens, without torch and without the arrays.

Such a file is an uncompressed zip archive: `data.pkl` describes a dictionary whose tensors refer to the records
`data/0`, `data/1`, …, which hold the raw little-endian numbers, each at a multiple of 64 bytes. Here the records
are streamed from files, so that memory does not grow with them, and torch (seconds to import, 200 MB) stays out.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np

ALIGNMENT = 64
_STORAGES = {"uint8": "ByteStorage", "int8": "CharStorage", "int16": "ShortStorage", "int32": "IntStorage",
             "int64": "LongStorage"}
_NO_HOOKS = b"ccollections\nOrderedDict\n)R"


@dataclass
class Record:
    """One flat array of the file: `count` numbers of `dtype`, given as blocks of raw bytes."""

    name: str
    dtype: np.dtype
    count: int
    blocks: Iterable[bytes]


def write_container(file: IO[bytes], values: dict[str, Any], records: list[Record]) -> None:
    """Write `values` (plain dictionaries, lists, strings, numbers) and the records into a binary file.
    `ValueError` for a record whose blocks do not hold as many numbers as it says."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        _write_member(archive, "data.pkl", [_pickle(values, records)])
        _write_member(archive, "byteorder", [b"little"])
        for number, record in enumerate(records):
            written = _write_member(archive, f"data/{number}", record.blocks)
            if written != record.count * record.dtype.itemsize:
                raise ValueError(f"{record.name}: {written} bytes for {record.count} numbers of {record.dtype}")
        _write_member(archive, "version", [b"3\n"])


def _write_member(archive: zipfile.ZipFile, name: str, blocks: Iterable[bytes]) -> int:
    """Append a member whose first byte is aligned; the padding is an extra field, as the zip format provides."""
    info = zipfile.ZipInfo(f"dataset/{name}", date_time=(1980, 1, 1, 0, 0, 0))
    assert archive.fp is not None
    header = 30 + len(info.filename) + 20 + 4  # local header, name, 64-bit sizes, the padding's own header
    padding = -(archive.fp.tell() + header) % ALIGNMENT
    info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
    written = 0
    with archive.open(info, "w", force_zip64=True) as member:
        for block in blocks:
            written += member.write(block)
    return written


def _pickle(values: dict[str, Any], records: list[Record]) -> bytes:
    """The description, in the subset of pickle (protocol 2) that a weights-only load accepts."""
    parts = [b"\x80\x02}("]
    for key, value in values.items():
        parts += [_plain(key), _plain(value)]
    for number, record in enumerate(records):
        parts += [_plain(record.name), _tensor(str(number), record)]
    return b"".join([*parts, b"u."])


def _plain(value: Any) -> bytes:
    """Opcodes that push a plain value: a pickle without its frame (nothing here refers to another's memo)."""
    return pickle.dumps(value, protocol=2)[2:-1]


def _tensor(key: str, record: Record) -> bytes:
    """Opcodes that call torch's own rebuilding function on a storage that the reader looks up by `key`."""
    name = record.dtype.newbyteorder("=").name
    size = _plain(record.count)
    storage = _STORAGES.get(name)
    if storage:
        head, kind, tail, length = b"ctorch._utils\n_rebuild_tensor_v2\n", f"ctorch\n{storage}\n", b"", size
    else:  # a type without a storage class of its own: untyped bytes, and the type beside them
        head, kind = b"ctorch._utils\n_rebuild_tensor_v3\n", "ctorch.storage\nUntypedStorage\n"
        tail, length = f"ctorch\n{name}\n".encode(), _plain(record.count * record.dtype.itemsize)
    identity = b"(" + _plain("storage") + kind.encode() + _plain(key) + _plain("cpu") + length + b"tQ"
    shape, stride = size + b"\x85", _plain(1) + b"\x85"
    return head + b"(" + identity + _plain(0) + shape + stride + b"\x89" + _NO_HOOKS + tail + b"tR"
