"""A dataset file, or several as one, read through the page cache.

File (`torch.load(path, mmap=True, weights_only=True)`): a dictionary of
    header          plain values, see `uer.data.header`
    tokens          uint16 or int32 [tokens]; instance i is tokens[offsets[i]:offsets[i + 1]], [CLS] … [SEP] included
    offsets         int64 [instances + 1]
    continues       uint8 [vocabulary], 1 for tokens that go on with the word before them (## pieces)
    joined          uint8 [tokens], the same for single tokens; only where a word segmenter was used
    second          uint16 [instances], of pairs: where in the instance the second text begins
  and with static masking, for mask j = instance * dup_factor + copy:
    mask_offsets    int64 [instances * dup_factor + 1]
    mask_positions  uint16 [masked], the masked positions of mask j, counted from the instance's first token
    mask_tokens     uint16 or int32 [masked], what stands there instead
"""

from __future__ import annotations

import glob
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from uer.data.header import COUNTS, FORMAT, FORMAT_VERSIONS, LONGEST
from uer.errors import UserError
from uer.files import head_of, refuse_foreign
from uer.formats.storage import ZIP, written_sha256
from uer.tokenizers.rules import TextRules, merged, recorded

# What several files must share to be one dataset.
_SHARED = ("data_processor", "vocab_size", "special_ids", "dynamic_masking", "masking", "word_segmenter")
_NUMBERS = (*COUNTS, "documents", "dup_factor", "seq_length", "vocab_size", "pad_id", "mask_id")
_NEEDED = (*_SHARED, *_NUMBERS, "vocab_name", "vocab_sha256")
_OF_PAIRS = ("separators", "cut")
WORDS = ("tokens", "mask_tokens")


@dataclass
class Ragged:
    """Rows of different lengths, end to end: `values[name]` are `[lengths.sum()]`, `lengths` int64 `[rows]`."""

    lengths: np.ndarray
    values: dict[str, np.ndarray]


