"""Tokenizer files as Hugging Face folders have them, small ones, written by hand."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from corpora import TOKENS, write_vocab

from uer.data.options import preprocess_parser
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import Tokenizer, build_tokenizer
from uer.tokenizers.bpe import byte_characters

ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", *byte_characters(), "lo", "low", "er", "Ġlow", "Ġt", "Ġth", "Ġthe",
           "ri", "ver", "ve", "<mask>"]
MERGES = [("l", "o"), ("lo", "w"), ("e", "r"), ("Ġ", "low"), ("Ġ", "t"), ("Ġt", "h"), ("Ġth", "e"), ("r", "i"),
          ("v", "e"), ("ve", "r")]
PIECES: list[tuple[str, float]] = [
    ("<s>", 0), ("<pad>", 0), ("</s>", 0), ("<unk>", 0), *((piece, -2.0 - i / 7) for i, piece in enumerate([
        "\u2581", "\u2581the", "\u2581low", "er", "river", "\u2581river", "lo", "w",
        *"abcdefghiklmnoprstuvxyzé你好,"])), ("<mask>", 0)]


def write(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")


def wordpiece(folder: Path, config: dict[str, Any] | None = None, tokens: list[str] = TOKENS) -> Path:
    """vocab.txt, and tokenizer_config.json unless `config` is None."""
    folder.mkdir(exist_ok=True)
    write_vocab(folder, tokens)
    if config is not None:
        write(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **config})
    return folder


def roberta(folder: Path, config: dict[str, Any] | None = None) -> Path:
    """vocab.json, merges.txt, and tokenizer_config.json unless `config` is None."""
    folder.mkdir(exist_ok=True)
    write(folder / "vocab.json", {token: number for number, token in enumerate(ROBERTA)})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in MERGES), encoding="utf-8")
    if config is not None:
        write(folder / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer", **config})
    return folder


def unigram(folder: Path, pieces: list[tuple[str, float]] = PIECES, unknown: int = 3) -> Path:
    """tokenizer.json alone, as XLM-RoBERTa has it; without a compiled normalisation."""
    folder.mkdir(exist_ok=True)
    special = [name for name, _ in pieces if name[0] == "<"]
    ids = {name: number for number, (name, _) in enumerate(pieces)}
    write(folder / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": ids[name], "content": name, "single_word": False, "lstrip": name == "<mask>",
                          "rstrip": False, "normalized": False, "special": True} for name in special],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always", "split": True}]},
        "decoder": None, "model": {"type": "Unigram", "unk_id": unknown, "vocab": pieces, "byte_fallback": False}})
    return folder


def arguments(*options: object) -> Namespace:
    """The options that have to do with text, parsed."""
    return preprocess_parser().parse_args(["--corpus_path", "-", *map(str, options)])


def tokenizer_of(folder: Path, *options: object) -> Tokenizer:
    """What the scripts make of a model's folder (or file) and options."""
    return build_tokenizer(arguments(*options), *text_beside(folder))


def tokens(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.vocab.tokens[number] for number in tokenizer.encode(text)]
