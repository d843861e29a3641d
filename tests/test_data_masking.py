"""Masks: how many, what is shown, and what is never touched."""

import numpy as np
import pytest
from corpora import TOKENS
from hypothesis import given, settings
from hypothesis import strategies as st

from uer.data.masking import Masker, MaskingOptions, generator
from uer.errors import UserError
from uer.tokenizers import Vocab
from uer.tokenizers.bert import BertTokenizer

VOCAB_SIZE, SPECIAL, MASK = 2000, [0, 1, 2, 3, 4], 4
CONTINUES = np.arange(VOCAB_SIZE) >= 1500
MODES = {
    "plain": {},
    "words": {"whole_word_masking": True},
    "spans": {"span_masking": True},
}


def masker(**options):
    return Masker(
        MaskingOptions(**options), vocab_size=VOCAB_SIZE, special_ids=SPECIAL, mask_id=MASK, continues=CONTINUES
    )


def corpus(rng, instances, longest=126):
    """Instances [2, …ordinary tokens…, 3] with an occasional special token inside."""
    lengths = rng.integers(3, longest + 3, instances)
    tokens = rng.integers(5, VOCAB_SIZE, lengths.sum())
    tokens[rng.random(len(tokens)) < 0.01] = 1
    ends = np.cumsum(lengths)
    tokens[ends - 1], tokens[ends - lengths] = 3, 2
    return tokens, lengths


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mask_prob", [0.15, 0.4])
def test_shares(mode, mask_prob):
    tokens, lengths = corpus(np.random.default_rng(1), 6000)
    positions, shown = masker(**MODES[mode], mask_prob=mask_prob)(tokens, lengths, generator(1))
    n = len(positions)
    assert n / np.count_nonzero(tokens > 4) == pytest.approx(mask_prob, abs=0.005)
    originals = tokens[positions]
    assert not np.isin(originals, SPECIAL).any()
    assert (np.diff(positions) > 0).all()
    assert np.mean(shown == MASK) == pytest.approx(0.8, abs=0.01)
    assert np.mean(shown == originals) == pytest.approx(0.1, abs=0.01)
    drawn = shown[(shown != MASK) & (shown != originals)]
    assert len(drawn) / n == pytest.approx(0.1, abs=0.01)
    assert not np.isin(drawn, SPECIAL).any()
    assert np.histogram(drawn, 5, (5, VOCAB_SIZE))[0] / len(drawn) == pytest.approx([0.2] * 5, abs=0.03)


@pytest.mark.parametrize("mode", ["plain", "spans"])
def test_exact_number_in_every_instance(mode):
    tokens, lengths = corpus(np.random.default_rng(2), 500)
    positions, _ = masker(**MODES[mode])(tokens, lengths, generator(1))
    row = np.repeat(np.arange(len(lengths)), lengths)
    ordinary = np.bincount(row[tokens > 4], minlength=len(lengths))
    chosen = np.bincount(row[positions], minlength=len(lengths))
    assert chosen.tolist() == [0 if n == 0 else max(1, int(0.15 * n + 0.5)) for n in ordinary]


@pytest.mark.parametrize("mode", ["plain", "spans"])
def test_positions_are_chosen_evenly(mode):
    """No place of an instance is preferred; the last span loses its right end, which the first places feel."""
    lengths = np.full(4000, 42)
    tokens = np.tile([2, *range(10, 50), 3], 4000)
    positions, _ = masker(**MODES[mode])(tokens, lengths, generator(3))
    share = np.bincount(positions % 42, minlength=42)[1:41] / 4000
    assert share == pytest.approx(0.15, abs=0.025 if mode == "plain" else 0.05)


def test_whole_words_are_whole():
    tokens, lengths = corpus(np.random.default_rng(4), 3000)
    positions, _ = masker(whole_word_masking=True)(tokens, lengths, generator(1))
    row = np.repeat(np.arange(len(lengths)), lengths)
    chosen = np.zeros(len(tokens), dtype=bool)
    chosen[positions] = True
    with_left = CONTINUES[tokens][1:] & (tokens[:-1] > 4) & (row[1:] == row[:-1])
    assert with_left.any()
    assert (chosen[1:] == chosen[:-1])[with_left].all()
    has_ordinary = np.bincount(row[tokens > 4], minlength=len(lengths)) > 0
    assert (np.bincount(row[positions], minlength=len(lengths)) > 0).tolist() == has_ordinary.tolist()