class _File:
    """One file's arrays as numpy views of the memory map."""

    def __init__(self, path: Path, option: str) -> None:
        self.path, self.option = path, option
        self.header, self.arrays = _read(path, option)
        known = recorded(self.header, f"{option} {path}")
        assert known is not None  # as `_read` has found a digest
        self.rules = replace(known, final=True)
        self.copies = 1 if self.header["dynamic_masking"] else self.header["dup_factor"]
        self.instances = len(self.arrays["offsets"]) - 1

    def __len__(self) -> int:
        return self.instances * self.copies

    def rows(self, offsets: str, names: list[str], rows: np.ndarray) -> Ragged:
        """Some rows of the arrays that these offsets cut.
        `UserError` for numbers that preprocess.py does not write: a disk or a copy has spoilt the file."""
        begin = self.arrays[offsets][rows]
        lengths = self.arrays[offsets][rows + 1] - begin
        if lengths.min() < 0 or lengths.max() > LONGEST or begin.min() < 0 or begin.max() > len(self.arrays[names[0]]):
            raise self.damaged(offsets)
        where = np.repeat(begin - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
        values = {name: self.arrays[name][where] for name in names if len(self.arrays[name]) > where.max(initial=0)}
        for name in names:
            if name not in values or (name in WORDS and values[name].max(initial=0) >= self.header["vocab_size"]):
                raise self.damaged(name)
        return Ragged(lengths, values)

    def damaged(self, name: str) -> UserError:
        """What is said of an array with impossible numbers."""
        return UserError(f"{self.option} {self.path}: damaged, impossible numbers in {name}; copy or build it again")


def _read(path: Path, option: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise UserError(f"{option} {path}: no such file")
    wrong = f"{option} {path}: not a dataset of preprocess.py, or a truncated one"
    try:
        head = head_of(path)
        if not head.startswith(ZIP):
            refuse_foreign(head, f"{option} {path}", "a dataset of preprocess.py")
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        header = content.pop("header")
        if header.get("format") != FORMAT:
            raise UserError(wrong)
        known = FORMAT_VERSIONS.values()
        if header["format_version"] not in known:
            raise UserError(f"{option} {path}: format version {header['format_version']}; this program reads "
                            f"{' and '.join(map(str, known))}")
        header.setdefault("without_text", 0)  # not counted before records of JSON were read
        pairs = header.get("data_processor") == "pairs"
        missing = [name for name in (*_NEEDED, *(_OF_PAIRS if pairs else ())) if name not in header]
        if missing:
            raise UserError(f"{wrong} (its header lacks {', '.join(missing)})")
        strange = [name for name in (*_NUMBERS, *(_OF_PAIRS if pairs else ()))
                   if type(header[name]) is not int or header[name] < 0]
        if strange:
            raise UserError(f"{wrong} ({strange[0]} in its header is {header[strange[0]]!r})")
        arrays = {name: tensor.numpy() for name, tensor in content.items()}
    except UserError:
        raise
    except PermissionError:
        raise UserError(f"{option} {path}: the file may not be read") from None
    except Exception as error:  # whatever the reader makes of foreign bytes
        raise UserError(f"{wrong} ({str(error).splitlines()[0] if str(error) else type(error).__name__})") from None
    ends = [("offsets", "tokens")] + ([] if header["dynamic_masking"] else [("mask_offsets", "mask_positions")])
    for offsets, values in ends:
        if offsets not in arrays or values not in arrays or arrays[offsets][-1] != len(arrays[values]):
            raise UserError(f"{wrong} ({offsets} and {values} do not fit together)")
    if pairs and len(arrays.get("second", ())) != len(arrays["offsets"]) - 1:
        raise UserError(f"{wrong} (second and offsets do not fit together)")
    if "continues" not in arrays:
        raise UserError(f"{wrong} (it lacks continues, the tokens that go on with a word)")
    return header, arrays


class Dataset:
    """One or several dataset files as one sequence of instances; a static copy counts as an instance.

    Attributes: `header` (of the first file; counts summed, seq_length the largest), `paths`.
    """

    def __init__(self, files: list[_File]) -> None:
        self._files = files
        self.paths = [file.path for file in files]
        self.header = dict(files[0].header)
        for name in ("documents", *COUNTS, *(("cut",) if self.pairs else ())):
            self.header[name] = sum(file.header[name] for file in files)
        self.header["seq_length"] = max(file.header["seq_length"] for file in files)
        self._starts = np.cumsum([0] + [len(file) for file in files])

    @classmethod
    def open(cls, paths: str | Path | list[str] | list[Path], option: str = "--dataset_path",
             masked_anew: bool = False) -> Dataset:
        """Open files or globs; nothing is read but headers. `option` is how messages call them.

        `masked_anew`: dynamic files need not agree in their own masking, another one is given. `UserError` where a path
        is not there, no dataset or truncated, or datasets do not belong together.
        """
        names = [paths] if isinstance(paths, (str, Path)) else list(paths)
        files = [_File(path, option) for name in names for path in _matching(str(name), option)]
        first = files[0]
        for file in files[1:]:
            merged([first.rules, file.rules], [])
            for key in (*_SHARED, *(("separators",) if first.header["data_processor"] == "pairs" else ())):
                if key == "masking" and masked_anew and first.header["dynamic_masking"]:
                    continue
                if file.header[key] != first.header[key]:
                    raise UserError(f"{option}: {first.path} and {file.path} differ in {key} ({first.header[key]} and "
                                    f"{file.header[key]}); datasets read as one must agree in it")
        return cls(files)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def sha256(self) -> str:
        """Of all that the files hold, in their order, from the checksums that they were written with."""
        return hashlib.sha256("".join(map(written_sha256, self.paths)).encode()).hexdigest()

    @property
    def dynamic(self) -> bool:
        """Whether instances are stored unmasked, to be masked when they are read."""
        return self.header["dynamic_masking"]

    @property
    def continues(self) -> np.ndarray:
        """bool `[vocabulary]`: tokens that go on with the word before them."""
        return self._files[0].arrays["continues"].astype(bool)

    def check_positions(self, positions: int, whose: str = "the model") -> None:
        """`UserError` where instances are longer than a model's table of `positions`; `whose` names the model."""
        for file in self._files:
            longest = file.header["seq_length"]
            if longest > positions:
                raise UserError(f"{file.option} {file.path}: its seq_length is {longest}, {whose} has {positions} "
                                f"positions; build it again with a smaller preprocess.py --seq_length")

    def check_processor(self, wanted: str | None, who: str) -> None:
        """`UserError` where single texts are wanted and pairs are there, or the other way; `who` says so."""
        found = self.header["data_processor"]
        if wanted in FORMAT_VERSIONS and wanted != found:
            raise UserError(f"{self._files[0].option} {self.paths[0]}: built with  --data_processor {found}, and {who} "
                            f"{wanted}; build it again, or leave out what does not belong to it")

    def check_reading(self, reading: Mapping[str, Any], say: Callable[[str], object], name: str = "") -> None:
        """Whether a fine-tuned model would read these texts so (`LoadedModel.reading`); `say` takes a warning.
        `name`: of the text, where that is not the dataset's.
        `UserError` where other separators stand between the two of a pair."""
        here, there = self.header.get("separators"), reading.get("separators")
        if reading.get("pairs") is not None and reading["pairs"] != self.pairs:
            named = ("single texts", "pairs of texts")
            say(f"warning: the teacher was fine-tuned on {named[not self.pairs]}, and {name or self.paths[0]} is read "
                f"as {named[self.pairs]} (--data_processor)")
        elif None not in (here, there) and here != there:
            raise UserError(f"{self._files[0].option} {self.paths[0]}: {here} separator(s) between the texts of a "
                            f"pair, and the teacher was fine-tuned with {there}; build it again with its tokenizer")

    @property
    def rules(self) -> TextRules:
        """How its text became ids, as far as its header says."""
        return self._files[0].rules

    def lengths(self, indices: np.ndarray) -> np.ndarray:
        """Tokens of some instances, [CLS] and [SEP] counted: int64 `[len(indices)]`."""
        out = np.empty(len(indices), dtype=np.int64)
        for file, where, row in self._split(indices):
            offsets = file.arrays["offsets"]
            out[where] = offsets[row // file.copies + 1] - offsets[row // file.copies]
        return out

    @property
    def pairs(self) -> bool:
        """Whether an instance is two texts."""
        return self.header["data_processor"] == "pairs"

    def seconds(self, indices: np.ndarray) -> np.ndarray:
        """Of pairs, where in some instances the second text begins: int64 `[len(indices)]`."""
        out = np.empty(len(indices), dtype=np.int64)
        for file, where, row in self._split(indices):
            out[where] = file.arrays["second"][row // file.copies]
        if (out >= self.lengths(indices)).any() or out.min() < 2:
            raise self._files[0].damaged("second")
        return out

    def instances(self, indices: np.ndarray) -> Ragged:
        """Unmasked instances: `tokens`, and `joined` where all files have it."""
        names = ["tokens"]
        if all("joined" in file.arrays for file in self._files):
            names.append("joined")
        return self._gather(indices, "offsets", names, per_copy=False)

    def masks(self, indices: np.ndarray) -> Ragged:
        """Static masks: `mask_positions` in the instance, `mask_tokens` to show there."""
        masks = self._gather(indices, "mask_offsets", ["mask_positions", "mask_tokens"], per_copy=True)
        if (masks.values["mask_positions"] >= np.repeat(self.lengths(indices), masks.lengths)).any():
            raise self._files[0].damaged("mask_positions")
        return masks

    def _split(self, indices: np.ndarray) -> list[tuple[_File, Any, np.ndarray]]:
        """(file, where in `indices`, index in the file) for every file that is concerned."""
        if len(self._files) == 1:
            return [(self._files[0], slice(None), indices)]
        owner = np.searchsorted(self._starts, indices, side="right") - 1
        parts = []
        for number in np.unique(owner):
            where = np.flatnonzero(owner == number)
            parts.append((self._files[number], where, indices[where] - self._starts[number]))
        return parts

    def _gather(self, indices: np.ndarray, offsets: str, names: list[str], per_copy: bool) -> Ragged:
        parts = [(where, file.rows(offsets, names, row if per_copy else row // file.copies))
                 for file, where, row in self._split(indices)]
        if len(parts) == 1:
            return parts[0][1]
        lengths = np.empty(len(indices), dtype=np.int64)
        for where, ragged in parts:
            lengths[where] = ragged.lengths
        starts = np.cumsum(lengths) - lengths
        values = {name: np.empty(lengths.sum(), dtype=parts[0][1].values[name].dtype) for name in names}
        for where, ragged in parts:
            begin = starts[where] - (np.cumsum(ragged.lengths) - ragged.lengths)
            target = np.repeat(begin, ragged.lengths) + np.arange(ragged.lengths.sum())
            for name in names:
                values[name][target] = ragged.values[name]
        return Ragged(lengths, values)


def _matching(name: str, option: str) -> list[Path]:
    if Path(name).exists() or not glob.has_magic(name):
        return [Path(name)]
    found = sorted(map(Path, glob.glob(name, recursive=True)))
    if not found:
        raise UserError(f"{option} {name}: no file matches")
    return found
