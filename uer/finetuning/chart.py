"""The picture of the GLUE table; needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import pyplot

from uer.report.drawing import BLUE, FAINT, INK, style

FIRST_COLOUR = "#9aa7b4"  # of the first model, which the others are compared with
PANELS = 5  # side by side


def plot(path: Path, found: dict[str, Any], tasks: list[str]) -> None:
    """A panel a task, a bar a model, whiskers from the lowest to the highest seed; a line where the first model is."""
    models, groups = found["models"], [*tasks, "average"]
    names, columns = list(models), min(PANELS, len(groups))
    lines = -(-len(groups) // columns)
    with style():
        figure, grid = pyplot.subplots(lines, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
                                       figsize=(2.2 + 1.9 * columns, lines * (0.8 + 0.32 * len(names))))
        for axes, group in zip(grid.flat, groups):
            axes.set_title(group)
            for place, name in enumerate(names):
                model = models[name]
                line = model["average"] if group == "average" else model["tasks"].get(group, {}).get("score")
                if line:
                    _bar(axes, place, {key: 100 * value for key, value in line.items()}, first=place == 0)
            axes.set(xlim=(min(0.0, axes.get_xlim()[0]), 119), xticks=(0, 50, 100))
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        for axes in list(grid.flat)[len(groups):]:
            axes.set_visible(False)
        grid[0][0].set_yticks(range(len(names)), names)
        grid[0][0].invert_yaxis()
        figure.suptitle("GLUE after fine-tuning: score on the dev data (percent)", fontsize=11, x=0.01, ha="left")
        figure.savefig(path, dpi=120, format="png")
        pyplot.close(figure)


def _bar(axes: Any, place: int, score: dict[str, float], first: bool) -> None:
    middle, reach = score["median"], max(score["highest"], 0.0)
    axes.barh(place, middle, height=0.7, color=FIRST_COLOUR if first else BLUE)
    if score["highest"] > score["lowest"]:
        axes.errorbar(middle, place, xerr=[[middle - score["lowest"]], [score["highest"] - middle]], color=INK,
                      capsize=2, linewidth=1)
    axes.annotate(f"{middle:.1f}", (reach, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    if first:
        axes.axvline(middle, color=FAINT, linewidth=0.8, zorder=0.8)
