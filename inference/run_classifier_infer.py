#!/usr/bin/env python3
"""Classify texts with a fine-tuned BERT."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.config import parse_with_config
from uer.errors import run_script
from uer.finetuning.options import infer_parser


def main() -> None:
    args, given = parse_with_config(infer_parser)
    from uer.finetuning.infer import infer

    infer(args, given)


if __name__ == "__main__":
    run_script(main)
