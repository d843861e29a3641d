#!/usr/bin/env python3
"""A fine-tuned teacher made smaller, task by task: on the task's own texts (and more, if given), without their labels.

    python3 experiments/tasks.py --work_path work --data_dir glue --teacher all-MiniLM-L6-v2 --tasks STS-B MRPC \\
        --shapes 96/3 192 --steps 0 600 [--text sentences.txt] [--start norm] [--more --layer_weight 3 …]

For each task: `finetune/run_glue.py` makes the teacher, `calibrate.py` its student (or `experiments/starts.py` another
one: random weights, or picked by norm), `pretrain.py --target logits` trains it (0 steps: not at all), and its answers
on the dev data are scored as GLUE scores them. Every teacher and every student is a job: what is done is not done
again, what was interrupted goes on by the same command. What stands after `--more` goes to pretrain.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from experiments.encoders import shape
from experiments.jobs import Commands, file_name, write
from experiments.run import Task, do, ending_commands
from uer.errors import UserError, run_script
from uer.finetuning.metrics import measure
from uer.finetuning.tasks import GLUE, Example, read_glue
from uer.training.checkpoint import checkpoint_steps


@dataclass(frozen=True)
class Setting:
    """What all jobs share."""

    work: Path
    data: Path
    model: str  # that is fine-tuned
    vocab: str
    tuning: tuple[str, ...]  # options of run_glue.py
    seq_length: int
    text: str | None  # more texts, for tasks of single ones
    training: tuple[str, ...]  # options of pretrain.py


@dataclass(frozen=True)
class Teacher:
    """The model fine-tuned on a task, and the task's texts as a dataset."""

    setting: Setting
    task: str

    @property
    def name(self) -> str:
        return f"teacher-{self.task}"

    @property
    def folder(self) -> Path:
        return self.setting.work / "teachers" / self.task

    @property
    def file(self) -> Path:
        return next(self.folder.glob(f"*/{self.task}.bin"))

    @property
    def text(self) -> str:
        """The file of more texts that its students read."""
        return self.setting.text if self.setting.text and not self.pairs else ""

    @property
    def dataset(self) -> Path:
        return self.folder / (file_name(f"texts and {Path(self.text).stem}" if self.text else "texts") + ".pt")

    @property
    def pairs(self) -> bool:
        return len(GLUE[self.task].texts) == 2

    @property
    def row(self) -> Path:
        return self.setting.work / "rows" / f"{self.name}.json"

    def run(self, commands: Commands) -> None:
        """Do what is not done yet."""
        for path in (self.folder, self.row.parent):
            path.mkdir(parents=True, exist_ok=True)
        setting, task = self.setting, GLUE[self.task]
        vocab = ["--vocab_path", setting.vocab]
        if not self.row.exists():
            commands.run(self.folder, "finetune/run_glue.py", "--data_dir", setting.data, "--tasks", self.task, *vocab,
                         "--pretrained_model_path", setting.model, "--output_path", self.folder, "--resume",
                         "--seq_length", setting.seq_length, *setting.tuning)
            write(self.row, {"name": self.name, "task": self.task, **score(commands, self, self.file, self.folder)})
        if not self.dataset.exists():
            texts = self.folder / "texts.txt"
            write_texts(texts, read_glue(task, setting.data / self.task, "train")[0].examples)
            commands.run(self.folder, "preprocess.py", "--data_processor", "pairs" if self.pairs else "mlm",
                         "--corpus_path", texts, *([self.text] if self.text else []), *vocab, "--seq_length",
                         setting.seq_length, "--dynamic_masking", "--dataset_path", self.dataset)


