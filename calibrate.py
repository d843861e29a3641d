#!/usr/bin/env python3
"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

from uer.cli import command
from uer.errors import run_script

main = command("calibrate")

if __name__ == "__main__":
    run_script(main)
