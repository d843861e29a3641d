"""The page: what the runs were, a table, and the pictures inside it; the same pictures as PNGs beside it."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import pyplot

from uer.errors import UserError
from uer.formats.storage import PendingFiles
from uer.report import drawing, figures
from uer.report.log import Run, names_for, read_run

PNG_DPI = 144


class Section(NamedTuple):
    """A part of the page: the PNG's name, its heading, what the picture shows, and how it is drawn."""

    key: str
    heading: str
    words: str
    draw: Callable[[Sequence[Run]], Any]


SECTIONS = (
    Section("learning", "Loss and accuracy",
            "Of the masked tokens: mean cross entropy, and the share predicted right.", figures.learning),
    Section("dimensions", "Dimensions kept",
            "Masks push dimensions out by a schedule; once their compactor entries have decayed, a group is squeezed: "
            "they leave for good (dashed).", figures.dimensions),
    Section("norms", "Column norms",
            "The norms that score the dimensions, sorted at each mask update, largest at the bottom, means of the "
            "layers. White is gone: a sharp edge means that the choice is clear.", figures.norms),
    Section("stability", "Mask stability",
            "Masks are chosen from scratch at each update. Near 100 %, the choice no longer hangs on noise.",
            figures.stability),
    Section("step_time", "Step time",
            "Wall clock between reports over the steps in between; evaluations and checkpoints show as peaks.",
            figures.step_time),
    Section("cost", "Parameters and operations",
            "Counted from the sizes of the model: before anything has left, and at the end of the log.", figures.costs),
)

