"""Texts to compare two models on: a line a text, or a table of texts (of pairs) with labels or without."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from uer.data.conll import is_conll, sentences
from uer.errors import UserError
from uer.evaluation.ranking import number_of
from uer.files import begins_with_objects, is_table, read_lines
from uer.finetuning.tasks import COLUMNS, GLUE, Example, text_columns
from uer.finetuning.tsv import Table

LABELS = tuple(dict.fromkeys(("label", *(task.label for task in GLUE.values()))))  # columns


class Texts(NamedTuple):
    """Examples, and (line number, label) of each where there are labels, in a column called `column`."""

    examples: list[Example]
    labels: list[tuple[int, str]]
    column: str = ""


def read_texts(path: str | Path) -> Texts:
    """A file whose first line is a header with one of `COLUMNS` is a table, one of tokens with tags its sentences; any
    other has a text a line.
    `UserError` where there is no text, or a row of the table lacks one."""
    lines = read_lines(path)
    if is_conll(lines):
        try:
            return Texts([Example(sentence, None, None) for sentence in sentences(enumerate(lines, 1))], [])
        except ValueError as error:
            raise UserError(f"--test_path {path}, {error}") from None
    table = Table(path) if is_table(path) else None
    head = list(table.columns) if table else [name.strip() for name in lines[0].split("\t")] if lines else []
    names = text_columns(head)
    if begins_with_objects("\n".join(lines)):
        raise UserError(f"--test_path {path}: JSON lines; one text a line is needed, or a table")
    if names is None and table:
        raise UserError(f"--test_path {path}, line 1: no header with one of {', '.join(map(' and '.join, COLUMNS))}")
    if names is None or (head == ["sentence"] and not table):
        examples = [Example(line, None, None) for line in lines if line.strip()]
        if not examples:
            raise UserError(f"--test_path {path}: no text in there")
        return Texts(examples, [])
    column = next((name for name in LABELS if name in head), "")
    examples, labels = [], []
    for number, (*texts, label) in (table or Table(path)).select(*names, column or names[0]):
        if not all(text.strip() for text in texts):
            raise UserError(f"{path}, line {number}: a text is empty")
        examples.append(Example(texts[0], texts[1] if len(texts) > 1 else None, None))
        if column:
            labels.append((number, label.strip()))
    return Texts(examples, labels, column)


def wanted(path: str | Path, labels: Sequence[tuple[int, str]], names: Sequence[str], outputs: int) -> np.ndarray:
    """The labels of a file as a model's classes, int64 [n], or as scores, float64 [n], of a model with one output.

    A label is one of the model's `names`; its number serves too where the names have no other in them ("1 star").
    `UserError` for a label that is none of these.
    """
    if outputs == 1:
        scores = [number_of(label) for _, label in labels]
        if None in scores:
            number, label = labels[scores.index(None)]
            raise UserError(f"{path}, line {number}: label {label!r}; the model gives scores, so a number is needed")
        return np.array(scores)
    known = {name: i for i, name in enumerate(names)}
    if all(re.findall(r"\d+", name) in ([], [str(i)]) for i, name in enumerate(names)):  # but of LABEL_1
        known |= {str(i): i for i in range(outputs)}
    for number, label in labels:
        if label not in known:
            raise UserError(f"{path}, line {number}: label {label!r} is none of the model's, which are "
                            f"{', '.join(known)}")
    return np.array([known[label] for _, label in labels])
