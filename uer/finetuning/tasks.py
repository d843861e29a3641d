"""Tasks: what GLUE's files look like, what their labels are, how they are scored; and UER's own TSV.

GLUE as distributed (Wang et al. 2019): a folder a task with train.tsv, dev.tsv and test.tsv, tab-separated, nothing
quoted. The order of labels is fixed, so that class numbers mean the same in every file and program.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError
from uer.finetuning.tsv import Table

BROKEN_SHARE = 1e-3  # of a file's lines may be broken where that is known of the published file


class Example(NamedTuple):
    """One or two texts and the label: a class number, a score, or None where it is not known."""

    text_a: str
    text_b: str | None
    label: float | int | None


@dataclass(frozen=True)
class Split:
    """The examples of a file.

    Attributes:
        name: in reports; "" for the only one of its kind.
        submission: GLUE's name for the predictions.
        note: what a user should know of the file.
    """

    name: str
    examples: list[Example]
    submission: str = ""
    note: str = ""


@dataclass(frozen=True)
class Task:
    """A classification task (or with `labels` empty a regression).

    Attributes:
        labels: their names in files; the position is the class number.
        texts: columns of the text or texts.
        label: column of the label.
        metrics: their names in `uer.finetuning.metrics`; their mean is the task's score.
        dev: (name of the split, file) of each; test: with GLUE's name for the predictions ("": the task's).
        bare: columns of training and dev files that have no header.
        range: of a regression's score.
        broken_lines: the published file is known to have some lines with too few columns; they are left out.
    """

    name: str
    labels: tuple[str, ...]
    texts: tuple[str, ...]
    label: str = "label"
    metrics: tuple[str, ...] = ("accuracy",)
    dev: tuple[tuple[str, str], ...] = (("", "dev.tsv"),)
    test: tuple[tuple[str, str, str], ...] = (("", "test.tsv", ""),)
    bare: dict[str, int] | None = None
    range: tuple[float, float] = (0.0, 5.0)
    broken_lines: bool = False

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def outputs(self) -> int:
        """Numbers that a model gives for an example."""
        return max(1, len(self.labels))

    def label_of(self, text: str, where: str) -> float | int:
        """Class number or score of a label as it stands in a file."""
        if self.labels:
            if text not in self.labels:
                raise UserError(f"{where}: label {text!r} is unknown; one of {', '.join(self.labels)} is needed")
            return self.labels.index(text)
        low, high = self.range
        try:
            score = float(text)
        except ValueError:
            score = float("nan")
        if not low <= score <= high:
            raise UserError(f"{where}: score {text!r}; a number from {low:g} to {high:g} is needed")
        return score


MNLI_DEV = (("matched", "dev_matched.tsv"), ("mismatched", "dev_mismatched.tsv"))
DIAGNOSTIC = "diagnostic.tsv"  # GLUE's, answered by the model of MNLI, where the file is there
MNLI_TEST = (("matched", "test_matched.tsv", "MNLI-m"), ("mismatched", "test_mismatched.tsv", "MNLI-mm"),
             ("diagnostic", DIAGNOSTIC, "AX"))
PAIR = ("sentence1", "sentence2")
ENTAILED = ("entailment", "not_entailment")
BINARY = ("0", "1")

GLUE = {task.name: task for task in (
    Task("CoLA", BINARY, ("sentence",), metrics=("matthews",), bare={"label": 1, "sentence": 3}),
    Task("SST-2", BINARY, ("sentence",)),
    Task("MRPC", BINARY, ("#1 String", "#2 String"), "Quality", ("f1", "accuracy")),
    Task("STS-B", (), PAIR, "score", ("pearson", "spearman")),
    Task("QQP", BINARY, ("question1", "question2"), "is_duplicate", ("f1", "accuracy"), broken_lines=True),
    Task("MNLI", ("contradiction", "entailment", "neutral"), PAIR, "gold_label", dev=MNLI_DEV, test=MNLI_TEST),
    Task("QNLI", ENTAILED, ("question", "sentence")),
    Task("RTE", ENTAILED, PAIR),
    Task("WNLI", BINARY, PAIR),
)}


def read_glue(task: Task, folder: str | Path, kind: str) -> list[Split]:
    """The files of a task.

    Args:
        kind: `train`, `dev` or `test`; the last has no labels.
    Raises:
        UserError: a file that is absent or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--data_dir {folder}: no such folder; GLUE's {task.name} is a folder with train.tsv, dev.tsv "
                        f"and test.tsv")
    if kind == "train":
        return [_read(task, folder / "train.tsv", True)]
    if kind == "dev":
        return [_read(task, folder / file, True, name) for name, file in task.dev]
    return [_read(task, folder / file, False, name, submission or task.name) for name, file, submission in task.test
            if file != DIAGNOSTIC or (folder / file).exists()]


def _read(task: Task, path: Path, labelled: bool, name: str = "", submission: str = "") -> Split:
    table = Table(path, task.bare if labelled else None)
    columns = (*task.texts, task.label) if labelled else task.texts
    table.require(*columns)
    skip: list[int] = table.short_rows(*columns) if task.broken_lines else []
    if len(skip) > BROKEN_SHARE * len(table.rows):
        skip = []  # too many to be the published ones: the first is named
    note = f"{path}: left out {len(skip)} line(s) with too few columns, the first is line {skip[0]}" if skip else ""
    out = []
    for number, fields in table.select(*columns, skip=frozenset(skip)):
        label = task.label_of(fields.pop(), f"{path}, line {number}") if labelled else None
        out.append(Example(fields[0], fields[1] if len(fields) > 1 else None, label))
    return Split(name, out, submission, note)


# -- UER's TSV ---------------------------------------------------------------------------------------------------------


def uer_task(paths: Sequence[str | Path]) -> Task:
    """The task of UER's files (header `label text_a [text_b]`): the labels are those of the first file, sorted.

    Raises:
        UserError: a malformed file, or fewer than two labels.
    """
    table = Table(paths[0])
    table.require("label", "text_a")
    found = {fields[0] for _, fields in table.select("label")}
    if len(found) < 2:
        raise UserError(f"{paths[0]}: all lines have the label {next(iter(found))!r}; at least two labels are needed")
    numbers = all(label.isdecimal() and label.isascii() for label in found)
    return Task("", tuple(sorted(found, key=int) if numbers else sorted(found)), ("text_a", "text_b"),
                metrics=("accuracy", "macro_f1"))


def read_uer(task: Task, path: str | Path, labelled: bool | None = True) -> list[Example]:
    """The examples of a UER file. `labelled` None: with labels where the file has them.

    Raises:
        UserError: a malformed file, or a label that the task has not.
    """
    table = Table(path)
    if labelled is None:
        labelled = "label" in table.columns
    texts = [name for name in task.texts if name in table.columns]
    columns = [*texts, *(["label"] if labelled else [])]
    table.require("text_a", *columns)
    out = []
    for number, fields in table.select(*columns):
        label = task.label_of(fields.pop(), f"{path}, line {number}") if labelled else None
        out.append(Example(fields[0], fields[1] if len(fields) > 1 else None, label))
    return out
