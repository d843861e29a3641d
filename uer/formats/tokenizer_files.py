"""The tokenizer files of a Hugging Face folder for a WordPiece vocabulary; written without any library."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from uer.errors import UserError
from uer.formats.storage import write_json
from uer.tokenizers.vocab import Vocab

ROLES = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")


def load_wordpiece(path: str | Path) -> Vocab:
    """A vocabulary that can be expressed as a BERT tokenizer.

    Raises:
        UserError: unreadable, or a vocabulary of another kind.
    """
    vocab = Vocab.load(path)
    if Path(path).suffix == ".json" or vocab.special_tokens[0] != "[CLS]":
        raise UserError(f"--vocab_path {path}: no WordPiece vocabulary ({vocab.special_tokens[0]} stands for [CLS]); "
                        f"it has no BERT tokenizer: leave it out and bring your own tokenizer files")
    return vocab


def write_tokenizer(folder: Path, vocab: Vocab, path: str | Path, *, lower_case: bool, max_length: int) -> None:
    """Write vocab.txt, tokenizer.json, tokenizer_config.json and special_tokens_map.json."""
    shutil.copyfile(path, folder / "vocab.txt")
    special = dict(zip(ROLES, vocab.special_tokens))
    write_json(special, folder / "special_tokens_map.json")
    write_json({**special, "tokenizer_class": "BertTokenizer", "do_lower_case": lower_case, "strip_accents": None,
                "tokenize_chinese_chars": True, "model_max_length": max_length}, folder / "tokenizer_config.json")
    write_json(_tokenizer_json(vocab, lower_case), folder / "tokenizer.json")


def _tokenizer_json(vocab: Vocab, lower_case: bool) -> dict[str, Any]:
    added = [{"id": vocab.ids[token], "content": token, "single_word": False, "lstrip": False, "rstrip": False,
              "normalized": False, "special": True}
             for token in sorted(vocab.special_tokens, key=vocab.ids.__getitem__)]
    first, last = vocab.special_tokens[:2]

    def special(token: str, sentence: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": sentence}}

    def text(name: str, sentence: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": sentence}}

    single = [special(first, 0), text("A", 0), special(last, 0)]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": lower_case},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, text("B", 1), special(last, 1)],
            "special_tokens": {token: {"id": token, "ids": [vocab.ids[token]], "tokens": [token]}
                               for token in (first, last)},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": vocab.special_tokens[4], "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab.ids},
    }
