"""Tasks: what GLUE's files look like, what their labels are, how they are scored; and UER's own TSV.

GLUE as distributed (Wang et al. 2019): a folder a task with train.tsv, dev.tsv and test.tsv, tab-separated, nothing
quoted. The order of labels is fixed, so that class numbers mean the same in every file and program.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

from uer.errors import UserError
from uer.finetuning.tsv import Table

BROKEN_SHARE = 1e-3  # of a file's lines may be broken where that is known of the published file
SHOWN = 10  # labels in a message
MISSING = ("nan", "none", "null", "na", "n/a", "<na>")  # among numbers no label, but the lack of one
WHOLE = re.compile(r"0|-?[1-9][0-9]{0,17}")
NUMBER = re.compile(r"[+-]?([0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})([eE][+-]?[0-9]{1,3})?")


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
        flawed: the published files are known to have a few lines with too few columns, which are left out of training
            and dev data, and a few empty texts, which are read as they are; both are told.
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
    flawed: bool = False

    @property
    def regression(self) -> bool:
        return not self.labels

    @property
    def outputs(self) -> int:
        """Numbers that a model gives for an example."""
        return max(1, len(self.labels))

    def label_of(self, text: str, where: str) -> float | int:
        """Class number or score of a label as it stands in a file, blanks around it apart."""
        text = text.strip()
        if self.labels:
            if text not in self.labels:
                raise UserError(f"{where}: label {text!r} is unknown; one of {', '.join(self.labels)} is needed")
            return self.labels.index(text)
        low, high = self.range
        score = float(text) if NUMBER.fullmatch(text) else float("nan")
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
    Task("QQP", BINARY, ("question1", "question2"), "is_duplicate", ("f1", "accuracy"), flawed=True),
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
        UserError: a file that is absent (of several dev files: all) or malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"--data_dir {folder}: no such folder; GLUE's {task.name} is a folder with train.tsv, dev.tsv "
                        f"and test.tsv")
    if kind == "train":
        return [_read(task, folder / "train.tsv", True)]
    if kind == "dev":
        there = [(name, file) for name, file in task.dev if (folder / file).exists()]  # of MNLI's two, one will do
        return [_read(task, folder / file, True, name) for name, file in there or task.dev]
    return [_read(task, folder / file, False, name, submission or task.name) for name, file, submission in task.test
            if file != DIAGNOSTIC or (folder / file).exists()]


def _read(task: Task, path: Path, labelled: bool, name: str = "", submission: str = "") -> Split:
    table = Table(path, task.bare if labelled else None)
    known = task.flawed and labelled  # test files lose no rows
    short = [row.number for row in table.rows if known and len(row.fields) < table.width]
    if len(short) > BROKEN_SHARE * len(table.rows):
        short = []  # too many to be the published ones: the first is named
    examples, empty = _examples(table, task, labelled, short)
    notes = [f"{path}: {what} {len(lines)} line(s){why}, the first is line {lines[0]}"
             for what, lines, why in (("left out", short, " with too few columns"), ("an empty text in", empty, ""))
             if lines]
    return Split(name, examples, submission, "; ".join(notes))


def _examples(table: Table, task: Task, labelled: bool, skip: Sequence[int] = ()) -> tuple[list[Example], list[int]]:
    """The rows as examples, and the numbers of the lines with an empty text, where the task may have such."""
    columns = (*task.texts, task.label) if labelled else task.texts
    table.require(*columns)
    out, empty = [], []
    for number, fields in table.select(*columns, skip=frozenset(skip)):
        where = f"{table.path}, line {number}"
        label = task.label_of(fields.pop(), where) if labelled else None
        blank = [name for name, text in zip(task.texts, fields) if not text.strip()]
        if blank and not task.flawed:
            raise UserError(f"{where}: {blank[0]} is empty; a text is needed")
        if blank:
            empty.append(number)
        out.append(Example(fields[0], fields[1] if len(fields) > 1 else None, label))
    return out, empty


# -- UER's TSV, and tables of texts ------------------------------------------------------------------------------------

UERS = (("text_a", "text_b"), ("text_a",))
COLUMNS = tuple(dict.fromkeys((*UERS, *sorted((task.texts for task in GLUE.values()), key=len, reverse=True))))


def text_columns(there: Collection[str]) -> tuple[str, ...] | None:
    """Of the names of a table's columns those of its text or texts: UER's, else a GLUE task's, pairs first."""
    return next((names for names in COLUMNS if all(name in there for name in names)), None)


