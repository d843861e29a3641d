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

from uer.errors import UserError
from uer.tokenizers import unicode_tables as tables
from uer.tokenizers.base import Cache, Finder, Tokenizer, special_finder
from uer.tokenizers.vocab import Vocab

MAX_WORD = 100  # characters; a longer word is unknown

_MARKS, _IDEOGRAPHS = tables.character_class(tables.PUNCTUATION), tables.character_class(tables.IDEOGRAPHS)
_FIND_REMOVED = re.compile(f"[{tables.character_class(tables.REMOVED)}]+")
_FIND_MARKS = re.compile(f"[{tables.character_class(tables.MARKS)}]+")
_FIND_KEPT = re.compile(f"([{tables.character_class(tables.KEPT_WHOLE)}])")
# By whether ideographs are words of their own.
_FIND_WORDS = {split: re.compile(rf"[{alone}]|[^\s{alone}]+")
               for split, alone in ((True, _MARKS + _IDEOGRAPHS), (False, _MARKS))}
_FIND_IDEOGRAPHS = re.compile(f"[{_IDEOGRAPHS}]")
_FIND_ASCII_WORDS = re.compile(r"[A-Za-z0-9]+|[^A-Za-z0-9\s]")  # the same for ASCII text, and faster
_LATE_LOWER = {c: c + move for first, last, move in tables.LATE_LOWER for c in range(first, last + 1)}
# Set apart before chunks are looked up, so that "word," and "word." are no entries of their own beside "word".
_COMMON_MARKS = ",.\"'-;:?!()“”’—"
# White space to str.split(), but removed by BERT: "a\x0bb" is one word.
_FALSE_SPACES = "\x0b\x0c\x1c\x1d\x1e\x1f\x85"
_FIND_FALSE_SPACES = re.compile(f"[{_FALSE_SPACES}]+")
FIND_CHUNKS = re.compile(rf"(?:\S|[{_FALSE_SPACES}])+")  # what white space delimits


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
    """WordPiece over BERT's basic tokenization.

    Args:
        do_lower_case: fold case (the uncased models).
        strip_accents: take accents away; None: as case is folded.
        split_ideographs: every ideograph is a word of its own.

    Attributes: `special`, which finds special tokens.
    """

    def __init__(self, vocab: Vocab, do_lower_case: bool = True, strip_accents: bool | None = None,
                 split_ideographs: bool = True) -> None:
        super().__init__(vocab)
        self.do_lower_case = do_lower_case
        self.strip_accents = do_lower_case if strip_accents is None else strip_accents
        self.split_ideographs = split_ideographs
        self._find_words = _FIND_WORDS[split_ideographs]
        self._unknown = self.raw[vocab.unk_id]
        self._known = vocab.ids if len(vocab) == vocab.base else {
            token: i for i, token in enumerate(vocab.tokens[:vocab.base])}
        self._later = {token[2:]: i for token, i in self._known.items() if token.startswith("##")}
        self._longest_start = max(map(len, self._known))
        self._longest_later = max(map(len, self._later), default=0)
        self.special = special_finder(vocab)
        self._added = self._folded_tokens()
        self._words = Cache(self._word)
        self._chunks = Cache(self._chunk if self._added is None else self._chunk_with_added)
        if self._added is None:
            self._chunks.update({t: self.raw[i] for t, i in self._known.items()
                                 if t.isascii() and t.isalnum() and self._fold(t) == t})

    def _folded_tokens(self) -> Finder | None:
        """For added tokens that are looked for in the normalised text; None: there are none.
        `UserError` for one with white space in it, as chunks without any are looked at one by one."""
        folded = {self._normalized(token.content): token for token in self.vocab.added if token.normalized}
        for token in folded.values():
            if token.content.split() != [token.content]:
                raise UserError(f"{self.vocab.source}: the added token {token.content!r} has white space in it, which "
                                f"is not supported")
        return Finder(folded.items()) if folded else None

    def _fold(self, ascii_text: str) -> str:
        return ascii_text.lower() if self.do_lower_case else ascii_text

    def split(self, text: str) -> list[str]:
        """Normalised words and punctuation marks of a text without special tokens, before WordPiece."""
        if text.isascii() and text.isprintable():
            return _FIND_ASCII_WORDS.findall(self._fold(text))
        text = _FIND_REMOVED.sub("", text)
        if self.strip_accents:
            text = strip_accents(text)
        if self.do_lower_case:
            text = lower(text)
        return (_FIND_ASCII_WORDS if text.isascii() else self._find_words).findall(text)

    def encode_raw(self, text: str) -> bytes:
        parts = [text]  # text, special token, text, …: special tokens are found before anything is removed
        if any(start in text for start in self.special.starts):
            parts = self.special.cut(text)
        if any(space in text for space in _FALSE_SPACES):
            parts[::2] = [_FIND_FALSE_SPACES.sub("", part) for part in parts[::2]]
        return self._raw_around(self.special, parts, lambda part: map(self._chunks.__getitem__, part.split()))

    def encode_lines(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        text = "\n".join(lines)
        starts = self.special.starts
        if len(starts) > 1 or self._added is not None or not self.special.characters.isdisjoint(_COMMON_MARKS) or \
                any(space in text for space in _FALSE_SPACES):
            return super().encode_lines(lines)
        for mark in _COMMON_MARKS:
            text = text.replace(mark, f" {mark} ")
        padded = text.split("\n")
        if len(padded) != len(lines):  # a line with a line feed inside
            return super().encode_lines(lines)
        chunk, bracket, raw = self._chunks.__getitem__, starts, self.encode_raw
        encoded = []
        for line in padded:
            if bracket in line:
                encoded.append(raw(line))
            else:
                chunks = self._fold(line).split() if line.isascii() else line.split()
                encoded.append(b"".join(map(chunk, chunks)))
        return self._collect(encoded)

    def _chunk(self, chunk: str) -> bytes:
        if chunk.isalnum() and chunk.isascii():  # one word: the short way to what split() would say
            folded = self._fold(chunk)
            return self._word(chunk) if folded == chunk else self._chunks[folded]
        return b"".join(map(self._words.__getitem__, self.split(chunk)))

    def _chunk_with_added(self, chunk: str) -> bytes:
        """A chunk in whose normalised text added tokens are found before it is split."""
        assert self._added is not None
        return self._raw_around(self._added, self._added.cut(self._normalized(chunk)),
                                lambda part: map(self._words.__getitem__, self._find_words.findall(part)))

    def _normalized(self, text: str) -> str:
        """What words are found in, with spaces around ideographs where these are words of their own."""
        text = _FIND_REMOVED.sub("", text)
        if self.split_ideographs:
            text = _FIND_IDEOGRAPHS.sub(r" \g<0> ", text)
        if self.strip_accents:
            text = strip_accents(text)
        return lower(text) if self.do_lower_case else text

    def _word(self, word: str) -> bytes:
        """Longest match first; one unknown token for a word that is too long or cannot be covered."""
        if len(word) > MAX_WORD:
            return self._unknown
        whole = self._known.get(word)
        if whole is not None:
            return self.raw[whole]
        pieces, start, length = [], 0, len(word)
        known, longest = self._known, self._longest_start
        while start < length:
            for end in range(min(length, start + longest), start, -1):
                piece = known.get(word[start:end])
                if piece is not None:
                    break
            else:
                return self._unknown
            pieces.append(self.raw[piece])
            start, known, longest = end, self._later, self._longest_later
        return b"".join(pieces)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.vocab.tokens[i] for i in ids).replace(" ##", "")

    def continues(self) -> np.ndarray:
        return np.array([token.startswith("##") and len(token) > 2 for token in self.vocab.tokens])
