"""The two tokenizers without pieces: every character, and every space-delimited word."""

from __future__ import annotations

from collections.abc import Sequence

from uer.tokenizers.base import Cache, Tokenizer
from uer.tokenizers.vocab import Vocab


class CharTokenizer(Tokenizer):
    """Every character of the stripped text is a token."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self._characters = Cache(lambda character: self.raw[vocab.id(character)])

    def encode_raw(self, text: str) -> bytes:
        return b"".join(map(self._characters.__getitem__, text.strip()))


class SpaceTokenizer(Tokenizer):
    """Every word between white space is a token."""

    def __init__(self, vocab: Vocab) -> None:
        super().__init__(vocab)
        self._words = Cache(lambda word: self.raw[vocab.id(word)])

    def encode_raw(self, text: str) -> bytes:
        return b"".join(map(self._words.__getitem__, text.split()))

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.vocab.tokens[i] for i in ids)
