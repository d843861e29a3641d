"""SQuAD's exact match and F1 (Rajpurkar et al. 2016, 2018), and the threshold for questions without an answer.

Answers are compared in lower case, without ASCII punctuation, without a, an, the, white space made single.
F1 is that of the bags of words; of several right answers the best one counts; "" is the answer to the unanswerable.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(answer: str) -> str:
    """What of an answer counts."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(NO_PUNCTUATION)).split())


def f1(given: str, right: str) -> float:
    """Harmonic mean of the shares of words that two answers have in common."""
    given_words, right_words = normalise(given).split(), normalise(right).split()
    if not given_words or not right_words:
        return float(given_words == right_words)
    common = sum((Counter(given_words) & Counter(right_words)).values())
    return 2 * common / (len(given_words) + len(right_words))


class Scores(NamedTuple):
    """Exact match and F1 of one question."""

    exact: float
    f1: float


def score(given: str, right: Sequence[str]) -> Scores:
    """Against the best of the right answers; none, or only ones of which nothing counts: "" is right."""
    right = [answer for answer in right if normalise(answer)] or [""]
    exact = any(normalise(given) == normalise(answer) for answer in right)
    return Scores(float(exact), max(f1(given, answer) for answer in right))


def figures(given: Mapping[str, str], right: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Means over all questions, and over those with and without an answer where there are both."""
    scores = {key: score(given[key], answers) for key, answers in right.items()}
    out = _means(list(scores.values()))
    kinds = {"answerable": [scores[key] for key in right if right[key]],
             "unanswerable": [scores[key] for key in right if not right[key]]}
    if all(kinds.values()):
        for kind, found in kinds.items():
            out |= {f"{kind} {name}": value for name, value in _means(found).items()}
    return out


def _means(scores: list[Scores]) -> dict[str, float]:
    return {name: sum(values) / len(scores) for name, values in zip(("exact match", "F1"), zip(*scores))}


def best_threshold(given: Mapping[str, str], odds: Mapping[str, float], right: Mapping[str, Sequence[str]]) -> float:
    """The threshold on `odds` with the best F1, where a question with higher odds gets no answer; the lowest of equals.

    Args:
        given: the best answer of each question that is not "".
        odds: how far no answer is ahead of it.
    """
    gains = {key: score(given[key], answers).f1 - score("", answers).f1 for key, answers in right.items()}
    order = sorted(right, key=lambda key: odds[key])
    total, best, threshold = 0.0, 0.0, odds[order[0]] - 1.0  # below all: nothing is answered
    for position, key in enumerate(order):
        total += gains[key]
        last_of_equals = position + 1 == len(order) or odds[order[position + 1]] > odds[key]
        if last_of_equals and total > best:
            best, threshold = total, odds[key]
    return threshold
