"""Options that have to do with text and data, shared by the scripts; needs no torch."""

from __future__ import annotations

import argparse

from uer import tokenizers
from uer.arguments import UER_OPTIONS, add_uer_options
from uer.data.masking import MaskingOptions
from uer.errors import UserError

PROCESSORS = ("mlm", "pairs")
PROCESSORS_HELP = (
    "What mlm reads: each line that is not blank becomes [CLS] line [SEP], cut into pieces of seq_length tokens with "
    "[CLS] and [SEP] counted. With --full_sentences the lines of a document, which a blank line ends, are joined "
    "first, so that few positions are padding. What pairs reads: each line is two texts with a tab between them, and "
    "becomes [CLS] text [SEP] text [SEP], of which the longer text is cut where they have more than seq_length tokens.")


def add_tokenizer_options(parser: argparse.ArgumentParser, title: str = "tokenizer") -> None:
    """--vocab_path, --tokenizer and what belongs to single tokenizers; None is what the command line does not give."""
    group = parser.add_argument_group(title)
    group.add_argument("--vocab_path", metavar="PATH",
                       help="vocabulary, one token a line; vocab.json; tokenizer.json; or a folder with one of them. "
                            "The tokenizer files beside it are obeyed")
    group.add_argument("--tokenizer", choices=tokenizers.NAMES,
                       help="how text is cut (default: as the files beside the vocabulary or model say, or bert)")
    case = group.add_mutually_exclusive_group()
    case.add_argument("--do_lower_case", nargs="?", const="true", choices=("true", "false"),
                      help="bert: fold case and strip accents, for uncased vocabularies (default: as the files beside "
                           "the vocabulary or model say, or true unless the vocabulary has capital letters)")
    case.add_argument("--cased", dest="do_lower_case", action="store_const", const="false",
                      help="bert: keep case and accents")
    group.add_argument("--merges_path", metavar="FILE",
                       help="bpe: the merges that belong to the vocabulary (default: merges.txt beside it)")
    group.add_argument("--spm_model_path", metavar="FILE", help="xlmroberta: sentencepiece model")


def add_masking_options(parser: argparse.ArgumentParser) -> None:
    """How positions are chosen; unset options are None, so that a script can tell what was asked for."""
    group = parser.add_argument_group("masking")
    group.add_argument("--mask_prob", type=float, metavar="P",
                       help=f"share of tokens to predict (default: {MaskingOptions.mask_prob})")
    group.add_argument("--whole_word_masking", action="store_true", default=None,
                       help="mask all pieces (##) of a word together")
    group.add_argument("--span_masking", action="store_true", default=None, help="mask spans of tokens")
    group.add_argument("--span_geo_prob", type=float, metavar="P",
                       help=f"parameter of the geometric span lengths (default: {MaskingOptions.span_geo_prob})")
    group.add_argument("--span_max_length", type=int, metavar="N",
                       help=f"longest span, in tokens (default: {MaskingOptions.span_max_length})")


def masking_options(args: argparse.Namespace, default: MaskingOptions | None = None) -> MaskingOptions | None:
    """The masking that the options ask for, on top of `default`; `default` itself if none was given.
    `UserError` for values out of range, or modes that exclude each other."""
    given = {key: getattr(args, key) for key in MaskingOptions().to_dict() if getattr(args, key) is not None}
    if not given:
        return default
    for name, needs in (("span_geo_prob", "span_masking"), ("span_max_length", "span_masking")):
        if name in given and not given.get(needs) and not (default and getattr(default, needs)):
            raise UserError(f"--{name} goes with --{needs}, which was not given")
    return MaskingOptions.from_dict({**(default.to_dict() if default else {}), **given})


def add_corpus_options(group: argparse._ArgumentGroup, required: bool) -> None:
    """What is read."""
    group.add_argument("--corpus_path", nargs="+", required=required, metavar="PATH",
                       help="UTF-8 text, JSON lines (.jsonl), tables (.tsv, .csv) or Parquet, packed "
                            "(.gz/.bz2/.xz/.zst) or not: files, folders, globs in quotes, or - for standard input")
    group.add_argument("--text_field", nargs="+", metavar="NAME",
                       help="of JSON lines, Parquet and tables, the field with the text: a record is a document "
                            "(default: text); of pairs, the two fields; given, standard input is JSON lines")


def add_processor_option(group: argparse._ArgumentGroup, dest: str, ending: str) -> None:
    """--data_processor under another name than a model's config has for what it was trained on."""
    group.add_argument("--data_processor", dest=dest, metavar="NAME", choices=UER_OPTIONS["data_processor"],
                       help=f"mlm, or pairs of texts, for teachers that read pairs {ending}")


def preprocess_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Turn text into a dataset file for pretrain.py.",
                                     epilog=PROCESSORS_HELP, allow_abbrev=False)
    files = parser.add_argument_group("files")
    add_corpus_options(files, required=True)
    files.add_argument("--dataset_path", default="dataset.pt", metavar="FILE",
                       help="file to write (default: dataset.pt)")
    data = parser.add_argument_group("data")
    data.add_argument("--data_processor", default="mlm", metavar="NAME",
                      help="mlm, or pairs: each line is two texts with a tab between them, for teachers that read "
                           "pairs (default: mlm)")
    data.add_argument("--seq_length", type=int, default=128, metavar="N", help="tokens an instance (default: 128)")
    data.add_argument("--full_sentences", action="store_true", help="join the lines of a document")
    data.add_argument("--dynamic_masking", action="store_true",
                      help="store the text unmasked: every epoch of the training masks it anew")
    data.add_argument("--dup_factor", type=int, default=None, metavar="N",
                      help="static masking: how many differently masked copies of each instance (default: 5)")
    data.add_argument("--seed", type=int, default=7, metavar="N", help="of static masking (default: 7)")
    data.add_argument("--word_segmenter", default="pieces", choices=("pieces", "jieba"),
                      help="what a whole word is: its ## pieces, or for Chinese the words that jieba finds (default: "
                           "pieces)")
    data.add_argument("--processes_num", type=int, default=1, metavar="N",
                      help="worker processes; the dataset is the same, byte by byte, for any number (default: 1)")
    add_tokenizer_options(parser)
    add_masking_options(parser)
    add_uer_options(parser, without=("data_processor",))
    return parser
