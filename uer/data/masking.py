"""Masked language modelling: which positions are predicted, and what the model sees there instead.

Of each instance's n ordinary tokens k = max(1, round(mask_prob * n)) are predicted; 80 % of them show [MASK], 10 %
a random ordinary token, 10 % themselves (Devlin et al. 2019). Special tokens are never chosen and never drawn.

Every mode orders an instance's tokens by a key and takes the first k, all instances in one sort:
  plain        a random key for each token
  whole words  a random key for each word; a word is taken if its middle lies within the k tokens, so that words
               stay whole and the share of predicted tokens is mask_prob on average
  spans        the number of the first random span over the token; span lengths are geometric with parameter
               span_geo_prob, at most span_max_length (Joshi et al. 2020); the last span is cut at k tokens
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uer.errors import UserError

SHOW_MASK, SHOW_RANDOM = 0.8, 0.1


@dataclass(frozen=True)
class MaskingOptions:
    """How to mask. `mask_prob` is a share of tokens, `span_max_length` a number of tokens."""

    mask_prob: float = 0.15
    whole_word_masking: bool = False
    span_masking: bool = False
    span_geo_prob: float = 0.2
    span_max_length: int = 10

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.mask_prob < 1:
            problems.append(f"--mask_prob {self.mask_prob}: a share above 0 and below 1 is needed")
        if self.whole_word_masking and self.span_masking:
            problems.append("--whole_word_masking and --span_masking exclude each other")
        if not 0 < self.span_geo_prob <= 1:
            problems.append(f"--span_geo_prob {self.span_geo_prob}: a probability above 0 is needed")
        if self.span_max_length < 1:
            problems.append(f"--span_max_length {self.span_max_length}: at least 1 is needed")
        if problems:
            raise UserError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as a dataset's header keeps them."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MaskingOptions:
        """The inverse of `to_dict`; `UserError` for what is none."""
        usual = cls().to_dict()
        if not isinstance(values, dict) or any(type(usual.get(key)) is not type(values[key]) for key in values):
            raise UserError(f"masking {values!r}: values for {', '.join(usual)} are needed")
        return cls(**values)


def generator(*key: int) -> np.random.Generator:
    """A counter-based generator (Philox) that is a pure function of some integers."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


class Masker:
    """Masks instances of one vocabulary.

    Args:
        vocab_size: number of tokens in the vocabulary.
        special_ids: ids that are never chosen and never drawn.
        mask_id: what is shown in place of most chosen tokens.
        continues: bool `[vocab_size]`, the tokens that belong to the word of the token before (whole words only).
    """

    def __init__(self, options: MaskingOptions, *, vocab_size: int, special_ids: list[int], mask_id: int,
                 continues: np.ndarray | None = None) -> None:
        self.options = options
        self.mask_id = mask_id
        self._special = np.zeros(vocab_size, dtype=bool)
        self._special[special_ids] = True
        self._ordinary = np.flatnonzero(~self._special)
        if not len(self._ordinary):
            raise UserError("the vocabulary holds nothing but special tokens")
        self._continues = np.zeros(vocab_size, dtype=bool) if continues is None else continues

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, rng: np.random.Generator,
                 joined: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Choose positions and what to show there.

        Args:
            tokens: ids `[total]`, instance after instance, specials included.
            lengths: int64 `[instances]`, their lengths; none is 0.
            joined: bool `[total]`, tokens that go on with the word before them, beside those of the vocabulary.

        Returns:
            positions int64 `[chosen]`, ascending indices into `tokens`, and replacements int64 `[chosen]`.
            An instance of special tokens alone gets none, any other at least one.
        """
        where = np.flatnonzero(~self._special[tokens])  # the ordinary tokens, numbered 0 … n-1 from here on
        row = np.repeat(np.arange(len(lengths)), lengths)[where]
        counts = np.bincount(row, minlength=len(lengths))
        budget = np.maximum(1, np.floor(self.options.mask_prob * counts + 0.5).astype(np.int64))
        if self.options.whole_word_masking:
            goes_on = self._continues[tokens] if joined is None else self._continues[tokens] | joined
            chosen = _choose_words(where, row, goes_on[where], budget, rng)
        else:
            key = rng.random(len(where))
            if self.options.span_masking:
                key = _span_order(key, counts, budget, self.options, rng)
            chosen = _first(row, key, counts, budget)
        positions = where[chosen]
        return positions, self._replace(tokens[positions], rng)

    def _replace(self, originals: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """80 % [MASK], 10 % a random ordinary token, 10 % the token itself."""
        fate = rng.random(len(originals))
        drawn = self._ordinary[rng.integers(len(self._ordinary), size=len(originals))]
        shown = np.where(fate < SHOW_MASK + SHOW_RANDOM, drawn, originals)
        return np.where(fate < SHOW_MASK, self.mask_id, shown).astype(np.int64)


def _starts(counts: np.ndarray) -> np.ndarray:
    """Index of each group's first element, for groups of these sizes laid end to end."""
    return np.cumsum(counts) - counts


