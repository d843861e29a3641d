"""tokenizer.json beside a vocabulary: its steps are those of the tokenizer here, or it is refused."""

from __future__ import annotations

import pytest
from corpora import TOKENS
from folders import roberta, tokenizer_of, tokens, unigram, wordpiece
from sentence_folder import edit

from uer.errors import UserError
from uer.formats.tokenizer_files import vocabulary_files, write_tokenizer

LOWERCASE, NFKC = {"type": "Lowercase"}, {"type": "NFKC"}


@pytest.mark.parametrize(("kind", "before", "expected"), [
    ("BertTokenizer", LOWERCASE, ["the", "café"]), ("BertTokenizer", NFKC, "normalizer NFKC instead of BertNormalizer"),
    ("PreTrainedTokenizerFast", LOWERCASE, ["the", "café"]), ("TokenizersBackend", NFKC, "normalizer NFKC instead of")])
def test_steps_that_a_vocabulary_does_not_say(tmp_path, kind, before, expected):
    """Versions of transformers take them from tokenizer.json or from the class; of a general class, always from there.
    sentence-transformers puts its folding of case before them."""
    folder = wordpiece(tmp_path / "m", {"do_lower_case": False}, [*TOKENS, "café"])
    write_tokenizer(folder, tokenizer_of(folder).rules, max_length=8)
    edit(folder / "tokenizer.json", lambda data: data.update(
        normalizer={"type": "Sequence", "normalizers": [before, data["normalizer"]]}))
    edit(folder / "tokenizer_config.json", lambda data: data.update(
        tokenizer_class=kind, do_lower_case=kind != "BertTokenizer"))
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    for options in ([], ["--vocab_path", folder / "vocab.txt"]):
        if isinstance(expected, str):
            with pytest.raises(UserError, match=expected):
                tokenizer_of(folder, *options)
        else:
            assert tokens(tokenizer_of(folder, *options), "The café") == expected


def test_steps_around_bpe(tmp_path):
    folder = roberta(tmp_path / "r", {})
    write_tokenizer(folder, tokenizer_of(folder).rules, max_length=8)
    for kind in ("RobertaTokenizer", "PreTrainedTokenizerFast"):
        edit(folder / "tokenizer_config.json", lambda data, kind=kind: data.update(tokenizer_class=kind))
        edit(folder / "tokenizer.json", lambda data: data.update(normalizer=None))
        assert tokens(tokenizer_of(folder), "low the") == ["low", "Ġthe"]
        edit(folder / "tokenizer.json", lambda data: data.update(normalizer=LOWERCASE))
        with pytest.raises(UserError, match="a normalizer Lowercase before byte-level BPE"):
            tokenizer_of(folder)


def test_texts_are_cut_at_their_end(tmp_path):
    folder = wordpiece(tmp_path / "m", {"truncation_side": "right"})
    write_tokenizer(folder, tokenizer_of(folder).rules, max_length=8)
    edit(folder / "tokenizer.json", lambda data: data.update(truncation={"direction": "Left", "max_length": 8}))
    with pytest.raises(UserError, match="truncation_side is 'left'"):
        tokenizer_of(folder)
    edit(folder / "tokenizer_config.json", lambda data: data.update(truncation_side="right"))
    assert tokenizer_of(folder).rules.vocab_size == len(TOKENS)


def test_steps_around_pieces(tmp_path):
    pytest.importorskip("sentencepiece")
    folder = unigram(tmp_path / "u")
    for name, content in vocabulary_files(tokenizer_of(folder).rules).items():
        (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    for normalizer in (None, {"type": "Sequence", "normalizers": [  # as transformers 4.40 and newer made it
            {"type": "Strip", "strip_left": False, "strip_right": True},
            {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": "\u2581"}]}):
        edit(folder / "tokenizer.json", lambda data, normalizer=normalizer: data.update(normalizer=normalizer))
        assert tokens(tokenizer_of(folder), "the  lower ") == ["\u2581the", "\u2581low", "er"]
    edit(folder / "tokenizer.json", lambda data: data.update(normalizer=LOWERCASE))
    with pytest.raises(UserError, match="a normalizer Lowercase"):
        tokenizer_of(folder)
