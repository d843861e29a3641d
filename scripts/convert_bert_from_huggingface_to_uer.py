#!/usr/bin/env python3
"""Write a Hugging Face BERT (folder, .safetensors or .bin) as a UER file, with its config and vocabulary beside it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.cli import command
from uer.errors import run_script

main = command("convert_bert_from_huggingface_to_uer")

if __name__ == "__main__":
    run_script(main)
