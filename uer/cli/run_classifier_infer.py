"""Classify texts with a fine-tuned BERT."""

from __future__ import annotations

import shlex

from uer.cli import importing
from uer.config import parse_with_config
from uer.finetuning.options import infer_parser as parser
from uer.progress import ending


def main() -> None:
    args, given = parse_with_config(parser)
    with importing():
        from uer.finetuning.infer import infer

    count = infer(args, given)
    ending(f"{args.prediction_path}: {count:,} predictions",
           f"as good as the model was on its dev data; {args.load_model_path}.json tells, where it is there",
           shlex.join(["head", args.prediction_path]))
