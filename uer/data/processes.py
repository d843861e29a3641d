"""Worker processes over segments. A failure in one ends all; nothing is swallowed.

Workers are forked where that is safe, which takes milliseconds: the process that runs preprocess.py has neither torch
nor threads. Elsewhere they are started afresh (spawn).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from uer.cpu.memory import keep_freed_memory
from uer.data.blocks import BadLine
from uer.data.masking import MaskingOptions
from uer.data.sources import BLOCK, Segment
from uer.data.worker import Result, SegmentWorker
from uer.errors import UserError
from uer.system import signals_held
from uer.tokenizers import TextRules, Tokenizer, build

AHEAD = 2  # segments a worker has in hand, so that it never waits for the next


def run_segments(segments: Iterator[Segment], args: Namespace, masking: MaskingOptions, folder: Path,
                 tokenizer: Tokenizer) -> Iterator[Result]:
    """Results in the order of completion; each worker takes its segments in their order.

    Raises:
        UserError: what a worker met in the data, or a worker that was killed.
        OSError: a disk that is full, or a corpus that cannot be read any more.
        RuntimeError: a worker's own failure, with its traceback.
    """
    if args.processes_num == 1:
        keep_freed_memory()
        with contextlib.closing(SegmentWorker(args, masking, folder, 0, tokenizer)) as worker:
            for segment in segments:
                try:
                    yield worker(segment)
                except BadLine as error:
                    raise _line_error(error) from None
        return
    with _Workers(args, masking, folder, tokenizer) as workers:
        yield from workers.run(segments)


class _Workers:
    def __init__(self, args: Namespace, masking: MaskingOptions, folder: Path, tokenizer: Tokenizer) -> None:
        self.args = args
        forked = _fork_is_safe()
        context: Any = multiprocessing.get_context("fork" if forked else "spawn")
        self.processes: dict[Connection, Any] = {}
        with signals_held([signal.SIGINT]):  # children inherit this: Ctrl-C is the parent's business
            for number in range(args.processes_num):
                ours, theirs = context.Pipe()
                work = (args, masking, folder, number, tokenizer if forked else tokenizer.rules)
                inherited = [*self.processes, ours] if forked else []
                process = context.Process(target=_worker_main, args=(theirs, work, inherited), daemon=True)
                process.start()
                theirs.close()
                self.processes[ours] = process

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        for connection, process in self.processes.items():
            connection.close()
            process.terminate()
        for process in self.processes.values():
            process.join()

    def run(self, segments: Iterator[Segment]) -> Iterator[Result]:
        in_hand = dict.fromkeys(self.processes, 0)
        exhausted = False
        while True:
            least = min(in_hand, key=in_hand.__getitem__)
            while not exhausted and in_hand[least] < AHEAD:
                segment = next(segments, None)
                if segment is None:
                    exhausted = True
                else:
                    self._send(least, segment)
                    in_hand[least] += 1
                    least = min(in_hand, key=in_hand.__getitem__)
            busy = [connection for connection, count in in_hand.items() if count]
            if not busy:
                return
            ready = set(wait(busy))
            for connection in filter(ready.__contains__, busy):
                yield self._receive(connection)
                in_hand[connection] -= 1

    def _send(self, connection: Connection, segment: Segment) -> None:
        try:
            connection.send(segment)
        except OSError:
            raise self._died(connection) from None

    def _receive(self, connection: Connection) -> Result:
        try:
            kind, value = connection.recv()
        except (EOFError, OSError):
            raise self._died(connection) from None
        if kind == "result":
            return value
        if kind == "text":
            raise UserError(value)
        if kind == "line":
            raise _line_error(BadLine(*value))
        if kind == "disk":
            raise OSError(*value)
        raise RuntimeError(f"a worker failed:\n{value}")

    def _died(self, connection: Connection) -> UserError:
        process = self.processes[connection]
        process.join(5)
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
        return UserError(f"a worker process {how}; if memory ran out (signal 9), use fewer workers than "
                         f"--processes_num {self.args.processes_num}")


def _fork_is_safe() -> bool:
    return sys.platform == "linux" and "torch" not in sys.modules and threading.active_count() == 1


def _worker_main(connection: Connection, work: tuple[Any, ...], inherited: list[Connection]) -> None:
    """Serve segments until the parent closes the connection, or is no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    keep_freed_memory()
    for other in inherited:
        other.close()
    worker: SegmentWorker | None = None
    while True:
        try:
            segment = connection.recv()
        except (EOFError, OSError):
            return
        try:
            args, masking, folder, number, text = work
            worker = worker or SegmentWorker(
                args, masking, folder, number, build(text) if isinstance(text, TextRules) else text)
            answer: tuple[str, Any] = ("result", worker(segment))
        except UserError as error:
            answer = ("text", str(error))
        except BadLine as error:
            answer = ("line", error.args)
        except OSError as error:
            answer = ("disk", (error.errno, error.strerror))
        except Exception:
            answer = ("failure", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


def _line_error(error: BadLine) -> UserError:
    """Name the line: known for spooled text, counted for plain files."""
    segment, line = error.segment, error.lines + 1
    if segment.lines_before is not None:
        line += segment.lines_before
    else:
        left = segment.start
        with open(segment.path, "rb") as file:
            while left and (block := file.read(min(BLOCK, left))):
                line += block.count(b"\n")
                left -= len(block)
    return UserError(f"{segment.source}: line {line}: {error.problem}")

