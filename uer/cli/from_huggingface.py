"""Write a Hugging Face BERT (folder, .safetensors or .bin) as a UER file, with its config and vocabulary beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from uer.arguments import add_uer_options, checked, refuse_overwriting
from uer.cli import importing, judged_by, suggestion
from uer.files import as_written
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(
        description=__doc__, allow_abbrev=False,
        epilog="RoBERTa works as well; its vocabulary is written as <name>_vocab.json and <name>_merges.txt.")
    out.add_argument("--input_model_path", required=True, metavar="PATH",
                     help="folder with config.json and model.safetensors or pytorch_model.bin, or such a file")
    out.add_argument("--output_model_path", required=True, metavar="FILE",
                     help="UER file to write; beside it <name without .bin>_config.json and _vocab.txt")
    out.add_argument("--layers_num", type=int, metavar="N", help="checked against the file (default: the file's)")
    out.add_argument("--type", "--target", choices=("bert", "mlm"), metavar="{bert,mlm}",
                     help="bert: with pooler and next-sentence head; mlm: without (default: what the file has, which "
                          "may be an encoder alone or a task's model)")
    out.add_argument("--config_path", metavar="FILE",
                     help="config as in bert/, for a file without config.json beside it (default: heads of 64)")
    out.add_argument("--generation", choices=("published", "uer-py"), default="published",
                     help="tensor names: the published code's, or those of UER-py since 2022 (default: published)")
    out.add_argument("--allow_missing_head", action="store_true", help="make an MLM head if there is none")
    out.add_argument("--seed", type=int, default=7, metavar="N", help="of such a head (default: 7)")
    add_uer_options(out, without=("target",))
    return out


def main() -> None:
    args = checked(parser().parse_args())
    with importing():
        from uer.conversion.imports import import_lines, model_to_convert
        from uer.conversion.outputs import check_outputs, written_by
        from uer.formats.tokenizer_files import text_beside

    output = as_written(args.output_model_path)
    paths = {"uer": output}
    refuse_overwriting(args, {"output_model_path": written_by(paths)})
    check_outputs(paths)
    model, extras = model_to_convert(args, "huggingface", "it has UER's names already", seed=args.seed,
                                     allow_missing_head=args.allow_missing_head, target="mlm" if args.type else None)
    text = next(iter(text_beside(args.input_model_path)), None)
    for line in import_lines(model, extras, Path(args.input_model_path), output, args.generation, text):
        print(line)
    ending(str(output), "the same function, as reading it back shows",
           suggestion("evaluate", "--model_path", output, judged_by(model.config.target)))
