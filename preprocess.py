"""Text to dataset: `python3 preprocess.py --help`."""

from __future__ import annotations

import sys

from uer.data.options import preprocess_parser
from uer.errors import run_script


def main() -> None:
    """Parse the command line, build the dataset, say what it holds."""
    args = preprocess_parser().parse_args()
    from uer.data.builder import build_dataset
    from uer.data.header import summary

    header = build_dataset(args)
    sys.stdout.write(f"{args.dataset_path}\n{summary(header)}\n")


if __name__ == "__main__":
    run_script(main)
