"""The pictures of a report. One run is shown in detail, several are laid over each other.

A picture of what the logs do not tell is None.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

from uer.report import drawing
from uer.report.log import KINDS, Curve, Run, together


def learning(runs: Sequence[Run]):
    """Loss and accuracy: training and held-out for one run; held-out, where all have it, for several."""
    figure, axes = drawing.panels(2)
    held_out = all(len(run.dev) > 1 for run in runs)
    last = max(run.last_step for run in runs)
    judged = {run.figure for run in runs}
    masked, named = judged == {"accuracy"}, " or ".join(sorted(judged)).capitalize()
    for one, key, title, form in ((axes[0], "loss", "Masked-token loss (nats)" if masked else "Loss", "{:.2f}".format),
                                  (axes[1], "accuracy", "Masked-token accuracy" if masked else named, "{:.1%}".format)):
        labels, kind = [], "dev" if held_out or len(runs) == 1 else "train"
        told = [(run, run.name, drawing.colour_of(i), 3.5) for i, run in enumerate(runs)]
        if len(runs) == 1:
            curve = runs[0].curve("train", key)
            one.plot(*zip(*curve), color=drawing.BLUE, alpha=0.75, linewidth=1.3)
            labels.append((curve[-1][1], "training", drawing.BLUE))
            told = [(run, "held-out", drawing.BRICK, 4) for run in runs if run.dev]
        else:
            title += ", held-out" if held_out else ", training"
        for run, name, colour, size in told:
            curve = run.curve(kind, key)
            one.plot(*zip(*curve), color=colour, marker="o" if kind == "dev" else "", markersize=size)
            labels.append((curve[-1][1], f"{name} {form(curve[-1][1])}", colour))
        one.set_xlim(0, last)
        if key == "accuracy":
            one.set_ylim(bottom=0)
            one.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=None))
        one.set_title(title)
        if len(runs) == 1:
            drawing.mark_squeezes(one, runs[0])
        drawing.label_ends(one, labels)
    return figure


def dimensions(runs: Sequence[Run]):
    """Share of the teacher's dimensions that are kept: by kind of group, or of all kinds for several runs."""
    several = [(i, run, run.kept()) for i, run in enumerate(runs) if run.kept()]
    if not several:
        return None
    if len(runs) == 1:
        figure, (axes,) = drawing.panels(1, width=7.6)
        _, run, kept = several[0]
        curves = [(f"{drawing.KIND_WORDS[kind]}", drawing.KIND_COLOURS[kind], curve) for kind, curve in kept.items()]
        drawing.share_axis(axes, "Dimensions kept, of the teacher's")
        drawing.lines(axes, curves, run.last_step, "{:.0%}".format, drawstyle="steps-post")
        drawing.mark_squeezes(axes, run, words=True)
        return figure
    figure, axes = drawing.panels(2)
    for one, kind in zip(axes, ("hidden", "ffn")):
        drawing.share_axis(one, f"Dimensions kept: {drawing.KIND_WORDS[kind]}")
        curves = [(run.name, drawing.colour_of(i), kept[kind]) for i, run, kept in several if kind in kept]
        if not curves:
            drawing.nothing(one, "no dimensions leave in these runs")
            continue
        drawing.lines(one, curves, max(run.last_step for run in runs), "{:.0%}".format, drawstyle="steps-post")
    return figure


def norms(runs: Sequence[Run]):
    """Heat maps of the sorted column norms of the scoring compactors over time, a row for each run."""
    found = [(run, run.norms()) for run in runs if run.norms()]
    if not found:
        return None
    kinds = [kind for kind in KINDS if any(kind in maps for _, maps in found)]
    figure, grid = pyplot.subplots(len(found), len(kinds), figsize=(10.0, 0.7 + 2.4 * len(found)), squeeze=False,
                                   layout="constrained", sharey=True)
    highest = max(value for _, maps in found for columns in maps.values() for _, bins in columns for value in bins)
    mesh: Any = None
    for number, (row, (run, maps)) in enumerate(zip(grid, found)):
        end = max(step for columns in maps.values() for step, _ in columns)
        for axes, kind in zip(row, kinds):
            columns = maps.get(kind, [])
            if not columns:
                drawing.nothing(axes, "has left")
                continue
            mesh = drawing.heat_map(axes, columns, highest)
            axes.set_xlim(columns[0][0], max(end, columns[0][0] + 1))
            drawing.step_axis(axes)
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_formatter(PercentFormatter(100))
            axes.set_title(drawing.KIND_WORDS[kind] if number == 0 else "")
            axes.set_xlabel("step" if number == len(found) - 1 else "")
            if columns[-1][0] < end:
                axes.axvspan(columns[-1][0], end, color="#f2f4f6", zorder=0)
                axes.annotate("has left", ((columns[-1][0] + end) / 2, 50), ha="center", va="center",
                              color=drawing.FAINT, fontsize=8, rotation=90)
        row[0].set_ylabel((f"{run.name}\n" if len(runs) > 1 else "") + "dimensions, by norm")
    bar = figure.colorbar(mesh, ax=grid, shrink=0.9, aspect=30, pad=0.015)
    bar.set_label("column norm")
    bar.outline.set_visible(False)
    return figure


