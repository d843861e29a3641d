#!/usr/bin/env python3
"""Text to dataset: `python3 preprocess.py --help`."""

from uer.cli import command
from uer.errors import run_script

main = command("preprocess")

if __name__ == "__main__":
    run_script(main)