@dataclass(frozen=True)
class Student:
    """A teacher made smaller."""

    teacher: Teacher
    width: int
    layers: int | None
    heads: int | None
    steps: int
    rate: str
    seed: int
    way: str = "calibrated"  # to its start

    @property
    def start(self) -> str:
        """Its name before any step."""
        words = [f"{self.layers}x" if self.layers else "", str(self.width), f"-{self.heads}" if self.heads else ""]
        return file_name(" ".join([self.teacher.task, "".join(words), *([self.way] if self.way != "calibrated" else []),
                                   *([Path(self.teacher.text).stem] if self.teacher.text else [])]))

    @property
    def name(self) -> str:
        training = ["steps", str(self.steps), self.rate, "seed", str(self.seed), *self.teacher.setting.training]
        return file_name(" ".join([self.start, *(training if self.steps else ["untrained"])]))

    @property
    def row(self) -> Path:
        return self.teacher.setting.work / "rows" / f"{self.name}.json"

    def run(self, commands: Commands) -> None:
        """Do what is not done yet."""
        if self.row.exists():
            return
        setting, teacher = self.teacher.setting, self.teacher
        folder, students = setting.work / "running" / self.name, setting.work / "students"
        for path in (folder, students):
            path.mkdir(parents=True, exist_ok=True)
        student = students / f"{self.start}.bin"
        if not student.exists():
            self._start(commands, folder, student)
        if self.steps:
            student = self._train(commands, folder, student)
        write(self.row, {"name": self.name, "task": teacher.task, "start": self.way, "width": self.width,
                         "layers": self.layers, "heads": self.heads, "steps": self.steps,
                         "rate": self.rate if self.steps else "", "seed": self.seed, "text": Path(teacher.text).stem,
                         "training": " ".join(setting.training) if self.steps else "",
                         **score(commands, teacher, student, folder)})
        shutil.rmtree(folder)

    @property
    def _vocab(self) -> list[str]:
        return ["--vocab_path", self.teacher.setting.vocab]

    def _start(self, commands: Commands, folder: Path, student: Path) -> None:
        options = ["--pretrained_model_path", self.teacher.file, "--target_dim", self.width,
                   *(["--target_heads", self.heads] if self.heads else []), "--output_model_path", student]
        if self.way == "calibrated":
            commands.run(folder, "calibrate.py", *options, *self._vocab, "--dataset_path", self.teacher.dataset,
                         "--skip_evaluation", *(["--target_layers", self.layers] if self.layers else []))
        else:
            commands.run(folder, "experiments/starts.py", *options, "--way", self.way, "--keep_head")

    def _train(self, commands: Commands, folder: Path, start: Path) -> Path:
        teacher, output = self.teacher, folder / "model"
        done = checkpoint_steps(str(output))
        if self.steps not in done:
            commands.run(folder, "pretrain.py", "--pretrained_model_path", start, "--soft_targets_teacher",
                         teacher.file, *self._vocab, "--dataset_path", teacher.dataset, "--target", "logits",
                         "--total_steps", self.steps, "--learning_rate", self.rate, "--warmup", 0.05, "--dropout", 0,
                         "--seed", self.seed, "--save_checkpoint_steps", 200, "--output_model_path", output,
                         *teacher.setting.training, *(["--resume"] if done else []))
        student = teacher.setting.work / "students" / f"{self.name}.bin"
        commands.run(folder, "convert.py", "--load_model_path", f"{output}-{self.steps}", "--output_model_path",
                     student)
        return student


