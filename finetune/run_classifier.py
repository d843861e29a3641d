#!/usr/bin/env python3
"""Fine-tune a BERT on a classification task: UER's TSV, or a task of GLUE."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli import command
from uer.errors import run_script

main = command("run_classifier")

if __name__ == "__main__":
    run_script(main)
