#!/usr/bin/env python3
"""Students of a sentence encoder by every way to make them, trained alike without labels, judged by STS and agreement.

    python3 experiments/encoders.py --work_path work --teacher all-MiniLM-L6-v2 --text sentences.txt \\
        --sts_path STS-B/dev.tsv --widths 192 96 --steps 3000 [--dev_text other.txt] [--rows calibrated …] [--jobs 10]

Every start is trained by the same command, `pretrain.py --target states`, on the same text, in the same order, for the
same steps, at each of --rates; the table takes the best rate of each. STS is that of a student's own vectors, and of
those in the teacher's space ("mapped"). Every start and every student is a job: what is done is not done again, what
was interrupted goes on by the same command. What stands after `--more` goes to pretrain.py.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import Commands, file_name, write
from experiments.run import Task, do, ending_commands
from uer.errors import UserError, run_script
from uer.training.checkpoint import checkpoint_steps

ROWS = {  # name: (start of starts.py or "", whether it is trained, whether there is one of each width)
    "calibrated": ("", True, True), "half": ("", True, True), "compactors": ("", True, True),
    "norm": ("norm", True, True), "random": ("random", True, True), "layers": ("layers", True, False),
    "pca": ("pca", False, True)}
FOLDED = {"calibrated": "at once", "half": "at half of the steps", "compactors": "never"}  # into the plain student
TITLES = {"calibrated": "calibrated", "half": "calibrated, folded at half", "compactors": "calibrated, never folded",
          "norm": "picked by norm", "random": "random weights",
          "layers": "every second layer", "pca": "teacher, its vectors by PCA", "teacher": "teacher"}


@dataclass(frozen=True)
class Setting:
    """What all jobs share."""

    work: Path
    teacher: str
    vocab: str
    dataset: str
    sts: str
    dev: str | None
    training: tuple[str, ...]  # options of pretrain.py
    folded_rate: str = "1e-3"  # of students that are folded at half


@dataclass(frozen=True)
class Start:
    """An untrained student, in work/starts."""

    setting: Setting
    row: str
    width: int | None
    layers: int | None = None  # as many as the teacher has
    heads: int | None = None  # the same

    @property
    def shape(self) -> str:
        """As on the command line; empty where the row has one of its own."""
        return "".join([f"{self.layers}x" if self.layers else "", str(self.width or ""),
                        f"/{self.heads}" if self.heads else ""])

    @property
    def name(self) -> str:
        return file_name(f"{self.shape} {self.row}")

    @property
    def file(self) -> Path | str:
        return self.setting.work / "starts" / f"{self.name}.bin" if self.row != "teacher" else self.setting.teacher

    @property
    def compactors(self) -> Path:
        """Those of a calibrated start."""
        return self.setting.work / "starts" / f"{self.name}.compactors"

    def run(self, commands: Commands) -> None:
        """Make it, where it is not there."""
        if Path(self.file).exists():
            return
        folder = self.setting.work / "running" / f"start-{self.name}"
        for path in (folder, self.setting.work / "starts"):
            path.mkdir(parents=True, exist_ok=True)
        options = ["--pretrained_model_path", self.setting.teacher, "--dataset_path", self.setting.dataset,
                   "--target_dim", self.width or 0, "--output_model_path", self.file]
        if self.row == "calibrated":
            commands.run(folder, "calibrate.py", *options, "--vocab_path", self.setting.vocab, "--skip_evaluation",
                         "--compactors_path", self.compactors,
                         *(["--target_layers", self.layers] if self.layers else []),
                         *(["--target_heads", self.heads] if self.heads else []))
        else:
            commands.run(folder, "experiments/starts.py", "--way", ROWS[self.row][0], *options)


@dataclass(frozen=True)
class Student:
    """A start, trained for some steps (0: left as it is), and its figures, in work/rows."""

    start: Start
    steps: int = 0
    rate: str = ""
    seed: int = 11
    fold: str = "calibrated"  # of FOLDED, where the start is calibrated

    @property
    def name(self) -> str:
        trained = [f"{self.steps} steps rate {self.rate} seed {self.seed}", *self.start.setting.training,
                   *([f"folded {FOLDED[self.fold]}"] if self.fold != "calibrated" else [])]
        return file_name(" ".join([self.start.name, *(trained if self.steps else ["untrained"])]))

    @property
    def row(self) -> Path:
        return self.start.setting.work / "rows" / f"{self.name}.json"

    def run(self, commands: Commands) -> None:
        """Do what is not done yet."""
        if self.row.exists():
            return
        folder = self.start.setting.work / "running" / self.name
        for path in (folder, self.row.parent, self.start.setting.work / "students"):
            path.mkdir(parents=True, exist_ok=True)
        model = self._train(commands, folder) if self.steps else self.start.file
        figures = self._judge(commands, folder, model)
        lines = [json.loads(line) for line in (folder / "times.jsonl").read_text().splitlines()]
        training = " ".join(self.start.setting.training) if self.steps else ""
        write(self.row, {
            "name": self.name, "row": self.fold if self.start.row == "calibrated" else self.start.row,
            "width": self.start.width, "shape": self.start.shape, "steps": self.steps,
            "rate": self.rate, "seed": self.seed, "training": training,
            **{kind: sum(line[kind] for line in lines if line["script"] == "pretrain.py")  # seconds: of processors
               for kind in ("elapsed", "seconds")}, **figures})
        shutil.rmtree(folder)

    @property
    def unfolded(self) -> Student | None:
        """The student that is never folded, from whose first half the one that is folded at half goes on."""
        return replace(self, fold="compactors") if self.fold == "half" else None

    @property
    def half(self) -> Path:
        """Folder of the checkpoint at half of the steps of a student that is never folded."""
        return self.start.setting.work / "halves" / self.name

    def _train(self, commands: Commands, folder: Path) -> Path:
        """pretrain.py from the start or from where it was interrupted, then the student's file."""
        setting, output, half = self.start.setting, folder / "model", max(1, self.steps // 2)
        if self.unfolded and not checkpoint_steps(str(output)):
            for path in self.unfolded.half.iterdir():
                shutil.copy(path, folder)
        done = checkpoint_steps(str(output))
        if self.steps not in done:
            commands.run(folder, "pretrain.py", *self._start(), "--vocab_path", setting.vocab, "--dataset_path",
                         setting.dataset, "--target", "states", "--total_steps", self.steps, "--learning_rate",
                         self.rate, "--bias_correction", "true", "--warmup", 0.05, "--dropout", 0, "--seed", self.seed,
                         "--save_checkpoint_steps", half if self.fold == "compactors" else 1000,
                         "--keep_checkpoints", 2 if self.fold == "compactors" else 1, "--tb_path", folder / "logs",
                         "--output_model_path", output, *setting.training, *(["--resume"] if done else []))
        if self.fold == "compactors":
            self.half.mkdir(parents=True, exist_ok=True)
            for path in folder.glob(f"model-{half}*"):
                shutil.copy(path, self.half)
        student = setting.work / "students" / f"{self.name}.bin"
        commands.run(folder, "convert.py", "--load_model_path", f"{output}-{self.steps}", "--output_model_path",
                     student)
        return student

    def _start(self) -> list[Any]:
        """Options of pretrain.py: the start as a student, or the teacher and the compactors that make it."""
        start, teacher = self.start, self.start.setting.teacher
        if self.fold == "calibrated":
            return ["--pretrained_model_path", start.file, "--soft_targets_teacher", teacher]
        folded = ["student", "--student_learning_rate", start.setting.folded_rate]
        return ["--pretrained_model_path", teacher, "--weight_squeeze", "--target_dim", start.width,
                "--compactor_init", "calibrated", "--compactors_path", start.compactors, "--compactor_learning_rate",
                self.rate, "--after_squeeze", *(folded if self.fold == "half" else ["compactors"])]

    def _judge(self, commands: Commands, folder: Path, model: Path | str) -> dict[str, float]:
        """STS of the student's own vectors and of those in the teacher's space, and agreement with the teacher."""
        setting, figures = self.start.setting, folder / "figures.json"
        found: dict[str, float] = {}

        def judge(task: str, text: str, *more: Any) -> dict[str, float]:
            commands.run(folder, "evaluate.py", "--task", task, "--test_path", text, "--model_path", model,
                         "--vocab_path", setting.vocab, "--output_path", figures, *more)
            return json.loads(figures.read_text())

        row = self.start.row
        if row != "pca":
            found |= judge("sts", setting.sts)
        if row != "teacher":
            found["mapped"] = judge("sts", setting.sts, "--keep_embedding_size")["spearman"]
        if setting.dev and row not in ("pca", "teacher"):
            found |= judge("agreement", setting.dev, "--teacher_path", setting.teacher)
        return found


def tasks(args: argparse.Namespace, setting: Setting) -> list[tuple[Task, Task | None]]:
    """All jobs with the one that each needs; starts first, then the first rate of every row, then the others."""
    rows = [(row, Start(setting, "calibrated" if row in FOLDED else row, *shape)) for row in args.rows
            for shape in (args.widths if ROWS[row][2] else [(None, None, None)])
            if row == "calibrated" or not any(shape[1:])]
    starts = list(dict.fromkeys(start for _, start in rows))
    trained = [Student(start, steps, rate, seed, row if row in FOLDED else "calibrated") for rate in args.rates
               for seed in args.seeds for steps in args.steps for row, start in rows if ROWS[row][1]]
    trained = list(dict.fromkeys([*trained, *(student.unfolded for student in trained if student.unfolded)]))
    return [*((start, None) for start in starts), *((job, job.unfolded or job.start) for job in trained),
            (Student(Start(setting, "teacher", None)), None), *((Student(start), start) for start in starts)]


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: each row and width at its best rate (under its first seed), means over seeds."""
    lines = ["| student | steps | rate | seeds | STS, Spearman | mapped | cosine | similarities | seconds | options |",
             "|---|---:|---:|---:|---:|---:|---:|---:|---:|---|"]
    groups: dict[tuple, dict[str, list[dict[str, Any]]]] = {}
    for row in sorted(rows, key=lambda row: row["seed"]):
        key = (-(row["width"] or 1 << 20), row["shape"], row["row"], row["steps"], row["training"])
        groups.setdefault(key, {}).setdefault(row["rate"], []).append(row)
    for (_, shape, kind, steps, training), rates in sorted(groups.items()):
        best = max(rates.values(), key=lambda found: found[0].get("spearman", 0))
        title = f"{shape}: {TITLES[kind]}" if shape else TITLES[kind]
        trained = [best[0]["rate"], str(len(best))] if steps else ["", ""]
        figures = [_spread([factor * row[name] for row in best if name in row], digits) for name, factor, digits in (
            ("spearman", 100, 1), ("mapped", 100, 1), ("cosine", 1, 3), ("similarities", 1, 3))]
        seconds = f"{mean(row['elapsed'] for row in best):.0f}" if steps else ""
        lines.append("| " + " | ".join([title, f"{steps:,}", *trained, *figures, seconds, training]) + " |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    """Mean and, of several, the least and the greatest."""
    if not values:
        return ""
    spread = f" ({min(values):.{digits}f} to {max(values):.{digits}f})" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{spread}"


def main() -> None:
    """Do what is not done yet, then show all that is."""
    args = parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    if bool(args.text) == bool(args.dataset_path):
        raise UserError("give the text either as --text or, preprocessed, as --dataset_path")
    work = Path(args.work_path)
    work.mkdir(parents=True, exist_ok=True)
    vocab, commands = args.vocab_path or f"{args.teacher}/vocab.txt", ending_commands()
    training = ("--batch_size", str(args.batch_size), *(["--bf16"] if args.bf16 else []), *args.more)
    setting = Setting(work, args.teacher, vocab, args.dataset_path or str(work / "text.pt"), args.sts_path,
                      args.dev_text, training, args.folded_rate)
    if not Path(setting.dataset).exists():
        commands.run(work, "preprocess.py", "--corpus_path", args.text, "--vocab_path", vocab, "--dataset_path",
                     setting.dataset, "--dynamic_masking", "--seq_length", args.seq_length)
    do(tasks(args, setting), commands, args.jobs)
    print(table([json.loads(path.read_text()) for path in (work / "rows").glob("*.json")]))


def shape(word: str) -> tuple[int, int | None, int | None]:
    """Width, layers, heads: 192 -> (192, None, None); 5x280/10 -> (280, 5, 10)."""
    found = re.fullmatch(r"(?:([1-9]\d*)x)?([1-9]\d*)(?:/([1-9]\d*))?", word)
    if found is None:
        raise ValueError(word)
    layers, width, heads = (int(size) if size else None for size in found.groups())
    return width or 0, layers, heads


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                  allow_abbrev=False)
    for name in ("work_path", "teacher", "sts_path"):
        out.add_argument(f"--{name}", required=True, metavar="PATH")
    out.add_argument("--vocab_path", metavar="FILE", help="default: vocab.txt in the teacher's folder")
    out.add_argument("--text", metavar="FILE", help="to train on, a sentence a line")
    out.add_argument("--dataset_path", metavar="FILE", help="the same, preprocessed")
    out.add_argument("--seq_length", type=int, default=64, metavar="N", help="of --text (default: 64)")
    out.add_argument("--dev_text", metavar="FILE", help="other text, a sentence a line, to measure agreement on")
    out.add_argument("--widths", type=shape, nargs="+", default=[shape("192"), shape("96")], metavar="D",
                     help="or shapes, LAYERSxD/HEADS or parts of it, for the calibrated row alone (default: 192 96)")
    out.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW",
                     help=f"of {', '.join(ROWS)} (default: all)")
    out.add_argument("--steps", type=int, nargs="+", default=[3000], metavar="N", help="default: 3000")
    out.add_argument("--rates", nargs="+", default=["3e-4", "1e-3"], metavar="LR", help="default: 3e-4 1e-3")
    out.add_argument("--folded_rate", default="1e-3", metavar="LR", help="of the row half after half (default: 1e-3)")
    out.add_argument("--seeds", type=int, nargs="+", default=[11], help="of batches (default: 11)")
    out.add_argument("--batch_size", type=int, default=32, metavar="N", help="default: 32")
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="at once (default: 1)")
    out.add_argument("--bf16", action="store_true", help="bfloat16 products in training")
    out.add_argument("--more", nargs=argparse.REMAINDER, default=[], help="options of pretrain.py for every training")
    return out


if __name__ == "__main__":
    run_script(main)
