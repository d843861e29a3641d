"""run_squad.py's work: questions, windows, a span finder, the best answers."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from uer.arguments import outside, too_small
from uer.config import SPAN_LABELS
from uer.cpu.denormals import flush_denormals
from uer.errors import UserError
from uer.finetuning.batches import Batch, Instance, by_length, collate, shuffled
from uer.finetuning.classify import SAME, model_facts, open_model
from uer.finetuning.grid import Results, check_outputs, check_tuning_options, combinations, follow_link, run_grid
from uer.finetuning.heads import add_tuned, build_span_finder
from uer.finetuning.squad_data import Question, Window, apart, check_answers, read_squad, windows
from uer.finetuning.squad_metrics import best_threshold, figures
from uer.finetuning.tuning import Combination, Evaluation, Outcome, Settings
from uer.formats.file_model import OF_ANSWERS, THRESHOLD
from uer.formats.storage import PendingFiles, write_json
from uer.formats.uer_names import heads_in
from uer.report.writer import Reports
from uer.targets.output_target import span_logits
from uer.tokenizers.bert import BertTokenizer
from uer.training.delayed import sent

EVALUATION_BATCH = 32
NOWHERE = -math.inf
MOST_QUESTION = 0.75  # of a window


class Answer(NamedTuple):
    """A piece of the text with its score (sum of the logits of its ends)."""

    text: str
    score: float


class Answers(NamedTuple):
    """The n best answers to a question, best first, and the score of no answer (the least of its windows')."""

    best: list[Answer]
    null: float

    @property
    def odds(self) -> float:
        """How far no answer is ahead of the best one."""
        return self.null - self.best[0].score


def find_answers(question: Question, parts: Sequence[Window], logits: Sequence[np.ndarray], *, n_best: int,
                 max_length: int) -> Answers:
    """The best spans over all windows of a question.

    A span starts in the window that gives its first token most context, ends no later than `max_length` tokens on, and
    its text is what stands between its first and last character.

    Args:
        parts: the question's windows.
        logits: of each, float [tokens, 2].
    """
    found: dict[str, float] = {}
    null = math.inf
    for window, scores in zip(parts, logits):
        null = min(null, float(scores[0].sum()))
        count = len(window.starts)
        start = np.where(window.best, scores[window.first:window.first + count, 0], NOWHERE)
        end = scores[window.first:window.first + count, 1]
        for i in np.argsort(-start, kind="stable")[:n_best]:
            if start[i] == NOWHERE:
                break
            reach = end[i:i + max_length]
            for j in np.argsort(-reach, kind="stable")[:n_best]:
                text = question.context[window.starts[i]:window.ends[i + j]]
                value = float(start[i] + reach[j])
                if value > found.get(text, NOWHERE):
                    found[text] = value
    ranked = sorted((Answer(text, value) for text, value in found.items()), key=lambda answer: -answer.score)
    return Answers(ranked[:n_best] or [Answer("", null)], null)


class Reading:
    """A `Problem`: windows of training and dev questions.

    Attributes:
        nullable: whether questions may have no answer.
        threshold: on the odds of no answer; None: the one with the best F1.
        warning: where windows of a text do not overlap; "" where all do.
        answers: of the last evaluation, one a dev question; `chosen` is the threshold it took.
    """

    def __init__(self, train: list[Question], dev: list[Question], tokenizer: BertTokenizer, args: argparse.Namespace,
                 device: torch.device, nullable: bool | None = None, batch_size: int = EVALUATION_BATCH):
        """`nullable`: None: as the training questions say; `batch_size`: of evaluation."""
        self.dev, self.pad_id, self.device = dev, tokenizer.vocab.pad_id, device
        self.nullable = any(not question.answers for question in train) if nullable is None else nullable
        self.threshold, self.batch_size = args.null_score_diff_threshold, batch_size
        self.n_best, self.max_length = args.n_best_size, args.max_answer_length
        sizes = {"seq_length": args.seq_length, "doc_stride": args.doc_stride,
                 "max_query_length": args.max_query_length}
        taught, self.parts = ([windows(question, tokenizer, **sizes) for question in part] for part in (train, dev))
        self.train = [window for parts in taught for window in parts]
        gaps = sum(apart(parts, args.doc_stride) for parts in (*taught, *self.parts))
        self.warning = f"warning: the windows of {gaps:,} question(s) do not overlap: --doc_stride {args.doc_stride} " \
                       f"leaves nothing in common to windows of --seq_length {args.seq_length} with the question in " \
                       f"them, and what lies across two is no answer" if gaps else ""
        self.answers: list[Answers] = []
        self.chosen = 0.0

    def batches(self, batch_size: int, seed: int, epoch: int, grouped: bool) -> Sequence[np.ndarray]:
        return shuffled([len(window.tokens) for window in self.train], batch_size, seed, epoch, grouped)

    def loss(self, model: nn.Module, batch: np.ndarray) -> torch.Tensor:
        """Mean cross entropy of the answer's first and last position; where it is not in the window, of [CLS]."""
        chosen = [self.train[i] for i in batch]
        padded = self._collate(chosen)
        logits = span_logits(model(padded.src, padded.seg).float(), padded.seg > 0)
        ends = sent(torch.tensor([window.answer for window in chosen]), self.device)
        return (F.cross_entropy(logits[:, 0], ends[:, 0]) + F.cross_entropy(logits[:, 1], ends[:, 1])) / 2

    def _collate(self, chosen: Sequence[Window]) -> Batch:
        return collate([instance(window) for window in chosen], self.pad_id).to(self.device)

    @torch.no_grad()
    def logits(self, model: nn.Module, chosen: Sequence[Window]) -> list[np.ndarray]:
        """float32 [tokens, 2] of every window."""
        out: list[np.ndarray] = [np.empty(0)] * len(chosen)
        for index in by_length([instance(window) for window in chosen], self.batch_size):
            batch = self._collate([chosen[i] for i in index])
            found = model(batch.src, batch.seg).float().view(*batch.src.shape, 2)
            for i, scores in zip(index, found.cpu().numpy()):
                out[i] = scores[:len(chosen[i].tokens)]
        return out

    def evaluate(self, model: nn.Module) -> Evaluation:
        flat = iter(self.logits(model, [window for parts in self.parts for window in parts]))
        self.answers = [find_answers(question, parts, [next(flat) for _ in parts], n_best=self.n_best,
                                     max_length=self.max_length) for question, parts in zip(self.dev, self.parts)]
        right = {question.id: [text for text, _ in question.answers] for question in self.dev}
        if self.nullable:
            self.chosen = self.threshold if self.threshold is not None else best_threshold(
                {key: found.best[0].text for key, found in self._by_id().items()},
                {key: found.odds for key, found in self._by_id().items()}, right)
        found = figures(self.predictions(), right)
        return Evaluation(found["F1"], found)

    def _by_id(self) -> dict[str, Answers]:
        return {question.id: found for question, found in zip(self.dev, self.answers)}

    def predictions(self) -> dict[str, str]:
        """Question id -> the answer of the last evaluation."""
        return {key: "" if self.nullable and found.odds > self.chosen else found.best[0].text
                for key, found in self._by_id().items()}

    def files(self) -> dict[str, Any]:
        """Ending -> content of the answer files."""
        nbest = {key: nbest_of(found, self.nullable) for key, found in self._by_id().items()}
        out: dict[str, Any] = {"predictions": self.predictions(), "nbest": nbest}
        if self.nullable:
            out["null_odds"] = {key: found.odds for key, found in self._by_id().items()}
        return out


def question_length(seq_length: int, wanted: int, given: bool) -> int:
    """Tokens of a question at most: as wanted, or as leave enough of a window to the text.
    `UserError` where more are wanted by an option that was given."""
    longest = int(MOST_QUESTION * seq_length) - 3
    if given and wanted > longest:
        raise UserError(f"--max_query_length {wanted} leaves too little of --seq_length {seq_length} for the text; "
                        f"{longest} at most")
    return min(wanted, longest)


def instance(window: Window) -> Instance:
    """A window as a batch takes it: question and text are the two segments."""
    return Instance(window.tokens, window.first, None)


def nbest_of(found: Answers, nullable: bool) -> list[dict[str, Any]]:
    """The n best answers (where there may be none, "" among them) with their probabilities among each other."""
    answers = [*found.best, Answer("", found.null)] if nullable else found.best
    answers = sorted(answers, key=lambda answer: -answer.score)
    weights = [math.exp(answer.score - answers[0].score) for answer in answers]
    return [{"text": answer.text, "score": answer.score, "probability": weight / sum(weights)}
            for answer, weight in zip(answers, weights)]


# -- the script --------------------------------------------------------------------------------------------------------


def run_squad(args: argparse.Namespace, given: set[str]) -> dict[str, Any]:
    """finetune/run_squad.py with parsed options; returns the best run."""
    flush_denormals()
    problems = [*check_tuning_options(args),
                *too_small(args, ("max_query_length", "doc_stride", "n_best_size", "max_answer_length")),
                *outside(args, ("null_score_diff_threshold",), math.isfinite, "a number is needed")]
    if problems:
        raise UserError("; ".join(problems))
    follow_link(args)
    check_outputs(args, ".predictions.json", ".nbest.json", ".null_odds.json")
    train, dev = read_squad(args.train_path), read_squad(args.dev_path)
    with closing(Reports(True, args.log_path)) as reports:
        return _run(args, given, train, dev, reports)


def _run(args: argparse.Namespace, given: set[str], train: list[Question], dev: list[Question],
         reports: Reports) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    args, loaded, tokenizer = open_model(args, given, reports.say)
    args.max_query_length = question_length(args.seq_length, args.max_query_length, "max_query_length" in given)
    if not isinstance(tokenizer, BertTokenizer):
        raise UserError(f"tokenizer {tokenizer.rules.kind}: only bert can tell which characters its tokens stand for")
    check_answers(train, tokenizer, args.train_path)
    check_answers(dev, tokenizer, args.dev_path)
    for note in loaded.notes:
        reports.say(f"note: {note}")
    reading = Reading(train, dev, tokenizer, args, device)
    if not reading.nullable and any(not question.answers for question in dev):
        reports.say("warning: dev questions without an answer, but none in the training data: every one gets an answer")
    reports.say(f"{len(train):,} training questions in {len(reading.train):,} windows, {len(dev):,} dev questions in "
                f"{sum(map(len, reading.parts)):,}; "
                f"{'some have no answer' if reading.nullable else 'all have answers'}; on {device}")
    if reading.warning:
        reports.say(reading.warning)
    if train == dev:
        reports.say(SAME)
    settings = Settings.of(args)
    facts = {**model_facts(args.pretrained_model_path, loaded), "vocab_sha256": tokenizer.vocab.sha256,
             **{name: getattr(args, name) for name in OF_ANSWERS},
             "dropout": loaded.config.dropout,
             **settings.facts(), "train": _digest(train), "dev": _digest(dev)}
    results = Results(args.output_model_path, facts, args.resume)

    def keep(outcome: Outcome, combination: Combination, pending: PendingFiles) -> None:
        model = build_span_finder(loaded, combination.seed).to(device).eval()
        model.load_state_dict(heads_in(outcome.weights))
        with torch.no_grad(), settings.autocast(device):
            reading.evaluate(model)  # of the best epoch, which need not be the last one
        card = {"kind": "span finder", "labels": list(SPAN_LABELS), "config": loaded.config.to_dict(),
                **{name: getattr(args, name) for name in OF_ANSWERS},
                THRESHOLD: reading.chosen if reading.nullable else None,
                **combination._asdict(), **outcome.to_dict()}
        add_tuned(pending, args.output_model_path, outcome.weights, card, tokenizer.rules)
        if not reading.nullable:
            pending.drop(f"{args.output_model_path}.null_odds.json")  # of a run that was there before
        for ending, content in reading.files().items():
            write_json(content, pending.add(f"{args.output_model_path}.{ending}.json"))

    best = run_grid(combinations(args), results, lambda seed: build_span_finder(loaded, seed), reading, settings,
                    device, reports, keep)
    reports.say(f"written: {args.output_model_path}, its .json, .results.json, .predictions.json, .nbest.json"
                + (", .null_odds.json" if reading.nullable else ""))
    return best


def _digest(questions: Sequence[Question]) -> str:
    return hashlib.sha256(repr(questions).encode()).hexdigest()[:16]
