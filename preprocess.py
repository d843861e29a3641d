"""Text to dataset: `python3 preprocess.py --help`."""

from __future__ import annotations

import sys

from uer.arguments import checked, refuse_overwriting
from uer.data.options import preprocess_parser
from uer.errors import run_script


def main() -> None:
    """Parse the command line, build the dataset, say what it holds."""
    args = checked(preprocess_parser().parse_args())
    refuse_overwriting(args, {"dataset_path": [args.dataset_path]})
    from uer.data.builder import build_dataset
    from uer.data.header import summary

    header = build_dataset(args)
    sys.stdout.write(f"{args.dataset_path}\n{summary(header)}\n")


if __name__ == "__main__":
    run_script(main)