CSS = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1d2530; font: 15px/1.5 "DejaVu Sans", Verdana, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 44px 0 2px; padding-top: 18px; border-top: 1px solid #e3e7eb; }
p { margin: 0 0 10px; max-width: 78ch; }
.lead, .words { color: #4c5763; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0 4px; }
.tile { flex: 1 1 150px; border: 1px solid #e3e7eb; border-radius: 8px; padding: 10px 14px 12px; }
.tile b { display: block; font-size: 20px; line-height: 1.35; white-space: nowrap; }
.tile span { color: #4c5763; font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 22px 0 4px; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid #e3e7eb; vertical-align: baseline; }
th { font-weight: 600; color: #4c5763; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td { white-space: nowrap; }
td.name { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 10px 0 0; }
footer { margin-top: 48px; color: #69737f; font-size: 12.5px; }
"""


def write_report(paths: Sequence[str], names: Sequence[str] | None = None, mask_paths: Sequence[str] | None = None,
                 output: str | None = None) -> Path:
    """Write report.html and the PNGs; returns the path of the page.

    Args:
        paths: the runs' --tb_path folders.
        names: what to call them; None: the ends of their paths.
        mask_paths: their mask files; None: those that the logs name.
        output: the folder; None: `report` in the only run's folder, or in the current one.
    Raises:
        UserError: logs that cannot be read, options that do not fit together, a folder that cannot be written.
    """
    for option, given in (("--names", names), ("--mask_path", mask_paths)):
        if given is not None and len(given) != len(paths):
            raise UserError(f"{option} has {len(given)} values for {len(paths)} runs; one for each is needed")
    runs = [read_run(path, name, masks) for path, name, masks in
            zip(paths, names or names_for(paths), mask_paths or len(paths) * (None,))]
    first = Path(paths[0]) if Path(paths[0]).is_dir() else Path(paths[0]).parent
    folder = Path(output) if output else (first / "report" if len(runs) == 1 else Path("report"))
    pictures: dict[str, str] = {}
    with PendingFiles() as pending, drawing.style():
        for section in SECTIONS:
            figure = section.draw(runs)
            figure.savefig(pending.add(folder / f"{section.key}.png"), dpi=PNG_DPI, format="png", bbox_inches="tight")
            text = io.BytesIO()
            figure.savefig(text, format="svg", bbox_inches="tight", dpi=PNG_DPI, metadata={"Date": None})
            pyplot.close(figure)
            pictures[section.key] = base64.b64encode(text.getvalue()).decode()
        pending.add(folder / "report.html").write_text(page(runs, pictures), encoding="utf-8")
        pending.publish()
    return folder / "report.html"


# -- words -------------------------------------------------------------------------------------------------------------


def page(runs: Sequence[Run], pictures: dict[str, str]) -> str:
    """The HTML.

    Args:
        pictures: key of a section -> SVG in base64.
    """
    title = "Run " + runs[0].name if len(runs) == 1 else f"{len(runs)} runs: " + ", ".join(run.name for run in runs)
    lead = f'<p class="lead">{html.escape(describe(runs[0]))}</p>' if len(runs) == 1 else ""
    top = lead + tiles(runs[0]) if len(runs) == 1 else table(runs)
    parts = [f'<section id="{x.key}"><h2>{x.heading}</h2><p class="words">{x.words}</p>'
             f'<img alt="{x.heading}" src="data:image/svg+xml;base64,{pictures[x.key]}"></section>' for x in SECTIONS]
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{html.escape(title)}</h1>\n{top}\n" + "\n".join(parts) +
            "\n<footer>Made by uer.report. The pictures are beside this page as PNGs.</footer>\n</main>\n</body>\n"
            "</html>\n")


def describe(run: Run) -> str:
    """A sentence on what a run was."""
    facts, teacher = run.facts, run.facts.get("teacher", {})
    words = [f"Step {run.last_step:,}" + (f" of {facts['total_steps']:,}" if "total_steps" in facts else "")]
    teacher = facts.get("origin", teacher)
    if teacher:
        words.append(f"{teacher['layers_num']} layers × {teacher['hidden_size']}" +
                     (f" to {facts['target_dim']} ({facts.get('strategy')})" if facts.get("target_dim") else ""))
    if "rows" in facts:
        words.append(f"{facts['processes']} × {facts['micro_steps']} × {facts['rows']} instances of {facts['seq']} "
                     f"tokens a step" + (", bfloat16" if facts.get("bf16") else ""))
    if "step" in run.card:
        words.append(f"newest checkpoint {Path(str(facts['output'])).name}-{run.card['step']}")
    return "; ".join(words) + "."


def figures_of(run: Run) -> dict[str, str]:
    """What a run came to, in words, by what it is; absent where a log does not say."""
    found: dict[str, str] = {"steps": f"{run.last_step:,}"}
    kind, line = ("held-out", run.dev[-1]) if run.dev else ("training", run.train[-1])
    found[f"{kind} loss"] = f"{line['loss']:.3f}"
    found[f"{kind} accuracy"] = f"{100 * line['accuracy']:.1f} %"
    if run.model:
        first, last = run.model[0], run.model[-1]
        sizes = sum(first["parameters"].values()), sum(last["parameters"].values())
        unit, word = figures.operation_unit(operations(first))
        found["parameters"] = change(*sizes, *((1e6, "M") if sizes[0] >= 1e6 else (1e3, "k")))
        found["operations a step"] = change(operations(first), operations(last), unit, f"{word}FLOP")
        if first.get("on_activations"):
            found["times cheaper than on activations"] = f"{first['on_activations'] / operations(last):.1f}"
    curve = run.curve("train", "seconds_per_step")
    if curve:
        early = figures.first_median(curve) if run.squeeze else figures.last_median(curve)
        found["time of a step"] = change(early, figures.last_median(curve), *((1, "s") if early >= 1 else (1e-3, "ms")))
    if run.squeeze:
        found["squeezed"] = f"step {run.squeeze[-1]['step']:,}"
    return found


def operations(line: dict[str, Any]) -> int:
    """All operations of a step, of a line of kind `model`."""
    return sum(line["operations"].values()) + line.get("composition", 0)


def change(before: float, after: float, unit: float, word: str) -> str:
    """`before → after word`, or one number where they read the same."""
    texts = [f"{number / unit:,.0f}" if number >= 1000 * unit else f"{number / unit:.3g}" for number in (before, after)]
    return " → ".join(dict.fromkeys(texts)) + f" {word}"


def tiles(run: Run) -> str:
    """The figures of one run."""
    boxes = (f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>'
             for what, value in figures_of(run).items() if what != "steps")
    return f'<div class="tiles">{"".join(boxes)}</div>'


def table(runs: Sequence[Run]) -> str:
    """A row for each run."""
    found = [figures_of(run) for run in runs]
    columns = list(dict.fromkeys(what for cells in found for what in cells))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("run", *columns))
    rows = "".join(
        f'<tr><td class="name" style="color:{drawing.colour_of(i)}">{html.escape(run.name)}</td>' +
        "".join(f"<td>{html.escape(cells.get(column, '-'))}</td>" for column in columns) + "</tr>"
        for i, (run, cells) in enumerate(zip(runs, found)))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