def _first(row: np.ndarray, key: np.ndarray, counts: np.ndarray, budget: np.ndarray) -> np.ndarray:
    """Ascending indices of the `budget[r]` smallest keys of every row r. Rows ascend, keys lie in [0, 1)."""
    order = np.argsort(row + key)
    rank = np.arange(len(row)) - _starts(counts)[row]  # the sort keeps rows in place: `row` serves as it is
    return np.sort(order[rank < budget[row]])


def _choose_words(where: np.ndarray, row: np.ndarray, goes_on: np.ndarray, budget: np.ndarray,
                  rng: np.random.Generator) -> np.ndarray:
    """Ascending indices of the tokens of randomly chosen words."""
    if not len(where):
        return where
    goes_on = goes_on.copy()
    goes_on[0] = False
    goes_on[1:] &= (where[1:] == where[:-1] + 1) & (row[1:] == row[:-1])
    first = np.flatnonzero(~goes_on)
    size = np.diff(first, append=len(where))
    word_row = row[first]
    order = np.argsort(word_row + rng.random(len(first)))
    in_order = size[order]
    before = np.cumsum(in_order) - in_order
    words = np.bincount(word_row, minlength=len(budget))
    opening = _starts(words)[word_row]  # the first word of its row in the order drawn
    before -= before[opening]
    taken = (2 * before + in_order <= 2 * budget[word_row]) | (np.arange(len(first)) == opening)
    keep = np.zeros(len(first), dtype=bool)
    keep[order[taken]] = True
    return np.flatnonzero(np.repeat(keep, size))


def _span_order(key: np.ndarray, counts: np.ndarray, budget: np.ndarray, options: MaskingOptions,
                rng: np.random.Generator) -> np.ndarray:
    """Keys in [0, 1) that put the tokens of the first span first, then those of the second, and so on.

    A row draws as many spans as it may need if each were one token long; what they leave uncovered comes last.
    Spans may begin before the row or end behind it, and lose that part: so every token is covered as often.
    """
    owner = np.repeat(np.arange(len(counts)), np.where(counts > 0, budget, 0))
    spans = np.bincount(owner, minlength=len(counts))
    number = np.arange(len(owner)) - _starts(spans)[owner]
    length = np.minimum(rng.geometric(options.span_geo_prob, len(owner)), options.span_max_length)
    begin = (rng.random(len(owner)) * (counts[owner] + length - 1)).astype(np.int64) - (length - 1)
    left = np.maximum(begin, 0)
    length = np.minimum(begin + length, counts[owner]) - left
    first = _starts(counts)[owner] + left
    covered = np.repeat(first - _starts(length), length) + np.arange(length.sum())
    cover = np.full(len(key), np.iinfo(np.int64).max)
    np.minimum.at(cover, covered, np.repeat(number, length))
    within = (np.arange(len(key)) - np.repeat(_starts(counts), counts)) / np.repeat(counts, counts)  # left to right
    spans = np.repeat(spans, counts)
    return np.where(cover < spans, cover + within, spans + key) / (spans + 1)
