#!/usr/bin/env python3
"""Compress a BERT teacher by weight-inherited distillation, or train a BERT by masked language modelling."""

from uer.cli import command
from uer.errors import run_script

main = command("pretrain")

if __name__ == "__main__":
    run_script(main)
