#!/usr/bin/env python3
"""Tables and pictures of what run.py has found, from files alone.

    python3 experiments/show.py --work_path work         # takes a work folder's figures over into experiments/results
    python3 experiments/show.py                          # draws what is in experiments/results

The folder has runs.jsonl, a line a student with its curve; glue.jsonl, a line a fine-tuning run; tables.md; curves.png
and glue.png. Figures that are there already and have the same name are replaced.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.methods import METHODS
from uer.errors import UserError, run_script
from uer.finetuning.grid import markdown

Line = dict[str, Any]
TEACHER = "teacher"
ORDER = {method.name: number for number, method in enumerate(METHODS)}
TASKS = ("SST-2", "STS-B", "MRPC", "CoLA", "RTE")


# -- files -------------------------------------------------------------------------------------------------------------


def read(file: Path) -> list[Line]:
    """The lines of a file; none where there is none."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


def merged(old: Iterable[Line], new: Iterable[Line], keys: Sequence[str]) -> list[Line]:
    """All lines, of those with the same keys the last."""
    return list({tuple(line[key] for key in keys): line for line in (*old, *new)}.values())


def collect(work: Path, results: Path) -> None:
    """Take the figures of a work folder over."""
    rows = [json.loads(file.read_text()) for file in sorted((work / "rows").glob("*.json"))]
    if not rows:
        raise UserError(f"--work_path {work}: no rows in there; run.py makes them")
    tuned = [{"name": file.parent.name, "task": file.name.split(".")[0],
              **{key: run[key] for key in ("learning_rate", "seed", "score", "figures", "seconds")}}
             for file in sorted((work / "glue").glob("*/*/*/*.results.json"))
             for run in json.loads(file.read_text())["runs"]]
    results.mkdir(parents=True, exist_ok=True)
    for name, new, keys in (("runs.jsonl", rows, ("name",)),
                            ("glue.jsonl", tuned, ("name", "task", "learning_rate", "seed"))):
        lines = merged(read(results / name), new, keys)
        (results / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# -- tables ------------------------------------------------------------------------------------------------------------


def best_runs(runs: Iterable[Line], tuned: Iterable[Line] = ()) -> list[list[Line]]:
    """The runs of each student at the rate that is best under its first seed: a list a row, in the order of METHODS.

    Best by held-out loss, of students without a trained head by what they are worth on the tasks that all have.
    """
    found = scores(tuned)
    rows: dict[tuple, dict[str, list[Line]]] = {}
    for run in runs:
        if run["name"] != TEACHER and run["method"] in ORDER:
            key = (-run["target"], run["steps"], ORDER[run["method"]])
            rows.setdefault(key, {}).setdefault(run["rate"], []).append(run)

    def first(same: list[Line]) -> Line:
        return min(same, key=lambda run: run["seed"])

    def best(rates: list[list[Line]]) -> list[Line]:
        if first(rates[0])["loss"] is not None:
            return min(rates, key=lambda same: first(same)["loss"])
        judged = {name: found[name] for same in rates if (name := first(same)["name"]) in found}
        tasks = shared(judged)
        worth = {name: mean_score(of, tasks) or 0.0 for name, of in judged.items()}
        return max(rates, key=lambda same: worth.get(first(same)["name"], 0.0))

    return [best(list(rows[key].values())) for key in sorted(rows)]


def mlm_table(runs: Sequence[Line], tuned: Sequence[Line] = ()) -> str:
    """Held-out figures of every student."""
    teacher = next(run for run in runs if run["name"] == TEACHER)
    lines = [["teacher", "", "", "", f"{teacher['parameters'] / 1e6:.1f} M", f"{teacher['loss']:.3f}",
              f"{100 * teacher['accuracy']:.1f}", "100", "", ""]]
    for same in best_runs(runs, tuned):
        one = same[0]
        if one["accuracy"] is None:
            figures = ["", "", ""]
        else:
            values = [100 * run["accuracy"] for run in same]
            figures = [f"{statistics.mean(run['loss'] for run in same):.3f}", spread(values),
                       f"{statistics.mean(values) / teacher['accuracy']:.1f}"]
        operations = one["curve"][-1]["operations"] if one["curve"] else 0.0
        lines.append([f"{one['target']}: {one['method']}", f"{one['steps']:,}", one["rate"], str(len(same)),
                      f"{one['parameters'] / 1e6:.1f} M", *figures, f"{operations / 1e12:,.0f}",
                      f"{one['elapsed']:,.0f}"])
    return markdown(["student", "steps", "rate", "seeds", "parameters", "MLM loss", "accuracy %", "of the teacher's %",
                     "TFLOP", "seconds"], lines)


def spread(values: Sequence[float]) -> str:
    """The mean, and the lowest and highest of several."""
    several = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{several}"


def scores(tuned: Iterable[Line]) -> dict[str, dict[str, list[float]]]:
    """Model -> task -> scores in percent, a seed each, at the rate with the best median."""
    found: dict[str, dict[str, dict[float, list[float]]]] = {}
    for run in tuned:
        found.setdefault(run["name"], {}).setdefault(run["task"], {}).setdefault(run["learning_rate"], []).append(
            100 * run["score"])
    return {name: {task: max(rates.values(), key=lambda seeds: (len(seeds), statistics.median(seeds)))
                   for task, rates in tasks.items()} for name, tasks in found.items()}


def shared(found: dict[str, dict[str, list[float]]]) -> list[str]:
    """The tasks on which every model has been fine-tuned: what a mean is taken over."""
    return [task for task in TASKS if all(task in tasks for tasks in found.values())]


def mean_score(tasks: dict[str, list[float]], counted: Sequence[str]) -> float | None:
    """Mean over some tasks of the medians; None where there is none."""
    return None if not counted else statistics.mean(statistics.median(tasks[task]) for task in counted)


def titles(runs: Sequence[Line], tuned: Sequence[Line]) -> dict[str, str]:
    """Name of a run -> what it is called, the teacher first, then in the order of the table."""
    found = {TEACHER: TEACHER}
    for same in best_runs(runs, tuned):
        run = same[0]
        steps = f", {run['steps']:,}" if run["steps"] else ""
        found[run["name"]] = f"{run['target']}: {run['method']}{steps}"
    return found


def glue_table(runs: Sequence[Line], tuned: Sequence[Line]) -> str:
    """Scores after fine-tuning: median, lowest and highest of the seeds."""
    found, names = scores(tuned), titles(runs, tuned)
    tasks = [task for task in TASKS if any(task in model for model in found.values())]
    common = shared(found)
    teacher = mean_score(found[TEACHER], common) if TEACHER in found else None
    lines = []
    for name, title in names.items():
        if name not in found:
            continue
        cells = [median(found[name][task]) if task in found[name] else "" for task in tasks]
        mean = mean_score(found[name], common)
        share = f"{100 * mean / teacher:.1f}" if mean is not None and teacher else ""
        lines.append([title, *cells, "" if mean is None else f"{mean:.1f}", share])
    return markdown(["model", *tasks, f"mean of {', '.join(common) or 'none'}", "of the teacher's %"], lines)


def median(values: Sequence[float]) -> str:
    """The median, and the lowest and highest of several."""
    several = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.1f}{several}"


# -- the script --------------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                  allow_abbrev=False)
    out.add_argument("--work_path", nargs="*", default=[], type=Path, metavar="FOLDER", help="of run.py")
    out.add_argument("--results_path", type=Path, default=Path(__file__).with_name("results"), metavar="FOLDER",
                     help="default: experiments/results")
    return out


def main() -> None:
    """Collect, write the tables, draw."""
    args = parser().parse_args()
    for work in args.work_path:
        collect(work, args.results_path)
    runs, tuned = read(args.results_path / "runs.jsonl"), read(args.results_path / "glue.jsonl")
    if not any(run["name"] == TEACHER for run in runs):
        raise UserError(f"--results_path {args.results_path}: runs.jsonl has no line of the teacher")
    text = mlm_table(runs, tuned) + ("\n" + glue_table(runs, tuned) if tuned else "")
    (args.results_path / "tables.md").write_text(text, encoding="utf-8")
    print(text, end="")
    try:
        from experiments.figures import curves, glue
    except ImportError:
        print("no pictures: the package matplotlib is not installed")
        return
    curves(args.results_path / "curves.png", runs)
    if tuned:
        glue(args.results_path / "glue.png", runs, tuned)


if __name__ == "__main__":
    run_script(main)
