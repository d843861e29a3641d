"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

from __future__ import annotations

import argparse

from uer.cli import command_line, same_tokenizer, suggestion
from uer.config import parse_with_config
from uer.opts import calibrate_parser as parser
from uer.progress import ending


def main() -> None:
    args, _ = parse_with_config(parser)
    from uer.calibration.command import make_student

    good = [f"{what}: {figures}" for what, figures in make_student(args, command_line())]
    ending(args.output_model_path, "; ".join(good) or "unknown, as nothing was compared", following(args))


def following(args: argparse.Namespace) -> str:
    """The command that trains the student: from its teacher, or where it has words or depth of its own, as it is."""
    output = args.output_model_path.removesuffix(".bin")
    trained = ["--output_model_path", f"{output}-trained.bin"]
    text = args.dataset_path or ["DATASET"]
    if args.target_vocab or not args.target_dim:
        words = ["--vocab_path", f"{output}_vocab.txt"] if args.target_vocab else same_tokenizer(args)
        return suggestion("pretrain", "--dataset_path", "DATASET" if args.target_vocab else text, words,
                          "--pretrained_model_path", args.output_model_path, *trained)
    shape = [word for name in ("target_dim", "target_feedforward_size", "target_heads", "target_layers", "keep_layers")
             if (value := getattr(args, name)) is not None
             for word in (f"--{name}", *(value if isinstance(value, list) else [value]))]
    return suggestion("pretrain", "--dataset_path", text, same_tokenizer(args),
                      "--pretrained_model_path", args.pretrained_model_path,
                      args.config_path and ["--config_path", args.config_path], "--weight_squeeze", shape,
                      "--compactor_mask_strategy", args.compactor_mask_strategy, "--compactor_init", "calibrated",
                      args.compactors_path and ["--compactors_path", args.compactors_path], "--train", "student",
                      *trained)
