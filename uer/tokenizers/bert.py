"""BERT's tokenizer: clean, isolate ideographs, fold case and accents, split at spaces and punctuation, WordPiece.

Every step but the recognition of special tokens works inside what white space delimits, so such a chunk is
normalised and split once, and its ids are remembered. Gives the ids of the fast BERT tokenizers in common use,
for any text, cased and uncased. A special token that stands in the text, as in "the [MASK] of", is that token.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from uer.tokenizers import unicode_tables as tables
from uer.tokenizers.base import Cache, Tokenizer
from uer.tokenizers.vocab import Vocab

MAX_WORD = 100  # characters; a longer word is unknown

_ALONE = tables.character_class(tables.PUNCTUATION) + tables.character_class(tables.IDEOGRAPHS)
_FIND_REMOVED = re.compile(f"[{tables.character_class(tables.REMOVED)}]+")
_FIND_MARKS = re.compile(f"[{tables.character_class(tables.MARKS)}]+")
_FIND_KEPT = re.compile(f"([{tables.character_class(tables.KEPT_WHOLE)}])")
_FIND_WORDS = re.compile(rf"[{_ALONE}]|[^\s{_ALONE}]+")
_LATE_LOWER = {c: c + move for first, last, move in tables.LATE_LOWER for c in range(first, last + 1)}
# White space to str.split(), but removed by BERT: "a\x0bb" is one word.
_FALSE_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_FIND_FALSE_SPACES = re.compile(f"[{_FALSE_SPACES}]+")


def strip_accents(text: str) -> str:
    """Decompose and drop the marks."""
    if text.isascii():
        return text
    if _FIND_KEPT.search(text):
        parts = _FIND_KEPT.split(text)
        parts[::2] = [unicodedata.normalize("NFD", part) for part in parts[::2]]
        text = "".join(parts)
    else:
        text = unicodedata.normalize("NFD", text)
    return _FIND_MARKS.sub("", text)


def lower(text: str) -> str:
    """Lower case character by character: a final sigma stays a plain one."""
    if text.isascii():
        return text.lower()
    return text.replace("\u03a3", "\u03c3").translate(_LATE_LOWER).lower()


class BertTokenizer(Tokenizer):
    """WordPiece over BERT's basic tokenization; `do_lower_case` also strips accents (the uncased models)."""

    def __init__(self, vocab: Vocab, do_lower_case: bool = True) -> None:
        super().__init__(vocab)
        self.do_lower_case = do_lower_case
        self._longest = max(map(len, vocab.tokens))
        self._unknown = self.pack([vocab.unk_id])
        self._special = {token: self.pack([vocab.ids[token]]) for token in vocab.special_tokens}
        self._find_special = re.compile("(" + "|".join(map(re.escape, vocab.special_tokens)) + ")")
        self._special_start = vocab.special_tokens[0][0]
        self._words = Cache(self._word)
        self._chunks = Cache(self._chunk)

    def split(self, text: str) -> list[str]:
        """Normalised words and punctuation marks of a text without special tokens, before WordPiece."""
        if not (text.isascii() and text.isprintable()):
            text = _FIND_REMOVED.sub("", text)
        if self.do_lower_case:
            text = lower(strip_accents(text))
        return _FIND_WORDS.findall(text)

    def encode_raw(self, text: str) -> bytes:
        parts = [text]  # text, special token, text, …: special tokens are found before anything is removed
        if self._special_start in text:
            parts = self._find_special.split(text)
        if any(space in text for space in _FALSE_SPACES):
            parts[::2] = [_FIND_FALSE_SPACES.sub("", part) for part in parts[::2]]
        chunk, raw = self._chunks.__getitem__, []
        for index, part in enumerate(parts):
            raw += [self._special[part]] if index % 2 else map(chunk, part.split())
        return b"".join(raw)

    def _chunk(self, chunk: str) -> bytes:
        return b"".join(map(self._words.__getitem__, self.split(chunk)))

    def _word(self, word: str) -> bytes:
        ids = self.vocab.ids
        if word in ids and len(word) <= MAX_WORD:
            return self.pack([ids[word]])
        return self.pack(self._pieces(word))

    def _pieces(self, word: str) -> list[int]:
        """Longest match first; one unknown token for a word that cannot be covered."""
        ids, unknown = self.vocab.ids, [self.vocab.unk_id]
        if len(word) > MAX_WORD:
            return unknown
        pieces, start, prefix = [], 0, ""
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = ids.get(prefix + word[start:end])
                if piece is not None:
                    break
            else:
                return unknown
            pieces.append(piece)
            start, prefix = end, "##"
        return pieces

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.vocab.tokens[i] for i in ids).replace(" ##", "")

    def continues(self) -> np.ndarray:
        return np.array([token.startswith("##") and len(token) > 2 for token in self.vocab.tokens])
