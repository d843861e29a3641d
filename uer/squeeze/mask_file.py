"""The mask file: which dimensions each group had dropped at which step.

One line per group and recorded step, fields separated by tabs:

    step <tab> scoring compactor's weight <tab> [1, 5, …]

The list holds the dropped dimensions, or block numbers where whole blocks leave. Files of the published code are read
as well: names with `module.` in front, lists in any order.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from uer.errors import UserError
from uer.files import followed, head_of, refuse_foreign
from uer.formats.storage import old_ending, write_via
from uer.squeeze.groups import MaskGroup

STEPS_SHOWN = 12
NUMBER = re.compile("[0-9]{1,18}")


def start_mask_file(path: str | Path) -> None:
    """Begin a new run's mask file; one that has content is moved to `<path>.old` (`.old2`, …), never lost.
    `UserError` where the folder cannot be made or written."""
    path = followed(path)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and path.stat().st_size:
            os.replace(path, f"{path}{old_ending([path])}")
        path.touch()
    except OSError as error:
        raise UserError(f"--mask_path {path}: cannot be written ({error.strerror})") from None


def append_masks(path: str | Path, step: int, groups: Iterable[MaskGroup]) -> None:
    """Record the groups' masks at `step`, and see them to the disk. Groups without a mask yet write nothing.

    Lines that the file ends with already (the same step recorded before) are not written twice. A last line that a
    crash cut off is removed. `UserError` where the file cannot be written.
    """
    lines = [f"{step}\t{group.scored_by}.weight\t{group.mask_file_entry()}\n" for group in groups
             if group.keep is not None]
    try:
        with open(path, "a+b") as file:
            known = _tail(file, 2 * sum(map(len, lines)) + 4096)
            for line in lines:
                if line.encode() not in known:
                    file.write(line.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"--mask_path {path}: cannot be written ({error.strerror})") from None


def _tail(file, size: int) -> set[bytes]:
    """The lines within the last `size` bytes; an unfinished last line is cut off the file."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - size))
    lines = file.read().splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        file.truncate(end - len(lines.pop()))
    return set(lines)


def masks_sha256(masks: Mapping[str, list[int]]) -> str:
    """Of dropped dimensions (or blocks) by scoring compactor: what a checkpoint says of its masks."""
    return hashlib.sha256(repr(sorted((name, sorted(dropped)) for name, dropped in masks.items())).encode()).hexdigest()


def masks_of(groups: Iterable[MaskGroup]) -> dict[str, list[int]]:
    """What is recorded of the groups, as `read_masks` has it."""
    return {group.scored_by: sorted(group.mask_file_entry()) for group in groups if group.keep is not None}


def check_masks(path: str | Path, step: int, wanted: str | None) -> None:
    """`UserError` where what a file has at `step` is not what a checkpoint had: it is another run's.
    `wanted`: `masks_sha256` of the checkpoint; None: it does not say. A file that is absent or empty is no one's."""
    there = Path(path).exists() and Path(path).stat().st_size
    if wanted is not None and there and masks_sha256(read_masks(path, step)) != wanted:
        raise UserError(f"mask file {path}: of another run: at step {step} it has other masks than the checkpoint")


def cut_masks(path: str | Path, step: int, wanted: bool = False) -> None:
    """Drop what was recorded after `step`, which a run that resumes there writes again, and a line cut off by a crash.

    Args:
        wanted: there are later checkpoints, and what the file has of them stays, in `<path>.old` (`.old2`, …).
    Raises:
        UserError: the file cannot be read or written.
    """
    path = Path(path)
    if path.exists():
        if wanted:
            write_via(f"{path}{old_ending([path])}", lambda temporary: shutil.copyfile(path, temporary))
        write_via(path, lambda temporary: _copy_until(path, step, temporary))


def _copy_until(path: Path, step: int, target: Path) -> None:
    try:
        with open(target, "w", encoding="utf-8") as file:
            file.writelines(f"{number}\t{name}.weight\t{entry}\n"
                            for _, number, name, entry in _lines(path, finished=True) if number <= step)
    except OSError as error:
        raise UserError(f"--mask_path {path}: cannot be written ({error.strerror})") from None


def read_masks(path: str | Path, step: int) -> dict[str, list[int]]:
    """The dropped dimensions (or blocks) recorded at `step`, by scoring compactor, ascending.

    Names come without `module.` and `.weight`. Of a group recorded twice at one step the last line counts: a run that
    was resumed writes its steps again. `UserError` where there is no such file, a line is malformed (named), or nothing
    was recorded at this step (the steps there are named).
    """
    masks: dict[str, list[int]] = {}
    steps: set[int] = set()
    for where, number, name, entry in _lines(Path(path)):
        steps.add(number)
        if number == step:
            masks[name] = _indices(entry, where)
    if not masks:
        raise UserError(f"mask file {path}: nothing recorded at step {step}; " + _steps_there(sorted(steps), step))
    return masks


def recorded_masks(path: str | Path) -> Iterator[tuple[int, str, list[int]]]:
    """(step, scoring compactor, dropped dimensions or blocks) of every line, in the order of the file.
    `UserError` where there is no such file, or a line is malformed (named)."""
    for where, step, name, entry in _lines(Path(path)):
        yield step, name, _indices(entry, where)


def _lines(path: Path, finished: bool = False) -> Iterator[tuple[str, int, str, str]]:
    """(where, step, compactor, list as text) of every line; `finished`: only of those that end."""
    try:
        refuse_foreign(head_of(path), f"mask file {path}", "text")
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip() or (finished and not line.endswith("\n")):
                    continue
                where = f"mask file {path}, line {number}"
                fields = line.strip().split("\t")
                if len(fields) != 3 or not NUMBER.fullmatch(fields[0]) or "compactor" not in fields[1]:
                    raise UserError(f"{where}: malformed; step, compactor, [dropped, …], separated by tabs, are needed")
                yield where, int(fields[0]), fields[1].removeprefix("module.").removesuffix(".weight"), fields[2]
    except OSError as error:
        raise UserError(f"mask file {path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"mask file {path}: not a text file in UTF-8") from None


def _indices(entry: str, where: str) -> list[int]:
    inside = entry[1:-1].strip()
    numbers = [part.strip() for part in inside.split(",")] if inside else []
    if not (entry.startswith("[") and entry.endswith("]") and all(map(NUMBER.fullmatch, numbers))):
        raise UserError(f"{where}: malformed list {entry[:40]!r}; [1, 5, …] is needed")
    return sorted(map(int, numbers))


def _steps_there(steps: list[int], step: int) -> str:
    if not steps:
        return "the file is empty"
    if len(steps) <= STEPS_SHOWN:
        return "there are " + ", ".join(map(str, steps))
    near = sorted(sorted(steps, key=lambda other: abs(other - step))[:5])
    return f"there are {len(steps)} steps from {steps[0]} to {steps[-1]}, the nearest {', '.join(map(str, near))}"
