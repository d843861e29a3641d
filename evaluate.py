#!/usr/bin/env python3
"""Masked language modelling of a finished BERT on held-out text: loss, accuracy, tokens per second."""

from uer.cli import command
from uer.errors import run_script

main = command("evaluate")

if __name__ == "__main__":
    run_script(main)
