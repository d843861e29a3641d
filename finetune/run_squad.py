#!/usr/bin/env python3
"""Fine-tune a BERT on SQuAD 1.1 or 2.0."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.config import parse_with_config
from uer.errors import run_script
from uer.finetuning.options import squad_parser


def main() -> None:
    args, given = parse_with_config(squad_parser)
    from uer.finetuning.squad import run_squad

    run_squad(args, given)


if __name__ == "__main__":
    run_script(main)
