"""What every script shows while it runs, and the three lines that it ends with. Needs no torch.

On a terminal a bar at its foot, with the time left; elsewhere a line on stderr after 10 seconds, 20, 40, and so on.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

FIRST, LONGEST = 10.0, 640.0  # seconds between lines
T = TypeVar("T")


class Progress:
    """Counts what is done.

    Args:
        what: is going on, a word.
        total: how much there is to do; None where the input does not say.
        unit: of it, in the plural; B for bytes.
        shown: False on processes that do not lead.
    """

    def __init__(self, what: str, total: int | None, unit: str, shown: bool = True) -> None:
        self.what, self.total, self.unit, self.shown = what, total, unit, shown
        self.done = 0
        self.begun = self._last = time.monotonic()
        self._wait = FIRST
        self._bar: Any = None
        if shown and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread beside the workers' start
            size = shutil.get_terminal_size()  # 80 × 24 where the terminal does not say, or says 0
            self._bar = tqdm(total=total, unit="B" if unit == "B" else f" {unit}", unit_scale=unit == "B", desc=what,
                             leave=False, ncols=size.columns, nrows=size.lines)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1) -> None:
        """`count` more are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        elif self.shown and time.monotonic() - self._last >= self._wait:
            self._wait = min(2 * self._wait, LONGEST)
            sys.stderr.write(self.line() + "\n")
            self.told()

    def told(self) -> None:
        """Something else has just told how far this is: the next line can wait."""
        self._last = time.monotonic()

    def line(self) -> str:
        """Done so far, rate, and time left if the total is known."""
        scale, unit = (1e6, "MB") if self.unit == "B" else (1, self.unit)
        rate = self.done / max(1e-9, time.monotonic() - self.begun)
        text = f"{self.what}: {self.done / scale:,.0f}"
        if self.total:
            text += f" of {self.total / scale:,.0f}"
        text += f" {unit}, {rate / scale:.3g} {unit}/s"
        if self.total and rate:
            text += f", {duration((self.total - self.done) / rate)} left"
        return text


def tracked(items: Iterable[T], total: int, what: str, unit: str, shown: bool = True) -> Iterator[T]:
    """The items, one after the other, with their progress."""
    with Progress(what, total, unit, shown) as progress:
        for item in items:
            yield item
            progress.advance()


def say(line: str) -> None:
    """A line on stdout, above a bar where there is one."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is not None and sys.stderr.isatty():
        tqdm.tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(line, flush=True)


def duration(seconds: float) -> str:
    """h:mm:ss"""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def ending(made: str, good: str, following: str, tell: Callable[[str], object] = say) -> None:
    """The end of a script: what was made, how good it is, the command that comes next."""
    tell(f"made  {made}\ngood  {good}\nnext  {following}")
