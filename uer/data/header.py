"""What a dataset file says about itself, gathered from the workers' results."""

from __future__ import annotations

from argparse import Namespace
from array import array
from typing import Any

import numpy as np

from uer.data.masking import MaskingOptions
from uer.data.worker import Result
from uer.tokenizers import Tokenizer
from uer.tokenizers.rules import KEY

FORMAT = "uer-dataset"
FORMAT_VERSIONS = {"mlm": 1, "pairs": 2}  # programs that know no pairs read 1
COUNTS = ("lines", "empty_lines", "words", "unknown", "instances", "tokens", "masked", "without_text")
UNKNOWN_WARNING = 0.05
LONGEST = 65535  # tokens of an instance

_ROW = ("number", "source", "worker", "instances", "tokens", "masked", "begins_with_text", "ends_with_blank")


class Ledger:
    """Sums of all results, and one row of numbers a segment: 64 bytes, whatever the segment held."""

    def __init__(self) -> None:
        self.counts = dict.fromkeys(COUNTS, 0)
        self.cut = self._document_starts = 0
        self._rows = array("q")

    def add(self, result: Result) -> None:
        """Take in a segment's result; any order."""
        for name in COUNTS:
            self.counts[name] += getattr(result, name)
        self.cut += result.cut
        self._document_starts += result.document_starts
        self._rows.extend(int(getattr(result, name)) for name in _ROW)

    def columns(self) -> dict[str, np.ndarray]:
        """The rows in the order of the corpus, by column: int64 `[segments]`."""
        rows = np.array(self._rows, dtype=np.int64).reshape(-1, len(_ROW))
        rows = rows[np.argsort(rows[:, 0])]
        return {name: rows[:, i] for i, name in enumerate(_ROW)}

    def documents(self) -> int:
        """Documents of the corpus; one may run over several segments."""
        columns = self.columns()
        new_source = np.diff(columns["source"], prepend=-1) != 0
        after_blank = np.roll(columns["ends_with_blank"], 1) == 1
        begun = (columns["begins_with_text"] == 1) & (new_source | after_blank)
        return self._document_starts + int(begun.sum())


def make_header(args: Namespace, masking: MaskingOptions, tokenizer: Tokenizer, ledger: Ledger) -> dict[str, Any]:
    """The header: plain values that say how the dataset was built and what it holds.

    Counts: `words` are tokens without [CLS] and [SEP], `tokens` those with them, `masked` the statically masked
    positions of all copies, `empty_lines` lines of characters that the tokenizer removes, `without_text` records whose
    text is empty or null, or of pairs one of the two. Of pairs, `separators` stand between the texts, and `cut` were
    too long.
    """
    vocab, rules = tokenizer.vocab, tokenizer.rules
    of_pairs = {"separators": tokenizer.separators, "cut": ledger.cut} if args.data_processor == "pairs" else {}
    return {
        "format": FORMAT, "format_version": FORMAT_VERSIONS[args.data_processor], "data_processor": args.data_processor,
        "seq_length": args.seq_length, "full_sentences": args.full_sentences, "dynamic_masking": args.dynamic_masking,
        "dup_factor": args.dup_factor, "masking": masking.to_dict(), "word_segmenter": args.word_segmenter,
        "seed": args.seed, KEY: rules.to_dict(), "tokenizer": rules.kind, "do_lower_case": rules.lower_case,
        "vocab_name": rules.vocab_name, "vocab_size": len(vocab), "vocab_sha256": vocab.sha256,
        "cls_id": vocab.cls_id, "sep_id": vocab.sep_id, "pad_id": vocab.pad_id, "mask_id": vocab.mask_id,
        "unk_id": vocab.unk_id, "special_ids": vocab.special_ids, "documents": ledger.documents(), **ledger.counts,
        **of_pairs}


def summary(header: dict[str, Any]) -> str:
    """What a dataset holds, in a few lines; lengths in tokens."""
    instances, tokens = header["instances"], header["tokens"]
    unknown = header["unknown"] / max(1, header["words"])
    padding = 1 - tokens / (instances * header["seq_length"])
    pairs, masks = header["data_processor"] == "pairs", header["dup_factor"]
    lines = [
        ("pairs" if pairs else f"documents {header['documents']:,}   lines")
        + f" {header['lines']:,}   instances {instances:,}"
        + (f", each with {masks} mask{'s' * (masks > 1)}" if not header["dynamic_masking"] else ""),
        f"tokens {header['words']:,}, with [CLS] and [SEP] {tokens:,}   mean length {tokens / instances:.1f}",
        f"unknown {unknown:.2%}   padding if every instance were filled to {header['seq_length']}: {padding:.1%}"]
    if header["empty_lines"]:
        what = "pair(s) with a text" if pairs else "line(s)"
        lines.append(f"{header['empty_lines']:,} {what} of characters that the tokenizer removes made no instance")
    if header.get("without_text"):
        what = "pair(s) of which a text is empty" if pairs else "record(s) without text"
        lines.append(f"{header['without_text']:,} {what} were left out")
    if header.get("cut"):
        lines.append(f"{header['cut']:,} pair(s) have more than {header['seq_length']} tokens; the longer text was cut")
    if unknown > UNKNOWN_WARNING:
        lines.append(f"warning: {unknown:.1%} of the tokens are unknown: does the vocabulary ({header['vocab_name']}) "
                     f"fit the language, and --do_lower_case or --cased the vocabulary?")
    return "\n".join(lines)
