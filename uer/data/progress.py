"""How far a run over a corpus is: a bar on a terminal, otherwise a line on stderr every ten seconds."""

from __future__ import annotations

import shutil
import sys
import time

INTERVAL = 10.0  # seconds between log lines


class Progress:
    """Counts bytes. `total` may be None, when the input does not say how long it is."""

    def __init__(self, total: int | None) -> None:
        self.total = total
        self.done = 0
        self._start = self._last = time.monotonic()
        self._bar = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread beside the workers' start
            columns = shutil.get_terminal_size().columns  # 80 where the terminal does not say
            self._bar = tqdm(
                total=self.total, unit="B", unit_scale=True, desc="preprocess", leave=False, ncols=columns
            )
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int) -> None:
        """`count` more bytes are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif time.monotonic() - self._last >= INTERVAL:
            self._last = time.monotonic()
            sys.stderr.write(self.line() + "\n")

    def line(self) -> str:
        """Done so far, rate, and time left if the total is known."""
        rate = self.done / 1e6 / max(1e-9, time.monotonic() - self._start)
        text = f"preprocess: {self.done / 1e6:,.0f} MB"
        if self.total:
            text += f" of {self.total / 1e6:,.0f} MB"
        text += f", {rate:.1f} MB/s"
        if self.total and rate:
            text += f", {(self.total - self.done) / 1e6 / rate / 60:.1f} min left"
        return text
