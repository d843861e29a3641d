"""How the pictures of a report look: colours, axes, labels, bars."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from uer.report.log import KINDS, Curve, Run, kind_of

INK, FAINT, GRID = "#1d2530", "#69737f", "#e3e7eb"
BLUE, BRICK, GREEN, PURPLE, OCHRE, TEAL = "#2b6399", "#c0513b", "#5a8a57", "#84639f", "#c08a2d", "#3a8f96"
RUN_COLOURS = (BLUE, BRICK, GREEN, PURPLE, OCHRE, TEAL)
KIND_COLOURS = {"hidden": BLUE, "attention": BRICK, "ffn": GREEN, "mlm": PURPLE, "cls": PURPLE}
KIND_WORDS = {"hidden": "residual stream", "attention": "attention", "ffn": "feed-forward", "mlm": "MLM head",
              "cls": "classifier"}
APPLIED = "teacher with compactors on activations"
PART_COLOURS = {"embedding": "#9aa7b4", "attention": BRICK, "feed-forward": GREEN, "MLM head": PURPLE,
                "composition": OCHRE, APPLIED: "#d5dade"}
NORMS = LinearSegmentedColormap.from_list("norms", ["#ffffff", "#c5d6e6", "#6d9bc3", "#2b6399", "#12304d"])
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 10, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT,
    "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "axes.axisbelow": True,
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "svg.hashsalt": "report",
    "lines.linewidth": 1.8, "lines.solid_capstyle": "round"}
LABEL_GAP = 0.062  # a line of a label at the end of a curve, as a share of an axes' height
LABEL_WIDTH = 27  # characters
SQUEEZE_WIDTH = 20
NAME_WIDTH = 20  # of a run, beside its bars
SQUEEZES_NAMED = 3
LOG_FROM = 6  # ratio of the largest to the smallest step time from which the axis is logarithmic


def style():
    return pyplot.rc_context(STYLE)


def colour_of(number: int) -> str:
    return RUN_COLOURS[number % len(RUN_COLOURS)]


def panels(count: int, width: float = 10.0):
    """A figure with axes side by side."""
    figure, axes = pyplot.subplots(1, count, figsize=(width, 3.6), layout="constrained", squeeze=False)
    for one in axes[0]:
        step_axis(one)
    return figure, list(axes[0])


def step_axis(axes) -> None:
    """Steps along x, with commas in their thousands."""
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def label_ends(axes, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (y, text, colour) right of the axes at these heights, moved apart where they would touch."""
    low, high = axes.get_ylim()
    scale = axes.yaxis.get_transform().transform
    bottom, top = scale(low), scale(high)
    wanted = sorted(((scale(y) - bottom) / (top - bottom), textwrap.fill(text, LABEL_WIDTH), colour)
                    for y, text, colour in labels)
    heights = [LABEL_GAP * (1 + text.count("\n")) for _, text, _ in wanted]
    places: list[float] = []
    for i, (at, _, _) in enumerate(wanted):
        below = places[-1] + (heights[i - 1] + heights[i]) / 2 if places else 0.0
        places.append(max(at, below))
    ceiling = 1.0 + LABEL_GAP
    for i in reversed(range(len(places))):
        places[i] = min(places[i], ceiling - heights[i] / 2)
        ceiling = places[i] - heights[i] / 2
    for place, (_, text, colour) in zip(places, wanted):
        axes.annotate(text, (1.015, place), xycoords="axes fraction", color=colour, va="center", fontsize=9,
                      linespacing=1.15, annotation_clip=False)


def mark_squeezes(axes, run: Run, words: bool = False) -> None:
    """A dashed line where groups left; with `words` their kinds beside it, or of many lines only the last one named.
    A dotted one where the run was folded."""
    for line in run.fold:
        axes.axvline(line["step"], color=FAINT, linestyle=":", linewidth=0.9, zorder=0.5)
    left: dict[int, list[str]] = {}
    for line in run.squeeze:
        left.setdefault(line["step"], []).extend(dict.fromkeys(map(kind_of, line["groups"])))
    for step, kinds in left.items():
        axes.axvline(step, color=FAINT, linestyle=(0, (4, 3)), linewidth=0.9, zorder=0.5)
        if not words or (len(left) > SQUEEZES_NAMED and step != max(left)):
            continue
        named = ", ".join(KIND_WORDS[kind] for kind in KINDS if kind in kinds)
        text = "all squeezed" if set(kinds) == set(run.kept()) else f"squeezed: {named}"
        text = textwrap.fill(text, SQUEEZE_WIDTH) if len(left) <= SQUEEZES_NAMED else "last squeeze"
        axes.annotate(text, (step, 0.0), xycoords=("data", "axes fraction"), xytext=(3, 4), textcoords="offset points",
                      rotation=90, ha="left", va="bottom", fontsize=7.5, color=FAINT).set_in_layout(False)


def merged(curves: Sequence[tuple[str, str, Curve]]) -> list[tuple[str, str, Curve]]:
    """(label, colour, curve) with those that lie on each other as one."""
    found: list[tuple[str, str, Curve]] = []
    for text, colour, curve in curves:
        same = next((i for i, other in enumerate(found) if other[2] == curve), None)
        if same is None:
            found.append((text, colour, curve))
        else:
            found[same] = (f"{found[same][0]}, {text}", found[same][1], curve)
    return found


def nothing(axes, why: str) -> None:
    """Say in the middle of empty axes why they are empty."""
    axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=FAINT)
    axes.grid(False)
    axes.set(xticks=[], yticks=[], xlabel="")
    axes.spines[["left", "bottom"]].set_visible(False)


def lines(axes, curves: Sequence[tuple[str, str, Curve]], last_step: int, form: Callable[[float], str],
          **how: Any) -> None:
    """Draw (label, colour, curve) and write the labels with the last values at the ends."""
    curves = merged(curves)
    for _, colour, curve in curves:
        axes.plot(*zip(*curve), color=colour, **how)
    axes.set_xlim(0, last_step)
    label_ends(axes, [(curve[-1][1], f"{text}\u00a0{form(curve[-1][1])}", colour) for text, colour, curve in curves])


def share_axis(axes, title: str) -> None:
    """Shares from 0 to 100 % along y."""
    axes.set_title(title)
    axes.set_ylim(0, 1.04)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))


def heat_map(axes, columns: Sequence[tuple[int, list[float]]], highest: float):
    """(step, norms from large to small) as columns of colour, the largest at the bottom."""
    steps = [step for step, _ in columns]
    edges = [*steps, steps[-1] + (steps[-1] - steps[-2] if len(steps) > 1 else 1)]
    bins = len(columns[0][1])
    values = [[norms[row] for _, norms in columns] for row in range(bins)]
    axes.grid(False)
    return axes.pcolormesh(edges, [100 * i / bins for i in range(bins + 1)], values, cmap=NORMS, vmin=0, vmax=highest,
                           rasterized=True)


def bars(axes, rows: Sequence[tuple[str, dict[str, float]]], title: str) -> None:
    """Stacked horizontal bars of (label, number by part), the first on top, each with its sum at its end."""
    widest = max(sum(numbers.values()) for _, numbers in rows)
    for y, (_, numbers) in enumerate(rows):
        left = 0.0
        for part, number in numbers.items():
            axes.barh(y, number, left=left, height=0.66, color=PART_COLOURS[part], edgecolor="white", linewidth=0.6)
            left += number
        axes.text(left + 0.012 * widest, y, f"{left:.3g}" if left < 1000 else f"{left:,.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.14 * widest)
    axes.grid(axis="y", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_title(title)
