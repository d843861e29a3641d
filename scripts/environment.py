#!/usr/bin/env python3
"""Set up the virtual environment that `make demo` and `make test` run in. Needs nothing but Python.

Does nothing if it is there already, made by the same Python from the same requirements. Several at once wait for each
other; what an interrupted one left is taken up by the next.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from uer.system import lock

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt")  # the last one names the others
LOCK, MADE_BY = ".lock", ".made-by"


def main(folder: str, ready: str, *bare_packages: str) -> None:
    """Make the environment in `folder`, then the file `ready` in it.

    Args:
        bare_packages: to be installed without what they ask for.
    """
    if sys.version_info < (3, 10):  # noqa: UP036, this runs before anything is checked
        sys.exit(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}; choose another with, say, "
                 f"PYTHON=python3.12 in front of the command")
    home = ROOT / folder
    home.mkdir(parents=True, exist_ok=True)
    with open(home / LOCK, "w") as file:
        lock(file, wait=True)
        stamp, wanted = home / ready, key(bare_packages)
        if stamp.is_file() and stamp.read_text() == wanted:
            stamp.touch()
            return
        set_up(home, bare_packages)
        stamp.write_text(wanted)


def key(bare_packages: tuple[str, ...]) -> str:
    """Changes with the Python and the requirements."""
    found = hashlib.sha256(f"{sys.version} {bare_packages}".encode())
    for name in REQUIREMENTS:
        found.update((ROOT / name).read_bytes())
    return found.hexdigest()


def set_up(home: Path, bare_packages: tuple[str, ...]) -> None:
    """Create the environment if need be, and install everything."""
    for old in home.glob(".ready*"):
        old.unlink()
    version = sys.version.split()[0]
    print(f"setting up {home.name} with Python {version}; the first time this downloads torch", flush=True)
    made_by, python = home / MADE_BY, home / "bin" / "python"
    if not made_by.is_file() or made_by.read_text() != sys.version:
        for entry in home.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != LOCK:
                entry.unlink()
        run([sys.executable, "-m", "venv", str(home)], "Debian and Ubuntu need the package python3-venv for it")
        made_by.write_text(sys.version)
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run([*install, "--requirement", str(ROOT / REQUIREMENTS[-1])], "is there a connection to a package index?")
    run([*install, "--no-deps", *bare_packages], "is there a connection to a package index?")


def run(command: list[str], hint: str) -> None:
    """Run a command; end with a sentence where it fails."""
    if subprocess.run(command).returncode:
        sys.exit(f"error: {' '.join(command)} failed; {hint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
