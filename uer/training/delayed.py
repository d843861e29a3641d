"""Numbers that pass between host and device without making either wait."""

from __future__ import annotations

from collections import deque

import torch


def sent(host: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device; the host does not wait until a GPU has it."""
    return host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else host.to(device)


class Delayed:
    """A few numbers per step, handed to the host: at once on a CPU; on a GPU one step later, when they are long there.

    All processes read the same step's numbers at the same point, so they can decide on them without another word.

    Args:
        device: where the numbers come from.
        lag: steps to wait before reading (default: 1 on a GPU, else 0).
    """

    def __init__(self, device: torch.device, lag: int | None = None):
        self.lag = int(device.type == "cuda") if lag is None else lag
        self._waiting: deque[tuple[int, torch.Tensor, torch.cuda.Event | None]] = deque()

    def put(self, step: int, values: torch.Tensor) -> None:
        """Hand over a step's numbers, a 1-d tensor."""
        if values.device.type != "cuda":
            self._waiting.append((step, values.clone(), None))
            return
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._waiting.append((step, host, event))

    def take(self, everything: bool = False) -> list[tuple[int, list[float]]]:
        """(step, numbers) of the steps that are due, oldest first; `everything`: of all, waiting for the device."""
        due = []
        while len(self._waiting) > (0 if everything else self.lag):
            step, values, event = self._waiting.popleft()
            if event is not None:
                event.synchronize()
            due.append((step, values.tolist()))
        return due
