"""Pairs of texts: how much of each stays, and how they stand in an instance."""

from __future__ import annotations

import numpy as np

SHORTEST = 6  # tokens of an instance: <s> a </s></s> b </s>


def kept_lengths(first: np.ndarray, second: np.ndarray, room: np.ndarray | int) -> tuple[np.ndarray, np.ndarray]:
    """How many tokens of two texts stay in `room`: the longer one is cut, and when both are even, the second first.
    Lengths are int64 `[pairs]`."""
    excess = np.maximum(first + second - room, 0)
    ahead = np.minimum(excess, np.abs(first - second))
    excess = excess - ahead
    return (first - np.where(first > second, ahead, 0) - excess // 2,
            second - np.where(first > second, 0, ahead) - (excess + 1) // 2)


class Joiner:
    """Pairs to instances [CLS] a [SEP] b [SEP] of at most `seq_length` tokens; `separators` between the texts."""

    def __init__(self, seq_length: int, cls_id: int, sep_id: int, separators: int) -> None:
        self.room, self.separators, self.ends = seq_length - 2 - separators, separators, (cls_id, sep_id)

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens `[total]` of texts of these lengths `[2 * pairs]`, first and second in turn, to those with specials,
        the instances' lengths, and where in each the second text begins (int64 `[pairs]`). A pair of which one text
        has no tokens makes no instance."""
        starts = np.cumsum(lengths) - lengths
        whole = (lengths.reshape(-1, 2) > 0).all(1)
        starts, lengths = starts.reshape(-1, 2)[whole], lengths.reshape(-1, 2)[whole]
        first, second = kept_lengths(lengths[:, 0], lengths[:, 1], self.room)
        sizes, begins = first + second + 2 + self.separators, first + 1 + self.separators
        ends = np.cumsum(sizes)
        out = np.full(int(sizes.sum()), self.ends[1], dtype=tokens.dtype)
        out[ends - sizes] = self.ends[0]
        for kept, start, at in ((first, starts[:, 0], ends - sizes + 1), (second, starts[:, 1], ends - 1 - second)):
            inside = np.arange(kept.sum()) - np.repeat(np.cumsum(kept) - kept, kept)
            out[np.repeat(at, kept) + inside] = tokens[np.repeat(start, kept) + inside]
        return out, sizes, begins
