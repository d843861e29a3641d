#!/usr/bin/env python3
"""Fine-tune a BERT on a classification task: UER's TSV, or a task of GLUE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.config import parse_with_config
from uer.errors import run_script
from uer.finetuning.options import classifier_parser


def main() -> None:
    args, given = parse_with_config(classifier_parser)
    from uer.finetuning.classify import run_classifier

    run_classifier(args, given)


if __name__ == "__main__":
    run_script(main)
