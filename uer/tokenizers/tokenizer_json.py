"""tokenizer.json, as far as a tokenizer here does the same: WordPiece, byte-level BPE, Unigram by sentencepiece.

What a file asks for beyond that is refused by name: no text becomes other ids than its author meant.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from uer.errors import UserError
from uer.files import read_object
from uer.tokenizers.bert import MAX_WORD
from uer.tokenizers.pieces import Pieces
from uer.tokenizers.vocab import AddedToken, Vocab, tokens_by_id

SPACE = "\u2581"
LARGEST = 1e38  # score of a piece: sentencepiece keeps them in float32


class Parsed(NamedTuple):
    """What a tokenizer.json says: kind and settings as in `TextRules`, the vocabulary, its parts."""

    kind: str
    tokens: list[str]
    settings: dict[str, Any]
    merges: list[tuple[str, str]] | None = None
    pieces: Pieces | None = None


class TokenizerJson:
    """One such file, read; each part is checked when it is asked for."""

    def __init__(self, path: Path):
        self.path = path
        self.data = read_object(path, "tokenizer file")

    def added(self) -> list[AddedToken]:
        """The added tokens, special ones among them."""
        entries = self.data.get("added_tokens") or []
        if not isinstance(entries, list):
            raise self._not_here(f"added_tokens {entries!r}")
        return [added_token(entry, entry.get("id") if isinstance(entry, dict) else None, str(self.path))
                for entry in entries]

    def settings(self, kind: str) -> dict[str, Any]:
        """Of `TextRules`, as the steps of this file have them, which are those of a tokenizer of this kind.
        `UserError` where they are not."""
        return {"bert": self._wordpiece_steps, "bpe": self._bpe_steps, "xlmroberta": self._unigram_steps}[kind](
            self._part("model"))

    def cut_side(self) -> str | None:
        """Where texts that are too long are cut, as tokenizer_config.json would say it; None: not said."""
        side = self._part("truncation").get("direction")
        return side and str(side).lower()

    def wordpiece_ids(self) -> dict[str, int] | None:
        """token -> id of a WordPiece or BPE model; None: another model."""
        vocab = self._part("model").get("vocab")
        return vocab if isinstance(vocab, dict) else None

    def parse(self) -> Parsed:
        """The whole tokenizer; `UserError` for one that is not there."""
        model = self._part("model")
        kind = self._type("model") or (  # older files do not say
            "WordPiece" if "max_input_chars_per_word" in model else "BPE" if "merges" in model else "Unigram")
        readers = {"WordPiece": self._wordpiece, "BPE": self._bpe, "Unigram": self._unigram}
        if kind not in readers:
            raise self._not_here(f"a model of type {kind}")
        return readers[kind](model)

    def separators(self, vocab: Vocab) -> int:
        """How many [SEP] this file puts between two texts.
        `UserError` where it puts nothing around a text, or something else than [CLS] and [SEP]."""
        first, last = (("SpecialToken", token) for token in vocab.special_tokens[:2])
        single = [first, ("Sequence", "A"), last]
        for count in (1, 2):
            if self._around() == (single, [*single, *[last] * (count - 1), ("Sequence", "B"), last]):
                return count
        raise self._not_here(f"a post_processor that puts something else around texts than {first[1]} and {last[1]}")

    def _around(self) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
        """What stands around one text and around two, as (SpecialToken or Sequence, its name); empty: nothing does."""
        step = next((step for step in self._steps("post_processor", "processors")
                     if step.get("type") not in (None, "ByteLevel")), {})
        try:
            if step.get("type") == "TemplateProcessing":
                single, pair = ([(kind, part["id"]) for item in step[key] for kind, part in item.items()]
                                for key in ("single", "pair"))
                return single, pair
            first, last = ("SpecialToken", step["cls"][0]), ("SpecialToken", step["sep"][0])
        except (KeyError, TypeError, AttributeError, IndexError):
            return [], []
        between = [last] * (2 if step.get("type") == "RobertaProcessing" else 1)
        return [first, ("Sequence", "A"), last], [first, ("Sequence", "A"), *between, ("Sequence", "B"), last]

    # -- the three models ----------------------------------------------------------------------------------------------

    def _wordpiece(self, model: dict[str, Any]) -> Parsed:
        settings = self._wordpiece_steps(model)
        return Parsed("bert", tokens_by_id(model.get("vocab"), str(self.path)), settings)

    def _wordpiece_steps(self, model: dict[str, Any]) -> dict[str, Any]:
        self._expect("pre_tokenizer", "BertPreTokenizer")
        for key, value in (("continuing_subword_prefix", "##"), ("max_input_chars_per_word", MAX_WORD)):
            if model.get(key, value) != value:
                raise self._not_here(f"{key} {model[key]!r}")
        *before, part = self._steps("normalizer", "normalizers") or [{}]
        odd = next((step for step in before if step.get("type") != "Lowercase"), part)
        if odd.get("type") != "BertNormalizer":
            raise self._not_here(f"normalizer {odd.get('type')} instead of BertNormalizer")
        if part.get("clean_text") is False:
            raise self._not_here("a normalisation that does not clean the text")
        found = {"lower_case": part.get("lowercase", True), "strip_accents": part.get("strip_accents"),
                 "split_ideographs": part.get("handle_chinese_chars", True)}
        if any(value not in (True, False, None) for value in found.values()):
            raise self._not_here(f"a normalizer {part}")
        if before and not found["lower_case"]:  # sentence-transformers puts that first, which leaves accents alone
            found |= {"lower_case": True, "strip_accents": bool(found["strip_accents"])}
        return found

    def _bpe(self, model: dict[str, Any]) -> Parsed:
        settings = self._bpe_steps(model)
        merges = [tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge)
                  for merge in model.get("merges") or []]
        if any(len(merge) != 2 for merge in merges):
            raise self._not_here("a merge that is not two symbols")
        return Parsed("bpe", tokens_by_id(model.get("vocab"), str(self.path)), settings,
                      merges)  # type: ignore[arg-type]

    def _bpe_steps(self, model: dict[str, Any]) -> dict[str, Any]:
        self._expect("pre_tokenizer", "ByteLevel")
        if self.data.get("normalizer"):
            raise self._not_here(f"a normalizer {self._type('normalizer')} before byte-level BPE")
        before = self._part("pre_tokenizer")
        odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback",
                               "ignore_merges", "fuse_unk") if model.get(key)]
        if odd or before.get("use_regex") is False:
            raise self._not_here(f"BPE with {odd[0] if odd else 'use_regex false'}")
        return {"prefix_space": bool(before.get("add_prefix_space", True))}

    def _unigram_steps(self, model: dict[str, Any]) -> dict[str, Any]:
        self._charsmap(model)
        return {}

    def _unigram(self, model: dict[str, Any]) -> Parsed:
        charsmap = self._charsmap(model)
        vocab, unknown = model.get("vocab"), model.get("unk_id")
        try:
            pieces = [(str(piece), float(score)) for piece, score in vocab]  # type: ignore[union-attr]
            assert 0 <= unknown < len(pieces)  # type: ignore[operator]
            assert all(abs(score) < LARGEST for _, score in pieces)
        except (TypeError, ValueError, AssertionError):
            raise self._not_here("a Unigram model without pieces, scores and unk_id") from None
        controls = {token.content for token in self.added()}
        made = Pieces.of_unigram(pieces, unknown, controls, charsmap, str(self.path))  # type: ignore[arg-type]
        return Parsed("xlmroberta", made.tokens, {}, pieces=made)

    def _charsmap(self, model: dict[str, Any]) -> bytes:
        """Sentencepiece's compiled normalisation; nothing else may stand beside it but its care for spaces, and no
        other steps than sentencepiece's around the model."""
        steps = self._steps("normalizer", "normalizers")
        maps = [step.get("precompiled_charsmap") for step in steps if step.get("type") == "Precompiled"]
        others = [step for step in steps if step and step.get("type") != "Precompiled" and not _tidies_spaces(step)]
        if others or len(maps) > 1:
            raise self._not_here(f"a normalizer {others[0].get('type') if others else 'with two maps'}")
        if not self._splits_like_sentencepiece() or model.get("byte_fallback"):
            raise self._not_here("a Unigram model with other steps around it than sentencepiece's")
        try:
            return base64.b64decode(maps[0]) if maps and maps[0] else b""
        except (binascii.Error, TypeError, ValueError):
            raise self._not_here("a normalisation that is not base64") from None

    def _splits_like_sentencepiece(self) -> bool:
        steps = self._steps("pre_tokenizer", "pretokenizers")
        kinds = [step.get("type") for step in steps]
        last = steps[-1] if steps else {}
        return (kinds in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) and last.get("replacement", SPACE) == SPACE
                and last.get("prepend_scheme", "always") == "always" and last.get("add_prefix_space", True))

    # -- helpers -------------------------------------------------------------------------------------------------------

    def _part(self, name: str) -> dict[str, Any]:
        part = self.data.get(name) or {}
        if not isinstance(part, dict):
            raise self._not_here(f"{name} {part!r}")
        return part

    def _steps(self, name: str, under: str) -> list[dict[str, Any]]:
        """The parts of a sequence, or the one part that there is."""
        part = self._part(name)
        steps = part.get(under, []) if part.get("type") == "Sequence" else [part]
        if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
            raise self._not_here(f"{name} {part!r}")
        return steps

    def _type(self, name: str) -> str | None:
        kind = self._part(name).get("type")
        return kind if kind is None or isinstance(kind, str) else repr(kind)

    def _expect(self, part: str, kind: str) -> None:
        if self._type(part) != kind:
            raise self._not_here(f"{part} {self._type(part)} instead of {kind}")

    def _not_here(self, what: str) -> UserError:
        return UserError(f"{self.path}: {what}: no tokenizer here does that; WordPiece, byte-level BPE and Unigram as "
                         f"BERT, RoBERTa and XLM-RoBERTa have them are read")


def _tidies_spaces(step: Mapping[str, Any]) -> bool:
    """Whether a normalizer only takes spaces off the ends or makes one of several, as sentencepiece does itself."""
    return step.get("type") == "Strip" or (
        step.get("type") == "Replace" and step.get("pattern") == {"Regex": " {2,}"} and
        step.get("content") in (" ", SPACE))


def added_token(entry: Any, number: Any, where: str) -> AddedToken:
    """An added token as tokenizer files describe it, or its bare text; `UserError` where it is none."""
    data = entry if isinstance(entry, dict) else {"content": entry, "special": True}
    flags = {key: data.get(key, False) for key in ("lstrip", "rstrip", "single_word")}
    content, normalized = data.get("content"), data.get("normalized", not data.get("special", False))
    if isinstance(number, str) and number.isdecimal():
        number = int(number)
    if not isinstance(content, str) or not content or not isinstance(number, int) or isinstance(number, bool):
        raise UserError(f"{where}: {entry!r} with the id {number!r} is no added token")
    return AddedToken(content, number, bool(normalized), **{key: bool(value) for key, value in flags.items()})
