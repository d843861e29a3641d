#!/usr/bin/env python3
"""All GLUE tasks of a folder, several models side by side: a table and a chart."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli import command
from uer.errors import run_script

main = command("run_glue")

if __name__ == "__main__":
    run_script(main)
