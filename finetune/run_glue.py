#!/usr/bin/env python3
"""All GLUE tasks of a folder, several models side by side: a table and a chart."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli.run_glue import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
