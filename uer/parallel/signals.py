"""Signals that ask a run to save and end: SIGTERM (scancel, a time limit), SIGINT (Ctrl-C), SIGUSR1 (Slurm's --signal).

Before the first step of a run of one process there is nothing to save, and they end it at once. From then on, and with
several processes from the start, a handler only takes note: every step the processes tell each other what they have
received, so all of them end after the same step, and none waits for one that is gone. SIGQUIT (Ctrl-\\) still ends a
process at once.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from types import FrameType

from uer.errors import Stopped
from uer.system import signals_handled

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1") if hasattr(signal, name))


class StopSignals:
    """Takes note of `SIGNALS` while it is entered (in a main thread; elsewhere signals do not arrive).

        with StopSignals(processes) as signals:    # of one, a signal raises `Stopped`
            signals.waiting = True                 # for a step to end: it is noted
            flags = signals.flags()       # summed over the processes
            number = signals.agreed(flags)
    """

    def __init__(self, processes: int = 1) -> None:
        self.waiting = processes > 1
        self._received: set[int] = set()
        self._noting = signals_handled(dict.fromkeys(SIGNALS, self._note))

    def __enter__(self) -> StopSignals:
        self._noting.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._noting.__exit__(None, None, None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.waiting:
            raise Stopped(number)
        self._received.add(number)

    def flags(self) -> list[float]:
        """1 or 0 for each of `SIGNALS`: whether this process has received it."""
        return [float(number in self._received) for number in SIGNALS]

    @staticmethod
    def agreed(flags: Sequence[float]) -> int | None:
        """The first of `SIGNALS` that any process has received, from the sum of their flags."""
        return next((number for number, count in zip(SIGNALS, flags) if count), None)
