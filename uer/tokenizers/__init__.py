"""Tokenizers by name: `bert`, `char`, `space`, `bpe`, `xlmroberta`."""

from __future__ import annotations

from argparse import Namespace

from uer.errors import UserError
from uer.tokenizers.base import Tokenizer
from uer.tokenizers.vocab import Vocab

__all__ = ["NAMES", "Tokenizer", "Vocab", "build_tokenizer"]

NAMES = ("bert", "char", "space", "bpe", "xlmroberta")


def build_tokenizer(args: Namespace) -> Tokenizer:
    """The tokenizer that the parsed options describe (see `uer.data.options.add_tokenizer_options`).

    Raises:
        UserError: options that do not fit together, or a vocabulary that cannot be used.
    """
    name = args.tokenizer
    if name not in NAMES:
        raise UserError(f"--tokenizer {name}: not one of {', '.join(NAMES)}")
    if name == "xlmroberta":
        if not args.spm_model_path:
            raise UserError("--tokenizer xlmroberta needs --spm_model_path, a sentencepiece model")
        from uer.tokenizers.xlmroberta import XlmRobertaTokenizer

        return XlmRobertaTokenizer.load(args.spm_model_path)
    if args.spm_model_path:
        raise UserError(f"--spm_model_path goes with --tokenizer xlmroberta, not with {name}")
    if not args.vocab_path:
        raise UserError(f"--tokenizer {name} needs --vocab_path")
    if args.merges_path and name != "bpe":
        raise UserError(f"--merges_path goes with --tokenizer bpe, not with {name}")
    vocab = Vocab.load(args.vocab_path)
    if name == "bert":
        from uer.tokenizers.bert import BertTokenizer

        return BertTokenizer(vocab, do_lower_case=args.do_lower_case == "true")
    if name == "bpe":
        if not args.merges_path:
            raise UserError("--tokenizer bpe needs --merges_path, the list of merges that belongs to the vocabulary")
        from uer.tokenizers.bpe import BpeTokenizer

        return BpeTokenizer.load(vocab, args.merges_path)
    from uer.tokenizers.simple import CharTokenizer, SpaceTokenizer

    return CharTokenizer(vocab) if name == "char" else SpaceTokenizer(vocab)
