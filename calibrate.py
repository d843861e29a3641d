#!/usr/bin/env python3
"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

from uer.cli.calibrate import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
