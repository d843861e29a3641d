"""A BERT with fewer layers: each that leaves is made up for, in closed form, by the one below it.

Which ones leave is chosen by what the prediction of masked tokens loses. The result is a teacher like any other: let
dimensions leave it afterwards, or take a student that has become narrower already.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from uer.arguments import checked, refuse_overwriting
from uer.cli import suggestion
from uer.data.options import add_tokenizer_options
from uer.errors import UserError
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--pretrained_model_path", required=True, metavar="PATH", help="UER file or Hugging Face folder")
    out.add_argument("--config_path", metavar="FILE", help="its config (default: beside it)")
    out.add_argument("--dataset_path", required=True, nargs="+", metavar="FILE", help="dataset by preprocess.py")
    out.add_argument("--target_layers", type=int, metavar="N", help="layers to keep; which ones is found out")
    out.add_argument("--keep_layers", type=int, nargs="+", metavar="I", help="these layers instead, counted from 0")
    out.add_argument("--calibration_batches", type=int, default=4, metavar="N",
                     help="batches of 16 instances to fit on (default: 4)")
    out.add_argument("--seed", type=int, default=7, help="of their choice and masking (default: 7)")
    out.add_argument("--output_model_path", required=True, metavar="FILE",
                     help="UER file to write; beside it <name without .bin>_config.json")
    add_tokenizer_options(out)
    return out


def main() -> None:
    """Parse, read, fit, write."""
    args = checked(parser().parse_args())
    from uer.calibration.depth import drop_layers
    from uer.conversion.outputs import check_outputs, written_by

    paths = {"uer": Path(args.output_model_path)}
    refuse_overwriting(args, {"output_model_path": written_by(paths)})
    check_outputs(paths)
    if not args.target_layers and not args.keep_layers:
        raise UserError("--target_layers N or --keep_layers 0 … is needed: how many layers stay, or which")
    if args.calibration_batches < 1:
        raise UserError(f"--calibration_batches is {args.calibration_batches}, at least 1 is needed")
    *lines, found = drop_layers(args)
    for line in lines:
        print(line)
    ending(args.output_model_path, found,
           suggestion("calibrate", "--pretrained_model_path", args.output_model_path, "--dataset_path",
                      args.dataset_path, "--target_dim", "DIM", "--output_model_path", "student.bin"))
