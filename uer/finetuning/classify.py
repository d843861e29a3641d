"""run_classifier.py's work: data, model, a grid of runs, the best model and its predictions."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from uer.arguments import check_length
from uer.cpu.denormals import flush_denormals
from uer.errors import UserError
from uer.finetuning.batches import Instance, collate, encode, in_order, shuffled
from uer.finetuning.grid import Results, check_outputs, check_tuning_options, combinations, follow_link, of, run_grid
from uer.finetuning.heads import add_tuned, build_classifier, check_pooler, check_words, load_encoder
from uer.finetuning.metrics import measure
from uer.finetuning.tasks import GLUE, Split, Task, read_glue, read_uer, uer_task
from uer.finetuning.tuning import Combination, Evaluation, Outcome, Settings, in_words
from uer.formats import LoadedModel
from uer.formats.storage import PendingFiles, read_tensors, tensors_sha256
from uer.formats.tokenizer_files import text_beside
from uer.formats.uer_names import heads_in
from uer.report.writer import Reports
from uer.tokenizers import Tokenizer, build_tokenizer

EVALUATION_BATCH = 64
LEAST = 8  # tokens of a text
SAME = "warning: the dev data are the training data: how good the model is with other texts, their figures do not tell"


class Classification:
    """A `Problem`: tokenized training and dev data of a task."""

    def __init__(self, task: Task, train: list[Instance], dev: dict[str, list[Instance]], pad_id: int,
                 device: torch.device):
        self.task, self.train, self.dev, self.pad_id, self.device = task, train, dev, pad_id, device

    def batches(self, batch_size: int, seed: int, epoch: int, grouped: bool) -> Sequence[np.ndarray]:
        return shuffled([len(instance.tokens) for instance in self.train], batch_size, seed, epoch, grouped)

    def loss(self, model: nn.Module, batch: np.ndarray) -> torch.Tensor:
        src, seg, labels = collate([self.train[i] for i in batch], self.pad_id).to(self.device)
        assert labels is not None
        logits = model(src, seg).float()
        return F.mse_loss(logits.squeeze(-1), labels.float()) if self.task.regression \
            else F.cross_entropy(logits, labels)

    def evaluate(self, model: nn.Module) -> Evaluation:
        figures: dict[str, float] = {}
        for name, instances in self.dev.items():
            logits = predict(model, instances, self.pad_id, self.device)
            labels = np.array([instance.label for instance in instances])
            found = measure(self.task.metrics, decisions(self.task, logits), labels)
            figures |= {f"{name} {metric}".strip(): value for metric, value in found.items()}
        return Evaluation(sum(figures.values()) / len(figures), figures)


@torch.no_grad()
def predict(model: nn.Module, instances: Sequence[Instance], pad_id: int, device: torch.device,
            batch_size: int = EVALUATION_BATCH) -> np.ndarray:
    """Logits of all instances, float32 [n, outputs]; the model is in evaluation mode."""
    return in_order(instances, batch_size, pad_id, device,
                    lambda batch: model(batch.src, batch.seg).float().cpu()).numpy()


def decisions(task: Task, logits: np.ndarray) -> np.ndarray:
    """Class numbers, or scores, of logits [n, outputs]."""
    return logits[:, 0] if task.regression else logits.argmax(1)


# -- data --------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """What the options name: the task, its training, dev and (perhaps) test data."""

    task: Task
    train: Split
    dev: list[Split]
    test: list[Split]


def read_data(args: argparse.Namespace, wants_test: bool) -> Data:
    """Everything that the options name, checked.
    `UserError` for options that do not fit together and malformed files."""
    if args.task:
        if not args.data_dir or args.train_path or args.dev_path or args.test_path:
            raise UserError(f"--task {args.task} goes with --data_dir, the folder of its train.tsv, dev.tsv and "
                            f"test.tsv, and without --train_path, --dev_path and --test_path")
        task = GLUE[args.task]
        return Data(task, read_glue(task, args.data_dir, "train")[0], read_glue(task, args.data_dir, "dev"),
                    read_glue(task, args.data_dir, "test") if wants_test else [])
    if not args.train_path or not args.dev_path or args.data_dir:
        raise UserError("give --train_path and --dev_path (UER's TSV), or --task and --data_dir (GLUE's files)")
    if wants_test and not args.test_path:
        raise UserError(f"--prediction_path {args.prediction_path} needs --test_path, the texts to predict")
    task = uer_task(args.train_path)
    test = [Split("", read_uer(task, args.test_path, None))] if args.test_path else []
    return Data(task, Split("", read_uer(task, args.train_path)), [Split("", read_uer(task, args.dev_path))], test)


def with_length(args: argparse.Namespace, given: set[str], positions: int) -> argparse.Namespace:
    """The options; where no --seq_length was given, the default as far as the model has positions.
    `UserError` where a length that was given is none for this model."""
    if "seq_length" not in given:
        args = argparse.Namespace(**{**vars(args), "seq_length": min(args.seq_length, positions)})
    check_length(args.seq_length, positions, LEAST)
    return args


class Opened(NamedTuple):
    """The options as they are for a model, the model, and its tokenizer."""

    args: argparse.Namespace
    loaded: LoadedModel
    tokenizer: Tokenizer


def open_model(args: argparse.Namespace, given: set[str], say: Callable[[str], object] = lambda line: None) -> Opened:
    """What --pretrained_model_path names, checked against everything but the data.
    `say`: takes a line on the tokenizer, and warnings. `UserError` for what does not do."""
    loaded = load_encoder(args.pretrained_model_path, args.config_path, dropout=args.dropout)
    args = with_length(args, given, loaded.config.max_seq_length)
    tokenizer = build_tokenizer(args, *text_beside(args.pretrained_model_path), say=say)
    check_words(loaded, args.pretrained_model_path, len(tokenizer.vocab))
    if getattr(args, "pooling", None) == "pooler":
        check_pooler(loaded)
    return Opened(args, loaded, tokenizer)


def model_facts(path: str, loaded: LoadedModel) -> dict[str, Any]:
    """What a results file says of the model that its runs begin with; the path is for readers, the weights count."""
    return {"pretrained_model_path": str(path), "model_sha256": tensors_sha256({**loaded.weights, **loaded.extras})}


def digest(instances: Sequence[Instance]) -> str:
    """A short fingerprint of tokenized data."""
    sha = hashlib.sha256()
    for instance in instances:
        sha.update(instance.tokens.tobytes() + repr(instance[1:]).encode())
    return sha.hexdigest()[:16]


# -- the script --------------------------------------------------------------------------------------------------------


def run_classifier(args: argparse.Namespace, given: set[str]) -> dict[str, Any]:
    """finetune/run_classifier.py with parsed options; returns the best run."""
    flush_denormals()
    problems = check_tuning_options(args)
    if problems:
        raise UserError("; ".join(problems))
    follow_link(args)
    check_outputs(args, predictions=predictions_path(args))
    data = read_data(args, bool(args.prediction_path))
    with closing(Reports(True, args.log_path)) as reports:
        return ClassifierRun(args, given, data, reports).run()


def predictions_path(args: argparse.Namespace) -> str | None:
    """Where predictions go, of a GLUE task the first file in the folder; None: none are wanted."""
    return f"{args.prediction_path}/{args.task}.tsv" if args.prediction_path and args.task else args.prediction_path


class ClassifierRun:
    """One task with one pretrained model: the grid, the best model, its predictions."""

    def __init__(self, args: argparse.Namespace, given: set[str], data: Data, reports: Reports):
        self.data, self.reports = data, reports
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.settings = Settings.of(args)
        self.args, self.loaded, self.tokenizer = open_model(args, given, reports.say)
        args = self.args
        vocab = self.tokenizer.vocab
        self.train = encode(data.train.examples, self.tokenizer, args.seq_length)
        dev = {split.name: encode(split.examples, self.tokenizer, args.seq_length) for split in data.dev}
        self.problem = Classification(data.task, self.train, dev, vocab.pad_id, self.device)

    def run(self) -> dict[str, Any]:
        """Train, keep the best, predict."""
        args, task, say = self.args, self.data.task, self.reports.say
        for note in (*self.loaded.notes, *(split.note for split in (self.data.train, *self.data.dev))):
            if note:
                say(f"note: {note}")
        sizes = ", ".join(f"{len(split.examples):,} {split.name} dev".replace("  ", " ") for split in self.data.dev)
        say(f"{task.name or 'classification'}: {len(self.train):,} training and {sizes} examples, "
            f"{'a score' if task.regression else 'labels ' + ', '.join(task.labels)}; on {self.device}")
        facts = self._facts()
        if facts["train"] in facts["dev"].values():
            say(SAME)
        results = Results(args.output_model_path, facts, args.resume)
        best = run_grid(combinations(args), results, self._start, self.problem, self.settings, self.device,
                        self.reports, self._keep)
        say(f"written: {args.output_model_path}, {args.output_model_path}.json, {results.path}")
        if self.data.test:
            self._predict(of(best))
        return best

    def _facts(self) -> dict[str, Any]:
        args = self.args
        return {"task": self.data.task.name, "labels": list(self.data.task.labels), "pooling": args.pooling,
                **model_facts(args.pretrained_model_path, self.loaded), "vocab_sha256": self.tokenizer.vocab.sha256,
                "seq_length": args.seq_length, "dropout": self.loaded.config.dropout, **self.settings.facts(),
                "train": digest(self.train), "dev": {name: digest(x) for name, x in self.problem.dev.items()}}

    def _start(self, seed: int) -> nn.Module:
        return build_classifier(self.loaded, self.data.task.outputs, self.args.pooling, seed)

    def _keep(self, outcome: Outcome, combination: Combination, pending: PendingFiles) -> None:
        task = self.data.task
        card = {"kind": "classifier", "config": self.loaded.config.to_dict(), "task": task.name,
                "labels": list(task.labels), "pairs": len(task.texts) == 2, "pooling": self.args.pooling,
                "separators": self.tokenizer.separators,
                "seq_length": self.args.seq_length, **combination._asdict(), **outcome.to_dict()}
        add_tuned(pending, self.args.output_model_path, outcome.weights, card, self.tokenizer.rules)

    def _predict(self, combination: Combination) -> None:
        """Evaluate or predict the test data with the best model, as it was saved."""
        args, task = self.args, self.data.task
        model = self._start(combination.seed)
        model.load_state_dict(heads_in(read_tensors(args.output_model_path)))
        model.to(self.device).eval()
        written: list[str] = []
        with PendingFiles() as pending:
            for split in self.data.test:
                instances = encode(split.examples, self.tokenizer, args.seq_length)
                with self.settings.autocast(self.device):
                    given = decisions(task, predict(model, instances, self.problem.pad_id, self.device))
                if split.examples[0].label is not None:
                    figures = measure(task.metrics, given, np.array([instance.label for instance in instances]))
                    self.reports.say(f"test: {in_words(figures)}")
                if args.prediction_path:
                    target = Path(args.prediction_path) / f"{split.submission}.tsv" if task.name \
                        else Path(args.prediction_path)
                    lines = submission_lines(task, given) if task.name else prediction_lines(task, given)
                    pending.add(target).write_text("".join(lines), encoding="utf-8")
                    written.append(str(target))
            pending.publish()
        if written:
            self.reports.say(f"written: {', '.join(written)}")


def submission_lines(task: Task, given: np.ndarray) -> Iterator[str]:
    """GLUE's format: a header, then index and the label's name (or the score, kept within its range)."""
    yield "index\tprediction\n"
    for index, value in enumerate(given):
        yield f"{index}\t{np.clip(value, *task.range):.3f}\n" if task.regression \
            else f"{index}\t{task.labels[value]}\n"


def prediction_lines(task: Task, given: np.ndarray) -> Iterator[str]:
    """UER's format: a header, then a label a line."""
    yield "label\n"
    for value in given:
        yield f"{task.labels[value]}\n"
