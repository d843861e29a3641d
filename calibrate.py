#!/usr/bin/env python3
"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

import shlex
import sys

from uer.config import parse_with_config
from uer.errors import run_script
from uer.opts import calibrate_parser


def main() -> None:
    args, _ = parse_with_config(calibrate_parser)
    from uer.calibration.command import make_student

    make_student(args, shlex.join(["python3", "calibrate.py", *sys.argv[1:]]))


if __name__ == "__main__":
    run_script(main)
