"""Activations between two passes over the calibration data: in memory while few, in a temporary folder otherwise."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

MEMORY_LIMIT = 1 << 30  # bytes


class Spool:
    """Tensors by (batch number, name). At most `MEMORY_LIMIT` bytes stay in memory, the rest lies in files."""

    def __init__(self, limit: int = MEMORY_LIMIT):
        self.limit, self.held = limit, 0
        self.memory: dict[tuple[int, str], torch.Tensor] = {}
        self.folder: tempfile.TemporaryDirectory | None = None

    def put(self, batch: int, **tensors: torch.Tensor) -> None:
        """Keep tensors of a batch; a name used again replaces what was there."""
        for name, tensor in tensors.items():
            old = self.memory.pop((batch, name), None)
            if old is not None:
                self.held -= old.nbytes
            if self.held + tensor.nbytes <= self.limit:
                self.memory[batch, name] = tensor
                self.held += tensor.nbytes
            else:
                torch.save(tensor, self._file(batch, name))

    def get(self, batch: int, name: str) -> torch.Tensor:
        """What was last put under this name."""
        if (batch, name) in self.memory:
            return self.memory[batch, name]
        return torch.load(self._file(batch, name), weights_only=True)

    def close(self) -> None:
        """Drop everything, files included."""
        self.memory.clear()
        if self.folder:
            self.folder.cleanup()

    def _file(self, batch: int, name: str) -> Path:
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="calibration-")
        return Path(self.folder.name) / f"{batch}-{name}.pt"
