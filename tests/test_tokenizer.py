"""Tokenizers and vocabularies, against literal cases and a slow reading of BERT's rules."""

import unicodedata

import numpy as np
import pytest
from corpora import SPECIALS, TOKENS, options, write_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from uer.errors import UserError
from uer.tokenizers import Vocab, build_tokenizer
from uer.tokenizers.base import Cache
from uer.tokenizers.bert import BertTokenizer
from uer.tokenizers.bpe import BpeTokenizer, byte_characters
from uer.tokenizers.simple import CharTokenizer, SpaceTokenizer
from uer.tokenizers.vocab import AddedToken

VOCAB = Vocab(TOKENS)
UNCASED, CASED = BertTokenizer(VOCAB), BertTokenizer(VOCAB, do_lower_case=False)

# Characters whose classes no Unicode version has changed since BERT.
ALPHABET = (
    "abcderuntow 0.,!?'-()[]$~ABTEÉéèüñßΣσςİı\u0301\u0323\u0308\t\r\x00\x0b\x0c\x1c\x1f\x7f\x85\xa0\xad\u2003\u2028"
    "\u200b\u200d\ufeff\ufffd\u3000你好世界龥\u3400\uf900\U00020000。「·–—’“한글กำ्\U0001f600\ue000\U000e0001"
)
SPECIAL_OR_TEXT = st.lists(
    st.one_of(st.text(ALPHABET, max_size=8), st.sampled_from([*SPECIALS, "unwanted", "lowest", "x" * 100, "x" * 101])),
    max_size=8,
).map("".join)


