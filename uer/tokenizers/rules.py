"""How text becomes ids: one description for a vocabulary, a dataset, a checkpoint, a model's folder, a command line.

Each of them knows some of it (what it does not say is None). Where several meet, `merged` puts together what they say
and refuses what contradicts; `TextRules.to_dict` is what datasets, checkpoints and models keep of it.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from uer.errors import UserError
from uer.tokenizers.pieces import Pieces
from uer.tokenizers.vocab import SPECIAL_TOKENS, Vocab

KEY = "text"  # under which a JSON or a dataset's header has the description
PAD = 2  # where `special_ids` have it
COMMAND_LINE = "the command line"
CASED_SHARE = 0.03  # of tokens with capital letters (accents): from there on a vocabulary is for text that keeps them
KINDS = {"bert": "WordPiece", "char": "characters", "space": "words between spaces", "bpe": "byte-level BPE",
         "xlmroberta": "sentencepiece"}


@dataclass(frozen=True)
class TextRules:
    """What is known about the way from text to ids.

    Attributes:
        source: where it is from, for messages.
        kind: a name of `uer.tokenizers.NAMES` (or what else a tokenizer file says).
        vocab_name, vocab_size, vocab_sha256: of the vocabulary file (`Vocab.sha256`).
        special_ids: of CLS, SEP, PAD, MASK, UNK.
        added: token -> id of what is found in the text before everything else, plain special tokens apart.
        special_tokens, added_tokens: what a vocabulary file does not say of its own: names that are not usual, in the
            order of `special_ids`; all fields of each `AddedToken`.
        pieces_sha256: of the list of merges, or of the sentencepiece model.
        lower_case: bert: whether case is folded.
        strip_accents: bert: whether accents go; None: as case does.
        split_ideographs: bert: whether an ideograph is a word of its own.
        prefix_space: bpe: whether a text starts with a space.
        separators: of special tokens between two texts, where it is not as usual for the kind (`Tokenizer.separators`).
        final: the text has become ids already, so that no option can change it.
        vocab, merges, pieces: the things themselves, where they are at hand.
    """

    source: str
    final: bool = False
    kind: str | None = None
    vocab_name: str | None = None
    vocab_size: int | None = None
    vocab_sha256: str | None = None
    special_ids: tuple[int, ...] | None = None
    added: dict[str, int] | None = None
    special_tokens: tuple[str, ...] | None = None
    added_tokens: list[Any] | None = None
    pieces_sha256: str | None = None
    lower_case: bool | None = None
    strip_accents: bool | None = None
    split_ideographs: bool | None = None
    prefix_space: bool | None = None
    separators: int | None = None
    vocab: Vocab | None = None
    merges: list[tuple[str, str]] | None = None
    pieces: Pieces | None = None

    @property
    def accents(self) -> bool | None:
        """Whether accents go; None: not known."""
        return self.lower_case if self.strip_accents is None else self.strip_accents

    def holding(self, vocab: Vocab, name: str, merges: list[tuple[str, str]] | None = None,
                pieces: Pieces | None = None) -> TextRules:
        """The same with this content, and what it says."""
        digest = None
        if merges is not None:
            digest = hashlib.sha256("\n".join(map(" ".join, merges)).encode("utf-8")).hexdigest()
        return replace(
            self, vocab=vocab, vocab_name=name, vocab_size=len(vocab), vocab_sha256=vocab.sha256,
            special_ids=(vocab.cls_id, vocab.sep_id, vocab.pad_id, vocab.mask_id, vocab.unk_id),
            added={token.content: token.id for token in vocab.added if token.content not in vocab.special_tokens},
            special_tokens=None if vocab.special_tokens in SPECIAL_TOKENS else vocab.special_tokens,
            added_tokens=[token._asdict() for token in vocab.added] or None, merges=merges, pieces=pieces,
            pieces_sha256=pieces.sha256 if pieces else digest)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a JSON or a header."""
        special, names = (value and list(value) for value in (self.special_ids, self.special_tokens))
        values = {"kind": self.kind, "vocab_name": self.vocab_name, "vocab_size": self.vocab_size,
                  "vocab_sha256": self.vocab_sha256, "special_ids": special, "added": self.added,
                  "special_tokens": names, "added_tokens": self.added_tokens, "pieces_sha256": self.pieces_sha256,
                  "lower_case": self.lower_case, "strip_accents": self.accents, "prefix_space": self.prefix_space,
                  "split_ideographs": self.split_ideographs, "separators": self.separators}
        return {key: value for key, value in values.items() if value is not None}

    def line(self) -> str:
        """One line for the reader."""
        words = [KINDS.get(str(self.kind), str(self.kind))]
        words += [] if self.vocab_size is None else [f"{self.vocab_size:,} tokens of {self.vocab_name}"]
        if self.kind == "bert":
            case = "case folded" if self.lower_case else "case kept"
            accents = "accents stripped" if self.accents else "accents kept"
            words += [case if self.accents == self.lower_case else f"{case}, {accents}"]
            words += [] if self.split_ideographs else ["ideographs not split"]
        if self.prefix_space:
            words.append("a space before the text")
        if self.added:
            words.append(f"{len(self.added)} added token(s)")
        return "text: " + ", ".join(words)


