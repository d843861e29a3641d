"""SQuAD: tokens know their characters, windows overlap as they should, the best span is found."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest
from corpora import TOKENS, write_vocab
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning import write_squad

from uer.errors import UserError
from uer.finetuning.squad import Answer, Answers, find_answers, nbest_of
from uer.finetuning.squad_data import Question, Window, owners, read_squad, spans_of, tokenize, windows
from uer.tokenizers.bert import BertTokenizer
from uer.tokenizers.vocab import Vocab

TOKENIZERS = {lower: BertTokenizer(Vocab(TOKENS), do_lower_case=lower) for lower in (True, False)}
ALPHABET = "abrun theRUN éÉ(){}.,-\t\n 你好\u0301\u0327½ﬁΣςß\u00a0\u200dЖ😀\x0b\x0c\x1c\x85\u2028"


@pytest.mark.parametrize("lower", [True, False])
@settings(max_examples=150, deadline=None)
@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_tokens_and_their_characters(lower, text):
    tokenizer = TOKENIZERS[lower]
    tokens = tokenize(tokenizer, text)
    assert tokens.ids == tokenizer.encode(text)
    assert all(0 <= start < end <= len(text) for start, end in zip(tokens.starts, tokens.ends))
    assert tokens.starts == sorted(tokens.starts)
    for number, start, end in zip(*tokens):
        piece, wanted = text[start:end], TOKENS[number].removeprefix("##")
        if number != tokenizer.vocab.unk_id and len(piece) == len(wanted) and piece.isascii():
            assert (piece.lower() if lower else piece) == wanted


def test_offsets_like_the_fast_tokenizers(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    path = write_vocab(tmp_path)
    fast = tokenizers.BertWordPieceTokenizer(str(path), lowercase=True)
    rng = random.Random(1)
    texts = ["The café (Run), naïve 你好! un-wanted... runner's", "É\u0301a ﬁ ½ ΑΣ Straße"]
    texts += ["".join(rng.choices(ALPHABET, k=40)) for _ in range(200)]
    for text in texts:
        wanted, found = fast.encode(text, add_special_tokens=False), tokenize(TOKENIZERS[True], text)
        assert found.ids == wanted.ids
        assert list(zip(found.starts, found.ends)) == [tuple(pair) for pair in wanted.offsets], text


def test_special_tokens_and_white_space_that_is_none_to_bert():
    """Chinese is one chunk: an answer must not be all of it because of one [UNK]."""
    for text, places in (("the a[MASK]b run", [(0, 3), (4, 5), (5, 11), (11, 12), (13, 16)]),
                         ("你[UNK]好", [(0, 1), (1, 6), (6, 7)]), ("[SEP]", [(0, 5)]),
                         ("lo\x0cwe\x1cst the\x85", [(0, 8), (9, 12)])):
        found = tokenize(TOKENIZERS[True], text)
        assert found.ids == TOKENIZERS[True].encode(text)
        assert list(zip(found.starts, found.ends)) == places


@given(st.integers(0, 200), st.integers(1, 60), st.integers(1, 80))
def test_windows_cover_everything(length, room, stride):
    spans = spans_of(length, room, stride)
    assert spans[0][0] == 0 and spans[-1][1] == length
    assert all(0 <= end - start <= room for start, end in spans)
    assert all(later[0] - before[0] == min(stride, room) for before, later in itertools.pairwise(spans))
    assert {i for start, end in spans for i in range(start, end)} == set(range(length))
    for i, index in enumerate(owners(spans, length)):
        start, end = spans[index]
        context = min(i - start, end - 1 - i)
        assert start <= i < end
        assert context + 1 >= max(min(i - a, b - 1 - i) for a, b in spans if a <= i < b)


def words_question(answer: str, count: int = 40) -> Question:
    rng = random.Random(2)
    words = rng.choices(["a", "b", "c", "run", "d."], k=count)
    words[25] = f"({answer})"
    context = "  ".join(words)
    return Question("q", "the what ?", context, ((answer, context.index(answer)),))


def test_labels_point_at_the_answer_in_every_window_that_has_it():
    question = words_question("New Café")
    found = windows(question, TOKENIZERS[True], seq_length=24, doc_stride=7, max_query_length=8)
    assert len(found) > 3 and len({window.answer != (0, 0) for window in found}) == 2
    for window in found:
        assert len(window.tokens) <= 24
        assert [TOKENS[i] for i in window.tokens[:window.first]] == ["[CLS]", "the", "[UNK]", "?", "[SEP]"]
        if window.answer != (0, 0):
            first, last = (position - window.first for position in window.answer)
            assert question.context[window.starts[first]:window.ends[last]] == "New Café"
        else:
            inside = question.context[window.starts[0]:window.ends[-1]]
            assert "New Café" not in inside
    assert sum(int(window.best.sum()) for window in found) == len(tokenize(TOKENIZERS[True], question.context).ids)


def test_long_questions_are_cut():
    question = Question("q", "run " * 50, "the river", ())
    window, = windows(question, TOKENIZERS[True], seq_length=24, doc_stride=7, max_query_length=8)
    assert window.first == 10 and len(window.tokens) == 13 and window.answer == (0, 0)


def perfect_logits(window: Window) -> np.ndarray:
    scores = np.zeros((len(window.tokens), 2), dtype=np.float32)
    scores[window.answer[0], 0] = scores[window.answer[1], 1] = 9.0
    return scores


@pytest.mark.parametrize("answer", ["New Café", "run", "(x)", "b-c", "你好"])
def test_perfect_logits_give_the_original_text(answer):
    question = words_question(answer)
    parts = windows(question, TOKENIZERS[True], seq_length=24, doc_stride=7, max_query_length=8)
    found = find_answers(question, parts, [perfect_logits(window) for window in parts], n_best=5, max_length=30)
    assert found.best[0] == (answer, 18.0) and found.null == 0.0 and found.odds == -18.0
    assert len(found.best) == 5 == len({candidate.text for candidate in found.best})
    assert all(candidate.text in question.context for candidate in found.best)


def test_spans_run_forward_within_the_longest_answer():
    question = Question("q", "the", "a b c d e f", ())
    window, = windows(question, TOKENIZERS[True], seq_length=24, doc_stride=7, max_query_length=8)
    scores = np.zeros((len(window.tokens), 2), dtype=np.float32)
    scores[window.first + 4, 0], scores[window.first + 1, 1] = 5.0, 5.0  # starts at e, ends at b
    scores[0] = (9.0, 9.0)  # [CLS] and the question are no answers
    scores[1] = (8.0, 8.0)
    found = find_answers(question, [window], [scores], n_best=20, max_length=3)
    assert found.null == 18.0 and {answer.score for answer in found.best} <= {0.0, 5.0}
    assert found.best[0].text in ("e", "e f", "b", "a b") and found.best[0].score == 5.0
    assert max(len(answer.text.split()) for answer in found.best) == 3


def test_nbest_probabilities():
    question = words_question("run")
    parts = windows(question, TOKENIZERS[True], seq_length=48, doc_stride=7, max_query_length=8)
    found = find_answers(question, parts, [perfect_logits(window) for window in parts], n_best=3, max_length=30)
    for nullable in (False, True):
        listed = nbest_of(found, nullable)
        assert sum(entry["probability"] for entry in listed) == pytest.approx(1)
        assert ("" in [entry["text"] for entry in listed]) == nullable
        assert [entry["probability"] for entry in listed] == sorted((x["probability"] for x in listed), reverse=True)


def test_a_text_without_tokens_has_no_answer():
    question = Question("q", "the", " \u200d ", ())
    parts = windows(question, TOKENIZERS[True], seq_length=24, doc_stride=7, max_query_length=8)
    found = find_answers(question, parts, [np.zeros((len(parts[0].tokens), 2), dtype=np.float32)], n_best=3,
                         max_length=4)
    assert found == Answers([Answer("", 0.0)], 0.0) and found.odds == 0


# -- files -------------------------------------------------------------------------------------------------------------


def test_both_versions_are_read(tmp_path):
    data = write_squad(tmp_path / "v2.json", 9, seed=1, unanswerable=True)
    found = read_squad(tmp_path / "v2.json")
    assert [len(question.answers) for question in found] == [0, 1, 1] * 3
    assert found[1].context == data["data"][0]["paragraphs"][1]["context"]
    write_squad(tmp_path / "v1.json", 4, seed=1)
    assert all(question.answers for question in read_squad(tmp_path / "v1.json"))


@pytest.mark.parametrize(("change", "words"), [
    (lambda data: data.pop("data"), "not SQuAD's JSON"),
    (lambda data: data["data"].clear(), "no questions in it"),
    (lambda data: data["data"][0]["paragraphs"][1].pop("context"), "after 1 question"),
    (lambda data: data["data"][0]["paragraphs"][0]["qas"][0].update(answers={}), "answers must be a list"),  # no "none"
    (lambda data: data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(answer_start=0),
     "question q0: the answer .* is not at character 0"),
    (lambda data: data["data"][0]["paragraphs"][0]["qas"][0]["answers"][0].update(text=""), "question q0"),
])
def test_faults(tmp_path, change, words):
    data = write_squad(tmp_path / "d.json", 3, seed=1)
    change(data)
    (tmp_path / "d.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=words):
        read_squad(tmp_path / "d.json")


def test_no_json(tmp_path):
    (tmp_path / "d.json").write_text("{")
    with pytest.raises(UserError, match=r"d\.json: not valid JSON"):
        read_squad(tmp_path / "d.json")
    with pytest.raises(UserError, match=r"e\.json: no such file"):
        read_squad(tmp_path / "e.json")
