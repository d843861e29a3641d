"""What operating systems have or have not, in one place, each with something that does where it is absent.

Nothing else in the package imports what Windows or macOS lack. Needs no torch.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import platform
import select
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, ModuleType
from typing import IO

BROKEN_PIPE_CODE = 128 + 13  # as shells have it; SIGPIPE has no name everywhere


def _module(name: str) -> ModuleType | None:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl, msvcrt, resource = map(_module, ("fcntl", "msvcrt", "resource"))


def lock(file: IO, wait: bool = False) -> bool:
    """Lock an open file for this process; False where another has it. Where there are no locks, nothing is held."""
    try:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        elif msvcrt is not None:
            msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)  # else: a disk without locks
    return True


def peak_memory() -> int:
    """The most bytes that this process has held so far; 0 where the system does not say."""
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    try:  # Windows: PROCESS_MEMORY_COUNTERS, whose third field is PeakWorkingSetSize
        numbers = (ctypes.c_size_t * 9)()
        windows = ctypes.windll  # type: ignore[attr-defined]
        process = ctypes.c_void_p(windows.kernel32.GetCurrentProcess())
        return numbers[1] if windows.psapi.GetProcessMemoryInfo(process, numbers, ctypes.sizeof(numbers)) else 0
    except (AttributeError, OSError):
        return 0


def count_peak_anew() -> None:
    """Let the peak of the resident memory be what is resident now; where the system cannot, it stays."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def processor() -> str:
    """What the system says of its CPU."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()


def reader_has_left(handle: int) -> bool:
    """Whether what reads a pipe has left; False where that cannot be asked."""
    try:
        poll = select.poll()
        poll.register(handle, 0)
        return bool(poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def sync(path: Path) -> None:
    """See a file or folder to the disk; where folders cannot be opened there is nothing to do for one."""
    if path.is_dir() and os.name != "posix":
        return
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def signals_held(numbers: Collection[int], held: bool = True) -> Iterator[None]:
    """Hold signals back, or let them through, in here and in processes that are started here; where signals cannot be
    held, they come."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_handled(handlers: Mapping[int, Callable[[int, FrameType | None], object]]) -> Iterator[None]:
    """Let handlers take signals in here, in a main thread: elsewhere they do not arrive."""
    here = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, handler) for number, handler in handlers.items() if here}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ended_by(code: int) -> str | None:
    """The signal behind an exit code of `multiprocessing`; None where there is none."""
    try:
        return signal.Signals(-code).name if code < 0 else None
    except ValueError:
        return f"signal {-code}"
