"""run_glue.py's work: models × tasks, one table, a chart."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from contextlib import closing
from pathlib import Path
from typing import Any

from uer.arguments import check_writable, refuse_overwriting
from uer.cpu.denormals import flush_denormals
from uer.errors import UserError
from uer.files import read_object
from uer.finetuning.classify import ClassifierRun, model_facts, open_model, predictions_path, read_data
from uer.finetuning.grid import (
    Results,
    check_outputs,
    check_tuning_options,
    combinations,
    markdown,
    of,
    percent,
    spread,
    summary,
)
from uer.finetuning.options import TASKS
from uer.formats.storage import PendingFiles, write_json
from uer.report.writer import Reports

FORMAT = 1
UNCOUNTED = ("WNLI",)  # its dev data contradict its training data, so BERT's authors left it out of the average
NAMES = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews", "pearson": "Pearson", "spearman": "Spearman"}


def run_glue(args: argparse.Namespace, given: set[str]) -> dict[str, Any]:
    """finetune/run_glue.py with parsed options; returns what glue.json has."""
    flush_denormals()
    names = _check(args)
    tasks = _tasks(args)
    folder = Path(args.output_path)
    tables = [str(folder / name) for name in ("glue.json", "glue.md", "glue.png")]
    refuse_overwriting(args, {"output_path": tables})
    for path in tables:
        check_writable(path)
    before = folder / "glue.json"
    kept = read_object(before).get("models", {}) if args.resume and before.is_file() else {}
    columns = [one for one in TASKS if any(one in row for row in (tasks, *(model["tasks"] for model in kept.values())))]
    with closing(Reports(True, args.log_path)) as reports:
        data = {task: read_data(_options(args, task, 0, folder), args.predict) for task in tasks}
        check_models(args, given, names, tasks, folder)
        done: set[tuple[str, str]] = set()
        for task in tasks:
            for number, name in enumerate(names):
                reports.say(f"\n{task}, {name}")
                ClassifierRun(_options(args, task, number, folder / name), given, data[task], reports).run()
                done.add((name, task))
                found = collect(args, folder, names, done, kept)
                write(found, folder, columns)
        reports.say("\n" + table(found, columns))
        reports.say(f"written: {folder}/glue.md, glue.json" + (", glue.png" if can_plot() else ""))
        if not can_plot():
            reports.say("note: no glue.png, as matplotlib is not installed (pip install matplotlib)")
    return found


def _check(args: argparse.Namespace) -> list[str]:
    """All problems of the options at once; returns the models' names."""
    problems, paths = check_tuning_options(args), args.pretrained_model_path
    names = args.model_names or [Path(path).name.removesuffix(".bin") for path in paths]
    if len(names) != len(paths):
        problems.append(f"--model_names has {len(names)} names for {len(paths)} models")
    elif len(set(names)) < len(names) or any(name in ("", ".", "..") or "/" in name for name in names):
        problems.append(f"the models' names, {', '.join(names)}, must differ and fit as folder names; give "
                        f"--model_names")
    if problems:
        raise UserError("; ".join(problems))
    return names


def _tasks(args: argparse.Namespace) -> list[str]:
    """The tasks to run, in GLUE's order."""
    if not Path(args.data_dir).is_dir():
        raise UserError(f"--data_dir {args.data_dir}: no such folder; one with folders called {', '.join(TASKS[:3])}, "
                        f"… is needed")
    tasks = [task for task in TASKS if (task in args.tasks if args.tasks else (Path(args.data_dir) / task).is_dir())]
    if not tasks:
        raise UserError(f"--data_dir {args.data_dir}: none of the folders {', '.join(TASKS)} is in it")
    return tasks


def _options(args: argparse.Namespace, task: str, model: int, folder: Path) -> argparse.Namespace:
    """The options of run_classifier.py for one task and model."""
    changes = {"task": task, "data_dir": str(Path(args.data_dir) / task), "train_path": None, "dev_path": None,
               "test_path": None, "pretrained_model_path": args.pretrained_model_path[model],
               "output_model_path": str(folder / f"{task}.bin"),
               "prediction_path": str(folder / "submission") if args.predict else None}
    return argparse.Namespace(**{**vars(args), **changes})


