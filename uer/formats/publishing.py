"""Giving written files their names: all of them, or none and everything is as it was.

What stood under a name is set aside first, by a second name for it where the file system has such, and goes when all is
done; where a step fails, or Ctrl-C comes, it is put back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from uer.errors import UserError
from uer.files import PARTS, temporary_path


def give_names(pairs: Sequence[tuple[Path, Path]], dropped: Iterable[Path]) -> None:
    """Give what is written its names, in this order; after that take away what is `dropped`, and of folders that were
    there the parts of a model that the new one has not.

    Args:
        pairs: (temporary, target), files or folders; what is in a folder replaces what is in its target.
    Raises:
        UserError: a file that cannot be written or removed.
    """
    old = [file for temporary, target in pairs if temporary.is_dir() and target.is_dir()
           for file in sorted(target.iterdir())
           if PARTS.fullmatch(file.name) and not os.path.lexists(temporary / file.name)]
    moves = _Moves()
    try:
        for temporary, target in pairs:
            moves.put(temporary, target)
        for path in (*old, *dropped):
            moves.take(path)
    except BaseException:
        moves.undo()
        raise
    moves.finish()


class _Moves:
    """Steps that can be taken back: (name, where what stood there is meanwhile; None: nothing did)."""

    def __init__(self) -> None:
        self.done: list[tuple[Path, Path | None]] = []

    def put(self, temporary: Path, target: Path) -> None:
        if temporary.is_dir() and target.is_dir():
            for file in sorted(temporary.iterdir()):
                self.put(file, target / file.name)
            return
        try:
            if target.is_dir():
                raise IsADirectoryError(0, "there is a folder")
            self._set_aside(target, stays=True)
            os.replace(temporary, target)
        except OSError as error:
            raise UserError(f"output {target}: cannot be written ({error.strerror})") from None

    def take(self, path: Path) -> None:
        try:
            if os.path.lexists(path):
                self._set_aside(path, stays=False)
        except OSError as error:
            raise UserError(f"output {path}: cannot be removed ({error.strerror})") from None

    def _set_aside(self, path: Path, stays: bool) -> None:
        """Give what stands at a path another name; where it `stays`, one more."""
        aside = temporary_path(path, "old")
        _remove(aside)  # of a process of this number that was ended
        there = os.path.lexists(path)
        self.done.append((path, aside if there else None))
        if not there:
            return
        if stays:
            with suppress(OSError, NotImplementedError):
                os.link(path, aside, follow_symlinks=False)
                return
        os.rename(path, aside)

    def undo(self) -> None:
        for path, aside in reversed(self.done):
            with suppress(OSError):
                if aside is None:
                    _remove(path)
                elif os.path.lexists(aside):
                    os.replace(aside, path)
                    _remove(aside)  # two names of one file are both left

    def finish(self) -> None:
        for _, aside in self.done:
            if aside is not None:
                _remove(aside)


def _remove(path: Path) -> None:
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
