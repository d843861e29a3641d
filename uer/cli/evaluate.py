"""Masked language modelling of a finished BERT on held-out text: loss, accuracy, tokens per second."""

from __future__ import annotations

import argparse

from uer.arguments import add_uer_options, checked, refuse_overwriting
from uer.cli import same_tokenizer, suggestion
from uer.data.options import add_tokenizer_options
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        epilog="A dataset with static masks gives the same figures every time; give every model the same one. Build it "
               "with  preprocess.py --dup_factor 1  from text that no model was trained on.")
    group = out.add_argument_group("model and text")
    group.add_argument("--model_path", required=True, metavar="PATH",
                       help="a UER file (a teacher, a student, a plain checkpoint) or a Hugging Face folder")
    group.add_argument("--config_path", metavar="FILE", help="model config, where there is none beside the model")
    group.add_argument("--dataset_path", required=True, nargs="+", metavar="FILE",
                       help="dataset file(s) of preprocess.py")
    add_tokenizer_options(out)
    group = out.add_argument_group("run")
    group.add_argument("--batch_size", type=int, default=32, metavar="N", help="instances at a time (default: 32)")
    group.add_argument("--bf16", action="store_true", help="matrix products in bfloat16")
    group.add_argument("--output_path", metavar="FILE", help="the figures go here as well, as JSON")
    add_uer_options(out)
    return out


def main() -> None:
    args = checked(parser().parse_args())
    refuse_overwriting(args, {"output_path": [args.output_path]})
    from uer.evaluation import evaluate_file

    figures = evaluate_file(args)
    ending(f"{args.output_path}: the figures" if args.output_path else "figures, on the screen only",
           f"accuracy {100 * figures.accuracy:.2f} % of {figures.predicted:,} predictions, loss {figures.loss:.4f}",
           suggestion("run_glue", "--data_dir", "GLUE_FOLDER", "--pretrained_model_path", args.model_path,
                      same_tokenizer(args), "--output_path", "glue"))
