"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

from __future__ import annotations

from uer.cli import command_line, same_tokenizer, suggestion
from uer.config import parse_with_config
from uer.opts import calibrate_parser as parser
from uer.progress import ending


def main() -> None:
    args, _ = parse_with_config(parser)
    from uer.calibration.command import make_student

    good = [f"{what}: {figures}" for what, figures in make_student(args, command_line())]
    text = args.dataset_path or ["DATASET"]
    ending(args.output_model_path, "; ".join(good) or "unknown, as --skip_evaluation asked for",
           suggestion("pretrain", "--dataset_path", text, same_tokenizer(args), "--pretrained_model_path",
                      args.pretrained_model_path, args.config_path and ["--config_path", args.config_path],
                      "--weight_squeeze", "--target_dim", args.target_dim, "--compactor_mask_strategy",
                      args.compactor_mask_strategy, "--compactor_init", "calibrated", args.compactors_path and
                      ["--compactors_path", args.compactors_path], "--train", "student", "--output_model_path",
                      f"{args.output_model_path.removesuffix('.bin')}-trained.bin"))
