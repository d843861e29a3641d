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
from uer.report.results import Table, read_tables
from uer.report.story import figures_of, story, verdict

PNG_DPI = 144


class Section(NamedTuple):
    """A part of the page: the PNG's name, its heading, what the picture shows, and how it is drawn."""

    key: str
    heading: str
    words: str
    draw: Callable[[Sequence[Run]], Any]


SECTIONS = (
    Section("learning", "Loss and accuracy",
            "Mean loss, and the share of masked tokens predicted right; without labels, what the run was judged by.",
            figures.learning),
    Section("dimensions", "Dimensions kept",
            "Masks push dimensions out by a schedule; once their compactor entries have decayed, a group is squeezed: "
            "they leave for good (dashed).", figures.dimensions),
    Section("norms", "Column norms",
            "The norms that score the dimensions, sorted at each mask update, largest at the bottom, means of the "
            "layers. What is blank is gone: a sharp edge means that the choice is clear.", figures.norms),
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
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2530; --soft: #4c5763; --faint: #69737f; --edge: #e3e7eb;
        --code: #f2f4f6; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14181d; --ink: #e4e8ec; --soft: #b3bcc6; --faint: #929ca7; --edge: #333b44; --code: #20262d; }
  img { filter: invert(1) hue-rotate(180deg); mix-blend-mode: screen; }
  td.name { filter: brightness(1.5); }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 "DejaVu Sans", Verdana, sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 36px 28px 64px; }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 44px 0 2px; padding-top: 18px; border-top: 1px solid var(--edge); }
p { margin: 0 0 10px; max-width: 78ch; }
.words { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 8px 18px; margin: 20px 0 0; max-width: 92ch; }
dt { color: var(--faint); }
dd { margin: 0; overflow-wrap: anywhere; }
code { display: block; background: var(--code); border-radius: 5px; padding: 4px 8px; font-size: 13px; }
code span { display: inline-block; max-width: 100%; margin-right: 1ch; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 24px 0 4px; }
.tile { flex: 1 1 150px; border: 1px solid var(--edge); border-radius: 8px; padding: 10px 14px 12px; }
.tile b { display: block; font-size: 20px; line-height: 1.35; white-space: nowrap; }
.tile span { color: var(--soft); font-size: 12.5px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 22px 0 4px; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--edge); vertical-align: baseline; }
th { font-weight: 600; color: var(--soft); }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td, .results th { white-space: nowrap; }
td.name { font-weight: 600; }
img { display: block; max-width: 100%; height: auto; margin: 10px 0 0; }
footer { margin-top: 48px; color: var(--faint); font-size: 12.5px; }
@media (max-width: 700px) {
  main { padding: 22px 16px 48px; }
  dl { grid-template-columns: 1fr; gap: 2px; }
  dd { margin-bottom: 10px; }
  .tile { flex-basis: 120px; }
  img { max-width: none; width: 660px; }
}
"""


def write_report(paths: Sequence[str], names: Sequence[str] | None = None, mask_paths: Sequence[str] | None = None,
                 output: str | None = None, results: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """Write report.html and the PNGs; returns the path of the page, and how good each run came out.

    Args:
        paths: the runs' --tb_path folders.
        names: what to call them; None: the ends of their paths.
        mask_paths: their mask files; None: those that the logs name.
        output: the folder; None: `report` in the only run's folder, or in the current one.
        results: JSON files of run_glue.py and evaluate.py, to be shown as tables.
    Raises:
        UserError: logs that cannot be read, options that do not fit together, a folder that cannot be written.
    """
    for option, given in (("--names", names), ("--mask_path", mask_paths)):
        if given is not None and len(given) != len(paths):
            raise UserError(f"{option} has {len(given)} values for {len(paths)} runs; one for each is needed")
    runs = [read_run(path, name, masks) for path, name, masks in
            zip(paths, names or names_for(paths), mask_paths or len(paths) * (None,))]
    tables = read_tables(list(results))
    first = Path(paths[0]) if Path(paths[0]).is_dir() else Path(paths[0]).parent
    folder = Path(output) if output else (first / "report" if len(runs) == 1 else Path("report"))
    pictures: dict[str, str] = {}
    with PendingFiles() as pending, drawing.style():
        for section in SECTIONS:
            figure = section.draw(runs)
            if figure is None:
                continue
            figure.savefig(pending.add(folder / f"{section.key}.png"), dpi=PNG_DPI, format="png", bbox_inches="tight")
            text = io.BytesIO()
            figure.savefig(text, format="svg", bbox_inches="tight", dpi=PNG_DPI, metadata={"Date": None})
            pyplot.close(figure)
            pictures[section.key] = base64.b64encode(text.getvalue()).decode()
        pending.add(folder / "report.html").write_text(page(runs, pictures, tables), encoding="utf-8")
        pending.publish()
    return folder / "report.html", [(f"{run.name}: " if len(runs) > 1 else "") + verdict(run) for run in runs]


# -- words -------------------------------------------------------------------------------------------------------------


def page(runs: Sequence[Run], pictures: dict[str, str], tables: Sequence[Table] = ()) -> str:
    """The HTML.
    `pictures`: key of a section -> SVG in base64."""
    title = "Run " + runs[0].name if len(runs) == 1 else f"{len(runs)} runs: " + ", ".join(run.name for run in runs)
    top = told(runs[0]) + tiles(runs[0]) if len(runs) == 1 else table(runs)
    top += "".join(results_table(one) for one in tables)
    parts = [f'<section id="{x.key}"><h2>{x.heading}</h2><p class="words">{x.words}</p>'
             f'<div class="scroll"><img alt="{x.heading}" src="data:image/svg+xml;base64,{pictures[x.key]}"></div>'
             f'</section>' for x in SECTIONS if x.key in pictures]
    return (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<link rel="icon" href="data:,">\n'
            f"<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
            f"<h1>{html.escape(title)}</h1>\n{top}\n" + "\n".join(parts) +
            "\n<footer>Made by uer.report. The pictures are beside this page as PNGs.</footer>\n</main>\n</body>\n"
            "</html>\n")


def told(run: Run) -> str:
    """A run's story, the command at its end as it is to be typed."""
    lines = []
    for question, answer in story(run).items():
        text = html.escape(answer)
        if question == "Next" and answer == run.following:
            text = "<code>" + " ".join(f"<span>{word}</span>" for word in text.split()) + "</code>"
        lines.append(f"<dt>{question}</dt><dd>{text}</dd>")
    return f'<dl>{"".join(lines)}</dl>'


def results_table(found: Table) -> str:
    head = "".join(f"<th>{html.escape(column)}</th>" for column in found.columns)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in found.rows)
    return (f'<h2>{html.escape(found.title)}</h2><div class="scroll"><table class="results"><thead><tr>{head}</tr>'
            f"</thead><tbody>{rows}</tbody></table></div>")


def tiles(run: Run) -> str:
    boxes = (f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(what)}</span></div>'
             for what, value in figures_of(run).items() if what != "steps")
    return f'<div class="tiles">{"".join(boxes)}</div>'


def table(runs: Sequence[Run]) -> str:
    found = [figures_of(run) for run in runs]
    columns = list(dict.fromkeys(what for cells in found for what in cells))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in ("run", *columns))
    rows = "".join(
        f'<tr><td class="name" style="color:{drawing.colour_of(i)}">{html.escape(run.name)}</td>' +
        "".join(f"<td>{html.escape(cells.get(column, '-'))}</td>" for column in columns) + "</tr>"
        for i, (run, cells) in enumerate(zip(runs, found)))
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
