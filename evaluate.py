#!/usr/bin/env python3
"""Masked language modelling of a finished BERT on held-out text: loss, accuracy, tokens per second."""

from uer.cli.evaluate import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
