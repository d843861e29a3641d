"""Find options by what they are called or what their help says, over all commands."""

from __future__ import annotations

import argparse
import importlib
import textwrap

from uer.cli import COMMANDS


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    out.add_argument("words", nargs="*", metavar="WORD", help="all of them must occur (default: every option there is)")
    return out


def explained(name: str) -> dict[str, str]:
    """Option -> help of a command, the defaults put in."""
    command = importlib.import_module(COMMANDS[name][0]).parser()
    formatter = command._get_formatter()
    return {", ".join(action.option_strings) or action.metavar: formatter._expand_help(action) if action.help else ""
            for action in command._actions if action.dest != "help"}


def found(words: list[str]) -> dict[tuple[str, str], list[str]]:
    """(option, help) -> the commands that have it, where name or help have all the words."""
    out: dict[tuple[str, str], list[str]] = {}
    for name in COMMANDS:
        for option in explained(name).items():
            if all(word.lower() in " ".join(option).lower() for word in words):
                out.setdefault(option, []).append(name)
    return out


def main() -> None:
    for (option, text), commands in sorted(found(parser().parse_args().words).items()):
        print(f"{option}  ({', '.join(commands)})")
        print(textwrap.indent(textwrap.fill(text, 100), "    "))