def stability(runs: Sequence[Run]):
    """Share of the dropped dimensions that the next mask update drops again."""
    if len(runs) == 1:
        curves = [(drawing.KIND_WORDS[kind], drawing.KIND_COLOURS[kind], curve)
                  for kind, curve in runs[0].stability().items()]
    else:
        curves = [(run.name, drawing.colour_of(i), together(list(run.stability().values())))
                  for i, run in enumerate(runs) if run.stability()]
    if not curves:
        return None
    figure, (axes,) = drawing.panels(1, width=7.6)
    drawing.share_axis(axes, "Dropped dimensions that stay dropped at the next update")
    drawing.lines(axes, curves, max(step for _, _, curve in curves for step, _ in curve), "{:.0%}".format, marker="o",
                  markersize=3)
    return figure


def step_time(runs: Sequence[Run]):
    """Seconds of an optimizer step."""
    timed = [(i, run, run.curve("train", "seconds_per_step")) for i, run in enumerate(runs)
             if run.curve("train", "seconds_per_step")]
    if not timed:
        return None
    figure, (axes,) = drawing.panels(1, width=7.6)
    values = [value for _, _, curve in timed for _, value in curve]
    axes.set_title("Time of a step")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value) if value else "0"))
    if 0 < min(values) < max(values) / drawing.LOG_FROM:
        axes.set_yscale("log", subs=[])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
        axes.set_title("Time of a step (logarithmic)")
    else:
        axes.set_ylim(0, 1.08 * max(values))
    for i, _, curve in timed:
        axes.plot(*zip(*curve), color=drawing.colour_of(i), linewidth=1.4)
    axes.set_xlim(0, max(run.last_step for run in runs))
    if len(runs) == 1:
        drawing.mark_squeezes(axes, runs[0])
    drawing.label_ends(axes, [
        (last_median(curve), f"{run.name if len(runs) > 1 else ''} {seconds(last_median(curve))}".strip(),
         drawing.colour_of(i)) for i, run, curve in timed])
    return figure


def last_median(curve: Curve) -> float:
    """The median of the last fifth of a curve, of five values at least: one may have an evaluation in it."""
    return median(value for _, value in curve[-max(5, len(curve) // 5):])


def first_median(curve: Curve) -> float:
    """The median of the first fifth of a curve."""
    return median(value for _, value in curve[:max(1, len(curve) // 5)])


def seconds(value: float) -> str:
    """1.23 s or 45 ms"""
    return f"{value:.3g} s" if value >= 1 else f"{1000 * value:.3g} ms"


def costs(runs: Sequence[Run]):
    """Parameters and operations a step by part, at the start and at the end."""
    known = [run for run in runs if run.model]
    if not known:
        return None
    rows: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
    for run in known:
        name = f"{textwrap.shorten(run.name, drawing.NAME_WIDTH, placeholder=' …')}: " if len(runs) > 1 else ""
        first, last = run.model[0], run.model[-1]
        if len(runs) == 1 and first.get("on_activations"):
            rows.append(("with compactors\non activations", {drawing.APPLIED: first["trained"]},
                         {drawing.APPLIED: first["on_activations"]}))
        moments = [(f"{name}start", first), (f"{name}end", last)]
        for label, line in moments if last is not first else [(name.rstrip(": ") or "the model", last)]:
            rows.append((label, line["parameters"], {**line["operations"], "composition": line.get("composition", 0)}))
    figure, grid = pyplot.subplots(1, 2, figsize=(10.0, 1.7 + 0.42 * len(rows)), layout="constrained", sharey=True)
    unit, word = operation_unit(max(sum(row[2].values()) for row in rows))
    size, many = (1e6, "millions") if max(sum(row[1].values()) for row in rows) >= 1e6 else (1e3, "thousands")
    drawing.bars(grid[0], [(label, {part: n / size for part, n in numbers.items()}) for label, numbers, _ in rows],
                 f"Parameters ({many})")
    drawing.bars(grid[1], [(label, {part: n / unit for part, n in numbers.items()}) for label, _, numbers in rows],
                 f"Operations of a step ({word}FLOP)")
    shown = [part for part in drawing.PART_COLOURS if any(row[1].get(part) or row[2].get(part) for row in rows)]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=drawing.PART_COLOURS[part]) for part in shown]
    figure.legend(handles, shown, loc="outside lower center", ncols=len(shown), frameon=False, handlelength=1,
                  handleheight=1, columnspacing=1.6)
    return figure


def operation_unit(largest: float) -> tuple[float, str]:
    """The unit in which the largest number is at least 1."""
    return next(((size, word) for size, word in ((1e15, "P"), (1e12, "T"), (1e9, "G")) if largest >= size), (1e6, "M"))


