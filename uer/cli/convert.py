"""Merge a stage-1 checkpoint into a student that stands alone, and write it in the formats asked for."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from uer.arguments import add_uer_options, checked, refuse_overwriting
from uer.cli import command_line, importing, judged_by, readable_one, same_tokenizer, suggestion
from uer.data.options import add_tokenizer_options
from uer.errors import UserError
from uer.opts import FORMATS, STRATEGIES
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Sizes are read off the checkpoint; those given are checked against it. A checkpoint without\n"
               "compactors (a plain MLM run, a folded student) is converted as it is. Nothing is written unless every\n"
               "output, read back, gives the logits of the checkpoint.")
    model = out.add_argument_group("checkpoint")
    model.add_argument("--load_model_path", required=True, metavar="FILE", help="checkpoint <output_model_path>-<step>")
    model.add_argument("--layers_num", type=int, metavar="N", help="layers of the teacher (default: the checkpoint's)")
    model.add_argument("--hidden_size", type=int, metavar="N", help="of the teacher (default: the checkpoint's)")
    model.add_argument("--feedforward_size", type=int, metavar="N", help="of the teacher (default: the checkpoint's)")
    model.add_argument("--heads_num", type=int, metavar="N",
                       help="heads of the teacher (default: the JSON beside the checkpoint, else hidden_size / 64)")
    model.add_argument("--config_path", metavar="FILE", help="the teacher's config, as in bert/ (default: as above)")
    masks = out.add_argument_group("masks")
    masks.add_argument("--compactor_mask_strategy", choices=STRATEGIES, help="of the run (default: its own, or dim)")
    masks.add_argument("--mask_path", metavar="FILE", help="the run's mask file; not needed once it has been squeezed")
    masks.add_argument("--mask_step", type=int, metavar="STEP", help="step of the checkpoint (default: its own)")
    masks.add_argument("--keep_attention_scale", action="store_true",
                       help="do not fold the attention scale into the student's query, as the published conversion")
    to = out.add_argument_group("output")
    to.add_argument("--output_model_path", required=True, metavar="FILE",
                    help="student to write; its config goes to <name without .bin>_config.json, a Hugging Face folder "
                         "to <name without .bin>/, ONNX to <name>.onnx or <name>-int8.onnx, and uer-py beside uer to "
                         "<name>-uer-py.bin")
    to.add_argument("--output_format", nargs="+", default=["uer"], choices=(*FORMATS, "onnx-int8"),
                    help="one or several (default: uer). uer: the names of the published code; uer-py: those of UER-py "
                         "since 2022; huggingface: a folder for stock transformers; onnx; onnx-int8: the same, its "
                         "weights in 8 bits (onnxruntime's dynamic quantisation), a quarter of the size")
    to.add_argument("--keep_embedding_size", action="store_true",
                    help="of a sentence encoder: let the folder and ONNX end with a map into the teacher's space, so "
                         "that its vectors stand beside the teacher's")
    to.add_argument("--dev_path", nargs="+", metavar="FILE",
                    help="held-out dataset by preprocess.py: accuracy in float32 and in int8 (onnx-int8)")
    add_tokenizer_options(out, "tokenizer files of huggingface")
    add_uer_options(out)
    return out


def main() -> None:
    args = checked(parser().parse_args())
    with importing():
        from uer.conversion.outputs import check_kept_size, check_outputs, output_paths, write_outputs, written_by
        from uer.conversion.stage1 import student_source
        from uer.data.dataset import Dataset

    if args.dev_path and "onnx-int8" not in args.output_format:
        raise UserError("--dev_path does nothing without --output_format onnx-int8, whose accuracy it tells")
    paths = output_paths(args.output_model_path, args.output_format)
    refuse_overwriting(args, {"output_model_path": written_by(paths)})
    check_outputs(paths)
    check_kept_size(args.keep_embedding_size, paths)
    dev = Dataset.open(args.dev_path, option="--dev_path") if args.dev_path else None
    source = replace(student_source(args, command_line(), print), dev=dev)
    for line in write_outputs(source, paths):
        print(f"written: {line}")
    good = [f"{what} {value}" for what, value in source.card.figures if "held-out" in what]
    ending(", ".join(map(str, paths.values())) + f": {source.card.parameters / 1e6:.1f} M parameters",
           "; ".join(good) or ("as a start for fine-tuning" if source.bare else
                               "the checkpoint says nothing of held-out text; evaluate it"),
           following(args, paths, source.config.target, source.bare))


def following(args: argparse.Namespace, paths: dict[str, Path], target: str, bare: bool) -> str:
    """What judges the student; where nothing was written that can be read here, what writes such a thing."""
    readable = readable_one(paths)
    if readable is None:
        return suggestion("convert", sys.argv[1:], "--output_format", "uer")
    if bare:
        return suggestion("run_glue", "--data_dir", "GLUE_FOLDER", "--pretrained_model_path", readable,
                          same_tokenizer(args, readable), "--output_path", "glue")
    return suggestion("evaluate", "--model_path", readable, judged_by(target), same_tokenizer(args))
