"""Runs over learning rates × batch sizes × seeds, a results file that grows with each, a table at the end.

`--resume` takes over every run that the results file has. A run leaves nothing behind until it is finished, and its
course follows from its seed, so one that was interrupted begins again and ends as it would have.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uer.arguments import check_ending, check_writable, no_shares, not_from_zero, refuse_overwriting, too_small
from uer.errors import UserError
from uer.files import as_written, read_object
from uer.finetuning.tuning import Clock, Combination, Outcome, Problem, Settings, in_words, tune
from uer.formats.storage import PendingFiles, read_tensors, tensors_sha256, write_json
from uer.made_from import differences
from uer.report.writer import Reports
from uer.training.precision import slow_products

FORMAT = 1
NEWER: dict[str, Any] = {"group_by_length": False}  # facts that files of before do not say, as they were then
Keep = Callable[[Outcome, Combination, PendingFiles], None]


def check_tuning_options(args: argparse.Namespace) -> list[str]:
    """What is wrong with the options of `add_tuning_options`, in words."""
    return [*too_small(args, ("epochs_num", "batch_size", "report_steps")), *not_from_zero(args, ("learning_rate",)),
            *no_shares(args, ("warmup", "weight_decay")), *no_shares(args, ("dropout",), 0.999),
            *no_shares(args, ("max_grad_norm",), 1e9)]


def follow_link(args: argparse.Namespace) -> None:
    """Let --output_model_path, where it is a link with nothing beside it, be what it leads to: that is written, and
    what goes beside it there."""
    if Path(args.output_model_path).is_symlink():
        args.output_model_path = str(as_written(args.output_model_path))


def check_outputs(args: argparse.Namespace, *endings: str, predictions: str | None = None) -> None:
    """`UserError` where the model, or a file that is written beside it, cannot be written or is read as well; or the
    log, or a file of predictions."""
    check_ending(args.output_model_path)
    model = [f"{args.output_model_path}{ending}" for ending in ("", ".json", ".results.json", *endings)]
    refuse_overwriting(args, {"output_model_path": model, "log_path": [args.log_path],
                              "prediction_path": [predictions]})
    for path in filter(None, (*model, predictions)):
        check_writable(path)
    if args.log_path:
        check_writable(args.log_path, whole=False)


def combinations(args: argparse.Namespace) -> list[Combination]:
    """The grid, seeds innermost."""
    seeds = args.seeds or [args.seed]
    return [Combination(rate, size, seed) for rate in dict.fromkeys(args.learning_rate)
            for size in dict.fromkeys(args.batch_size) for seed in dict.fromkeys(seeds)]


class Results:
    """The results file: what the runs share (`facts`) and the runs that are finished.

    Args:
        output: the model's path; `<output>.results.json` is written whole after every run.
        resume: begin with the runs that the file has.
    Raises:
        UserError: a file that cannot be read, that of other runs, or without the model that goes with it.
    """

    def __init__(self, output: str, facts: dict[str, Any], resume: bool):
        self.path, self.facts = f"{output}.results.json", json.loads(json.dumps(facts))
        self.runs: list[dict[str, Any]] = []
        check_writable(output)
        if resume and Path(self.path).exists():
            self.runs = self._read()
            kept = self.best.get("weights_sha256") if self.best else None
            there = Path(output).is_file() and Path(f"{output}.json").is_file()
            if not there or kept not in (None, tensors_sha256(read_tensors(output))):
                raise UserError(f"--resume: {self.path} is there, but {output} with its .json is not the best model of "
                                f"its runs; leave --resume out to begin anew")

    def _read(self) -> list[dict[str, Any]]:
        try:
            data = read_object(self.path, "--resume:")
            found, runs = {**NEWER, **data["facts"]}, list(data["runs"])
            for run in runs:
                of(run), float(run["score"]), dict(run["figures"]), int(run["best_epoch"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume: {self.path} is no results file ({error}); leave --resume out to begin "
                            f"anew") from None
        names = {key: key for key in self.facts if key != "pretrained_model_path"}  # whose weights count
        if differ := differences(found, self.facts, names):
            raise UserError(f"--resume: {self.path} has other runs: " + "; ".join(differ) + "; leave --resume out to "
                            "begin anew, or take another --output_model_path")
        return runs

    def find(self, combination: Combination) -> dict[str, Any] | None:
        return next((run for run in self.runs if of(run) == combination), None)

    def add(self, combination: Combination, outcome: Outcome, pending: PendingFiles) -> None:
        self.runs.append({**combination._asdict(), **outcome.to_dict(),
                          "weights_sha256": tensors_sha256(outcome.weights)})
        data = {"format": FORMAT, "facts": self.facts, "runs": self.runs, "table": summary(self.runs)}
        write_json(data, pending.add(self.path))

    @property
    def best(self) -> dict[str, Any] | None:
        """The run with the highest score, the first of equals."""
        return max(self.runs, key=lambda run: run["score"], default=None)


def of(run: dict[str, Any]) -> Combination:
    """A run's combination."""
    return Combination(run["learning_rate"], run["batch_size"], run["seed"])


