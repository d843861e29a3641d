"""What ends a script on purpose: a mistake that the user can put right, or a signal."""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType

from uer.system import BROKEN_PIPE_CODE, reader_has_left, signals_handled


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what would be right: in one line, whatever it quotes.
    `page`: of docs/, which explains it."""

    def __init__(self, message: str, page: str | None = None):
        super().__init__(" ".join(message.splitlines()) + (f" (docs/{page}.md)" if page else ""))


class Stopped(Exception):
    """A signal ended the run, and what it had done is saved (before its first step: nothing)."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, 128 + the signal's number, as shells have it: SIGINT 130, SIGUSR1 138, SIGTERM 143."""
        return 128 + self.number


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main, and end it as shells expect.

    A `UserError`, or a file that the system refuses, ends it with one sentence on stderr and exit code 2; Ctrl-C with
    130, SIGTERM and SIGHUP, which unwind like Ctrl-C, with 143 and 129; a reader of stdout that has left with 141.
    """
    open_streams()
    show_everything()
    try:
        with signals_unwind():
            main()
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except BrokenPipeError:
        if not _stdout_is_broken():
            raise
        silence_stdout()
        sys.exit(BROKEN_PIPE_CODE)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.stderr.write("error: " + (f"{error.filename}: " if error.filename else "") + f"{error.strerror}\n")
        sys.exit(2)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


def open_streams() -> None:
    """Let what is written to a stream that is closed (>&- in a shell) go nowhere, and no file take its number."""
    for number, name in enumerate(("stdout", "stderr"), 1):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)  # by the processes of a run
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115


def show_everything() -> None:
    """Let stdout escape what its encoding lacks (a × where the locale is ASCII) instead of ending the program."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")


def _stdout_is_broken() -> bool:
    """Whether what reads stdout has left."""
    try:
        return reader_has_left(sys.stdout.fileno())
    except (AttributeError, OSError, ValueError):
        return False


def silence_stdout() -> None:
    """Write to nowhere from now on, as what reads stdout has left, or it cannot be written."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def signals_unwind() -> AbstractContextManager[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that workers and temporary files go; one that is ignored stays so."""
    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    return signals_handled({number: leave for number in numbers if signal.getsignal(number) == signal.SIG_DFL})
