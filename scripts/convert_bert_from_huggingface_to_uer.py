#!/usr/bin/env python3
"""Write a Hugging Face BERT (folder, .safetensors or .bin) as a UER file, with its config and vocabulary beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli.from_huggingface import main
from uer.errors import run_script

if __name__ == "__main__":
    run_script(main)
