"""Chinese words for whole-word masking: jieba over the runs of single-ideograph tokens. Needs the package jieba."""

from __future__ import annotations

import logging
import re

import numpy as np

from uer.errors import UserError
from uer.tokenizers import Vocab
from uer.tokenizers.unicode_tables import IDEOGRAPHS, character_class

_IDEOGRAPH = re.compile(f"[{character_class(IDEOGRAPHS)}]")


def check_segmenter() -> None:
    """Say early that the package is missing."""
    try:
        import jieba  # noqa: F401
    except ImportError:
        raise UserError("--word_segmenter jieba needs the package jieba (pip install jieba)", page="chinese") from None


class WordJoiner:
    """Tells which tokens go on with the word before them, by the words that jieba finds in ideographs."""

    def __init__(self, vocab: Vocab) -> None:
        check_segmenter()
        import jieba

        jieba.setLogLevel(logging.WARNING)
        self._cut = jieba.Tokenizer().lcut
        self._tokens = vocab.tokens
        self._is_ideograph = np.array([bool(_IDEOGRAPH.fullmatch(token)) for token in vocab.tokens])

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Flags (uint8 `[total]`) for the tokens of lines of these lengths; words do not cross lines."""
        line = np.repeat(np.arange(len(lengths)), lengths)
        inside = self._is_ideograph[tokens]
        goes_on = inside[1:] & inside[:-1] & (line[1:] == line[:-1])
        starts = np.flatnonzero(inside & ~np.concatenate([[False], goes_on])[: len(tokens)])
        ends = np.flatnonzero(inside & ~np.concatenate([goes_on, [False]])[: len(tokens)]) + 1
        joined = np.zeros(len(tokens), dtype="u1")
        for start, end in zip(starts.tolist(), ends.tolist()):
            joined[start:end] = 1
            place = start
            for word in self._cut("".join(self._tokens[i] for i in tokens[start:end])):
                joined[place] = 0
                place += len(word)
        return joined
