"""Build a dataset file: segments to workers, their results merged in order, one rename at the end.

Everything temporary lies in one folder beside the output, which disappears however the run ends; the output's own
name is touched by the last rename only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from uer.arguments import outside, too_small
from uer.data import sources
from uer.data.container import Record, write_container
from uer.data.header import LONGEST, Ledger, make_header
from uer.data.masking import MaskingOptions
from uer.data.options import PROCESSORS, masking_options
from uer.data.pairs import SHORTEST
from uer.data.processes import run_segments
from uer.data.records import check_records
from uer.data.segmenter import check_segmenter
from uer.errors import UserError, signals_unwind
from uer.files import followed
from uer.progress import Progress
from uer.system import sync
from uer.tokenizers import Tokenizer, build_tokenizer

DEFAULT_DUP_FACTOR = 5


def build_dataset(args: Namespace, tokenizer: Tokenizer | None = None,
                  say: Callable[[str], object] = print) -> dict[str, Any]:
    """Build the dataset that the options describe (see `uer.data.options.preprocess_parser`).

    Args:
        tokenizer: None: the one of the options, on which `say` takes a line.
    Returns:
        the header written.

    Raises:
        UserError: options, corpus, vocabulary or output that cannot be used; the output is as it was before.
    """
    masking = _checked(args)
    if args.word_segmenter == "jieba":
        check_segmenter()
    corpus = sources.expand(args.corpus_path)
    kinds = Counter(sources.ending(source) for source in corpus if source is not None)
    if len(kinds) > 1:  # a README.md beside a data set's Parquet, say
        say("note: text of several kinds of files: " + ", ".join(f"{n:,} {kind}" for kind, n in kinds.most_common()))
    pairs, fields = args.data_processor == "pairs", args.text_field or []
    check_records(corpus, fields, pairs)
    output = Path(args.dataset_path)
    _check_output(output, corpus, args.dataset_path.endswith(os.sep))
    output = followed(output)
    tokenizer = tokenizer or build_tokenizer(args, say=say)
    with signals_unwind(), _scratch(output) as folder, _disk_errors(output):
        ledger = Ledger()
        with Progress("preprocess", sources.total_bytes(corpus), "B") as progress:
            segments = sources.segments(corpus, args.full_sentences, folder, fields, pairs)
            for result in run_segments(segments, args, masking, folder, tokenizer):
                ledger.add(result)
                progress.advance(result.progress)
        if not ledger.counts["instances"]:
            raise UserError(f"--corpus_path {' '.join(args.corpus_path)}: no text in there, nothing to write")
        header = make_header(args, masking, tokenizer, ledger)
        temporary = folder / "dataset"
        with open(temporary, "wb") as file:
            write_container(file, {"header": header}, _records(header, tokenizer, ledger.columns(), folder))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, output)
        sync(output.parent)
    return header


def _checked(args: Namespace) -> MaskingOptions:
    """All problems of the options at once; fills in dup_factor."""
    problems = [*outside(args, ("seq_length",), lambda number: 3 <= number <= LONGEST,
                         f"a number from 3 ([CLS], a token, [SEP]) to {LONGEST} is needed"),
                *too_small(args, ("processes_num", "dup_factor")), *too_small(args, ("seed",), 0)]
    if args.data_processor not in PROCESSORS:
        problems.append(f"--data_processor {args.data_processor}: {' and '.join(PROCESSORS)} are there")
    if args.data_processor == "pairs" and 3 <= args.seq_length < SHORTEST:
        problems.append(f"--seq_length is {args.seq_length}, for pairs at least {SHORTEST} are needed")
    if args.data_processor == "pairs" and args.full_sentences:
        problems.append("--full_sentences joins the lines of a document; pairs stay apart")
    if args.dynamic_masking and (args.dup_factor or 1) > 1:
        problems.append("--dup_factor goes with static masking; --dynamic_masking masks every epoch anew by itself")
    try:
        masking = masking_options(args, MaskingOptions())
    except UserError as error:
        problems.append(str(error))
    if args.word_segmenter == "jieba" and not args.whole_word_masking:
        problems.append("--word_segmenter jieba goes with --whole_word_masking, which was not given")
    if problems:
        raise UserError("; ".join(problems))
    if args.dup_factor is None:
        args.dup_factor = 1 if args.dynamic_masking else DEFAULT_DUP_FACTOR
    assert masking is not None
    return masking


def _check_output(output: Path, corpus: list[Path | None], called_folder: bool) -> None:
    if called_folder or (output.exists() and not output.is_file()):
        kind = "a folder" if called_folder or output.is_dir() else "no plain file"
        raise UserError(f"--dataset_path {output}: is {kind}; name a file")
    if not output.parent.is_dir():
        raise UserError(f"--dataset_path {output}: there is no folder {output.parent}")
    for source in corpus:
        if source is not None and output.exists() and output.samefile(source):
            raise UserError(f"--dataset_path {output}: is also part of --corpus_path; choose another name")


@contextlib.contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """A temporary folder beside the output; removed at the end, whatever the end is."""
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".tmp", dir=output.parent))
    except OSError as error:
        raise UserError(f"--dataset_path {output}: the folder cannot be written ({error.strerror})") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _disk_errors(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--dataset_path {output}: reading the corpus or writing beside the output failed "
                        f"({error.strerror})") from None


def _records(header: dict[str, Any], tokenizer: Tokenizer, segments: dict[str, np.ndarray],
             folder: Path) -> list[Record]:
    """The file's arrays, as streams over the workers' files in the order of the corpus."""
    instances, tokens, masks = segments["instances"], segments["tokens"], segments["instances"] * header["dup_factor"]

    def stream(name: str, sizes: np.ndarray, dtype: str | np.dtype) -> Iterator[bytes]:
        return _in_order(folder, name, segments["worker"], sizes * np.dtype(dtype).itemsize)

    def whole(name: str, sizes: np.ndarray, dtype: str | np.dtype) -> Record:
        return Record(name, np.dtype(dtype), int(sizes.sum()), stream(name, sizes, dtype))

    def sums(name: str, lengths: str, sizes: np.ndarray) -> Record:
        return Record(name, np.dtype("<i8"), int(sizes.sum()) + 1, _offsets(stream(lengths, sizes, "<i4")))

    continues = tokenizer.continues().astype("u1")
    records = [whole("tokens", tokens, tokenizer.dtype), sums("offsets", "lengths", instances),
               Record("continues", continues.dtype, len(continues), [continues.tobytes()])]
    if header["data_processor"] == "pairs":
        records.append(whole("second", instances, "<u2"))
    if header["word_segmenter"] != "pieces":
        records.append(whole("joined", tokens, "u1"))
    if not header["dynamic_masking"]:
        records += [sums("mask_offsets", "mask_lengths", masks), whole("mask_positions", segments["masked"], "<u2"),
                    whole("mask_tokens", segments["masked"], tokenizer.dtype)]
    return records


def _in_order(folder: Path, name: str, workers: np.ndarray, sizes: np.ndarray) -> Iterator[bytes]:
    """The bytes of all segments, one after the other: each the next `size` bytes of its worker's file."""
    with contextlib.ExitStack() as stack:
        files: dict[int, BinaryIO] = {}
        for worker, size in zip(workers.tolist(), sizes.tolist()):
            if size and worker not in files:
                files[worker] = stack.enter_context(open(folder / f"{name}-{worker}", "rb"))
            while size:
                block = files[worker].read(min(size, sources.BLOCK))
                if not block:
                    raise RuntimeError(f"{name}-{worker}: shorter than its worker said")
                size -= len(block)
                yield block


def _offsets(lengths: Iterator[bytes]) -> Iterator[bytes]:
    """Running sums, from 0, of int32 lengths; blocks hold whole numbers."""
    total = np.zeros(1, dtype="<i8")
    yield total.tobytes()
    for block in lengths:
        sums = np.cumsum(np.frombuffer(block, dtype="<i4"), dtype="<i8") + total
        total = sums[-1:]
        yield sums.tobytes()
