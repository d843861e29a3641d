"""What all tokenizers share: a vocabulary, a bounded cache, and the path that preprocessing takes.

A corpus is encoded line by line into raw little-endian integers instead of Python lists: a chunk of text
that was seen before costs one dictionary look-up, and a line is one `bytes.join`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from uer.tokenizers.rules import TextRules
from uer.tokenizers.vocab import AddedToken, Vocab

CACHE_ENTRIES = 1 << 18  # in each of the two generations; about 60 MB each when full
CACHE_LONGEST = 48  # characters; a longer key hardly comes twice


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and int32 that holds every id of such a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 65535 else np.dtype("<i4")


class Cache(dict[str, bytes]):
    """key -> encode(key), filled on demand and bounded.

    When `limit` entries are reached, they become the older generation and the one before is forgotten; an entry
    of the older generation that is asked for comes back into the younger. So what is in use stays.
    """

    def __init__(self, encode: Callable[[str], bytes], limit: int = CACHE_ENTRIES) -> None:
        super().__init__()
        self._encode = encode
        self._limit = limit
        self._older: dict[str, bytes] = {}

    def __missing__(self, key: str) -> bytes:
        value = self._older.get(key)
        if value is None:
            value = self._encode(key)
            if len(key) > CACHE_LONGEST:
                return value
        if len(self) >= self._limit:
            self._older = dict(self)
            self.clear()
        self[key] = value
        return value


class Finder:
    """Finds special and added tokens in a text: of two that begin at one place the longer one.

    Attributes: `starts`, the characters that they begin with; `characters`, all that are in them.
    """

    def __init__(self, tokens: Iterable[tuple[str, AddedToken]]) -> None:
        """`tokens`: what is looked for, and what it is."""
        self._tokens = dict(tokens)
        patterns = [(rf"(?<!\w){re.escape(text)}(?!\w)" if token.single_word else re.escape(text))
                    for text, token in sorted(self._tokens.items(), key=lambda item: -len(item[0]))]
        self._pattern = re.compile("(" + "|".join(patterns) + ")")
        self._greedy = any(token.lstrip or token.rstrip for token in self._tokens.values())
        self.starts = "".join(sorted({text[0] for text in self._tokens}))
        self.characters = frozenset("".join(self._tokens))

    def cut(self, text: str) -> list[str]:
        """text, token, text, token, text, …"""
        parts = self._pattern.split(text)
        if self._greedy:
            for i in range(1, len(parts), 2):
                token = self._tokens[parts[i]]
                parts[i - 1] = parts[i - 1].rstrip() if token.lstrip else parts[i - 1]
                parts[i + 1] = parts[i + 1].lstrip() if token.rstrip else parts[i + 1]
        return parts

    def places(self, text: str) -> list[tuple[int, int]]:
        """(first, last + 1) character of every token in a text."""
        return [found.span() for found in self._pattern.finditer(text)]

    def id(self, text: str) -> int:
        """The id of a token in what `cut` gives."""
        return self._tokens[text].id


def special_finder(vocab: Vocab) -> Finder:
    """For the special tokens of a vocabulary, and those added ones that are looked for in the text as it stands."""
    special = {token: AddedToken(token, vocab.ids[token]) for token in vocab.special_tokens}
    return Finder({**special, **{token.content: token for token in vocab.added if not token.normalized}}.items())


def added_finder(vocab: Vocab) -> Finder | None:
    """For added tokens that are looked for in normalised text, which here is the text as it stands; None: no such."""
    tokens = {token.content: token for token in vocab.added if token.normalized}
    return Finder(tokens.items()) if tokens else None


class Tokenizer:
    """Text to token ids. Subclasses implement `encode_raw`; no method adds [CLS] or [SEP].

    Attributes: `vocab`; `dtype`, the smallest that holds the ids; `raw`, each id's bytes in that type; `rules`, what it
    was built from, where `uer.tokenizers.build` has built it; `separators` between two texts: where they are two, as in
    RoBERTa, both texts are of one segment.
    """

    rules: TextRules
    separators = 1

    def __init__(self, vocab: Vocab) -> None:
        self.vocab = vocab
        self.dtype = token_dtype(len(vocab))
        size = self.dtype.itemsize
        ids = np.arange(len(vocab), dtype=self.dtype).tobytes()
        self.raw = [ids[i : i + size] for i in range(0, len(ids), size)]  # id -> its bytes

    def encode_raw(self, text: str) -> bytes:
        """The ids of a text as raw integers of `self.dtype`."""
        raise NotImplementedError

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without special tokens around them."""
        return np.frombuffer(self.encode_raw(text), dtype=self.dtype).tolist()

    def encode_lines(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Encode many lines at once.

        Returns:
            ids `[total]` (uint16 or int32), one line after the other, and lengths `[lines]` (int64).
        """
        return self._collect(list(map(self.encode_raw, lines)))

    def _collect(self, encoded: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)) // self.dtype.itemsize
        return np.frombuffer(b"".join(encoded), dtype=self.dtype), lengths

    def _raw_around(self, found: Finder, parts: list[str], encode: Callable[[str], Iterable[bytes]]) -> bytes:
        """Of text, token, text, … (see `Finder.cut`): the tokens' ids, and what `encode` makes of the texts."""
        raw: list[bytes] = []
        for index, part in enumerate(parts):
            raw += [self.raw[found.id(part)]] if index % 2 else encode(part)
        return b"".join(raw)

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of some ids; what normalisation took away does not come back."""
        return "".join(self.vocab.tokens[i] for i in ids)

    def continues(self) -> np.ndarray:
        """Which tokens go on with the word of the token before them: bool `[vocabulary]`."""
        return np.zeros(len(self.vocab), dtype=bool)

    def pack(self, ids: Sequence[int]) -> bytes:
        """Ids as raw integers of `self.dtype`."""
        return b"".join([self.raw[i] for i in ids])
