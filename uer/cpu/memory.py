"""The memory allocator of processes that need much the same memory again and again."""

from __future__ import annotations

import contextlib
import ctypes

from uer.system import count_peak_anew

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # of mallopt(3)
UNTRIMMED = 1 << 30
EVERYTHING = -1
GROWTH = 1 << 24


def keep_freed_memory(most: int = UNTRIMMED) -> None:
    """Let glibc keep the memory that a step (or a block of text) needed for the next one.

    As it comes, it hands large blocks back to the system at once, which has to clear them, page by page, whenever they
    are asked for again: a tenth of the time of a small student's training step, and a third of that of a second
    process in preprocessing. Without glibc, nothing happens.
    `most`: bytes at the end of the heap to keep; more of them go back to the system at once. `EVERYTHING`: none do.
    """
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, most)
        mallopt(M_TOP_PAD, GROWTH)


def give_memory_back() -> None:
    """Hand what has been freed to the system after all, and let the peak of the resident memory be counted anew.

    For once, when a process goes on with far less. Without glibc, or Linux, nothing happens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    count_peak_anew()