def run_grid(grid: Sequence[Combination], results: Results, make: Callable[[int], nn.Module], problem: Problem,
             settings: Settings, device: torch.device, reports: Reports, keep: Keep) -> dict[str, Any]:
    """All runs of a grid that are not finished yet.

    Args:
        make: seed -> the model at its start.
        keep: called with every run that is better than all before it; what it writes appears as the run is recorded.
    Returns:
        the best run, as the results file has it.
    """
    waiting = [combination for combination in grid if results.find(combination) is None]
    if len(waiting) < len(grid):
        reports.say(f"{len(grid) - len(waiting)} of {len(grid)} runs are finished already")
    for warning in slow_products(settings.half, device):
        reports.say(warning)
    clock = Clock(len(waiting))
    for combination in waiting:
        spoken = f"{combination.words} | " if len(grid) > 1 else ""
        outcome = tune(make(combination.seed), problem, combination, settings, device, reports, spoken, clock.left)
        with PendingFiles() as pending:  # all of it together: a results file that knows of another model is no use
            if results.best is None or outcome.score > results.best["score"]:
                keep(outcome, combination, pending)
            results.add(combination, outcome, pending)
            pending.publish()
        clock.done += 1
    best = results.best
    assert best is not None
    chosen = [run for run in results.runs if of(run) in grid]
    if len(grid) > 1:
        reports.say("\n" + table(summary(chosen)))
    reports.say(f"best: {of(best).words}, epoch {best['best_epoch']}: {in_words(best['figures'])}")
    return best


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each learning rate and batch size: figure -> median, lowest and highest over its seeds."""
    lines: dict[tuple[float, int], list[dict[str, Any]]] = {}
    for run in runs:
        lines.setdefault((run["learning_rate"], run["batch_size"]), []).append(run)
    return [{"learning_rate": rate, "batch_size": size, "seeds": [run["seed"] for run in group],
             "score": spread([run["score"] for run in group]),
             "figures": {name: spread([run["figures"][name] for run in group]) for name in group[0]["figures"]}}
            for (rate, size), group in lines.items()]


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def table(lines: Sequence[dict[str, Any]]) -> str:
    """A Markdown table of `summary`: medians in percent, lowest and highest behind them; the best line has a star."""
    best = max(line["score"]["median"] for line in lines)
    head = ["learning rate", "batch", "seeds", *lines[0]["figures"], ""]
    rows = [[f"{line['learning_rate']:g}", str(line["batch_size"]), str(len(line["seeds"])),
             *(percent(figure) for figure in line["figures"].values()),
             "*" if line["score"]["median"] == best else ""] for line in lines]
    return markdown(head, rows)


def percent(figure: dict[str, float]) -> str:
    """`median (lowest to highest)` in percent, or the value alone where they are equal."""
    text = f"{100 * figure['median']:.2f}"
    if figure["lowest"] == figure["highest"]:
        return text
    return f"{text} ({100 * figure['lowest']:.2f} to {100 * figure['highest']:.2f})"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with aligned columns, the first to the left, the others to the right."""
    cells = [head, *rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(head))]
    lines = ["| " + " | ".join(text.ljust(width) if i == 0 else text.rjust(width)
                               for i, (text, width) in enumerate(zip(line, widths))) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 2) if i == 0 else "-" * (width + 1) + ":"
                          for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
