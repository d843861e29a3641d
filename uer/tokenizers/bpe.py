"""Byte-level BPE, as GPT-2 and RoBERTa use it (Sennrich et al. 2016; Radford et al. 2019).

Text is split into words, numbers and runs of symbols, each with the space before it; its UTF-8 bytes are written as
256 printable characters; then the pair of symbols that comes first in the list of merges is joined, again and again.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import regex

from uer.errors import UserError
from uer.files import read_text
from uer.tokenizers.base import Cache, Tokenizer, added_finder, special_finder
from uer.tokenizers.vocab import Vocab

_FIND_WORDS = regex.compile(r"'(?:s|t|re|ve|m|ll|d)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def byte_characters() -> list[str]:
    """A printable character for each of the 256 bytes: itself where it is one, else the next from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


class BpeTokenizer(Tokenizer):
    """Byte-level BPE.

    Args:
        merges: pairs of symbols, the first to be joined first.
        prefix_space: a text starts with a space, if it does not yet.
    """

    separators = 2

    def __init__(self, vocab: Vocab, merges: list[tuple[str, str]], prefix_space: bool = False) -> None:
        super().__init__(vocab)
        self._ranks = {pair: rank for rank, pair in enumerate(merges)}
        self._prefix_space = prefix_space
        self._byte_characters = byte_characters()
        self._bytes = {character: byte for byte, character in enumerate(self._byte_characters)}
        self._special, self._added = special_finder(vocab), added_finder(vocab)
        self._words = Cache(self._word)

    def encode_raw(self, text: str) -> bytes:
        def words(part: str) -> Iterator[bytes]:
            spaced = f" {part}" if part and self._prefix_space and not part.startswith(" ") else part
            return map(self._words.__getitem__, _FIND_WORDS.findall(spaced))

        def around(part: str) -> list[bytes]:
            assert self._added is not None
            return [self._raw_around(self._added, self._added.cut(part), words)]

        return self._raw_around(self._special, self._special.cut(text), around if self._added else words)

    def _word(self, word: str) -> bytes:
        symbols = [self._byte_characters[byte] for byte in word.encode("utf-8")]
        while len(symbols) > 1:
            ranked = [(self._ranks.get(pair), pair) for pair in itertools.pairwise(symbols)]
            known = [entry for entry in ranked if entry[0] is not None]
            if not known:
                break
            symbols = _joined(symbols, min(known)[1])
        return self.pack([self.vocab.id(symbol) for symbol in symbols])

    def continues(self) -> np.ndarray:
        """A word is what stands between spaces, with its punctuation, as in fairseq."""
        spaces = tuple(self._byte_characters[byte] for byte in b" \t\n\r")
        flags = np.array([not token.startswith(spaces) for token in self.vocab.tokens])
        flags[self.vocab.special_ids] = False
        return flags

    def decode(self, ids: Sequence[int]) -> str:
        characters = "".join(self.vocab.tokens[i] for i in ids)
        return bytes(self._bytes.get(character, 0x3F) for character in characters).decode("utf-8", "replace")


def _joined(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """The symbols with every occurrence of the pair joined, from the left."""
    out: list[str] = []
    index = 0
    while index < len(symbols):
        step = 2 if tuple(symbols[index : index + 2]) == pair else 1
        out.append("".join(symbols[index : index + step]))
        index += step
    return out


def read_merges(path: str | Path) -> list[tuple[str, str]]:
    """The pairs of a merges file: two symbols a line, after an optional `#version` line.
    `UserError` where there is no such file, or a line is no pair."""
    lines = read_text(path, "--merges_path", "a list of merges").split("\n")
    merges = []
    for number, line in enumerate(lines, 1):
        pair = line.rstrip("\r").rstrip(" ").split(" ")
        if pair == [""] or (number == 1 and line.startswith("#version")):
            continue
        if len(pair) != 2:
            raise UserError(f"--merges_path {path}: line {number} is not two symbols with a space between")
        merges.append((pair[0], pair[1]))
    return merges
