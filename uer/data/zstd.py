"""Zstandard data as a stream, by whichever package is there; what is cut off in the middle is no end."""

from __future__ import annotations

import io
from typing import Any, BinaryIO

from uer.errors import UserError

INPUT = 1 << 13  # bytes decompressed at a time
LONGEST_WINDOW = 31  # bits: all that the format's own tool writes


def reader(raw: BinaryIO, name: str) -> ZstdReader:
    """A stream over zstd frames; `UserError` where no package reads them."""
    try:
        from compression import zstd  # Python 3.14

        options = {zstd.DecompressionParameter.window_log_max: LONGEST_WINDOW}
        return ZstdReader(raw, lambda: zstd.ZstdDecompressor(options=options), zstd.ZstdError)
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{name}: zstd data need the package zstandard (pip install zstandard)") from None
    whole = zstandard.ZstdDecompressor(max_window_size=1 << LONGEST_WINDOW)
    return ZstdReader(raw, whole.decompressobj, zstandard.ZstdError)


class ZstdReader(io.RawIOBase):
    """The content of all frames, one after the other.

    Args:
        start: makes a decompressor of one frame, with `decompress`, `eof` and `unused_data`.
        error: what it raises on damaged data.
    """

    def __init__(self, raw: BinaryIO, start: Any, error: type[Exception]) -> None:
        super().__init__()
        self._raw, self._start, self._error = raw, start, error
        self._frame = start()
        self._begun = False  # the frame
        self._rest = b""  # of the input, behind the last frame
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As of raw streams; raises `OSError` and `EOFError` as gzip does."""
        while not self._ready:
            if self._frame.eof:
                self._rest, self._frame, self._begun = self._frame.unused_data, self._start(), False
            data = self._rest or self._raw.read(INPUT)
            self._rest = b""
            if not data and self._begun:
                raise EOFError("ended before the end of a frame")
            if not data:
                return 0
            self._begun = True
            try:
                self._ready = memoryview(self._frame.decompress(data))
            except self._error as error:
                raise OSError(str(error)) from None
        count = min(len(buffer), len(self._ready))
        buffer[:count], self._ready = self._ready[:count], self._ready[count:]
        return count
