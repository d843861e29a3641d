"""Text to dataset."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from uer.arguments import checked, refuse_overwriting
from uer.cli import same_tokenizer, suggestion
from uer.data.options import preprocess_parser as parser
from uer.progress import ending, say


def main() -> None:
    args = checked(parser().parse_args())
    refuse_overwriting(args, {"dataset_path": [args.dataset_path]})
    from uer.data.builder import build_dataset
    from uer.data.header import summary

    header = build_dataset(args)
    say(f"{args.dataset_path}\n{summary(header)}")
    unknown = header["unknown"] / max(1, header["words"])
    pairs = header["data_processor"] == "pairs"
    what = f"pairs of {header['lines']:,}" if pairs else f"instances of {header['documents']:,} documents"
    ending(f"{args.dataset_path}: {header['instances']:,} {what}",
           f"{unknown:.2%} of the tokens are unknown to {header['vocab_name']}", _following(args, header))


def _following(args: argparse.Namespace, header: dict[str, Any]) -> str:
    """Train on a dataset that is masked anew every epoch, evaluate on one that is not."""
    given = Path(args.vocab_path or args.spm_model_path)
    beside = given if given.is_dir() else given.parent
    teacher: Path | str = "TEACHER"
    if (beside / "config.json").is_file():
        from uer.formats.teacher import has_weights  # and torch, which takes longer than many a dataset

        teacher = beside if has_weights(beside) else teacher
    common = ["--dataset_path", args.dataset_path, *same_tokenizer(args)]
    if not header["dynamic_masking"]:
        return suggestion("evaluate", "--model_path", teacher, common)
    return suggestion("pretrain", common, "--pretrained_model_path", teacher, "--weight_squeeze", "--target_dim", "DIM",
                      "--compactor_init", "calibrated", "--output_model_path", "student.bin")
