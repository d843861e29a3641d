#!/usr/bin/env python3
"""Students of one teacher by every way to make them, and what they are worth: the figures behind RESULTS.md.

    python3 experiments/run.py --work_path work --teacher teacher.bin --vocab_path vocab.txt --dataset_path train.pt \\
        --dev_path dev.pt --target_dim 192 96 --steps 3000 [--rows calibrated …] [--glue_path glue] [--jobs 4]
    python3 experiments/show.py --work_path work             # table and pictures of what is there

Every student is a job, and so is each student's fine-tuning on a task of --glue_path. Jobs are done in the order of
experiments/methods.py (or of --rows), the first learning rate of every row before the second; what is done is not done
again, what was interrupted goes on. So a table can be cut off at any time, and grows by the same command.
`--teacher_from <encoder>` makes the teacher first: an MLM head, and 5,000 steps of 32 × 128 tokens.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.jobs import Commands, Job, Setting, bind, evaluate, write
from experiments.methods import METHODS, UNTRAINED, Method
from uer.errors import UserError, run_script
from uer.finetuning.options import TASKS
from uer.made_from import files_sha256

EPOCHS = 3


class Task(Protocol):
    """Something to do once."""

    @property
    def name(self) -> str: ...

    def run(self, commands: Commands) -> None: ...


@dataclass(frozen=True)
class TeacherRow:
    """The teacher's own figures."""

    setting: Setting
    name: str = "teacher"

    def run(self, commands: Commands) -> None:
        row, folder = self.setting.work / "rows" / "teacher.json", self.setting.work / "running" / "teacher"
        if not row.exists():
            folder.mkdir(parents=True, exist_ok=True)
            row.parent.mkdir(exist_ok=True)
            write(row, {"name": self.name, **evaluate(self.setting, commands, self.setting.teacher, folder)})


@dataclass(frozen=True)
class Tuning:
    """A model's fine-tuning on one task: all rates and seeds."""

    setting: Setting
    model: str
    row: str
    data: str
    task: str
    rates: tuple[str, ...]
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.row}, {self.task}"

    def run(self, commands: Commands) -> None:
        folder = self.setting.work / "glue" / self.task
        folder.mkdir(parents=True, exist_ok=True)
        commands.run(folder, "finetune/run_glue.py", "--data_dir", self.data, "--tasks", self.task, "--vocab_path",
                     self.setting.vocab, "--pretrained_model_path", self.model, "--model_names", self.row,
                     "--output_path", folder / self.row, "--pooling", "mean", "--dropout", 0, "--epochs_num", EPOCHS,
                     "--learning_rate", *self.rates, "--seeds", *self.seeds, "--resume", *self.setting.precision)


def rows(args: argparse.Namespace) -> list[tuple[int, Method]]:
    """The rows asked for, in the order of --rows, or else of METHODS."""
    every = {f"{target}: {method.name}": (target, method) for target in args.target_dim for method in METHODS}
    if args.rows is None:
        return list(every.values())
    wanted = [title for row in args.rows for title in every if row in (title, title.split(": ", 1)[1])]
    unknown = [row for row in args.rows if not any(row in (title, title.split(": ", 1)[1]) for title in every)]
    if unknown:
        raise UserError(f"--rows: there is no {', '.join(map(repr, unknown))}; a row is one of these, perhaps after a "
                        f"--target_dim and a colon: {'; '.join(method.name for method in METHODS)}")
    return [every[title] for title in dict.fromkeys(wanted)]


def students(args: argparse.Namespace, setting: Setting) -> list[Job]:
    """All students asked for, the most important first."""
    found = (Job(setting, method, target, steps, method.rates[turn], seed) if method is not UNTRAINED
             else Job(setting, method, target)
             for turn in range(args.rates) for seed in args.seeds for steps in args.steps
             for target, method in rows(args) if turn < len(method.rates))
    return list(dict.fromkeys(found))


def tunings(args: argparse.Namespace, setting: Setting, models: list[Job]) -> list[tuple[Tuning, Job | None]]:
    """Fine-tuning of the teacher and of these students, each with the student that must be there first."""
    out: list[tuple[Tuning, Job | None]] = []
    for task in args.tasks if args.glue_path else []:
        options = (args.glue_path, task, tuple(args.glue_rates), tuple(args.glue_seeds))
        out.append((Tuning(setting, setting.teacher, "teacher", *options), None))
        out += [(Tuning(setting, str(job.student), job.name, *options), job) for job in models]
    return out


