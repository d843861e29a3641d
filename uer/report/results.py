"""Tables of what was found after a run: GLUE and other figures that scripts left as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from uer.errors import UserError
from uer.files import read_object


class Table(NamedTuple):
    """A heading, the columns' names, and rows of cells."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def read_tables(paths: list[str]) -> list[Table]:
    """A table for each glue.json of run_glue.py, and one for the JSON files of evaluate.py together.
    `UserError` for a file that is neither."""
    tables, figures = [], {}
    for path in paths:
        found = read_object(path, "--results")
        if isinstance(found.get("models"), dict):
            tables.append(_glue(path, found["models"]))
        else:
            figures[Path(path).stem] = _numbers(found, path)
    if figures:
        columns = list(dict.fromkeys(name for row in figures.values() for name in row))
        tables.append(Table("Evaluated", ["", *(column.replace("_", " ") for column in columns)],
                            [[name, *(_written(row.get(column)) for column in columns)]
                             for name, row in figures.items()]))
    return tables


def _glue(path: str, models: dict[str, Any]) -> Table:
    """A row a model, a column a task: medians in percent."""
    try:
        tasks = list(dict.fromkeys(task for model in models.values() for task in model["tasks"]))
        rows = [[name, *(_percent(model["tasks"].get(task, {}).get("score")) for task in tasks),
                 _percent(model["average"])] for name, model in models.items()]
    except (KeyError, TypeError, AttributeError):
        raise UserError(f"--results {path}: not the glue.json of run_glue.py") from None
    return Table("GLUE, dev data", ["model", *tasks, "average"], rows)


def _percent(score: dict[str, float] | None) -> str:
    return f"{100 * score['median']:.1f}" if score else "–"


def _numbers(found: dict[str, Any], path: str) -> dict[str, float]:
    """The numbers in a JSON object, of objects in it as well."""
    out: dict[str, float] = {}
    for name, value in found.items():
        if isinstance(value, dict):
            out |= {f"{name} {inner}": number for inner, number in _numbers(value, path).items()}
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            out[name] = value
    if not out:
        raise UserError(f"--results {path}: no figures in it; the JSON of run_glue.py or evaluate.py is needed")
    return out


def _written(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"
