"""One segment of text to instances: tokenize its blocks, cut into pieces, mask (static masking).

Memory holds a block of text and what comes of it, however long the lines and documents are: a line or document
that goes on in the next block leaves its unfinished piece behind, which the next block completes.
"""

from __future__ import annotations

import itertools
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from uer.data.blocks import read_blocks
from uer.data.masking import Masker, MaskingOptions, generator
from uer.data.pairs import Joiner
from uer.data.sources import Segment
from uer.tokenizers import Tokenizer

STATIC = 1  # keeps the random numbers of static masking apart from all others


@dataclass
class Result:
    """What one segment gave. Its arrays are the next in the files of worker number `worker`.

    `words` are tokens without [CLS] and [SEP], `tokens` those with them; `empty_lines` hold text but no token.
    `document_starts` are lines of text after a blank line; a text line that begins the segment is not among them.
    `without_text` are records whose text is empty or null, and pairs of which one text is. Of pairs, `lines` are pairs,
    `words` what is left of them, and `cut` those of which something is not.
    """

    number: int
    source: int
    progress: int
    worker: int
    without_text: int = 0
    lines: int = 0
    empty_lines: int = 0
    words: int = 0
    unknown: int = 0
    instances: int = 0
    tokens: int = 0
    masked: int = 0
    cut: int = 0
    document_starts: int = 0
    begins_with_text: bool = False
    ends_with_blank: bool = False


