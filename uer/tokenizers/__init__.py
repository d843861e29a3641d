"""Tokenizers by name: `bert`, `char`, `space`, `bpe`, `xlmroberta`; which one it is, `TextRules` say."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from uer.errors import UserError
from uer.tokenizers.base import Tokenizer
from uer.tokenizers.rules import COMMAND_LINE, KINDS, TextRules, is_accented, is_cased, merged
from uer.tokenizers.vocab import Vocab

__all__ = ["NAMES", "TextRules", "Tokenizer", "Vocab", "agreed_rules", "build", "build_tokenizer"]

NAMES = tuple(KINDS)


def build_tokenizer(args: Namespace, *beside: TextRules, say: Callable[[str], object] = lambda line: None) -> Tokenizer:
    """The tokenizer that the parsed options (see `uer.data.options.add_tokenizer_options`) and the others describe.

    Args:
        beside: what stands beside the model, what a dataset keeps.
        say: takes one line on it, and warnings.
    Raises:
        UserError: descriptions that contradict each other, or a vocabulary that cannot be used.
    """
    return build(agreed_rules(args, *beside, say=say))


def agreed_rules(args: Namespace, *beside: TextRules, say: Callable[[str], object] = lambda line: None) -> TextRules:
    """`build_tokenizer` without building: how text becomes ids, where nothing need be tokenized."""
    warnings: list[str] = []
    rules = _completed(merged([*rules_of_options(args), *beside], warnings))
    for line in (*warnings, rules.line()):
        say(line)
    return rules


def rules_of_options(args: Namespace) -> list[TextRules]:
    """What the command line gives, and what stands beside the vocabulary that it names."""
    kind, case = args.tokenizer, args.do_lower_case
    if kind is not None and kind not in NAMES:
        raise UserError(f"--tokenizer {kind}: not one of {', '.join(NAMES)}")
    vocabulary = Path(args.vocab_path) if args.vocab_path else None
    if args.merges_path and vocabulary is None:
        raise UserError("--merges_path goes with --vocab_path, the vocabulary that belongs to the merges")
    if kind is None and args.merges_path and vocabulary is not None and vocabulary.suffix != ".txt":
        kind = "bpe"
    if kind is None and args.spm_model_path and vocabulary is None:
        kind = "xlmroberta"
    for option, wanted in (("merges_path", "bpe"), ("spm_model_path", "xlmroberta")):
        if getattr(args, option) and kind != wanted:
            raise UserError(f"--{option} goes with --tokenizer {wanted}" + (f", not with {kind}" if kind else ""))
    if case == "true" and kind not in (None, "bert"):
        raise UserError(f"--do_lower_case goes with --tokenizer bert, not with {kind}")
    given = TextRules(COMMAND_LINE, kind=kind, lower_case=None if case is None else case == "true")
    if args.spm_model_path:
        from uer.tokenizers.pieces import Pieces

        pieces, source = Pieces.load(args.spm_model_path), f"--spm_model_path {args.spm_model_path}"
        return [given, TextRules(source, kind="xlmroberta").holding(
            Vocab(pieces.tokens, source), Path(args.spm_model_path).name, pieces=pieces)]
    if args.vocab_path:
        from uer.tokenizers.beside import rules_of_vocabulary

        return [given, *rules_of_vocabulary(args.vocab_path, kind, args.merges_path)]
    return [given]


def _completed(rules: TextRules) -> TextRules:
    """With what is usual where nobody says anything."""
    values: dict[str, object] = {"kind": rules.kind or "bert"}
    if values["kind"] == "bert":
        if rules.lower_case is None and rules.vocab is not None:
            values["lower_case"] = not is_cased(rules.vocab)
            if values["lower_case"] and rules.strip_accents is None and is_accented(rules.vocab):
                values["strip_accents"] = False
        values["split_ideographs"] = rules.split_ideographs is not False
    elif values["kind"] == "bpe":
        values["prefix_space"] = bool(rules.prefix_space)
    return replace(rules, **values)  # type: ignore[arg-type]


def build(rules: TextRules) -> Tokenizer:
    """The tokenizer of a complete description that holds its vocabulary.
    `UserError` where something is missing, or there is no such tokenizer."""
    kind, vocab = rules.kind, rules.vocab
    if kind not in NAMES:
        raise UserError(f"{rules.source}: a {kind}; there are {', '.join(NAMES)} here")
    if kind == "xlmroberta" and rules.pieces is None:
        raise UserError("--tokenizer xlmroberta needs --spm_model_path, a sentencepiece model")
    if vocab is None:
        named = f": {rules.vocab_name}, as {rules.source} says" if rules.vocab_name else ""
        raise UserError(f"--tokenizer {kind} needs --vocab_path, its vocabulary{named}")
    tokenizer: Tokenizer
    if kind == "bert":
        from uer.tokenizers.bert import BertTokenizer

        tokenizer = BertTokenizer(vocab, bool(rules.lower_case), rules.strip_accents, bool(rules.split_ideographs))
    elif kind == "bpe":
        if rules.merges is None:
            raise UserError("--tokenizer bpe needs --merges_path, the list of merges that belongs to the vocabulary")
        from uer.tokenizers.bpe import BpeTokenizer

        tokenizer = BpeTokenizer(vocab, rules.merges, bool(rules.prefix_space))
    elif kind == "xlmroberta":
        from uer.tokenizers.xlmroberta import XlmRobertaTokenizer

        assert rules.pieces is not None
        tokenizer = XlmRobertaTokenizer(vocab, rules.pieces)
    else:
        from uer.tokenizers.simple import CharTokenizer, SpaceTokenizer

        tokenizer = CharTokenizer(vocab) if kind == "char" else SpaceTokenizer(vocab)
    tokenizer.rules, tokenizer.separators = rules, rules.separators or tokenizer.separators
    return tokenizer