def uer_task(path: str | Path) -> Task:
    """The task of UER's files (header `label text_a [text_b]`), read off the training file: texts and labels, sorted.
    `UserError` for a malformed file, fewer than two labels, scores, or labels that look like slips of others."""
    table = Table(path)
    table.require("label", "text_a")
    found: dict[str, int] = {}
    for number, (label,) in table.select("label"):
        found.setdefault(label.strip(), number)
    if len(found) < 2:
        raise UserError(f"{path}: all lines have the label {next(iter(found))!r}; at least two labels are needed")
    fractions = [label for label in found if NUMBER.fullmatch(label) and not float(label).is_integer()]
    if len(fractions) > 2 * SHOWN:
        raise UserError(f"{path}: {len(found)} labels, numbers like {fractions[0]}: scores, not classes")
    whole, numbers = any(map(WHOLE.fullmatch, found)), any(map(NUMBER.fullmatch, found))
    seen: dict[str | Decimal, str] = {}
    for label, number in found.items():
        other, wrong = seen.setdefault(_folded(label, whole), label), ""
        if not label:
            wrong = "is empty"
        elif not NUMBER.fullmatch(label) and (whole or (numbers and label.casefold() in MISSING)):
            wrong = "is no number, as others are"
        elif other != label:
            wrong = f"differs from {other!r} (line {found[other]}) in nothing but case or form"
        if wrong:
            raise UserError(f"{path}, line {number}: label {label!r} {wrong}; one of "
                            f"{', '.join(sorted(set(found) - {label})[:SHOWN])} is needed")
    return Task("", tuple(sorted(found, key=Decimal) if whole else sorted(found)), _texts(table),
                metrics=("accuracy", "macro_f1"))


def _folded(label: str, whole: bool) -> str | Decimal:
    """A label without what makes no class of its own: case, kinds of characters and what nobody sees (a zero-width
    space); beside whole numbers how a number is written (1.0, 01), while 3.1 and 3.10 may be versions."""
    if whole and NUMBER.fullmatch(label):
        return Decimal(label)
    seen = "".join(character for character in label if unicodedata.category(character) != "Cf")
    return " ".join(unicodedata.normalize("NFKC", seen).casefold().split())


def texts_of(path: str | Path, pairs: bool | None) -> tuple[str, ...]:
    """The columns of texts that a model of pairs (or not) needs; None, not known: those that the file has."""
    return _texts(Table(path)) if pairs is None else UERS[not pairs]


def _texts(table: Table) -> tuple[str, ...]:
    return text_columns(table.columns) or UERS[-1]


def read_uer(task: Task, path: str | Path, labelled: bool | None = True) -> list[Example]:
    """The examples of a UER file, whose texts may have GLUE's names. `labelled` None: with labels where the file has
    them. `UserError` for a malformed file, a label that the task has not, or pairs where it has single texts (or the
    reverse)."""
    table = Table(path)
    texts = _texts(table)
    table.require(*texts)
    if len(texts) != len(task.texts):
        found, wanted = (f"{'single texts' if len(names) == 1 else 'pairs'} "
                         f"({' and '.join(names) + ' alone' * (len(names) == 1)})" for names in (texts, task.texts))
        raise UserError(f"{path}, line 1: {found}, but the model's training data have {wanted}")
    labelled = "label" in table.columns if labelled is None else labelled
    return _examples(table, replace(task, texts=texts), labelled)[0]
