"""Texts made of texts, for targets without labels.

What a teacher says of texts that it was trained on is all but certain and tells little. What it says of the beginning
of one with the end of another, or of one with other words in it, it has to find out.
"""

from __future__ import annotations

import numpy as np

REPLACED = 0.12  # of the tokens of a text in which tokens are replaced


def augmented(tokens: np.ndarray, lengths: np.ndarray, share: float, rng: np.random.Generator,
              most: int) -> tuple[np.ndarray, np.ndarray]:
    """A batch of instances, each with a special token at both ends, as tokens and lengths.

    Args:
        tokens: of all instances, one after another; lengths: of each.
        share: of the instances that end as another one does, and, apart from that, of those with tokens replaced.
        rng: where chance comes from.
        most: tokens of an instance.
    """
    rows = np.split(tokens, np.cumsum(lengths)[:-1])
    words = np.concatenate([row[1:-1] for row in rows])
    out = []
    for row in rows:
        if rng.random() < share:
            other = rows[rng.integers(len(rows))]
            joined = np.concatenate([row[:rng.integers(1, len(row))], other[rng.integers(1, len(other)):]])
            if len(joined) > most:
                joined = np.concatenate([joined[:most - 1], joined[-1:]])
            row = joined if len(joined) > 2 else row  # else nothing of a text would be left
        if rng.random() < share and len(words):
            inner = np.arange(1, len(row) - 1)
            inner = inner[rng.random(len(inner)) < REPLACED]
            row = row.copy()
            row[inner] = words[rng.integers(len(words), size=len(inner))]
        out.append(row)
    return np.concatenate(out), np.array([len(row) for row in out])