def write_texts(path: Path, examples: list[Example], header: bool = False) -> None:
    """Texts a line, of pairs with a tab between them; `header`: as UER's TSV without labels."""
    names = ["text_a", "text_b"][:1 + (examples[0].text_b is not None)]
    lines = ["\t".join(names)] * header + ["\t".join(filter(None, example[:2])) for example in examples]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def score(commands: Commands, teacher: Teacher, model: Path, folder: Path) -> dict[str, float]:
    """GLUE's metrics of a model's answers on the dev data, their mean as `score`."""
    task, setting = GLUE[teacher.task], teacher.setting
    examples = read_glue(task, setting.data / teacher.task, "dev")[0].examples
    write_texts(folder / "dev.tsv", examples, header=True)
    commands.run(folder, "inference/run_classifier_infer.py", "--load_model_path", model, "--vocab_path", setting.vocab,
                 "--test_path", folder / "dev.tsv", "--prediction_path", folder / "answers.tsv", "--output_logits")
    answers = [line.split("\t") for line in (folder / "answers.tsv").read_text(encoding="utf-8").splitlines()[1:]]
    predicted = [float(logits.split()[0]) if task.regression else task.labels.index(label) for label, logits in answers]
    found = measure(task.metrics, np.array(predicted), np.array([example.label for example in examples]))
    return {**found, "score": sum(found.values()) / len(found)}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a student, a column a task, in percent; the mean where every task is there once.

    In brackets: the file of more texts."""
    tasks = sorted({row["task"] for row in rows}, key=list(GLUE).index)
    models: dict[tuple, dict[str, dict[str, float]]] = {}
    for row in rows:
        shape = f"{row['layers'] or ''}{'x' * bool(row['layers'])}{row['width']}" if "width" in row else "teacher"
        key = (shape, row.get("heads") or "", row.get("start", ""), row.get("steps", ""), row.get("rate", ""),
               row.get("seed", ""), row.get("training", ""))
        models.setdefault(key, {}).setdefault(row["task"], {})[row.get("text", "")] = 100 * row["score"]
    lines = ["| " + " | ".join(["model", "heads", "start", "steps", "rate", "seed", "options", *tasks, "mean"]) + " |",
             "|---|---:|---|---:|---:|---:|---|" + "---:|" * (len(tasks) + 1)]
    for key, scores in sorted(models.items(), key=lambda item: (item[0][0] != "teacher", str(item[0]))):
        cells = [", ".join(f"{score:.1f}" + f" ({text})" * bool(text) for text, score in scores.get(task, {}).items())
                 for task in tasks]
        single = [score for texts in scores.values() for score in texts.values()]
        mean = f"{sum(single) / len(tasks):.1f}" if len(single) == len(scores) == len(tasks) else ""
        lines.append("| " + " | ".join([*map(str, key), *cells, mean]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Do what is not done yet, then show all that is."""
    args = parser().parse_args()
    if args.start != "calibrated" and any(layers for _, layers, _ in args.shapes):
        raise UserError(f"--start {args.start} has all of the teacher's layers")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    work = Path(args.work_path)
    tuning = ("--pooling", args.pooling, "--dropout", "0", "--epochs_num", str(args.epochs), "--learning_rate",
              args.teacher_rate, "--seeds", "1", "--group_by_length")
    training = ("--batch_size", str(args.batch_size), *args.more)
    setting = Setting(work, Path(args.data_dir), args.teacher, args.vocab_path or f"{args.teacher}/vocab.txt", tuning,
                      args.seq_length, args.text, training)
    teachers = [Teacher(setting, task) for task in args.tasks]
    jobs: list[tuple[Task, Task | None]] = [(teacher, None) for teacher in teachers]
    for width, layers, heads in args.shapes:
        jobs += [(Student(teacher, width, layers, heads, steps, args.rate, seed, args.start), teacher)
                 for steps in args.steps for seed in args.seeds for teacher in teachers]
    do(jobs, ending_commands(), args.jobs)
    print(table([json.loads(path.read_text()) for path in sorted((work / "rows").glob("*.json"))]))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                  allow_abbrev=False)
    for name in ("work_path", "data_dir", "teacher"):
        out.add_argument(f"--{name}", required=True, metavar="PATH")
    out.add_argument("--vocab_path", metavar="FILE", help="default: vocab.txt in the teacher's folder")
    out.add_argument("--tasks", nargs="+", choices=GLUE, required=True, metavar="TASK", help=f"of {', '.join(GLUE)}")
    out.add_argument("--text", metavar="FILE", help="more texts, a line each, for tasks of single texts")
    out.add_argument("--shapes", type=shape, nargs="+", required=True, metavar="D",
                     help="of students: D, LAYERSxD, D/HEADS or LAYERSxD/HEADS")
    out.add_argument("--start", default="calibrated", choices=("calibrated", "norm", "random"),
                     help="of students (default: calibrated)")
    out.add_argument("--pooling", default="mean", help="of the teacher (default: mean)")
    out.add_argument("--epochs", type=int, default=4, metavar="N", help="of the teacher (default: 4)")
    out.add_argument("--teacher_rate", default="1e-4", metavar="LR", help="default: 1e-4")
    out.add_argument("--seq_length", type=int, default=128, metavar="N", help="tokens of a text (default: 128)")
    out.add_argument("--steps", type=int, nargs="+", default=[0, 600], metavar="N", help="default: 0 600")
    out.add_argument("--rate", default="2e-3", metavar="LR", help="default: 2e-3")
    out.add_argument("--seeds", type=int, nargs="+", default=[11], help="of batches (default: 11)")
    out.add_argument("--batch_size", type=int, default=64, metavar="N", help="default: 64")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="at once (default: 1)")
    out.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="options of pretrain.py for every training")
    return out


if __name__ == "__main__":
    run_script(main)
