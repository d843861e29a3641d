"""The picture of a sweep over shapes: what each is worth, against its size and its speed; needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from uer.report.drawing import BLUE, BRICK, FAINT, INK, style


def plot(path: Path, names: Sequence[str], sizes: Sequence[float], speeds: Sequence[float], worth: Sequence[float],
         what: str) -> None:
    """Write a PNG: a point a model, the first the teacher's; a line through those that no other beats in both.

    Args:
        sizes: parameters.
        speeds: texts a second.
        worth: a share or a correlation, higher is better, and `what` it is.
    """
    with style():
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(10.0, 4.2), sharey=True, layout="constrained")
        for axes, values, sign in ((left, [size / 1e6 for size in sizes], -1), (right, speeds, 1)):
            best = frontier([sign * value for value in values], worth)
            axes.plot([values[i] for i in best], [worth[i] for i in best], color=FAINT, linewidth=1.2, zorder=1)
            axes.scatter(values, worth, color=[BRICK, *[BLUE] * (len(names) - 1)], s=26, zorder=2)
            for name, x, y in zip(names, values, worth):
                axes.annotate(name, (x, y), xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8,
                              color=INK)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.4g}"))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.margins(0.12, 0.1)
        left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        left.set(xlabel="parameters (millions)", ylabel=what)
        right.set(xlabel="texts a second")
        figure.savefig(path, dpi=120, format="png")
        pyplot.close(figure)


def frontier(cheap: Sequence[float], worth: Sequence[float]) -> list[int]:
    """Numbers of those that no other beats in both, from the cheapest on."""
    best: list[int] = []
    for i in sorted(range(len(worth)), key=lambda i: (-cheap[i], -worth[i])):
        if not best or worth[i] > worth[best[-1]]:
            best.append(i)
    return best