class Queue:
    """Tasks that several threads take, each as soon as what it needs is done."""

    def __init__(self, tasks: list[tuple[Task, Task | None]], commands: Commands):
        self.waiting, self.commands = list(tasks), commands
        self.all, self.done, self.failed = len(tasks), 0, 0
        self.unfinished = {task for task, _ in tasks}
        self.changed = threading.Condition()

    def work(self, threads: int) -> None:
        """Do everything; returns when nothing is left, or after `Commands.end`."""
        workers = [threading.Thread(target=self._work) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    def _take(self) -> Task | None:
        """The first task that can be done; None where none is left."""
        with self.changed:
            while self.waiting and not self.commands.ended:
                for pair in self.waiting:
                    if pair[1] not in self.unfinished:
                        self.waiting.remove(pair)
                        return pair[0]
                self.changed.wait(1.0)
        return None

    def _work(self) -> None:
        while (task := self._take()) is not None:
            problem = ""
            try:
                task.run(self.commands)
            except UserError as error:
                problem = str(error)
            with self.changed:
                self.done += 1
                if problem:  # what needs it is left out
                    self.failed += 1
                    self.waiting = [pair for pair in self.waiting if pair[1] != task]
                self.unfinished.discard(task)
                if not self.commands.ended:
                    print(f"{self.done} of {self.all}: {task.name}{': ' + problem if problem else ''}", flush=True)
                self.changed.notify_all()


def ending_commands() -> Commands:
    """Commands that SIGTERM and Ctrl-C end."""
    commands = Commands()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: commands.end())
    return commands


def do(tasks: list[tuple[Task, Task | None]], commands: Commands, jobs: int) -> None:
    """Do tasks, each after the one that it needs, `jobs` at once.

    Raises:
        UserError: some failed, or all were ended.
    """
    queue = Queue(tasks, commands)
    queue.work(jobs)
    if commands.ended:
        raise UserError("ended; the same command goes on from here")
    if queue.failed:
        raise UserError(f"{queue.failed} of {queue.all} jobs failed")


def adapt_teacher(args: argparse.Namespace, setting: Setting, commands: Commands) -> None:
    """Give an encoder an MLM head, and let both get used to the corpus."""
    folder = setting.work / "running" / "teacher"
    folder.mkdir(parents=True, exist_ok=True)
    steps, output = args.teacher_steps, folder / "adapted"
    commands.run(folder, "pretrain.py", "--pretrained_model_path", args.teacher_from, "--allow_missing_head",
                 "--dataset_path", setting.dataset, "--vocab_path", setting.vocab, "--dev_path", setting.dev,
                 "--eval_steps", max(1, steps // 10), "--output_model_path", output, "--total_steps", steps,
                 "--batch_size", 32, "--learning_rate", "2e-4", "--head_learning_rate", "5e-4", "--warmup", 0.05,
                 "--dropout", 0.1, "--seed", 11, "--tb_path", folder / "logs", *setting.precision)
    commands.run(folder, "convert.py", "--load_model_path", f"{output}-{steps}", "--output_model_path", setting.teacher)


def main() -> None:
    """Do what is not done yet."""
    args = parser().parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))
    setting = Setting(Path(args.work_path), args.teacher, args.vocab_path, args.dataset_path, args.dev_path, args.bf16)
    commands = ending_commands()
    if args.teacher_from and not Path(args.teacher).exists():
        adapt_teacher(args, setting, commands)
    origin = {"teacher_from": files_sha256([args.teacher_from])} if args.teacher_from else {}
    bind(setting.work, {**setting.made_from(), **origin})
    made = students(args, setting)
    tasks: list[tuple[Task, Task | None]] = [(TeacherRow(setting), None), *((job, None) for job in made)]
    do([*tasks, *tunings(args, setting, made)], commands, args.jobs)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                  allow_abbrev=False)
    for name in ("work_path", "teacher", "vocab_path", "dataset_path", "dev_path"):
        out.add_argument(f"--{name}", required=True, metavar="PATH")
    out.add_argument("--teacher_from", metavar="PATH", help="encoder to make the teacher from, where there is none yet")
    out.add_argument("--teacher_steps", type=int, default=5000, metavar="N", help="default: 5000")
    out.add_argument("--target_dim", type=int, nargs="+", required=True, metavar="D")
    out.add_argument("--steps", type=int, nargs="+", default=[300], metavar="N", help="default: 300")
    out.add_argument("--seeds", type=int, nargs="+", default=[11], help="of batches (default: 11)")
    out.add_argument("--rates", type=int, default=1, metavar="N", help="learning rates of each grid (default: 1)")
    out.add_argument("--rows", nargs="+", metavar="ROW",
                     help='only these, in this order: "calibrated", or at one width "96: calibrated"')
    out.add_argument("--jobs", type=int, default=1, metavar="N", help="at once (default: 1)")
    out.add_argument("--bf16", action="store_true", help="bfloat16 products everywhere")
    out.add_argument("--glue_path", metavar="FOLDER", help="fine-tune teacher and students on GLUE tasks in here")
    out.add_argument("--tasks", nargs="+", choices=TASKS, metavar="TASK",
                     default=["SST-2", "STS-B", "MRPC", "CoLA", "RTE"], help="default: SST-2 STS-B MRPC CoLA RTE")
    out.add_argument("--glue_rates", nargs="+", default=["2e-4"], metavar="LR", help="default: 2e-4")
    out.add_argument("--glue_seeds", type=int, nargs="+", default=[1, 2, 3], metavar="SEED", help="default: 1 2 3")
    return out


if __name__ == "__main__":
    run_script(main)
