"""A BERT with fewer words: the most frequent ones of a dataset, or those of a file; the rest is spelt with them.

The tables of words are most of a small student. Text is read with the new vocabulary from then on: build the dataset
once more with it, and take the new model as the teacher.
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
    out.add_argument("--target_vocab", required=True, metavar="N|FILE",
                     help="how many words to keep, or a vocabulary file with those to keep, in its order")
    out.add_argument("--dataset_path", nargs="+", metavar="FILE",
                     help="dataset by preprocess.py with the present vocabulary, whose words are counted for N")
    out.add_argument("--output_model_path", required=True, metavar="FILE",
                     help="UER file to write; beside it <name without .bin>_config.json and _vocab.txt")
    add_tokenizer_options(out)
    return out


def main() -> None:
    """Parse, read, choose, write."""
    args = checked(parser().parse_args())
    from uer.conversion.outputs import check_outputs, written_by
    from uer.conversion.vocabulary import reduce_file

    paths = {"uer": Path(args.output_model_path)}
    refuse_overwriting(args, {"output_model_path": written_by(paths)})
    check_outputs(paths)
    if args.target_vocab.isdigit() != bool(args.dataset_path):
        raise UserError("--target_vocab N needs --dataset_path, where words are counted; with a file there is nothing "
                        "to count")
    for line in reduce_file(args):
        print(line)
    vocab = args.output_model_path.removesuffix(".bin") + "_vocab.txt"
    ending(f"{args.output_model_path} and {vocab}", "for the words that stayed, the model that it was",
           suggestion("preprocess", "--corpus_path", "CORPUS", "--vocab_path", vocab, "--dataset_path", "dataset.pt",
                      "--full_sentences", "--dynamic_masking"))
