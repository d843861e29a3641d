#!/usr/bin/env python3
"""Write any UER BERT (either generation of names) as a folder for stock transformers."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli import command
from uer.errors import run_script

main = command("convert_bert_from_uer_to_huggingface")

if __name__ == "__main__":
    run_script(main)
