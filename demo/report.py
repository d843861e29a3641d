"""What the demo found: a table (Markdown, readable as it is) and a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLUMNS = ("model", "steps", "parameters", "MLM loss", "accuracy", "of the teacher's", "package", "tokens/s", "seconds")
COLOURS = ("#1b6ca8", "#d1495b", "#e09f3e", "#6b8f71", "#7d5ba6")
FAINT = "#c3c8ce"


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        steps: of training as a student (of adaptation, for the teacher).
        loss, accuracy: on held-out text; accuracy as a share.
        tokens_per_second: of evaluation.
        seconds: calibration and training; for the teacher its adaptation.
        package: share of docstrings whose package it tells after fine-tuning; None where it was not fine-tuned.
    """

    model: str
    steps: int
    parameters: int
    loss: float
    accuracy: float
    tokens_per_second: float
    seconds: float
    package: float | None = None


class EncoderRow(NamedTuple):
    """A line of the table of encoders.

    Attributes:
        parameters: without the map into the teacher's space.
        agreement: with the teacher, figure -> share.
        texts_per_second: embedded.
        seconds: calibration.
    """

    model: str
    parameters: int
    agreement: dict[str, float]
    texts_per_second: float
    seconds: float


def table(rows: Sequence[Row]) -> str:
    """A Markdown table with aligned columns; the first row is the teacher's."""
    return _aligned([COLUMNS, *(_cells(row, rows[0]) for row in rows)])


def encoder_table(rows: Sequence[EncoderRow]) -> str:
    """A Markdown table with aligned columns; the first row is the teacher's."""
    figures = list(rows[-1].agreement)
    return _aligned([("encoder", "parameters", *figures, "texts/s", "seconds"), *(
        (row.model, f"{row.parameters / 1e6:.1f} M", *(f"{100 * row.agreement.get(name, 1.0):.0f} %"
                                                       for name in figures),
         f"{row.texts_per_second:,.0f}", f"{row.seconds:.0f}") for row in rows)])


def _aligned(cells: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = ["| " + " | ".join(text.ljust(width) if i == 0 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(line, widths))) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                          for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"


def _cells(row: Row, teacher: Row) -> tuple[str, ...]:
    share = 100 * row.accuracy / teacher.accuracy if teacher.accuracy else float("nan")
    return (row.model, f"{row.steps:,}", f"{row.parameters / 1e6:.1f} M", f"{row.loss:.2f}",
            f"{100 * row.accuracy:.1f} %", f"{share:.0f} %",
            "" if row.package is None else f"{100 * row.package:.0f} %", f"{row.tokens_per_second:,.0f}",
            f"{row.seconds:.0f}")


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The training reports that a run left at its --tb_path, in order."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == "train"]


def plot(path: Path, losses: Mapping[str, Sequence[tuple[int, float]]], rows: Sequence[Row], title: str) -> None:
    """Write a PNG.

    Args:
        losses: a curve per student: (step, training loss since the last report).
        rows: the table's, whose accuracies are drawn; the first is the teacher's.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    colours = dict(zip(losses, COLOURS))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(12, 5), layout="constrained")
    for name, curve in losses.items():
        left.plot(*zip(*curve), label=name, color=colours[name], linewidth=2)
    left.set(xlabel="training step", ylabel="masked language modelling loss (nats)", title="Training loss")
    left.grid(alpha=0.3)
    left.set_xlim(left=0)
    left.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    left.legend(frameon=False)
    bars = right.barh([row.model for row in rows], [row.accuracy for row in rows],
                      color=[colours.get(row.model, FAINT) for row in rows])
    right.bar_label(bars, [f"{100 * row.accuracy:.1f} %" for row in rows], padding=4)
    right.axvline(rows[0].accuracy, color=FAINT, zorder=0)
    right.set(title="Accuracy on held-out text", xlim=(0, 1.15 * max(row.accuracy for row in rows)))
    right.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.invert_yaxis()
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=120, format="png")
    pyplot.close(figure)
