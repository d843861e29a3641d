"""Compress a BERT teacher by weight-inherited distillation, or train a BERT by masked language modelling."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from uer.cli import importing, same_tokenizer, suggestion
from uer.config import config_from_dict, parse_with_config
from uer.errors import UserError
from uer.files import read_object
from uer.opts import pretrain_parser as parser
from uer.progress import ending


def main() -> None:
    args, given = parse_with_config(parser)
    with importing():
        from uer.pretraining import pretrain

    leads = pretrain(args, given)
    checkpoint = Path(f"{args.output_model_path}-{args.total_steps}")
    if leads and checkpoint.is_file():
        _end(args, checkpoint)


def _stock(card: dict[str, Any]) -> bool:
    """Whether Hugging Face's stock BERT has a place for the student of a checkpoint."""
    from uer.formats.export import check_head

    try:
        check_head(config_from_dict(card["teacher"], "checkpoint"), "huggingface")
    except UserError:
        return False
    alike = not card.get("layer_sizes") and card.get("mlm_target_dim") in (None, card["target_dim"])
    return alike or card.get("kind") != "wid"


def _end(args: argparse.Namespace, checkpoint: Path) -> None:
    from uer.report.writer import Reports, note

    card = read_object(f"{checkpoint}.json")
    good = "unknown on text that it was not trained on; a --dev_path would tell"
    if "dev_accuracy" in card:
        figure = f"held-out {card.get('figure', 'accuracy')} {100 * card['dev_accuracy']:.2f} %"
        good = f"{figure}, loss {card['dev_loss']:.4f}"
    if "dev_accuracy" in card and "teacher_accuracy" in card:
        good += f"; the teacher's {100 * card['teacher_accuracy']:.2f} %, {card['teacher_loss']:.4f}"
    squeezes = card.get("kind") == "wid"
    masks = ["--mask_path", args.mask_path] if squeezes and args.mask_path else None
    following = suggestion("convert", "--load_model_path", checkpoint, masks, same_tokenizer(args),
                           "--output_format", "uer", "huggingface" if _stock(card) else None, "--output_model_path",
                           f"{args.output_model_path.removesuffix('.bin')}-student.bin")
    if squeezes and (complete := card.get("masks_complete", 0)) > args.total_steps:
        good = f"as a stage on the way alone: there is no student before all masks are there, at step {complete:,}"
        following = suggestion("pretrain", sys.argv[1:], "--total_steps", 2 * complete, "--resume")
    reports = Reports(leads=True)  # a run that is done has ended well, whether or not anybody reads on
    if args.tb_path:
        note(Path(args.tb_path), card["step"], "end", {"next": following})
    ending(f"{checkpoint}" + (f" and the log of the run in {args.tb_path}" if args.tb_path else ""), good, following,
           reports.say)
