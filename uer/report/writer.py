"""What a run tells: console lines, a log file, TensorBoard scalars and metrics.jsonl."""

from __future__ import annotations

import json
import math
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from uer.errors import UserError, show_everything, silence_stdout
from uer.formats.storage import write_via
from uer.progress import say

if TYPE_CHECKING:
    import torch
    from torch.utils.tensorboard import SummaryWriter

_shown = threading.excepthook


class Reports:
    """Where the lines and numbers of a run go; silent on processes that do not lead.

    Args:
        leads: whether this process reports at all.
        log_path: a file for the console's lines (appended).
        tb_path: a folder for TensorBoard events and metrics.jsonl (appended).
    """

    def __init__(self, leads: bool, log_path: str | None = None, tb_path: str | None = None):
        self.leads = leads
        self.log: TextIO | None = None
        self.metrics: TextIO | None = None
        self.board: SummaryWriter | None = None
        if not leads:
            return
        show_everything()
        try:
            if log_path:
                Path(log_path).parent.mkdir(parents=True, exist_ok=True)
                self.log = open(log_path, "a", encoding="utf-8")  # noqa: SIM115
            if tb_path:
                Path(tb_path).mkdir(parents=True, exist_ok=True)
                _end(Path(tb_path) / "metrics.jsonl")
                self.metrics = open(Path(tb_path) / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115
                from torch.utils.tensorboard import SummaryWriter

                threading.excepthook = _hook
                self.board = SummaryWriter(tb_path)
        except OSError as error:
            raise UserError(f"{error.filename or tb_path}: cannot be written ({error.strerror})") from None

    def say(self, line: str) -> None:
        if not self.leads:
            return
        try:
            say(line)
        except OSError as error:
            silence_stdout()
            _warn(f"stdout cannot be written ({error.strerror}); the run goes on without it")
        if self.log and not _written(self.log, f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n"):
            self.log = None

    def record(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Numbers of a step under `kind`/<name>; strings and lists go to metrics.jsonl only."""
        if not self.leads:
            return
        if self.metrics and not _written(self.metrics, json.dumps({"step": step, "kind": kind, **values}) + "\n"):
            self.metrics = None

        def scalars(board: SummaryWriter) -> None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    board.add_scalar(f"{kind}/{name}", value, step)

        self._draw(scalars)

    def histogram(self, step: int, name: str, values: torch.Tensor) -> None:
        self._draw(lambda board: board.add_histogram(name, values.float().cpu(), step))

    def go_on_from(self, step: int, output: str) -> None:
        """Drop what an interrupted run recorded after a step: it will be recorded again.

        What other runs recorded in the same folder, whose checkpoints went elsewhere than to `output`, stays.
        """
        if self.metrics:
            path = Path(self.metrics.name)
            self.metrics.close()
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            first, mine, found = 0, True, []  # the line where this run begins; (line's step, whether it is this run's)
            for number, line in enumerate(lines):
                at, start = _step_and_start(line)
                if start is not None:
                    mine = start.get("output", output) == output
                    first = number if mine and at == 0 else first
                found.append((at, mine))
            kept = [line for number, (line, (at, mine)) in enumerate(zip(lines, found))
                    if number < first or not mine or at <= step]
            write_via(path, lambda temporary: temporary.write_text("".join(kept), encoding="utf-8"))
            self.metrics = open(path, "a", encoding="utf-8")  # noqa: SIM115

        def begin_anew(board: SummaryWriter) -> None:
            board.close()
            self.board = type(board)(board.log_dir, purge_step=step + 1)

        self._draw(begin_anew)

    def close(self) -> None:
        for file in (self.log, self.metrics):
            if file:
                _lasts(file.name, file.close)
        self._draw(lambda board: board.close())

    def _draw(self, work: Callable[[SummaryWriter], object]) -> None:
        """Let TensorBoard's writer, if there is one, do its work."""
        board = self.board
        if board and not _lasts(f"TensorBoard's events in {board.log_dir}", lambda: work(board)):
            self.board = None


def _hook(ended: threading.ExceptHookArgs) -> None:
    """No tracebacks of TensorBoard's writing threads, whose errors the next call raises, and tells in a sentence."""
    if type(ended.thread).__module__ != "tensorboard.summary.writer.event_file_writer":
        _shown(ended)


def note(folder: Path, step: int, kind: str, values: dict[str, Any]) -> None:
    """A line more in the metrics.jsonl of a run that has closed it."""
    def append() -> None:
        with open(folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")

    _lasts(str(folder / "metrics.jsonl"), append)


def _written(file: TextIO, text: str) -> bool:
    """Write and flush; whether that can go on."""
    if _lasts(file.name, lambda: (file.write(text), file.flush())):
        return True
    with suppress(OSError):
        file.close()
    return False


def _lasts(where: str, work: Callable[[], object]) -> bool:
    """Write; where that fails, for want of room say, a warning: no run ends for its log."""
    try:
        work()
        return True
    except OSError as error:
        _warn(f"{where} cannot be written ({error.strerror or error}); the run goes on without it")
        return False


def _warn(sentence: str) -> None:
    """To stderr, if that can be written."""
    with suppress(OSError):
        sys.stderr.write(f"warning: {sentence}\n")
        sys.stderr.flush()


def _end(path: Path) -> None:
    """Take away a last line that a kill cut off, so that what is appended begins a line."""
    if path.exists():
        with open(path, "r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)


def _step_and_start(line: str) -> tuple[float, dict[str, Any] | None]:
    """The step of a line of metrics.jsonl, and the facts of a run that starts there; (∞, None) where it was cut off."""
    try:
        record = json.loads(line)
        return record["step"], record.get("start")
    except (ValueError, KeyError, TypeError, AttributeError):
        return math.inf, None
