"""Running the demo's steps: every command is shown, timed and remembered, so that an interrupted demo can go on.

A step counts as done when its stamp is there, and the stamp is written last. Stamps hold a key made of the step's
commands, the sources and all steps before it; where the key differs, the step and everything after it is done again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from uer.errors import UserError
from uer.made_from import files_sha256
from uer.training.lock import locked

ROOT = Path(__file__).resolve().parents[1]
WIDTH = 100


class Runner:
    """Runs steps in the repository's root.

    Args:
        work: folder of all files; stamps go to work/steps.
        sources: what the results hang on besides the commands (see `fingerprint`).
        lock: an open file that commands are to hold on to.

    Attributes:
        before: seconds that steps took which an earlier demo had done.
    """

    def __init__(self, work: Path, sources: str, lock: IO[str] | None = None):
        self.work, self.lock = work, lock
        self.key = hashlib.sha256(sources.encode()).hexdigest()
        self.number, self.before = 0, 0.0
        self.fresh = False  # whether a step has been run, so that those after it must be
        self.env = {**os.environ, "PYTHONUNBUFFERED": "1"}

    def step(self, name: str, words: str, *commands: Sequence[str | Path]) -> dict:
        """Do a step, or find it done.

        Args:
            name: of its stamp.
            words: what happens, for the reader.
            commands: each starts with a script of this repository.
        Returns:
            {"seconds": of each command, "lines": what they all printed}
        Raises:
            UserError: a command failed.
        """
        self.number += 1
        lines = [[str(word) for word in command] for command in commands]
        self.key = hashlib.sha256(f"{self.key}{lines}".encode()).hexdigest()
        stamp = self.work / "steps" / f"{self.number:02d}-{name}.json"
        say_heading(f"{self.number}. {words}")
        done = None if self.fresh else _read_stamp(stamp, self.key)
        for line in lines:
            print("$ " + shown(line), flush=True)
        if done is not None:
            print(f"(done before, in {sum(done['seconds']):.0f} s)", flush=True)
            self.before += sum(done["seconds"])
            return done
        self.fresh = True
        shutil.rmtree(self.work / "logs" / name, ignore_errors=True)  # reports are appended to
        result: dict = {"key": self.key, "seconds": [], "lines": []}
        for line in lines:
            begun = time.perf_counter()
            result["lines"] += self.run(line)
            result["seconds"].append(time.perf_counter() - begun)
        stamp.parent.mkdir(parents=True, exist_ok=True)
        partial = stamp.with_suffix(".tmp")
        partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
        os.replace(partial, stamp)
        return result

    def run(self, command: list[str]) -> list[str]:
        """Run a command, pass on what it prints, return it line by line.

        Raises:
            UserError: it failed.
        """
        keep = () if self.lock is None else (self.lock.fileno(),)  # a command that outlives us still holds the lock
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, env=self.env, stdout=subprocess.PIPE,
                                   text=True, encoding="utf-8", errors="replace", pass_fds=keep)
        printed = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                print("  " + line, end="", flush=True)
                printed.append(line.rstrip("\n"))
            status = process.wait()
        except BaseException:
            _end(process)
            raise
        if status:
            raise UserError(f"{command[0]} ended with status {status}; what it said is above")
        return printed


def _end(process: subprocess.Popen) -> None:
    """Ask a command to stop, and see that it does."""
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(command: Sequence[str]) -> str:
    """A command as it can be pasted, an option a line where it is long."""
    words = ["python3", *command]
    if len(shlex.join(words)) <= WIDTH:
        return shlex.join(words)
    lines, current = [], shlex.join(words[:2])
    parts: list[list[str]] = []
    for word in words[2:]:
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    for part in map(shlex.join, parts):
        if len(current) + len(part) > WIDTH - 4:
            lines.append(current)
            current = "   "
        current += " " + part
    return " \\\n".join([*lines, current])


def say_heading(text: str) -> None:
    """A blank line and some words, wrapped."""
    line = ""
    print(flush=True)
    for word in text.split():
        if len(line) + len(word) >= WIDTH:
            print(line, flush=True)
            line = ""
        line += (" " if line else "") + word
    print(line, flush=True)


def _read_stamp(path: Path, key: str) -> dict | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("key") == key else None


def fingerprint(paths: Sequence[Path]) -> str:
    """Changes whenever a source file of the repository does, or what is at one of `paths`."""
    sources = [*ROOT.glob("*.py"), *ROOT.glob("uer/**/*.py"), *ROOT.glob("demo/*.py")]
    return f"{sys.version} {files_sha256([*sorted(sources), *paths])}"


@contextmanager
def work_folder(work: Path) -> Iterator[IO[str]]:
    """The demo's folder, for this process alone.

    Emptied if the demo in it was finished; kept if it was interrupted.

    Raises:
        UserError: another demo is running in it, or it cannot be written.
    """
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{work}: cannot be written ({error.strerror})") from None
    with locked(work / ".lock", f"{work}: another demo, or a command that one left behind, is running in it; wait for "
                                f"its end") as lock:
        if (work / "results.json").exists():
            empty(work)
        yield lock


def empty(work: Path) -> None:
    """Remove everything but the lock; the stamps first, so that nothing counts as done that is gone."""
    shutil.rmtree(work / "steps", ignore_errors=True)
    for path in sorted(work.iterdir(), key=lambda path: path.name == "results.json"):
        if path.name == ".lock":
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def end_on_sigterm() -> None:
    """Let `kill` end the demo as Ctrl-C does, the running command included."""
    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
