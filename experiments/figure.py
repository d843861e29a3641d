"""The picture beside the tables: held-out accuracy of every student, as a share of the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from uer.report.drawing import BLUE, FAINT, style

WID_COLOUR, OTHER_COLOUR = BLUE, "#b9c3cd"
BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # a number


def draw(path: Path, shares: Mapping[int, Mapping[str, float]], ours: set[str], title: str) -> None:
    """Write a PNG.

    Args:
        shares: target_dim -> name of a method -> accuracy over the teacher's.
        ours: the methods that are weight-inherited distillation.
        title: above it all.
    """
    from matplotlib import pyplot
    from matplotlib.ticker import PercentFormatter

    names = list(dict.fromkeys(name for rows in shares.values() for name in rows))
    with style():
        figure, panels = pyplot.subplots(1, len(shares), figsize=(10, 0.36 * len(names) + 1.2), sharey=True,
                                         squeeze=False, layout="constrained")
        for axes, (target, rows) in zip(panels[0], shares.items()):
            values = [rows.get(name, 0.0) for name in names]
            bars = axes.barh(names, values, color=[WID_COLOUR if name in ours else OTHER_COLOUR for name in names])
            axes.bar_label(bars, [f"{100 * rows[name]:.0f} %" if name in rows else "not run" for name in names],
                           padding=5, color=FAINT, fontsize=9, bbox=BEHIND)
            axes.set(title=f"hidden size {target}", xlim=(0, 1.18))
            axes.xaxis.set_major_formatter(PercentFormatter(1.0))
            axes.set_xticks([0, 0.25, 0.5, 0.75, 1.0])
            axes.axvline(1.0, color=FAINT, linewidth=1)
            axes.grid(axis="y", visible=False)
            axes.tick_params(axis="y", length=0)
        panels[0][0].invert_yaxis()
        figure.suptitle(title, fontsize=11, x=0.01, ha="left")
        figure.savefig(path, dpi=120)
        pyplot.close(figure)
