"""`uer-wid COMMAND …` and `python3 -m uer COMMAND …`; without a command, what there is."""

from __future__ import annotations

import os
import sys

from uer import __version__
from uer.cli import COMMANDS, command
from uer.errors import UserError, run_script


def overview() -> str:
    """The commands, a line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([f"uer-wid {__version__}: BERTs made smaller by weight-inherited distillation", "",
                      "usage: uer-wid COMMAND [options]; the options of one: uer-wid COMMAND --help", "", *lines])


def dispatch() -> None:
    """Run the command that the command line names; it sees the rest of it."""
    program, *words = sys.argv
    if not words or words[0] in ("-h", "--help", "--version"):
        print(__version__ if words == ["--version"] else overview())
        return
    name, *options = words
    if name not in COMMANDS:
        raise UserError(f"{name}: no such command; there are {', '.join(COMMANDS)}")
    program = "python3 -m uer" if os.path.basename(program) == "__main__.py" else "uer-wid"
    sys.argv = [f"{program} {name}", *options]
    command(name)()


def main() -> None:
    run_script(dispatch)


if __name__ == "__main__":
    main()
