"""How text becomes ids: what stands beside a model file, and the tokenizer files of a Hugging Face folder.

Written without any library.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Container
from pathlib import Path
from typing import Any

from uer.errors import UserError
from uer.files import as_written, config_path_for, read_object, vocab_path_for
from uer.formats.storage import PendingFiles, write_json
from uer.formats.teacher import model_folder
from uer.tokenizers.bert import MAX_WORD, BertTokenizer
from uer.tokenizers.beside import (
    FILES,
    MERGES,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    rules_of_folder,
    rules_of_stem,
    rules_of_vocabulary,
)
from uer.tokenizers.bpe import BpeTokenizer
from uer.tokenizers.rules import KEY, TextRules, differences
from uer.tokenizers.vocab import ROLES, AddedToken, Vocab


def text_beside(path: str | Path) -> list[TextRules]:
    """What the files beside a model say about how text becomes ids, for `uer.tokenizers.build_tokenizer`.

    Beside a Hugging Face model these are its folder's tokenizer files; beside a UER file `<stem>.bin` the JSON that
    describes it, `<stem>_vocab.txt` and `<stem>_merges.txt`. `UserError` where files cannot be read, or contradict each
    other.
    """
    path = as_written(path)
    folder = model_folder(path) if path.is_dir() else path.parent
    described = [file for file in (Path(f"{path}.json"), config_path_for(path)) if file.is_file()]
    config = next((file for file in described if KEY in read_object(file)), described[0] if described else None)
    if path.is_dir() or (config is None and (folder / "config.json").is_file()):
        found = rules_of_folder(folder)
        return [] if found is None else [found]
    return rules_of_stem(path.with_name(config_path_for(path).name.removesuffix("_config.json")), config)


def drop_vocabularies(pending: PendingFiles, text: TextRules, path: str | Path, kept: Container[Path] = ()) -> None:
    """Of a UER file that is written over, let go what stands at `<name>_vocab.txt`, or as other kinds have it, where it
    is another vocabulary than the new text's; but for those `kept`, which are written anew, and for what is none."""
    files = [vocab_path_for(path).with_suffix(ending) for ending in (".txt", ".json", ".model")]
    for file in filter(Path.is_file, files if Path(path).is_file() else ()):
        with contextlib.suppress(UserError):
            if file not in kept and "vocab_sha256" in differences(rules_of_vocabulary(file)[0], text):
                pending.drop(file)


def vocabulary_beside(path: str | Path) -> str | None:
    """What --vocab_path has to name for the vocabulary that `text_beside` finds; None: there is none."""
    return next((rules.source.removeprefix("--vocab_path ") for rules in text_beside(path) if rules.vocab), None)


def check_written(rules: TextRules) -> None:
    """`UserError` for a tokenizer that stock transformers has not."""
    stock = rules.kind in ("bert", "bpe") or (rules.pieces is not None and rules.pieces.published)
    if not stock or rules.vocab is None:
        raise UserError(f"{rules.vocab_name}: stock transformers has no tokenizer like this one ({rules.kind}); leave "
                        f"--vocab_path out and bring your own tokenizer files")


def vocabulary_files(rules: TextRules) -> dict[str, bytes]:
    """Name -> content of the files that a tokenizer is built from: vocab.txt; vocab.json, merges.txt; the model."""
    assert rules.vocab is not None
    tokens = rules.vocab.tokens[:rules.vocab.base]
    if rules.pieces is not None:
        return {FILES["xlmroberta"]: rules.pieces.proto}
    if rules.merges is None:
        return {FILES["bert"]: "".join(f"{token}\n" for token in tokens).encode()}
    ids = {token: number for number, token in enumerate(tokens)}
    merges = ["#version: 0.2", *map(" ".join, rules.merges)]
    return {FILES["bpe"]: json.dumps(ids, ensure_ascii=False).encode(),
            MERGES: "".join(f"{line}\n" for line in merges).encode()}