class Cutter:
    """Cuts units (lines or documents) of tokens into instances [CLS] … [SEP] of at most seq_length tokens."""

    def __init__(self, seq_length: int, cls_id: int, sep_id: int) -> None:
        self.room = seq_length - 2
        self.ends = (cls_id, sep_id)
        self._open: np.ndarray | None = None

    def __call__(self, tokens: np.ndarray, lengths: np.ndarray, last_is_open: bool) -> tuple[np.ndarray, np.ndarray]:
        """Tokens `[total]` of units of these lengths to tokens with specials and the instances' lengths.

        The last piece of an open unit waits for the next call, whose first unit goes on with it.
        """
        lengths = lengths.copy()
        if self._open is not None:
            tokens = np.concatenate([self._open, tokens])
            lengths[0] += len(self._open)
            self._open = None
        if last_is_open:
            keep = (lengths[-1] - 1) % self.room + 1 if lengths[-1] else 0
            lengths[-1] -= keep
            self._open, tokens = tokens[len(tokens) - keep :].copy(), tokens[: len(tokens) - keep]
        pieces = -(-lengths // self.room)
        sizes = np.full(pieces.sum(), self.room, dtype=np.int64)
        filled = pieces > 0
        sizes[np.cumsum(pieces)[filled] - 1] = (lengths - (pieces - 1) * self.room)[filled]
        sizes += 2
        last = np.cumsum(sizes) - 1
        first = last - sizes + 1
        out = np.empty(int(sizes.sum()), dtype=tokens.dtype)
        inside = np.ones(len(out), dtype=bool)
        inside[first] = inside[last] = False
        out[first], out[last] = self.ends
        out[inside] = tokens
        return out, sizes


@dataclass
class Block:
    """A block's tokens `[total]`, the lengths of its lines, and which of these are blank."""

    tokens: np.ndarray
    lengths: np.ndarray
    blank: np.ndarray
    joined: np.ndarray | None
    ended: bool


class SegmentWorker:
    """Turns segments into arrays, which it appends to files of its own in `folder`: `<array>-<number>`."""

    def __init__(self, args: Namespace, masking: MaskingOptions, folder: Path, number: int,
                 tokenizer: Tokenizer) -> None:
        self.args, self.folder, self.number, self.tokenizer = args, folder, number, tokenizer
        vocab = tokenizer.vocab
        self.masker = Masker(masking, vocab_size=len(vocab), special_ids=vocab.special_ids, mask_id=vocab.mask_id,
                             continues=tokenizer.continues())
        self.joiner = None
        if args.word_segmenter == "jieba":
            from uer.data.segmenter import WordJoiner

            self.joiner = WordJoiner(vocab)
        self._files: dict[str, BinaryIO] = {}

    def __call__(self, segment: Segment) -> Result:
        """Write one segment's arrays. A temporary segment's file is removed."""
        result = Result(segment.number, segment.source_number, segment.progress, self.number, segment.without_text)
        write = self._pairs if self.args.data_processor == "pairs" else self._units
        write(segment, result)
        for file in self._files.values():
            file.flush()
        if segment.temporary:
            segment.path.unlink()
        return result

    def close(self) -> None:
        for file in self._files.values():
            file.close()

    def _pairs(self, segment: Segment, result: Result) -> None:
        vocab, between = self.tokenizer.vocab, self.tokenizer.separators
        join = Joiner(self.args.seq_length, vocab.cls_id, vocab.sep_id, between)
        for index, (text, _, without_text) in enumerate(read_blocks(segment)):
            texts = [part for line in text.split("\n") if line for part in line.split("\t")]
            whole, lengths = self.tokenizer.encode_lines(texts)
            joined = None
            if self.joiner:
                joined = Joiner(self.args.seq_length, 0, 0, between)(self.joiner(whole, lengths), lengths)[0]
            tokens, sizes, begins = join(whole, lengths)
            result.without_text += without_text
            result.lines += len(texts) // 2
            result.empty_lines += len(texts) // 2 - len(sizes)
            both = lengths.reshape(-1, 2)
            result.cut += int(((both.sum(1) > join.room) & both.all(1)).sum())
            result.unknown += int((tokens == vocab.unk_id).sum())
            result.words += len(tokens) - (2 + between) * len(sizes)
            if len(sizes):
                self._append("second", begins.astype("<u2"))
            self._write(result, index, tokens, sizes, joined)

    def _units(self, segment: Segment, result: Result) -> None:
        """Lines or documents, in pieces."""
        vocab, seq_length = self.tokenizer.vocab, self.args.seq_length
        cut = Cutter(seq_length, vocab.cls_id, vocab.sep_id)
        cut_flags = Cutter(seq_length, 0, 0)
        blocks = self._blocks(segment, result)
        for index, block in enumerate(itertools.chain(blocks, [self._nothing()])):
            units, unit_open = block.lengths, not block.ended
            if self.args.full_sentences and len(block.blank):
                units = np.bincount(np.cumsum(block.blank), weights=units).astype(np.int64)
                unit_open = True
            tokens, sizes = cut(block.tokens, units, unit_open)
            joined = None if block.joined is None else cut_flags(block.joined, units, unit_open)[0]
            self._write(result, index, tokens, sizes, joined)

    def _nothing(self) -> Block:
        """A block that closes what is open."""
        joined = np.zeros(0, dtype="u1") if self.joiner else None
        nothing = np.zeros(1, dtype=np.int64)
        return Block(np.zeros(0, dtype=self.tokenizer.dtype), nothing, nothing[:0], joined, True)

    def _blocks(self, segment: Segment, result: Result) -> Iterator[Block]:
        goes_on = last_was_blank = False
        for index, (text, ended, without_text) in enumerate(read_blocks(segment)):
            result.without_text += without_text
            lines = text.split("\n")
            if ended and lines[-1] == "" and len(lines) > 1:
                lines.pop()
            tokens, lengths = self.tokenizer.encode_lines(lines)
            blank = np.fromiter((not line or line.isspace() for line in lines), dtype=bool, count=len(lines))
            blank[0] &= not goes_on  # what is left of a long line is no line of its own
            blank[-1] &= ended
            after_blank = np.concatenate([[last_was_blank], blank[:-1]])
            result.document_starts += int((after_blank & ~blank).sum())
            if index == 0:
                result.begins_with_text = not blank[0]
            result.lines += int((~blank).sum()) - goes_on
            result.empty_lines += int(((lengths == 0) & ~blank).sum())
            result.unknown += int((tokens == self.tokenizer.vocab.unk_id).sum())
            result.words += len(tokens)
            goes_on, last_was_blank = not ended, bool(blank[-1])
            joined = self.joiner(tokens, lengths) if self.joiner else None
            yield Block(tokens, lengths, blank, joined, ended)
        result.ends_with_blank = last_was_blank

    def _write(self, result: Result, index: int, tokens: np.ndarray, sizes: np.ndarray,
               joined: np.ndarray | None) -> None:
        if not len(sizes):
            return
        result.instances += len(sizes)
        result.tokens += len(tokens)
        self._append("tokens", tokens)
        self._append("lengths", sizes.astype("<i4"))
        if joined is not None:
            self._append("joined", joined)
        if not self.args.dynamic_masking:
            counts, positions, shown = self._static_masks((result.number, index), tokens, sizes, joined)
            result.masked += len(positions)
            self._append("mask_lengths", counts.astype("<i4"))
            self._append("mask_positions", positions.astype("<u2"))
            self._append("mask_tokens", shown.astype(tokens.dtype))

    def _append(self, name: str, array: np.ndarray) -> None:
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = open(self.folder / f"{name}-{self.number}", "wb")  # noqa: SIM115
        file.write(np.ascontiguousarray(array).data)

    def _static_masks(self, key: tuple[int, int], tokens: np.ndarray, sizes: np.ndarray,
                      joined: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """dup_factor masks of every instance, an instance's masks side by side.

        Returns their sizes `[instances * dup_factor]`, positions counted from the instance's start, and replacements.
        """
        copies = self.args.dup_factor
        starts = np.cumsum(sizes) - sizes
        instance_of = np.repeat(np.arange(len(sizes)), sizes)
        flags = None if joined is None else joined.astype(bool)
        slots, positions, shown = [], [], []
        for copy in range(copies):
            where, replacement = self.masker(tokens, sizes, generator(STATIC, self.args.seed, *key, copy), flags)
            slots.append(instance_of[where] * copies + copy)
            positions.append(where - starts[instance_of[where]])
            shown.append(replacement)
        slot = np.concatenate(slots)
        order = np.argsort(slot, kind="stable")
        counts = np.bincount(slot, minlength=len(sizes) * copies)
        return counts, np.concatenate(positions)[order], np.concatenate(shown)[order]