def recorded(data: Mapping[str, Any], source: str) -> TextRules | None:
    """What a dataset's header, a checkpoint's JSON or a model's config keeps; those of older versions keep less.
    `UserError` for something that is no such description."""
    own = data.get(KEY)
    if own is None:
        return _recorded_before(data, source)
    types: dict[str, type] = {"kind": str, "vocab_name": str, "vocab_size": int, "vocab_sha256": str,
                              "special_ids": list, "added": dict, "special_tokens": list, "added_tokens": list,
                              "pieces_sha256": str, "lower_case": bool,
                              "strip_accents": bool, "split_ideographs": bool, "prefix_space": bool, "separators": int}
    wrong = [key for key, value in own.items() if not isinstance(value, types.get(key, object))] \
        if isinstance(own, dict) else ["it"]
    if wrong:
        raise UserError(f"{source}: under {KEY!r} is no description of how text becomes ids ({', '.join(wrong)})")
    values = {key: value for key, value in own.items() if key in types}
    values |= {key: tuple(values[key]) for key in ("special_ids", "special_tokens") if key in values}
    if values.get("strip_accents") == values.get("lower_case"):
        values.pop("strip_accents", None)  # as case does, then also where another case is asked for
    return TextRules(source, **values)


def _recorded_before(data: Mapping[str, Any], source: str) -> TextRules | None:
    """From the keys that were there before the description was; folding case then always took accents with it."""
    if "vocab_sha256" not in data:
        return None
    kind, case = data.get("tokenizer"), data.get("do_lower_case")
    ids = [data.get(f"{role}_id") for role in ("cls", "sep", "pad", "mask", "unk")]
    bert = kind == "bert"
    return TextRules(source, kind=kind, vocab_name=data.get("vocab_name"), vocab_size=data.get("vocab_size"),
                     vocab_sha256=data["vocab_sha256"], special_ids=None if None in ids else tuple(ids),  # type: ignore
                     lower_case=case in (True, "true") if bert and case is not None else None,
                     split_ideographs=True if bert else None)


def is_cased(vocab: Vocab) -> bool:
    """Whether a vocabulary has tokens with capital letters, more than a few; special ones apart."""
    tokens = [token for token in vocab.tokens if not (token[:1] in "[<" and token[-1:] in "]>")]
    return sum(token != token.lower() for token in tokens) > CASED_SHARE * len(tokens)


def is_accented(vocab: Vocab) -> bool:
    """Whether a vocabulary has tokens that no text without accents becomes, more than a few: Hindi's vowels, Hangul."""
    return sum(not token.isascii() and _without_accents(token) != token
               for token in vocab.tokens) > CASED_SHARE * len(vocab)


def _without_accents(token: str) -> str:
    return "".join(x for x in unicodedata.normalize("NFD", token) if unicodedata.category(x) != "Mn")


# -- where several meet ------------------------------------------------------------------------------------------------

# What must agree, in words; the vocabulary apart.
COMPARED = {"kind": "tokenizer", "pieces_sha256": "merges or pieces", "special_ids": "ids of special tokens",
            "added": "added tokens", "lower_case": "case folded", "accents": "accents stripped",
            "split_ideographs": "ideographs split", "prefix_space": "space before the text"}


def merged(parts: Iterable[TextRules | None], warnings: list[str]) -> TextRules:
    """What all of them say together.

    Args:
        parts: the first that says something decides; the command line's own first.
        warnings: takes a sentence where a case given on the command line is not that of another part.
    Raises:
        UserError: two that say different things, both named.
    """
    known = [part for part in parts if part is not None]
    assert known
    case_differs = False
    for number, part in enumerate(known):
        for other in known[:number]:
            found = differences(other, part)
            if other.source == COMMAND_LINE and "lower_case" in found and not part.final:
                warnings.append(f"warning: case is {'folded' if other.lower_case else 'kept'}, as the command line "
                                f"says; {part.source} has it {'folded' if part.lower_case else 'kept'}")
                case_differs = True
            if case_differs:
                found = {key: value for key, value in found.items() if key not in ("lower_case", "accents")}
            if found:
                raise UserError(f"text becomes ids in different ways in {other.source} and in {part.source}: "
                                + "; ".join(found.values()))
    values: dict[str, Any] = {"source": next((part.source for part in known if part.kind), known[0].source)}
    for part in known:
        for key, value in vars(part).items():
            if value is not None:
                values.setdefault(key, value)
    return TextRules(**values)


def differences(one: TextRules, other: TextRules) -> dict[str, str]:
    """Field -> what both say about it, where that is not the same."""
    found = {}
    if None not in (one.vocab_sha256, other.vocab_sha256) and one.vocab_sha256 != other.vocab_sha256:
        found["vocab_sha256"] = f"another vocabulary ({_vocabulary(one)} and {_vocabulary(other)})"
    for field, words in COMPARED.items():
        first, second = getattr(one, field), getattr(other, field)
        if first is not None and second is not None and first != second:
            found[field] = f"{words}: {_spelled(first)} and {_spelled(second)}"
    if "vocab_sha256" in found:  # of which these are no more than consequences
        found = {key: value for key, value in found.items() if key not in ("special_ids", "added", "pieces_sha256")}
    return found


def _vocabulary(rules: TextRules) -> str:
    size = "" if rules.vocab_size is None else f"{rules.vocab_size:,} tokens, "
    return f"{rules.vocab_name or 'one'} of {size}SHA-256 {str(rules.vocab_sha256)[:12]}…"


def _spelled(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return f"{len(value)} ({', '.join(list(value)[:5])})" if value else "none"
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)