def slow_words(text, lower):
    """BERT's basic tokenization, a character at a time, from the Unicode database."""

    def ideograph(c):
        ranges = ((0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0xF900, 0xFAFF), (0x20000, 0x2A6DF))
        return any(first <= ord(c) <= last for first, last in ranges)

    def punctuation(c):
        return (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or unicodedata.category(c)[0] == "P"

    out = ""
    for c in text:
        if c in "\t\n\r" or unicodedata.category(c) in ("Zs", "Zl", "Zp"):
            out += " "
        elif c not in "\0\ufffd" and unicodedata.category(c) not in ("Cc", "Cf", "Co"):
            out += f" {c} " if ideograph(c) else c
    if lower:
        out = "".join(c for c in unicodedata.normalize("NFD", out) if unicodedata.category(c) != "Mn")
        out = "".join(c.lower() for c in out)
    return "".join(f" {c} " if punctuation(c) else c for c in out).split()


def slow_ids(text, lower):
    for number, special in enumerate(SPECIALS):  # the longest match is no question: none contains another
        if special in text:
            before, after = text.split(special, 1)
            return [*slow_ids(before, lower), number, *slow_ids(after, lower)]
    ids = []
    for word in slow_words(text, lower):
        pieces, rest, prefix = [], word, ""
        while rest and len(word) <= 100:
            cut = next((n for n in range(len(rest), 0, -1) if prefix + rest[:n] in TOKENS), None)
            if cut is None:
                break
            pieces.append(TOKENS.index(prefix + rest[:cut]))
            rest, prefix = rest[cut:], "##"
        ids += pieces if not rest else [1]
    return ids


@pytest.mark.parametrize(
    ("text", "lower", "expected"),
    [
        ("Unwanted running.", True, "[UNK] run ##n ##ing ."),
        ("The lowest, new!", True, "the lowest , new !"),
        ("The Run", False, "The Run"),
        ("Café CAFÉ cafe\u0301", True, "cafe cafe cafe"),
        ("你好x世", True, "你 好 x 世"),
        ("a\x0bb a\u200bb a\x85b", True, "a ##b a ##b a ##b"),
        ("\u0301 \ufffd\x00", True, ""),
        ("the [MASK] of [mask]", True, "the [MASK] [UNK] [ [UNK] ]"),
        ("ΑΣ Σ", True, "[UNK] σ"),
        ("a" * 100, True, "a" + " ##a" * 99),
        ("a" * 101, True, "[UNK]"),
    ],
)
def test_bert_literal(text, lower, expected):
    tokenizer = BertTokenizer(Vocab([*TOKENS, "##n"]), lower)
    assert [tokenizer.vocab.tokens[i] for i in tokenizer.encode(text)] == expected.split()


@settings(max_examples=300, deadline=None)
@given(SPECIAL_OR_TEXT, st.booleans())
def test_bert_agrees_with_the_rules(text, lower):
    assert (UNCASED if lower else CASED).encode(text) == slow_ids(text, lower)


@settings(max_examples=100, deadline=None)
@given(st.lists(SPECIAL_OR_TEXT | st.just("a\nb"), min_size=1, max_size=5))
def test_lines_together_are_as_each_alone(lines):
    for tokenizer in (UNCASED, CharTokenizer(VOCAB), SpaceTokenizer(VOCAB)):
        ids, lengths = tokenizer.encode_lines(lines)
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        assert [part.tolist() for part in parts] == [tokenizer.encode(line) for line in lines]


def test_special_tokens_with_marks_in_them_are_found_in_a_corpus_too():
    """Common marks are set apart before the lines of a corpus are looked at."""
    tokenizer = BertTokenizer(Vocab(TOKENS, added=[AddedToken("[E-1]", len(TOKENS))]))
    ids = tokenizer.encode("the [E-1], low")
    assert len(TOKENS) in ids and tokenizer.encode_lines(["the [E-1], low"])[0].tolist() == ids


def check_against_the_fast_tokenizer(folder, characters, lower):
    """Each character inside and outside a word, and random mixtures of them."""
    transformers = pytest.importorskip("transformers")
    path = str(write_vocab(folder))
    reference = transformers.BertTokenizerFast(vocab=path, vocab_file=path, do_lower_case=lower)
    tokenizer = BertTokenizer(Vocab.load(path), lower)
    assert reference.mask_token_id == tokenizer.vocab.mask_id
    texts = [f"a{c}b {c} " for c in characters]
    rng = np.random.default_rng(5)
    texts += ["".join(rng.choice(characters, 20)) for _ in range(len(texts) // 4)]
    for start in range(0, len(texts), 4000):
        expected = reference._tokenizer.encode_batch(texts[start : start + 4000], add_special_tokens=False)
        wrong = [text for text, e in zip(texts[start:], expected) if tokenizer.encode(text) != e.ids]
        assert not wrong


@pytest.mark.parametrize("lower", [True, False])
def test_bert_agrees_with_the_fast_tokenizer(tmp_path, lower):
    points = [*range(0x600), *range(0x600, 0xD800, 23), *range(0xF900, 0x110000, 397), *range(0x2000, 0x2070), 0xFFFD]
    check_against_the_fast_tokenizer(tmp_path, [chr(c) for c in points], lower)


@pytest.mark.long
@pytest.mark.parametrize("lower", [True, False])
def test_bert_agrees_with_the_fast_tokenizer_on_all_characters(tmp_path, lower):
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    check_against_the_fast_tokenizer(tmp_path, characters, lower)


def test_cache_is_bounded_and_keeps_what_is_in_use():
    calls = []
    cache = Cache(lambda key: calls.append(key) or key.encode(), limit=4)
    for number in range(40):
        assert cache["often"] == b"often"
        assert cache[f"rare {number}"] == f"rare {number}".encode()
        assert len(cache) + len(cache._older) <= 8
    assert calls.count("often") == 1
    assert cache["x" * 1000] == b"x" * 1000
    assert "x" * 1000 not in cache


def test_char_and_space():
    char, space = CharTokenizer(VOCAB), SpaceTokenizer(VOCAB)
    assert [TOKENS[i] for i in char.encode(" ab你# ")] == ["a", "b", "你", "[UNK]"]
    assert [TOKENS[i] for i in space.encode(" the  river\tnope ")] == ["the", "river", "[UNK]"]
    assert space.decode(space.encode("the river")) == "the river"
    assert UNCASED.decode(UNCASED.encode("The lower.")) == "the lower ."


def test_bpe_joins_the_first_pair_first():
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"lower", "lo", "low", "er", "Ġ", "Ġlow", "Ã", "©"]
    merges = [("e", "r"), ("l", "o"), ("lo", "w"), ("Ġ", "low")]
    bpe = BpeTokenizer(Vocab(tokens), merges)
    assert [tokens[i] for i in bpe.encode("lower low")] == ["low", "er", "Ġlow"]
    assert [tokens[i] for i in bpe.encode("éz")] == ["Ã", "©", "<unk>"]
    assert bpe.decode(bpe.encode("lower low é")) == "lower low é"
    assert len(set(byte_characters())) == 256
    going_on = [token for token, flag in zip(tokens, bpe.continues()) if flag]  # for --whole_word_masking
    assert going_on == [*"lower", "lo", "low", "er", "Ã", "©"]


def test_bpe_agrees_with_the_tokenizers_library(tmp_path):
    library = pytest.importorskip("tokenizers")
    texts = ["The river's low, isn't it?  Yes: 3,000 cafés…\tand 你好 \U0001f600", "  indented  ", "x\u0301\u00a0y"]
    reference = library.ByteLevelBPETokenizer()
    reference.train_from_iterator(texts * 3, vocab_size=330, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    vocab_path, merges_path = reference.save_model(str(tmp_path))
    args = options(tmp_path, "--tokenizer", "bpe", "--vocab_path", vocab_path, "--merges_path", merges_path)
    bpe = build_tokenizer(args)
    for text in [*texts, "unseen words Ünd Zahlen 12345", "a\n\n b"]:
        assert bpe.encode(text) == reference.encode(text).ids
        assert bpe.decode(bpe.encode(text)) == text


def test_xlmroberta_ids_are_the_models_moved_up(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    (tmp_path / "text").write_text("the river runs low\nthe new river is lowest\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "m"), vocab_size=40, hard_vocab_limit=False,
        minloglevel=2,
    )
    path = str(tmp_path / "m.model")
    tokenizer = build_tokenizer(options(tmp_path, "--tokenizer", "xlmroberta", "--spm_model_path", path))
    model = sentencepiece.SentencePieceProcessor(model_file=path)
    assert tokenizer.vocab.tokens[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert tokenizer.vocab.mask_id == len(tokenizer.vocab) - 1 == model.get_piece_size() + 1
    ids = tokenizer.encode("the lowest river")
    assert [tokenizer.vocab.tokens[i] for i in ids] == model.encode("the lowest river", out_type=str)
    assert tokenizer.encode("你")[-1] == tokenizer.vocab.unk_id
    assert tokenizer.encode("the\x85river") == tokenizer.encode("the river")  # as the fast tokenizers split it
    assert tokenizer.decode(ids) == "the lowest river"


def test_vocabulary_does_not_depend_on_line_ends(tmp_path):
    (tmp_path / "dos").mkdir()
    unix, dos = Vocab.load(write_vocab(tmp_path)), Vocab.load(write_vocab(tmp_path / "dos", end="\r\n"))
    assert unix.tokens == dos.tokens == TOKENS
    odd = [*TOKENS, "a\u00a0b", "\u2028", "x\u3000", "last"]  # a count behind a space or tab is none of the token
    counted = "".join(f"{token}{' '[number % 2:] or chr(9)}{number}\n" for number, token in enumerate(odd))
    (tmp_path / "counted.txt").write_bytes(counted.encode())
    assert Vocab.load(tmp_path / "counted.txt").tokens == odd
    assert unix.sha256 == dos.sha256 != Vocab([*TOKENS, "more"]).sha256
    assert (unix.pad_id, unix.unk_id, unix.cls_id, unix.sep_id, unix.mask_id) == (0, 1, 2, 3, 4)
    assert unix.special_ids == [0, 1, 2, 3, 4]
    assert unix.id("river") == TOKENS.index("river") and unix.id("nope") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"a\nb\n", "lacks the special token"),
        (b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nx\n", r"lacks the special token\(s\) \[MASK\]"),
        (b"[PAD]\n\xff\n", "line 2: not UTF-8"),
    ],
)
def test_unusable_vocabularies_are_named(tmp_path, content, message):
    path = tmp_path / "v.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        Vocab.load(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tokenizer", "xlmroberta"], "--spm_model_path"),
        (["--tokenizer", "bpe"], "--merges_path"),
        (["--merges_path", "m"], "goes with --tokenizer bpe"),
        (["--spm_model_path", "m"], "goes with --tokenizer xlmroberta"),
    ],
)
def test_options_that_do_not_fit_together(tmp_path, more, message):
    write_vocab(tmp_path)
    with pytest.raises(UserError, match=message):
        build_tokenizer(options(tmp_path, *more))