def check_models(args: argparse.Namespace, given: set[str], names: list[str], tasks: list[str], folder: Path) -> None:
    """What can be known of every model before the first one is trained: weights, vocabulary, outputs, results so far.
    `UserError` for the first that does not do."""
    for number, name in enumerate(names):
        opened = open_model(_options(args, tasks[0], number, folder / name), given)
        for task in tasks:
            options = _options(args, task, number, folder / name)
            check_outputs(options, predictions=predictions_path(options))
            Results(options.output_model_path, model_facts(options.pretrained_model_path, opened.loaded), args.resume)


# -- results -----------------------------------------------------------------------------------------------------------


def collect(args: argparse.Namespace, folder: Path, names: list[str], done: set[tuple[str, str]],
            kept: dict[str, Any]) -> dict[str, Any]:
    """From the results files of the pairs (model, task) that are `done`: model -> task -> the best line of its grid,
    and the average over tasks; with what else the models of an earlier table have, `kept`."""
    grid, models = combinations(args), dict(kept)
    for name, path in zip(names, args.pretrained_model_path):
        same = name in kept and os.path.abspath(kept[name]["path"]) == os.path.abspath(path)
        found = dict(kept[name]["tasks"]) if same else {}
        for task in (task for task in TASKS if (name, task) in done):
            results = json.loads((folder / name / f"{task}.bin.results.json").read_text(encoding="utf-8"))
            runs = [run for run in results["runs"] if of(run) in grid]
            found[task] = max(summary(runs), key=lambda line: line["score"]["median"])
        models[name] = {"path": path, "tasks": {task: found[task] for task in TASKS if task in found},
                        "average": average(found)}
    return {"format": FORMAT, "models": models}


def average(found: dict[str, Any]) -> dict[str, float] | None:
    """Mean over the tasks of their scores: of the medians, the lowest and the highest."""
    counted = [line["score"] for task, line in found.items() if task not in UNCOUNTED]
    if not counted:
        return None
    return {key: statistics.mean(score[key] for score in counted) for key in spread([0.0])}


def table(found: dict[str, Any], tasks: list[str]) -> str:
    """A Markdown table: a line a model, a column a task; medians in percent."""
    models = found["models"]
    heads = []
    for task in tasks:
        line = next((model["tasks"][task] for model in models.values() if task in model["tasks"]), None)
        kinds = " / ".join(_spelled(figure) for figure in line["figures"]) if line else ""
        heads.append(f"{task} ({kinds})" if kinds else task)
    rows = []
    for name, model in models.items():
        cells = [" / ".join(f"{100 * figure['median']:.1f}" for figure in model["tasks"][task]["figures"].values())
                 if task in model["tasks"] else "–" for task in tasks]
        mean = model["average"]
        rows.append([name, *cells, f"{100 * mean['median']:.1f}" if mean else "–"])
    return markdown(["model", *heads, "average"], rows)


def _spelled(figure: str) -> str:
    split, _, metric = figure.rpartition(" ")
    return split or NAMES[metric]


def notes(found: dict[str, Any]) -> str:
    """What the table means, and its spread over seeds."""
    lines = ["Dev data; percent; best epoch; median over seeds for the best learning rate and batch size. A task's "
             "score is the mean of its figures, the average that of the tasks' scores"
             + (f" without {', '.join(UNCOUNTED)}." if any(task in model["tasks"] for task in UNCOUNTED
                                                           for model in found["models"].values()) else "."), ""]
    for name, model in found["models"].items():
        for task, line in model["tasks"].items():
            lines.append(f"- {name}, {task}: score {percent(line['score'])}, {len(line['seeds'])} seed(s), learning "
                         f"rate {line['learning_rate']:g}, batch {line['batch_size']}")
    return "\n".join(lines) + "\n"


def write(found: dict[str, Any], folder: Path, tasks: list[str]) -> None:
    """glue.md, glue.json and glue.png: all of them or none."""
    with PendingFiles() as pending:
        write_json(found, pending.add(folder / "glue.json"))
        pending.add(folder / "glue.md").write_text(table(found, tasks) + "\n" + notes(found), encoding="utf-8")
        if can_plot():
            from uer.finetuning.chart import plot

            plot(pending.add(folder / "glue.png"), found, tasks)
        pending.publish()


def can_plot() -> bool:
    return importlib.util.find_spec("matplotlib") is not None
