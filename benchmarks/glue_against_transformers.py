#!/usr/bin/env python3
"""finetune/run_classifier.py against stock transformers on GLUE: same model, data, batches, rates, epochs.

Both start from a Hugging Face folder with a pooler (`--pooling pooler` here is BertForSequenceClassification there),
pad batches to their longest instance, and run AdamW (bias-corrected, eps 1e-6, decay 0.01 on matrices), linear warm-up
and decay, gradients cut at 1. The stock side has its own tokenizer, model, shuffling, dropout, and metrics
(scikit-learn, scipy). Runs are kept in <work_path>/runs.json, so that an interrupted comparison goes on.

With --paired nothing but this is done: both sides get the same head, the same batches and no dropout, one epoch or its
first steps are run in float32, and the losses of each step are compared, then the predictions on the dev data.
"""

from __future__ import annotations

import argparse
import bz2
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from demo.setting import packaged_teacher
from uer.config import parse_with_config
from uer.errors import run_script
from uer.finetuning.batches import collate, encode, shuffled
from uer.finetuning.classify import run_classifier
from uer.finetuning.grid import markdown, percent, spread
from uer.finetuning.heads import build_classifier, load_encoder
from uer.finetuning.options import classifier_parser
from uer.finetuning.tasks import GLUE, Example, Task, read_glue
from uer.formats.storage import write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import build_tokenizer
from uer.training.optimizers import AdamW, parameter_groups

SEQ_LENGTH = 128
METRICS = {"accuracy": lambda given, true: accuracy_score(true, given), "f1": lambda given, true: f1_score(true, given),
           "matthews": lambda given, true: matthews_corrcoef(true, given),
           "pearson": lambda given, true: pearsonr(given, true)[0],
           "spearman": lambda given, true: spearmanr(given, true)[0]}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    out.add_argument("--glue_path", required=True, type=Path, metavar="FOLDER",
                     help="folder of task folders; train.tsv.bz2 does as well")
    out.add_argument("--work_path", required=True, type=Path, metavar="FOLDER", help="for everything that is written")
    out.add_argument("--model_path", metavar="FOLDER", help="default: the demo's teacher")
    out.add_argument("--tasks", nargs="+", default=["RTE", "MRPC", "CoLA", "SST-2"], choices=tuple(GLUE))
    out.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    out.add_argument("--epochs", type=int, default=3)
    out.add_argument("--batch_size", type=int, default=32)
    out.add_argument("--learning_rate", type=float, default=5e-5)
    out.add_argument("--train_limit", type=int, metavar="N", help="the first N training lines only")
    out.add_argument("--sides", nargs="+", default=["here", "transformers"],
                     choices=("here", "here, UER's AdamW", "transformers"))
    out.add_argument("--paired", type=int, metavar="STEPS", nargs="?", const=1 << 30,
                     help="compare step by step, so many steps (default: an epoch)")
    out.add_argument("--float32", action="store_true", help="no bfloat16")
    return out


def task_folder(args: argparse.Namespace, task: Task) -> Path:
    """The task's training and dev files in the work folder, unpacked and cut to --train_limit."""
    source, folder = args.glue_path / task.name, args.work_path / "data" / f"{task.name}-{args.train_limit or 'all'}"
    folder.mkdir(parents=True, exist_ok=True)
    packed, plain = source / "train.tsv.bz2", source / "train.tsv"
    lines = (bz2.decompress(packed.read_bytes()) if packed.exists() else plain.read_bytes()).split(b"\n")
    header = 0 if task.bare else 1
    cut = lines[:args.train_limit + header] if args.train_limit else lines
    (folder / "train.tsv").write_bytes(b"\n".join(cut) + b"\n")
    for _, name in task.dev:
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


# -- the two sides -----------------------------------------------------------------------------------------------------


def here(args: argparse.Namespace, task: Task, folder: Path, seed: int, corrected: bool) -> dict:
    """run_classifier.py, in this process."""
    output = args.work_path / "here" / f"{task.name}.bin"
    words = ["--task", task.name, "--data_dir", folder, "--pretrained_model_path", args.model_path, "--pooling",
             "pooler", "--output_model_path", output, "--seed", seed, "--epochs_num", args.epochs, "--batch_size",
             args.batch_size, "--learning_rate", args.learning_rate, "--seq_length", SEQ_LENGTH,
             *([] if args.float32 else ["--bf16"]), *([] if corrected else ["--no_bias_correction"])]
    best = run_classifier(*parse_with_config(classifier_parser, list(map(str, words))))
    return {"figures": best["figures"], "seconds": best["seconds"]}


