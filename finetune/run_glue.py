#!/usr/bin/env python3
"""All GLUE tasks of a folder, several models side by side: a table and a chart."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.config import parse_with_config
from uer.errors import run_script
from uer.finetuning.options import glue_parser


def main() -> None:
    args, given = parse_with_config(glue_parser)
    from uer.finetuning.glue import run_glue

    run_glue(args, given)


if __name__ == "__main__":
    run_script(main)
