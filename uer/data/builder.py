"""Build a dataset file: segments to workers, their results merged in order, one rename at the end.

Everything temporary lies in one folder beside the output, which disappears however the run ends; the output's own
name is touched by the last rename only.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import threading
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from uer.data import sources
from uer.data.container import Record, write_container
from uer.data.masking import MaskingOptions
from uer.data.options import masking_options
from uer.data.pool import run_segments
from uer.data.progress import Progress
from uer.data.worker import Result
from uer.errors import UserError
from uer.tokenizers import Tokenizer, build_tokenizer

FORMAT, FORMAT_VERSION = "uer-dataset", 1
DEFAULT_DUP_FACTOR = 5
UNKNOWN_WARNING = 0.05
COUNTS = ("lines", "empty_lines", "words", "unknown", "instances", "tokens")


def build_dataset(args: Namespace) -> dict[str, Any]:
    """Build the dataset that the options describe (see `uer.data.options.preprocess_parser`).

    Returns the header written.

    Raises:
        UserError: options, corpus, vocabulary or output that cannot be used; the output is as it was before.
    """
    masking = _checked(args)
    corpus = sources.expand(args.corpus_path)
    output = Path(args.dataset_path)
    _check_output(output, corpus)
    tokenizer = build_tokenizer(args)
    with _termination_as_exception(), _scratch(output) as folder:
        results: list[Result] = []
        with Progress(sources.total_bytes(corpus)) as progress:
            segments = sources.segments(corpus, args.full_sentences, folder)
            for result in run_segments(segments, args, masking, folder):
                results.append(result)
                progress.advance(result.progress)
        results.sort(key=lambda result: result.number)
        header = _header(args, masking, tokenizer, results)
        if not header["instances"]:
            raise UserError(f"--corpus_path {' '.join(args.corpus_path)}: no text in there, nothing to write")
        temporary = folder / "dataset"
        with _disk_errors(output):
            with open(temporary, "wb") as file:
                write_container(file, {"header": header}, _records(header, tokenizer, results, folder))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, output)
            _sync_folder(output.parent)
    return header


def _checked(args: Namespace) -> MaskingOptions:
    """All problems of the options at once; fills in dup_factor."""
    problems = []
    if args.data_processor != "mlm":
        problems.append(f"--data_processor {args.data_processor}: only mlm is there (no sentence pairs)")
    if not 3 <= args.seq_length <= 65535:
        problems.append(f"--seq_length {args.seq_length}: from 3 ([CLS], a token, [SEP]) to 65535 is possible")
    if args.processes_num < 1:
        problems.append(f"--processes_num {args.processes_num}: at least 1 is needed")
    if args.seed < 0:
        problems.append(f"--seed {args.seed}: must not be negative")
    if args.dup_factor is not None and args.dup_factor < 1:
        problems.append(f"--dup_factor {args.dup_factor}: at least 1 is needed")
    elif args.dynamic_masking and args.dup_factor not in (None, 1):
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


def _check_output(output: Path, corpus: list[Path | None]) -> None:
    if output.is_dir():
        raise UserError(f"--dataset_path {output}: is a folder; name a file")
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
        raise UserError(f"--dataset_path {output}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def _termination_as_exception() -> Iterator[None]:
    """SIGTERM and SIGHUP unwind like Ctrl-C, so that workers and temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    names = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(name, leave) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _sync_folder(folder: Path) -> None:
    """Make a rename durable; where folders cannot be opened there is nothing to do."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _documents(results: list[Result]) -> int:
    """Documents of the corpus; a document may run over several segments."""
    count, before = 0, None
    for result in results:
        fresh = before is None or before.source != result.source or before.ends_with_blank
        count += result.document_starts + (result.begins_with_text and fresh)
        before = result
    return count


def _header(
    args: Namespace, masking: MaskingOptions, tokenizer: Tokenizer, results: list[Result]
) -> dict[str, Any]:
    vocab = tokenizer.vocab
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "data_processor": args.data_processor,
        "seq_length": args.seq_length,
        "full_sentences": args.full_sentences,
        "dynamic_masking": args.dynamic_masking,
        "dup_factor": args.dup_factor,
        "masking": masking.to_dict(),
        "seed": args.seed,
        "tokenizer": args.tokenizer,
        "do_lower_case": args.do_lower_case == "true",
        "vocab_name": Path(args.vocab_path or args.spm_model_path).name,
        "vocab_size": len(vocab),
        "vocab_sha256": vocab.sha256,
        "cls_id": vocab.cls_id,
        "sep_id": vocab.sep_id,
        "pad_id": vocab.pad_id,
        "mask_id": vocab.mask_id,
        "unk_id": vocab.unk_id,
        "special_ids": vocab.special_ids,
        "documents": _documents(results),
        **{name: sum(getattr(result, name) for result in results) for name in COUNTS},
    }


def _records(
    header: dict[str, Any], tokenizer: Tokenizer, results: list[Result], folder: Path
) -> list[Record]:
    """The file's arrays, as streams over the workers' files in the order of the corpus."""
    instances, tokens = header["instances"], header["tokens"]

    def joined_files(name: str) -> Iterator[bytes]:
        return _parts(results, name, folder)

    records = [
        Record("tokens", tokenizer.dtype, tokens, joined_files("tokens")),
        Record("offsets", np.dtype("<i8"), instances + 1, _offsets(joined_files("lengths"))),
        Record("continues", np.dtype("u1"), header["vocab_size"], [tokenizer.continues().astype("u1").tobytes()]),
    ]
    if any("joined" in result.parts for result in results):
        records.append(Record("joined", np.dtype("u1"), tokens, joined_files("joined")))
    if not header["dynamic_masking"]:
        masks = instances * header["dup_factor"]
        chosen = sum(result.parts["mask_positions"][2] for result in results if result.instances) // 2
        records += [
            Record("mask_offsets", np.dtype("<i8"), masks + 1, _offsets(joined_files("mask_lengths"))),
            Record("mask_positions", np.dtype("<u2"), chosen, joined_files("mask_positions")),
            Record("mask_tokens", tokenizer.dtype, chosen, joined_files("mask_tokens")),
        ]
    return records


def _parts(results: list[Result], name: str, folder: Path) -> Iterator[bytes]:
    for result in results:
        if name not in result.parts:
            continue
        file_name, start, size = result.parts[name]
        with open(folder / file_name, "rb") as file:
            file.seek(start)
            while size:
                block = file.read(min(size, sources.BLOCK))
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


def summary(header: dict[str, Any]) -> str:
    """What the dataset holds, in a few lines; shares in percent, lengths in tokens."""
    instances, tokens = header["instances"], header["tokens"]
    unknown = header["unknown"] / max(1, header["words"])
    padding = 1 - tokens / (instances * header["seq_length"])
    lines = [
        f"documents {header['documents']:,}   lines {header['lines']:,}   instances {instances:,}"
        + (f" x {header['dup_factor']} masks" if header["dup_factor"] > 1 else ""),
        f"tokens {header['words']:,}, with [CLS] and [SEP] {tokens:,}   mean length {tokens / instances:.1f}",
        f"unknown {unknown:.2%}   padding if every instance were filled to {header['seq_length']}: {padding:.1%}",
    ]
    if header["empty_lines"]:
        lines.append(f"{header['empty_lines']:,} line(s) of characters that the tokenizer removes made no instance")
    if unknown > UNKNOWN_WARNING:
        lines.append(
            f"warning: {unknown:.1%} of the tokens are unknown: does the vocabulary ({header['vocab_name']}) "
            "fit the language, and --do_lower_case the vocabulary?"
        )
    return "\n".join(lines)
