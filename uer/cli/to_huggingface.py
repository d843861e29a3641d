"""Write any UER BERT (either generation of names) as a folder for stock transformers."""

from __future__ import annotations

import argparse
from pathlib import Path

from uer.arguments import add_uer_options, checked, refuse_overwriting
from uer.cli import command_line, importing, judged_by, suggestion
from uer.data.options import add_tokenizer_options
from uer.progress import ending


def parser() -> argparse.ArgumentParser:
    out = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    out.add_argument("--input_model_path", required=True, metavar="FILE", help="UER model file")
    out.add_argument("--output_model_path", required=True, metavar="FOLDER",
                     help="folder to write; an ending .bin or .safetensors is taken off")
    out.add_argument("--layers_num", type=int, metavar="N", help="checked against the file (default: the file's)")
    out.add_argument("--type", "--target", choices=("bert", "mlm"), metavar="{bert,mlm}",
                     help="bert: with pooler and next-sentence head; mlm: without (default: what the file has)")
    out.add_argument("--config_path", metavar="FILE",
                     help="config as in bert/ (default: <name without .bin>_config.json beside it, else heads of 64)")
    add_tokenizer_options(out, "tokenizer files")
    add_uer_options(out, without=("target",))
    return out


def main() -> None:
    args = checked(parser().parse_args())
    with importing():
        from uer.conversion.imports import model_to_convert
        from uer.conversion.outputs import Source, check_outputs, output_paths, write_outputs
        from uer.formats.model_card import CardFacts
        from uer.formats.shapes import parameter_count
        from uer.formats.tokenizer_files import text_beside
        from uer.tokenizers import agreed_rules

    paths = output_paths(args.output_model_path, ["huggingface"])
    refuse_overwriting(args, {"output_model_path": paths.values()})
    check_outputs(paths)
    model, extras = model_to_convert(args, "uer", "no UER file, it has Hugging Face's names already", target=None)
    card = CardFacts(name="", source=Path(args.input_model_path).name, how="A BERT, converted from a UER file.",
                     parameters=parameter_count(model.weights), command=command_line(),
                     figures=[("MLM loss", "not recorded with the file")] if model.config.target == "mlm" else [])
    beside = text_beside(args.input_model_path)
    text = agreed_rules(args, *beside, say=print) if beside or args.vocab_path or args.spm_model_path else None
    source = Source(model.config, model.weights, card, extras, text, sentence=model.sentence, reading=model.reading)
    for line in write_outputs(source, paths):
        print(f"written: {line}")
    ending(str(next(iter(paths.values()))), "the same function, as reading it back shows",
           suggestion("evaluate", "--model_path", next(iter(paths.values())), judged_by(model.config.target)))
