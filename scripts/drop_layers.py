#!/usr/bin/env python3
"""A BERT with fewer layers: each that leaves is made up for, in closed form, by the one below it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli.drop_layers import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