class Stock:
    """Fine-tuning as transformers' users write it."""

    def __init__(self, args: argparse.Namespace, task: Task, folder: Path):
        self.args, self.task = args, task
        self.tokenizer = AutoTokenizer.from_pretrained(args.model_path)
        self.train, self.train_labels = self._encode(read_glue(task, folder, "train")[0].examples)
        self.dev = {split.name: self._encode(split.examples) for split in read_glue(task, folder, "dev")}

    def _encode(self, examples: list[Example]):
        second = None if examples[0].text_b is None else [example.text_b for example in examples]
        found = self.tokenizer([example.text_a for example in examples], second, truncation="longest_first",
                               max_length=SEQ_LENGTH)
        rows = [{key: found[key][i] for key in found} for i in range(len(examples))]
        return rows, torch.tensor([example.label for example in examples])

    def model(self, seed: int, **config):
        """A BertForSequenceClassification with a new head."""
        torch.manual_seed(seed)
        return AutoModelForSequenceClassification.from_pretrained(self.args.model_path, num_labels=self.task.outputs,
                                                                  **config)

    def optimizer(self, model, total: int):
        """AdamW with its schedule."""
        plain = [p for name, p in model.named_parameters() if name.endswith("bias") or "LayerNorm" in name]
        decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "LayerNorm" in name)]
        optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01},
                                       {"params": plain, "weight_decay": 0.0}], lr=self.args.learning_rate, eps=1e-6)
        return optimizer, get_linear_schedule_with_warmup(optimizer, int(0.1 * total), total)

    def pad(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """A batch."""
        return self.tokenizer.pad(rows, return_tensors="pt")

    def precision(self) -> torch.autocast:
        """As on our side."""
        return torch.autocast("cpu", torch.bfloat16, enabled=not self.args.float32)

    def run(self, seed: int) -> dict:
        """All epochs; the best by the mean of the metrics."""
        model, size = self.model(seed), self.args.batch_size
        per_epoch = -(-len(self.train) // size)
        optimizer, scheduler = self.optimizer(model, per_epoch * self.args.epochs)
        begun, best, figures = time.perf_counter(), -2.0, {}
        for _ in range(self.args.epochs):
            model.train()
            for index in torch.randperm(len(self.train)).split(size):
                with self.precision():
                    loss = model(**self.pad([self.train[i] for i in index]), labels=self.train_labels[index]).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            found = self.evaluate(model)
            if statistics.mean(found.values()) > best:
                best, figures = statistics.mean(found.values()), found
        return {"figures": figures, "seconds": time.perf_counter() - begun}

    @torch.no_grad()
    def predict(self, model) -> dict[str, np.ndarray]:
        """Dev split -> classes, or scores."""
        model.eval()
        given = {}
        for name, (rows, _) in self.dev.items():
            with self.precision():
                logits = torch.cat([model(**self.pad(rows[i:i + 64])).logits.float() for i in range(0, len(rows), 64)])
            given[name] = (logits[:, 0] if self.task.regression else logits.argmax(1)).numpy()
        return given

    def figures(self, given: dict[str, np.ndarray]) -> dict[str, float]:
        """Metric -> value on the dev data."""
        return {f"{name} {metric}".strip(): float(METRICS[metric](given[name], labels.numpy()))
                for name, (_, labels) in self.dev.items() for metric in self.task.metrics}

    def evaluate(self, model) -> dict[str, float]:
        """Metric -> value on the dev data."""
        return self.figures(self.predict(model))


# -- step by step ------------------------------------------------------------------------------------------------------


def paired(args: argparse.Namespace, task: Task, folder: Path) -> str:
    """Losses of an epoch's steps and dev predictions: same head, same batches, no dropout, float32."""
    args.float32 = True
    stock = Stock(args, task, folder)
    theirs = stock.model(1, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).train()
    loaded = load_encoder(args.model_path, None, dropout=0.0)
    ours = build_classifier(loaded, task.outputs, "pooler", 1).train()
    with torch.no_grad():
        ours.target.output_layer_2.weight.copy_(theirs.classifier.weight)
        ours.target.output_layer_2.bias.copy_(theirs.classifier.bias)
    options, _ = parse_with_config(classifier_parser, ["--pretrained_model_path", args.model_path,
                                                           "--output_model_path", "unused"])
    tokenizer = build_tokenizer(options, *text_beside(args.model_path))
    train = encode(read_glue(task, folder, "train")[0].examples, tokenizer, SEQ_LENGTH)
    steps = shuffled(len(train), args.batch_size, 1, 0)[:args.paired]
    ours_optimizer = AdamW(parameter_groups(ours.named_parameters(), args.learning_rate), bias_correction=True)
    theirs_optimizer, scheduler = stock.optimizer(theirs, len(steps))
    losses = []
    for index in steps:
        batch = collate([train[i] for i in index], tokenizer.vocab.pad_id)
        assert batch.labels is not None
        logits = ours(batch.src, batch.seg)
        first = torch.nn.functional.cross_entropy(logits, batch.labels)
        second = theirs(**stock.pad([stock.train[i] for i in index]), labels=stock.train_labels[index]).loss
        losses.append((first.item(), second.item()))
        first.backward()
        second.backward()
        for model in (ours, theirs):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        ours_optimizer.set_factor(theirs_optimizer.param_groups[0]["lr"] / args.learning_rate)
        for optimizer in (ours_optimizer, theirs_optimizer):
            optimizer.step()
            optimizer.zero_grad()
        scheduler.step()
    gaps = np.abs(np.subtract(*np.array(losses).T))
    text = (f"{task.name}: {len(steps)} steps, loss {losses[0][0]:.4f} to {losses[-1][0]:.4f}; difference of a step's "
            f"loss {np.median(gaps):.1e} (median), {gaps.max():.1e} (largest)")
    their_choice, our_choice, ours = stock.predict(theirs), {}, ours.eval()
    for split in read_glue(task, folder, "dev"):
        dev = [collate(rows, tokenizer.vocab.pad_id) for rows in batched(encode(split.examples, tokenizer, SEQ_LENGTH))]
        with torch.no_grad():
            logits = torch.cat([ours(batch.src, batch.seg) for batch in dev])
        our_choice[split.name] = (logits[:, 0] if task.regression else logits.argmax(1)).numpy()
        same, name = (our_choice[split.name] == their_choice[split.name]).sum(), f" {split.name}".rstrip()
        text += f"; dev{name}: {same} of {len(logits)} predictions are the same"
    return f"{text}; here {percents(stock.figures(our_choice))}, transformers {percents(stock.figures(their_choice))}"


def batched(rows: list, size: int = 64) -> list[list]:
    """Rows in their order."""
    return [rows[i:i + size] for i in range(0, len(rows), size)]


def percents(figures: dict[str, float]) -> str:
    """Metrics and their values in percent."""
    return ", ".join(f"{name} {100 * value:.1f}" for name, value in figures.items())


# -- results -----------------------------------------------------------------------------------------------------------


def report(runs: list[dict], args: argparse.Namespace) -> str:
    """A Markdown table."""
    rows = []
    for task in args.tasks:
        for side in args.sides:
            found = [run for run in runs if (run["task"], run["side"]) == (task, side)]
            if found:
                figures = {name: percent(spread([run["figures"][name] for run in found]))
                           for name in found[0]["figures"]}
                seconds = statistics.median(run["seconds"] for run in found)
                rows.append([task, side, str(len(found)), "; ".join(f"{name} {text}" for name, text in figures.items()),
                             f"{seconds:.0f}"])
    return markdown(["task", "side", "seeds", "dev, median (lowest to highest)", "seconds a run"], rows)


def main() -> None:
    args = parser().parse_args()
    args.model_path = args.model_path or packaged_teacher()
    args.work_path.mkdir(parents=True, exist_ok=True)
    path = args.work_path / "runs.json"
    runs = json.loads(path.read_text()) if path.exists() else []
    if args.paired:
        for name in args.tasks:
            print("paired", paired(args, GLUE[name], task_folder(args, GLUE[name])), flush=True)
        return
    for seed in args.seeds:
        for name in args.tasks:
            for side in args.sides:
                key = {"task": name, "side": side, "seed": seed, "epochs": args.epochs, "limit": args.train_limit,
                       "learning_rate": args.learning_rate, "batch_size": args.batch_size, "float32": args.float32}
                if any(key.items() <= run.items() for run in runs):
                    continue
                task = GLUE[name]
                folder = task_folder(args, task)
                found = Stock(args, task, folder).run(seed) if side == "transformers" \
                    else here(args, task, folder, seed, side == "here")
                runs.append({**key, **found})
                write_via(path, lambda temporary, runs=runs: write_json(runs, temporary))
                print(f"{name}, {side}, seed {seed}: {found}", flush=True)
    print("\n" + report(runs, args))


if __name__ == "__main__":
    run_script(main)
