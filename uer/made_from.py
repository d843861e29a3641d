"""What a file was made from: recorded with it, compared before it is used again.

Checkpoints, compactors, results of fine-tuning and of experiments, the demo's steps: each says in plain values or
digests what it hangs on, and whoever finds it there compares that with what it would hang on now.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

BLOCK = 1 << 20  # bytes read at once


def files_sha256(paths: Iterable[str | Path]) -> str:
    """SHA-256 over names and bytes of files, and of all files in folders; where they lie does not matter.
    `OSError` for one that cannot be read."""
    digest = hashlib.sha256()
    for path in map(Path, paths):
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                digest.update(f"{file.relative_to(path.parent)} {file.stat().st_size} ".encode())
                with open(file, "rb") as source:
                    while block := source.read(BLOCK):
                        digest.update(block)
    return digest.hexdigest()


def differences(found: Mapping[str, Any], now: Mapping[str, Any], words: Mapping[str, str]) -> list[str]:
    """What is not the same, in words: `--seed (7 there, 8 here)`; of tables, which of their entries.

    Args:
        found: what the file says.
        now: what it would say if it were made now.
        words: key -> what to call it; other keys are not compared.
    """
    out: list[str] = []
    for key, name in words.items():
        there, here = found.get(key), now.get(key)
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            out += differences(there, here, {entry: f"{name}: {entry}" for entry in {**there, **here}})
        elif there != here:
            out.append(f"{name} ({_spelled(there)} there, {_spelled(here)} here)")
    return out


def _spelled(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if re.fullmatch("[0-9a-f]{16,}", text) else text
