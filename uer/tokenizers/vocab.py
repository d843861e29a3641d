"""Vocabulary files: one token a line, its number the line's; LF or CRLF. A `.json` file maps token to id."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from uer.errors import UserError
from uer.files import read_object, read_text

# The names of (CLS, SEP, PAD, MASK, UNK) in the families of vocabularies that are in use.
SPECIAL_TOKENS = (("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), ("<s>", "</s>", "<pad>", "<mask>", "<unk>"))
ROLES = ("cls_token", "sep_token", "pad_token", "mask_token", "unk_token")  # their names in tokenizer files
MOST_ADDED = 1 << 20  # an id so far behind the vocabulary is a mistake


class AddedToken(NamedTuple):
    """A token that is looked for in the text before everything else.

    Attributes:
        normalized: it is looked for in the text with case and accents folded, and folded itself.
        lstrip, rstrip: white space before or behind it belongs to it.
        single_word: it counts only where no letter or digit touches it.
    """

    content: str
    id: int
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class Vocab:
    """Tokens and their ids.

    Attributes: `tokens` (list[str], index = id; the added ones at the end), `cls_id`, `sep_id`, `pad_id`, `mask_id`,
    `unk_id`, `special_ids` (sorted list of those five), `added` (tokens found before everything else, but for plain
    special ones of the file), `base` (number of tokens that are not behind the vocabulary file's), `sha256` (hex, over
    these: line ends do not matter). Of a token that stands there twice the last id counts, as in other readers.
    """

    def __init__(self, tokens: list[str], source: str = "vocabulary", special: Mapping[str, str] | None = None,
                 added: Sequence[AddedToken] = ()) -> None:
        self.base = len(tokens)
        self.sha256 = digest(tokens)
        self.tokens = _with_added(tokens, added, source)
        self.source = source
        self.ids = {token: number for number, token in enumerate(self.tokens)}
        usual = max(SPECIAL_TOKENS, key=lambda names: sum(name in self.ids for name in names))
        family = tuple((special or {}).get(role, name) for role, name in zip(ROLES, usual))
        missing = [name for name in family if name not in self.ids]
        if missing:
            raise UserError(f"{source}: the vocabulary lacks the special token(s) {' '.join(missing)}; it needs "
                            f"{' '.join(family)}, one token a line")
        self.special_tokens = family
        self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id = (self.ids[name] for name in family)
        self.special_ids = sorted({self.ids[name] for name in family})
        self.added = [token for token in added if token != AddedToken(token.content, token.id)
                      or token.content not in family or token.id >= self.base]

    def __len__(self) -> int:
        return len(self.tokens)

    def __contains__(self, token: str) -> bool:
        return token in self.ids

    def id(self, token: str) -> int:
        """The token's id, or that of the unknown token."""
        return self.ids.get(token, self.unk_id)

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a vocabulary file.
        `UserError` where there is no such file, or it is not UTF-8, no vocabulary, or without the special tokens."""
        return cls(read_tokens(path), f"--vocab_path {path}")


def digest(tokens: Sequence[str]) -> str:
    """SHA-256 over a vocabulary file's tokens, hex."""
    return hashlib.sha256("\n".join(tokens).encode("utf-8")).hexdigest()


def read_tokens(path: str | Path) -> list[str]:
    """The tokens of a vocabulary file in the order of their ids; raises `UserError` like `Vocab.load`."""
    path = Path(path)
    if path.suffix == ".json":
        tokens = tokens_by_id(read_object(path, "--vocab_path"), f"--vocab_path {path}")
    else:
        tokens = _from_lines(read_text(path, "--vocab_path", "a vocabulary"))
    if not tokens:
        raise UserError(f"--vocab_path {path}: the file is empty; one token a line is expected")
    return tokens


def _from_lines(text: str) -> list[str]:
    """As UER reads it: what stands before the first space or tab of a line (a count may follow); blank lines at the end
    are no tokens, one amid the others keeps its number."""
    tokens = [re.split("[ \t]", line.strip(" \t\r"), maxsplit=1)[0] or line.rstrip("\r") for line in text.split("\n")]
    while tokens and not tokens[-1].strip():
        tokens.pop()
    return tokens


def tokens_by_id(ids: Any, where: str) -> list[str]:
    """The keys of an object of token: id, in the order of the ids; an id that no token has is left blank.
    `UserError` for anything else."""
    if not isinstance(ids, Mapping) or set(map(type, ids.values())) - {int} or len(set(ids.values())) < len(ids) or (
            ids and not 0 <= min(ids.values()) <= max(ids.values()) < len(ids) + MOST_ADDED):
        raise UserError(f"{where}: expected an object of token: id with the ids 0, 1, 2, …")
    tokens = [""] * (max(ids.values(), default=-1) + 1)
    for token, number in ids.items():
        tokens[number] = token
    return tokens


def _with_added(tokens: list[str], added: Sequence[AddedToken], source: str) -> list[str]:
    """The tokens with those that were added behind them; ids between the two that belong to no token are blank."""
    behind = {token.id: token.content for token in added if token.id >= len(tokens)}
    wrong = [token for token in added if token.id >= len(tokens) + MOST_ADDED or token.id < 0
             or (token.id < len(tokens) and tokens[token.id] != token.content)]
    if wrong:
        raise UserError(f"{source}: the added token {wrong[0].content!r} has the id {wrong[0].id}, which is "
                        + (f"that of {tokens[wrong[0].id]!r}" if 0 <= wrong[0].id < len(tokens) else "out of range"))
    return [*tokens, *(behind.get(number, "") for number in range(len(tokens), max(behind, default=-1) + 1))]
