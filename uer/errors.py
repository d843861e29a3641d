"""What ends a script on purpose: a mistake that the user can put right, or a signal."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what would be right."""


class Stopped(Exception):
    """A signal ended the run, and what it had done is saved."""

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, 128 + the signal's number, as shells have it: SIGINT 130, SIGUSR1 138, SIGTERM 143."""
        return 128 + self.number


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; a `UserError` ends it with one sentence on stderr and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except Stopped as stopped:
        sys.exit(stopped.code)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
