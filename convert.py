#!/usr/bin/env python3
"""Merge a stage-1 checkpoint into a student that stands alone, and write it in the formats asked for."""

from uer.cli import command
from uer.errors import run_script

main = command("convert")

if __name__ == "__main__":
    run_script(main)
