#!/usr/bin/env python3
"""Text to dataset: `python3 preprocess.py --help`."""

from uer.cli.preprocess import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
