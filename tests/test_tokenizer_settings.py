"""For any settings in a folder, our tokenizer gives the ids of the one that transformers builds of the same folder."""

from __future__ import annotations

import itertools
import shutil

import pytest
from corpora import SPECIALS, TOKENS
from folders import PIECES, roberta, tokenizer_of, unigram, wordpiece
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uer.finetuning.batches import collate, encode
from uer.finetuning.tasks import Example

transformers = pytest.importorskip("transformers")

WORDS = ["the", "The", "unwanted", "running", "lowest", "river", "café", "Cafe\u0301", "naïve", "É", "ÉCOLE", "Übung",
         "你好", "世界", "你好x世", "龥", "한글", "\U0001f600", "\U0001f468\u200d\U0001f469", "❤️", "¿qué?", "it's",
         "3,000", "(run)", "a-b", "ΑΣ", "ß", "İ", "Covid", "COVID-19", "covids", "[E1]", *SPECIALS, "<mask>", "<s>"]
TEXTS = st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=6, alphabet=st.characters(
    max_codepoint=0x2FFF, exclude_categories=["Cs", "Cc", "Cn", "Co", "Cf", "Zl", "Zp"]))), max_size=8).flatmap(
    lambda words: st.sampled_from([" ", "", "  "]).map(lambda space: space.join(words)))
VOCABULARY = [*TOKENS, "Cafe", "##n", "##want", "É", "##e", "école", "##cole", "##好", "##世", "\U0001f600", "19"]
EITHER = st.sampled_from([True, False])
NUMBERS = itertools.count()
MANY = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def same(folder, reference, texts):
    ours = tokenizer_of(folder)
    for text in texts:
        assert ours.encode(text) == reference(text, add_special_tokens=False)["input_ids"], (text, ours.rules)
    if reference.name_or_path:  # else of tokenizer.json alone, without the step that adds special tokens
        for pair in filter(all, itertools.pairwise(texts)):
            both, instance = reference(*pair), encode([Example(*pair, None)], ours, 1 << 20)[0]
            assert instance.tokens.tolist() == both["input_ids"], (pair, ours.rules)
            types = both.get("token_type_ids", [0] * len(instance.tokens))
            assert collate([instance], 0).seg[0].tolist() == [number + 1 for number in types]
    assert (ours.vocab.cls_id, ours.vocab.pad_id, ours.vocab.mask_id) == (
        reference.cls_token_id, reference.pad_token_id, reference.mask_token_id)
    assert len(ours.vocab) == len(reference)


@MANY
@given(config=st.fixed_dictionaries({}, optional={
    "do_lower_case": EITHER, "strip_accents": st.sampled_from([None, True, False]), "tokenize_chinese_chars": EITHER,
    "additional_special_tokens": st.just(["[E1]"])}),
    added=st.sampled_from([[], ["Covid"], ["covid", "É"]]), saved=EITHER, bare=EITHER,
    texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_wordpiece(tmp_path, config, added, saved, bare, texts):
    folder = wordpiece(tmp_path / f"m{next(NUMBERS)}", config, VOCABULARY)
    reference = transformers.BertTokenizerFast.from_pretrained(folder)
    if saved or added:  # with tokenizer.json, alone or not
        reference.add_tokens(added)
        reference.save_pretrained(folder)
        if bare:
            (folder / "vocab.txt").unlink()
        reference = transformers.BertTokenizerFast.from_pretrained(folder)
    same(folder, reference, texts)
    shutil.rmtree(folder)


@MANY
@given(space=st.sampled_from([None, True, False]), added=st.sampled_from([[], ["Covid"]]), special=EITHER, saved=EITHER,
       bare=EITHER, texts=st.lists(TEXTS, min_size=1, max_size=6))
def test_byte_level_bpe(tmp_path, space, added, special, saved, bare, texts):
    folder = roberta(tmp_path / f"r{next(NUMBERS)}", {} if space is None else {"add_prefix_space": space})
    reference = transformers.RobertaTokenizerFast.from_pretrained(folder)
    if saved or added:
        reference.add_tokens(added, special_tokens=special)
        reference.save_pretrained(folder)
        if bare:
            for name in ("vocab.json", "merges.txt"):
                (folder / name).unlink(missing_ok=True)
        reference = transformers.RobertaTokenizerFast.from_pretrained(folder)
    same(folder, reference, texts)
    shutil.rmtree(folder)


@MANY
@given(texts=st.lists(TEXTS, min_size=1, max_size=6), turned=EITHER, added=st.sampled_from([[], ["Covid"]]),
       special=EITHER)
def test_unigram(tmp_path, texts, turned, added, special):
    pytest.importorskip("sentencepiece")
    pieces = [*PIECES[4:-1], *PIECES[:4], PIECES[-1]] if turned else PIECES
    folder = unigram(tmp_path / f"u{next(NUMBERS)}", pieces, [name for name, _ in pieces].index("<unk>"))
    reference = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), cls_token="<s>", sep_token="</s>", pad_token="<pad>",
        unk_token="<unk>", mask_token="<mask>")
    if added:
        reference.add_tokens(added, special_tokens=special)
        reference.backend_tokenizer.save(str(folder / "tokenizer.json"))
    same(folder, reference, texts)
    shutil.rmtree(folder)
