#!/usr/bin/env python3
"""A BERT with fewer words: the most frequent ones of a dataset, or those of a file; the rest is spelt with them."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli.reduce_vocabulary import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