def test_whole_words_by_pieces_of_the_vocabulary():
    tokenizer = BertTokenizer(Vocab(TOKENS))
    text = "unable lowest wanted running".replace("running", "runs")
    ids = [2, *tokenizer.encode(text), 3]
    names = [TOKENS[i] for i in ids]
    assert names == ["[CLS]", "un", "##able", "lowest", "want", "##ed", "run", "##s", "[SEP]"]
    whole = Masker(
        MaskingOptions(whole_word_masking=True, mask_prob=0.2), vocab_size=len(TOKENS), special_ids=SPECIAL,
        mask_id=4, continues=tokenizer.continues(),
    )  # fmt: skip
    seen = {tuple(whole(np.array(ids), np.array([9]), generator(seed))[0].tolist()) for seed in range(60)}
    assert seen == {(1, 2), (3,), (4, 5), (6, 7)}


def test_words_joined_by_flags():
    tokens, lengths = np.array([2, 10, 11, 12, 13, 3]), np.array([6])
    joined = np.array([0, 0, 1, 0, 1, 0], dtype=bool)
    make = masker(whole_word_masking=True, mask_prob=0.5)
    seen = {tuple(make(tokens, lengths, generator(seed), joined)[0].tolist()) for seed in range(40)}
    assert seen == {(1, 2), (3, 4)}


def test_span_lengths_are_geometric():
    """In very long instances spans hardly touch, so runs of chosen tokens are spans."""
    lengths = np.full(40, 5002)
    tokens = np.tile([2, *([10] * 5000), 3], 40)
    make = masker(span_masking=True, mask_prob=0.02, span_geo_prob=0.3, span_max_length=6)
    positions, _ = make(tokens, lengths, generator(5))
    runs = np.diff(np.flatnonzero(np.concatenate([[True], np.diff(positions) > 1, [True]])))
    expected = [0.3 * 0.7**k for k in range(5)] + [0.7**5]
    counts = np.bincount(runs, minlength=7)[1:7] / len(runs)
    assert counts == pytest.approx(expected, abs=0.035)
    assert np.mean(runs <= 6) > 0.95


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=12), min_size=1, max_size=5),
    st.sampled_from(sorted(MODES)),
    st.floats(0.01, 0.99),
)
def test_any_instances(rows, mode, mask_prob):
    """Whatever the tokens: none special, none twice, at least one wherever there is an ordinary token."""
    tokens, lengths = np.array([token for row in rows for token in row]), np.array([len(row) for row in rows])
    make = masker(**MODES[mode], mask_prob=mask_prob)
    positions, shown = make(tokens, lengths, generator(1))
    assert len(positions) == len(shown) == len(set(positions.tolist()))
    assert (tokens[positions] > 4).all()
    row = np.repeat(np.arange(len(rows)), lengths)
    assert set(row[positions].tolist()) == set(row[tokens > 4].tolist())
    again = make(tokens, lengths, generator(1))
    assert np.array_equal(again[0], positions) and np.array_equal(again[1], shown)


def test_other_keys_other_masks():
    tokens, lengths = corpus(np.random.default_rng(4), 50)
    keys = ((1, 2), (2, 1), (1,), (1, 2, 0), (12,), (1 + 2 * 2**32,))
    assert len({masker()(tokens, lengths, generator(*key))[0].tobytes() for key in keys}) == len(keys)


@pytest.mark.parametrize("bad", [{"mask_prob": 0}, {"mask_prob": 1}, {"span_geo_prob": 0}, {"span_max_length": 0}])
def test_values_out_of_range(bad):
    with pytest.raises(UserError, match=next(iter(bad))):
        MaskingOptions(**bad)


def test_chinese_words_of_jieba():
    pytest.importorskip("jieba")
    from uer.data.segmenter import WordJoiner

    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"我们在北京大学学习", "low", "##er"]
    vocab = Vocab(list(dict.fromkeys(tokens)))
    ids = BertTokenizer(vocab).encode("我们在北京大学 lower 学习")
    flags = WordJoiner(vocab)(np.array(ids), np.array([len(ids)]))
    words = "".join(("" if flag else " ") + vocab.tokens[i] for i, flag in zip(ids, flags))
    assert words == " 我们 在 北京大学 low ##er 学习"
    parts = WordJoiner(vocab)(np.array(ids), np.array([1, len(ids) - 1]))
    assert parts[:2].tolist() == [0, 0]
