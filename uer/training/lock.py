"""One process at a time: a lock that goes with the process, however it ends."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from uer.errors import UserError
from uer.system import lock


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[IO[str]]:
    """Hold the lock of a file, which is made if need be; where file systems know no locks, hold nothing.

    Yields:
        the open file: a child process that inherits it holds the lock as well.
    Raises:
        UserError: `refusal`, where another process holds it; the file cannot be made.
    """
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = open(path, "w")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from None
        with file:
            if not lock(file):
                raise UserError(refusal)
            if _stands(file, path):
                yield file
                return


def _stands(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of its name: its holder may have removed it before letting the lock go."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


@contextmanager
def only_writer(output: str, option: str = "output_model_path") -> Iterator[None]:
    """While entered, no other run writes to the same `--output_model_path` (or what `option` names).
    `UserError` where another one does."""
    path = Path(output).absolute()
    path = path.with_name(f".{path.name}.lock")
    with locked(path, f"--{option} {output}: another run is writing there; wait for its end, or take another name"):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
