"""Vocabulary files: one token a line, its number the line's; LF or CRLF. A `.json` file maps token to id."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from uer.errors import UserError

# The names of (CLS, SEP, PAD, MASK, UNK) in the families of vocabularies that are in use.
SPECIAL_TOKENS = (
    ("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"),
    ("<s>", "</s>", "<pad>", "<mask>", "<unk>"),
)


class Vocab:
    """Tokens and their ids.

    Attributes: `tokens` (list[str], index = id), `cls_id`, `sep_id`, `pad_id`, `mask_id`, `unk_id`,
    `special_ids` (sorted list of those five), `sha256` (hex, over the token list: line ends do not matter).
    Of a token that stands there twice the last id counts, as in other readers of these files.
    """

    def __init__(self, tokens: list[str], source: str = "vocabulary") -> None:
        self.tokens = tokens
        self.source = source
        self.ids = {token: number for number, token in enumerate(tokens)}
        family = max(SPECIAL_TOKENS, key=lambda names: sum(name in self.ids for name in names))
        missing = [name for name in family if name not in self.ids]
        if missing:
            raise UserError(
                f"{source}: the vocabulary lacks the special token(s) {' '.join(missing)}; "
                f"it needs {' '.join(family)}, one token a line"
            )
        self.special_tokens = family
        self.cls_id, self.sep_id, self.pad_id, self.mask_id, self.unk_id = (self.ids[name] for name in family)
        self.special_ids = sorted(self.ids[name] for name in family)
        self.sha256 = hashlib.sha256("\n".join(tokens).encode("utf-8")).hexdigest()

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

        Raises:
            UserError: no such file, not UTF-8, not a vocabulary, or without the special tokens.
        """
        path = Path(path)
        try:
            text = path.read_bytes().decode("utf-8")
        except FileNotFoundError:
            raise UserError(f"--vocab_path {path}: no such file") from None
        except OSError as error:
            raise UserError(f"--vocab_path {path}: cannot be read ({error.strerror})") from None
        except UnicodeDecodeError as error:
            raise UserError(f"--vocab_path {path}: not UTF-8 at byte {error.start}") from None
        tokens = _from_json(text, path) if path.suffix == ".json" else _from_lines(text)
        if not tokens:
            raise UserError(f"--vocab_path {path}: the file is empty; one token a line is expected")
        return cls(tokens, f"--vocab_path {path}")


def _from_lines(text: str) -> list[str]:
    tokens = [line.removesuffix("\r") for line in text.removeprefix("\ufeff").split("\n")]
    if tokens[-1] == "":
        tokens.pop()
    return tokens


def _from_json(text: str, path: Path) -> list[str]:
    try:
        ids = json.loads(text)
    except ValueError as error:
        raise UserError(f"--vocab_path {path}: not JSON ({error})") from None
    if not isinstance(ids, dict) or set(map(type, ids.values())) - {int} or sorted(ids.values()) != list(
            range(len(ids))):
        raise UserError(f"--vocab_path {path}: expected an object of token: id with the ids 0, 1, 2, …")
    return sorted(ids, key=ids.__getitem__)
