"""One exception for what a user can put right; scripts turn it into one sentence and exit code 2."""

from __future__ import annotations

import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input. The message says what is wrong, where, and what would be right."""


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; a `UserError` ends it with one sentence on stderr and exit code 2, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
