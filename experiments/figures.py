"""The pictures of the experiment, drawn from the lines of results/runs.jsonl and glue.jsonl; needs matplotlib."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from experiments.methods import METHODS
from experiments.show import TEACHER, Line, best_runs, mean_score, scores, shared, titles
from uer.report.drawing import FAINT, INK, RUN_COLOURS, style

OURS = {method.name for method in METHODS if method.ours}
OTHERS = ("#7d8894", "#a9b2bb", "#c9ced4")
NUMBERS = FuncFormatter(lambda value, _: f"{value:,.0f}")


def curves(path: Path, runs: Sequence[Line]) -> None:
    """Held-out accuracy of the longest run of every row, against steps and against operations; two panels a width.

    Weight-inherited students have colours, all others are grey and dashed.
    """
    teacher = next(run["accuracy"] for run in runs if run["name"] == TEACHER)
    rows = [same[0] for same in best_runs(runs) if same[0]["accuracy"] is not None]
    longest: dict[tuple[int, str], Line] = {(run["target"], run["method"]): run for run in rows}
    targets = sorted({target for target, _ in longest}, reverse=True)
    looks = colours(list(dict.fromkeys(method for _, method in longest)))
    with style():
        figure, grid = pyplot.subplots(len(targets), 2, figsize=(11, 3.8 * len(targets)), squeeze=False, sharey=True,
                                       layout="constrained")
        for line, target in zip(grid, targets):
            chosen = [run for (width, _), run in longest.items() if width == target]
            for axes, key, unit in ((line[0], "step", 1.0), (line[1], "operations", 1e12)):
                axes.axhline(100 * teacher, color=FAINT, linewidth=1, label="teacher")
                for run in chosen:
                    _curve(axes, run, key, unit, looks[run["method"]])
            line[0].set(xlabel="step", ylabel="held-out accuracy, %", title=f"hidden size {target}", ylim=(0, None))
            line[1].set(xlabel="operations in training, TFLOP", xscale="log")
            line[1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            line[1].xaxis.set_minor_locator(NullLocator())
            for axes in line:
                axes.xaxis.set_major_formatter(NUMBERS)
            line[1].legend(*line[0].get_legend_handles_labels(), loc="center left", bbox_to_anchor=(1.02, 0.5),
                           frameon=False, fontsize=8)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def colours(methods: Sequence[str]) -> dict[str, str]:
    """The same colour for a method in every panel."""
    ours, others = (itertools.cycle(some) for some in (RUN_COLOURS, OTHERS))
    return {method: next(ours) if method in OURS else next(others) for method in methods}


def _curve(axes: Any, run: Line, key: str, unit: float, colour: str) -> None:
    points = [(point[key] / unit, 100 * point["accuracy"]) for point in run["curve"] if point["accuracy"] is not None]
    if points:
        axes.plot(*zip(*points), color=colour, linestyle="-" if run["method"] in OURS else "--", marker="o",
                  markersize=3, label=run["method"])
    elif key == "step":
        axes.plot(0, 100 * run["accuracy"], color=colour, marker="D", linestyle="none", label=run["method"])


def glue(path: Path, runs: Sequence[Line], tuned: Sequence[Line]) -> None:
    """Mean score over the tasks that every model has, a bar a model."""
    found, names = scores(tuned), titles(runs, tuned)
    tasks = shared(found)
    if not tasks:
        return
    bars = {title: mean for name, title in names.items() if name in found
            if (mean := mean_score(found[name], tasks)) is not None}
    ours = {names[run["name"]] for run in runs if run.get("method") in OURS and run["name"] in names}
    with style():
        figure, axes = pyplot.subplots(figsize=(9, 0.34 * len(bars) + 1.3), layout="constrained")
        looks = [INK if title == TEACHER else RUN_COLOURS[0] if title in ours else OTHERS[1] for title in bars]
        drawn = axes.barh(list(bars), list(bars.values()), color=looks)
        axes.bar_label(drawn, [f"{value:.1f}" for value in bars.values()], padding=4, color=FAINT, fontsize=9)
        axes.set(title=f"After fine-tuning: score on {', '.join(tasks)} (blue: weight-inherited)", xlabel="percent")
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        figure.savefig(path, dpi=110)
        pyplot.close(figure)
