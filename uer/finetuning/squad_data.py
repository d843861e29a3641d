"""SQuAD's questions, and windows of their texts as a model reads them.

    [CLS] question [SEP] window of the text [SEP]        a long text is read in windows that overlap

Every token of a window knows which characters of the text it stands for, so an answer is a piece of the text itself.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from uer.errors import UserError
from uer.files import read_json
from uer.tokenizers.bert import FIND_CHUNKS, BertTokenizer

FORM = "data → paragraphs → context, qas → id, question, answers"


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        answers: (text, first character) pairs; none: the text does not answer it.
    """

    id: str
    text: str
    context: str
    answers: tuple[tuple[str, int], ...]


def read_squad(path: str | Path) -> list[Question]:
    """The questions of a file in the format of SQuAD 1.1 or 2.0; `UserError` where it is unreadable, not of this form,
    has an answer that is not where it says, or none though one is said to be there, an empty text, or one id twice."""
    data = read_json(path, wanted=f"SQuAD's JSON ({FORM})")
    out: list[Question] = []
    try:
        for article in data["data"]:
            for paragraph in article["paragraphs"]:
                out += [_question(entry, paragraph["context"], path) for entry in paragraph["qas"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not SQuAD's JSON ({FORM}): {type(error).__name__} {error} after {len(out)} "
                        f"question(s)") from None
    if not out:
        raise UserError(f"{path}: no questions in it")
    if len({question.id for question in out}) < len(out):
        twice = next(name for name, count in Counter(question.id for question in out).items() if count > 1)
        raise UserError(f"{path}: question {twice}: more than one has this id; the answers could not be told apart")
    return out


def _question(entry: dict[str, Any], context: str, path: str | Path) -> Question:
    if type(entry["id"]) not in (str, int):
        raise UserError(f"{path}: question {entry['question']!r}: its id is {json.dumps(entry['id'])}; a text or a "
                        f"whole number is needed")
    if not (isinstance(entry["question"], str) and isinstance(context, str)):
        raise TypeError("question and context must be text")
    if not isinstance(entry.get("answers", []), list):
        raise TypeError("answers must be a list")
    for name, text in (("question", entry["question"]), ("context", context)):
        if not text.strip():
            raise UserError(f"{path}: question {entry['id']}: its {name} is empty; a text is needed")
    impossible = entry.get("is_impossible", False)
    if not isinstance(impossible, bool):
        raise UserError(f"{path}: question {entry['id']}: is_impossible is {impossible!r}; true or false is needed")
    answers = () if impossible else tuple((answer["text"], answer["answer_start"]) for answer in entry["answers"])
    if not answers and entry.get("is_impossible") is False:
        raise UserError(f"{path}: question {entry['id']}: is_impossible is false, and there is no answer; one is "
                        f"needed, or true")
    for text, start in answers:
        if type(start) is not int:
            raise UserError(f"{path}: question {entry['id']}: answer_start of {text!r} is {json.dumps(start)}; a whole "
                            f"number is needed, the text's first character being 0")
        if start < 0 or context[start:start + len(text)] != text or not text.strip():
            raise UserError(f"{path}: question {entry['id']}: the answer {text!r} is not at character {start!r} of the "
                            f"text")
    return Question(str(entry["id"]), entry["question"], context, answers)


def check_answers(questions: Sequence[Question], tokenizer: BertTokenizer, path: str | Path) -> None:
    """`UserError` for a file with an answer that has no token, so that no span is it: a mark without width, say."""
    for question in questions:
        for text, _ in question.answers:
            if not tokenizer.encode(text):
                raise UserError(f"{path}: question {question.id}: the tokenizer leaves nothing of its answer {text!a}; "
                                f"a piece of the text with a token is needed, or is_impossible true")


# -- tokens and the characters they stand for --------------------------------------------------------------------------


class Tokens(NamedTuple):
    """Token ids of a text; token i stands for text[starts[i]:ends[i]]."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


@lru_cache(maxsize=2)  # the questions about a text follow one another
def tokenize(tokenizer: BertTokenizer, text: str) -> Tokens:
    """The tokenizer's ids with their places.

    A text is taken apart at white space and special tokens. Where the characters of a chunk cannot be told apart (an
    added token in it, or a normalisation that is not one of single characters), its tokens stand for the whole chunk.
    """
    out = Tokens([], [], [])
    for start, end in _chunks(tokenizer, text):
        ids = tokenizer.encode(text[start:end])
        places = _places(tokenizer, text[start:end], ids)
        for i, number in enumerate(ids):
            first, last = places[i] if places else (0, end - start)
            out.ids.append(number)
            out.starts.append(start + first)
            out.ends.append(start + last)
    return out


def _chunks(tokenizer: BertTokenizer, text: str) -> Iterator[tuple[int, int]]:
    start = 0
    for first, last in [*tokenizer.special.places(text), (len(text), len(text))]:
        yield from (chunk.span() for chunk in FIND_CHUNKS.finditer(text, start, first))
        if first < last:
            yield first, last
        start = last


def _places(tokenizer: BertTokenizer, chunk: str, ids: list[int]) -> list[tuple[int, int]] | None:
    """(first, last + 1) character of each token in a chunk without white space; None where that cannot be told."""
    letters: list[str] = []  # the normalised chunk, character by character
    origin: list[int] = []
    for index, character in enumerate(chunk):
        for letter in "".join(tokenizer.split(character)):
            letters.append(letter)
            origin.append(index)
    normal, at = "".join(letters), 0
    found: list[int] = []
    places: list[tuple[int, int]] = []
    for word in tokenizer.split(chunk):
        if not normal.startswith(word, at):
            return None
        pieces = tokenizer.encode(word)
        found += pieces
        for length in _piece_lengths(tokenizer, word, pieces):
            places.append((origin[at], origin[at + length - 1] + 1))
            at += length
    return places if found == ids and at == len(normal) else None


def _piece_lengths(tokenizer: BertTokenizer, word: str, pieces: list[int]) -> list[int]:
    if len(pieces) == 1:  # a whole word, or one that is not in the vocabulary
        return [len(word)]
    tokens = [tokenizer.vocab.tokens[piece] for piece in pieces]
    return [len(token.removeprefix("##")) if number else len(token) for number, token in enumerate(tokens)]


# -- windows -----------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """A question with a part of its text.

    Attributes:
        tokens: the whole sequence, int32; `first` of them are [CLS] question [SEP].
        starts, ends: characters of the text's tokens, which begin at `first`; int32.
        best: for each of those, whether this is the window in which it has most context.
        answer: (first, last) position of the answer's tokens in the sequence; (0, 0): not in this window.
    """

    tokens: np.ndarray
    first: int
    starts: np.ndarray
    ends: np.ndarray
    best: np.ndarray
    answer: tuple[int, int]


def windows(question: Question, tokenizer: BertTokenizer, *, seq_length: int, doc_stride: int,
            max_query_length: int) -> list[Window]:
    """All windows of a question; its first answer is the one to learn."""
    vocab = tokenizer.vocab
    asked = [vocab.cls_id, *tokenizer.encode(question.text)[:max_query_length], vocab.sep_id]
    text = tokenize(tokenizer, question.context)
    room = seq_length - len(asked) - 1
    spans = spans_of(len(text.ids), room, doc_stride)
    owner = np.array(owners(spans, len(text.ids)), dtype=np.int32)
    starts, ends = np.array(text.starts, dtype=np.int32), np.array(text.ends, dtype=np.int32)
    out = []
    for index, (start, end) in enumerate(spans):
        answer = (0, 0)
        if question.answers:
            found = _covered(text, *question.answers[0], start, end)
            if found:
                answer = (len(asked) + found[0] - start, len(asked) + found[1] - start)
        tokens = np.array([*asked, *text.ids[start:end], vocab.sep_id], dtype=np.int32)
        out.append(Window(tokens, len(asked), starts[start:end], ends[start:end], owner[start:end] == index, answer))
    return out


def apart(parts: Sequence[Window], doc_stride: int) -> bool:
    """Whether the windows of a text have no token of it in common."""
    return len(parts) > 1 and len(parts[0].starts) <= doc_stride


def spans_of(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Windows of at most `room` tokens, each `stride` after the one before, until the end is reached."""
    out = [(0, min(room, length))]
    while out[-1][1] < length:
        start = out[-1][0] + min(stride, room)
        out.append((start, min(start + room, length)))
    return out


def owners(spans: list[tuple[int, int]], length: int) -> list[int]:
    """For each token, the window in which it has most context on its poorer side (a little for long windows)."""
    best, out = [-1.0] * length, [0] * length
    for index, (start, end) in enumerate(spans):
        for i in range(start, end):
            score = min(i - start, end - 1 - i) + 0.01 * (end - start)
            if score > best[i]:
                best[i], out[i] = score, index
    return out


def _covered(text: Tokens, answer: str, first: int, start: int, end: int) -> tuple[int, int] | None:
    """First and last token of an answer, if all of it is within tokens start to end."""
    last = first + len(answer)
    inside = [i for i in range(len(text.ids)) if text.starts[i] < last and text.ends[i] > first]
    if not inside or inside[0] < start or inside[-1] >= end:
        return None
    return inside[0], inside[-1]