def write_tokenizer(folder: Path, rules: TextRules, *, max_length: int, segments: bool = True) -> None:
    """Write the vocabulary's files, tokenizer.json, tokenizer_config.json and special_tokens_map.json.

    A sentencepiece model gets no tokenizer.json: stock transformers makes one of it.
    """
    vocab = rules.vocab
    assert vocab is not None
    for name, content in vocabulary_files(rules).items():
        (folder / name).write_bytes(content)
    special = dict(zip(ROLES, vocab.special_tokens))
    write_json(special, folder / "special_tokens_map.json")
    kinds: dict[str, dict[str, Any]] = {
        "bert": {"tokenizer_class": "BertTokenizer", "do_lower_case": rules.lower_case,
                 "strip_accents": rules.strip_accents, "tokenize_chinese_chars": rules.split_ideographs},
        "bpe": {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": rules.prefix_space,
                "model_input_names": ["input_ids", "token_type_ids", "attention_mask"]},
        "xlmroberta": {"tokenizer_class": "XLMRobertaTokenizer"}}
    inputs = {} if segments else {"model_input_names": ["input_ids", "attention_mask"]}
    added = {str(token.id): _described(token, token.content in vocab.special_tokens) for token in vocab.added}
    write_json({**special, **kinds[str(rules.kind)], **inputs, "model_max_length": max_length,
                **({"added_tokens_decoder": added} if added else {})}, folder / TOKENIZER_CONFIG)
    if rules.pieces is None:
        write_json(_tokenizer_json(vocab, rules), folder / TOKENIZER_JSON)


def _described(token: AddedToken, special: bool) -> dict[str, Any]:
    return {"content": token.content, "single_word": token.single_word, "lstrip": token.lstrip, "rstrip": token.rstrip,
            "normalized": token.normalized, "special": special or not token.normalized}


def _tokenizer_json(vocab: Vocab, rules: TextRules) -> dict[str, Any]:
    tokens = {token: AddedToken(token, vocab.ids[token]) for token in vocab.special_tokens}
    tokens |= {token.content: token for token in vocab.added}
    ids = {token: number for number, token in enumerate(vocab.tokens[:vocab.base])}
    first, last = vocab.special_tokens[:2]

    def special(token: str, sentence: int) -> dict[str, Any]:
        return {"SpecialToken": {"id": token, "type_id": sentence}}

    def text(name: str, sentence: int) -> dict[str, Any]:
        return {"Sequence": {"id": name, "type_id": sentence}}

    single = [special(first, 0), text("A", 0), special(last, 0)]
    between = rules.separators or (BpeTokenizer if rules.kind == "bpe" else BertTokenizer).separators
    second = int(between == 1)  # the segment of the second text
    pair = [*single, *[special(last, 0)] * (between - 1), text("B", second), special(last, second)]
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": token.id, **_described(token, token.content in vocab.special_tokens)}
                         for token in sorted(tokens.values(), key=lambda token: token.id)],
        **(_bpe_steps(rules, ids) if rules.kind == "bpe" else _bert_steps(vocab, rules, ids)),
        "post_processor": {
            "type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {token: {"id": token, "ids": [vocab.ids[token]], "tokens": [token]}
                               for token in (first, last)}}}


def _bert_steps(vocab: Vocab, rules: TextRules, ids: dict[str, int]) -> dict[str, Any]:
    return {
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": rules.split_ideographs,
                       "strip_accents": rules.strip_accents, "lowercase": rules.lower_case},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": vocab.special_tokens[4], "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": MAX_WORD, "vocab": ids}}


def _bpe_steps(rules: TextRules, ids: dict[str, int]) -> dict[str, Any]:
    spaced = {"type": "ByteLevel", "add_prefix_space": rules.prefix_space, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None, "pre_tokenizer": spaced, "decoder": spaced,
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": False, "vocab": ids,
                  "merges": [list(pair) for pair in rules.merges or []]}}
