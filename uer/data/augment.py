"""Texts made of texts, for targets without labels.

What a teacher says of texts that it was trained on is all but certain and tells little. What it says of the beginning
of one with the end of another, of the first text of one pair with the second of another, or of a text with other words
in it, it has to find out.
"""

from __future__ import annotations

import numpy as np

REPLACED = 0.12  # of the tokens of a text in which tokens are replaced


def augmented(tokens: np.ndarray, lengths: np.ndarray, share: float, rng: np.random.Generator, most: int,
              seconds: np.ndarray | None = None, separators: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A batch of instances, each with a special token at both ends, as tokens and lengths.

    Args:
        tokens: of all instances, one after another; lengths: of each.
        share: of the instances that end as another one does, and, apart from that, of those with tokens replaced.
        rng: where chance comes from.
        most: tokens of an instance.
        seconds: of pairs, where the second text of each begins, behind `separators` special tokens. A pair ends as
            another one does from its second text on, which begins where it did.
    """
    rows = np.split(tokens, np.cumsum(lengths)[:-1])
    begins = [None] * len(rows) if seconds is None else seconds.tolist()
    words = np.concatenate([row[_inner(row, begin, separators)] for row, begin in zip(rows, begins)])
    out = []
    for row, begin in zip(rows, begins):
        if rng.random() < share:
            number = rng.integers(len(rows))
            row = _joined(row, rows[number], begin, begins[number], rng, most)
        if rng.random() < share and len(words):
            inner = _inner(row, begin, separators)
            inner = inner[rng.random(len(inner)) < REPLACED]
            row = row.copy()
            row[inner] = words[rng.integers(len(words), size=len(inner))]
        out.append(row)
    return np.concatenate(out), np.array([len(row) for row in out])


def _inner(row: np.ndarray, begin: int | None, separators: int) -> np.ndarray:
    """The places of an instance's words; `begin`: of the second text of a pair."""
    places = np.arange(1, len(row) - 1)
    return places if begin is None else np.delete(places, np.arange(begin - separators - 1, begin - 1))


def _joined(row: np.ndarray, other: np.ndarray, begin: int | None, at: int | None, rng: np.random.Generator,
            most: int) -> np.ndarray:
    if begin is None:
        begin, at = int(rng.integers(1, len(row))), int(rng.integers(1, len(other)))
    joined = np.concatenate([row[:begin], other[at:]])
    if len(joined) > most:
        joined = np.concatenate([joined[:most - 1], joined[-1:]])
    return joined if len(joined) > 2 else row  # else nothing of a text would be left
