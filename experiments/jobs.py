"""A student's way from the teacher to its figures: the real scripts one after another, each step done once.

What a job leaves in <work_path>: `rows/<job>.json`, its figures, which is what says that it is done, and
`students/<job>.bin`. Until then its files are in `running/<job>`; a job that was interrupted goes on from there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from experiments.methods import UNTRAINED, Method
from uer.config import load_config
from uer.errors import UserError
from uer.formats.storage import written_sha256
from uer.made_from import differences, files_sha256
from uer.planning.cost import Step, plain_cost
from uer.report.log import current, read_lines
from uer.training.checkpoint import checkpoint_steps

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 16
EVALUATIONS = 6  # in the course of a run
BEFORE = 1 / 3  # of the steps, for the wider student of a method in two stages
MADE_BY_HEAD = "MLM head"  # the part of the cost that headless objectives do not have


@dataclass(frozen=True)
class Setting:
    """What all jobs of a table share."""

    work: Path
    teacher: str
    vocab: str
    dataset: str
    dev: str
    bf16: bool

    def made_from(self) -> dict[str, str]:
        """What all rows hang on."""
        teacher = [path for path in (Path(self.teacher), config_of(self.teacher)) if path.exists()]
        return {"teacher": files_sha256(teacher), "vocab_path": files_sha256([self.vocab]),
                "dataset_path": written_sha256(self.dataset), "dev_path": written_sha256(self.dev),
                "bf16": str(self.bf16)}

    @property
    def precision(self) -> list[str]:
        return ["--bf16"] if self.bf16 else []


class Commands:
    """Runs scripts, several at once from as many threads; ends them all when asked to."""

    def __init__(self) -> None:
        self.running: set[subprocess.Popen] = set()
        self.ended = False
        self.lock = threading.Lock()

    def run(self, folder: Path, script: str, *options: Any) -> None:
        """Run a script of the repository; what it says and how long it took goes to files in `folder`.

        Raises:
            UserError: it failed, or everything has been ended.
        """
        log, begun = folder / "log.txt", time.time()
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        with open(log, "a", encoding="utf-8") as out:
            out.write(" ".join(command) + "\n")
            out.flush()
            with self.lock:
                if self.ended:
                    raise UserError("ended")
                process = subprocess.Popen(command, stdout=out, stderr=out)
                self.running.add(process)
            _, status, used = os.wait4(process.pid, 0)
            with self.lock:
                self.running.discard(process)
                process.returncode = os.waitstatus_to_exitcode(status)
        with open(folder / "times.jsonl", "a") as times:
            times.write(json.dumps({"script": script, "elapsed": time.time() - begun,
                                    "seconds": used.ru_utime + used.ru_stime}) + "\n")
        if process.returncode:
            raise UserError(f"{script} ended with {process.returncode}; the end of {log} says why")

    def end(self) -> None:
        """Ask what runs to save and end, and start nothing more."""
        with self.lock:
            self.ended = True
            for process in self.running:
                process.terminate()


@dataclass(frozen=True)
class Job:
    """One student: made, trained, merged, evaluated."""

    setting: Setting
    method: Method
    target: int
    steps: int = 0
    rate: str = ""
    seed: int = 11

    @property
    def name(self) -> str:
        """What the row is called, in a form that is a file name too."""
        parts = [str(self.target), self.method.name]
        if self.method is not UNTRAINED:
            parts += [f"{self.steps} steps", f"rate {self.rate}", f"seed {self.seed}"]
        return file_name(" ".join(parts))

    @property
    def row(self) -> Path:
        return self.setting.work / "rows" / f"{self.name}.json"

    @property
    def student(self) -> Path:
        return self.setting.work / "students" / f"{self.name}.bin"

    @property
    def folder(self) -> Path:
        return self.setting.work / "running" / self.name

    def run(self, commands: Commands) -> None:
        """Do what is not done yet."""
        recipe = {"extra": list(self.method.extra), "objective": self.method.objective, "batch_size": BATCH_SIZE}
        if self.row.exists():
            refuse_others(json.loads(self.row.read_text()).get("recipe", recipe), recipe, self.row)
            return
        for folder in (self.folder, self.row.parent, self.student.parent):
            folder.mkdir(parents=True, exist_ok=True)
        if self.method is UNTRAINED:
            curve = []
            commands.run(self.folder, "calibrate.py", *self._teacher(), "--dataset_path", self.setting.dataset,
                         "--vocab_path", self.setting.vocab, "--skip_evaluation", "--output_model_path", self.student)
        else:
            curve = self._train(commands)
        row = {"name": self.name, "method": self.method.name, "target": self.target, "steps": self.steps,
               "rate": self.rate, "seed": self.seed, "recipe": recipe, **self._times()}
        row |= evaluate(self.setting, commands, self.student, self.folder)
        if self.method.headless:
            row |= {"loss": None, "accuracy": None}
        write(self.row, {**row, "curve": curve})
        shutil.rmtree(self.folder)

    def _times(self) -> dict[str, float]:
        """Seconds of all threads, and by the clock, until the student is there."""
        lines = [json.loads(line) for line in (self.folder / "times.jsonl").read_text().splitlines()]
        rows = [json.loads(self._wider().row.read_text())] if self.method.via else []
        return {key: sum(line[key] for line in (*rows, *lines)) for key in ("seconds", "elapsed")}

    def _train(self, commands: Commands) -> list[dict[str, Any]]:
        """Train and merge the student; returns its curve."""
        job, before = self, []
        if self.method.via:
            first = self._wider()
            first.run(commands)
            before = json.loads(first.row.read_text())["curve"]
            job = replace(self, setting=replace(self.setting, teacher=str(first.student)),
                          steps=self.steps - first.steps)
        job._pretrain(commands, self.folder)
        curve = job._curve(self.folder)
        if before:
            curve = [{**point, **{key: point[key] + before[-1][key] for key in ("step", "operations")}}
                     for point in curve]
        if not self.method.objective:
            output = self.folder / "model"
            masks = ["--mask_path", f"{output}.masks.txt", "--mask_step", job.steps] if self.method.masked else []
            commands.run(self.folder, "convert.py", "--load_model_path", f"{output}-{job.steps}",
                         "--output_model_path", self.student, *masks)
        return [*before, *curve]

    def _wider(self) -> Job:
        """The first of two stages."""
        config = load_config(config_of(self.setting.teacher))
        unit = config.heads_num
        between = (config.hidden_size + self.target) // 2 // unit * unit
        return replace(self, method=replace(self.method, via=False, name=f"first stage of {self.target}"),
                       target=between, steps=max(1, int(self.steps * BEFORE)))

    def _pretrain(self, commands: Commands, folder: Path) -> None:
        """pretrain.py, or peers.py, from the start or from where it was interrupted."""
        output, setting = folder / "model", self.setting
        done = checkpoint_steps(str(output))
        if self.steps in done and not self.method.objective:
            return
        if not done:
            (folder / "logs" / "metrics.jsonl").unlink(missing_ok=True)
        options = [*self.method.options(self.rate, setting.teacher), *self._start(commands, folder),
                   "--dataset_path", setting.dataset, "--vocab_path", setting.vocab, "--batch_size", BATCH_SIZE,
                   "--seed", self.seed, *setting.precision, "--total_steps", self.steps, "--warmup", 0.05, "--dropout",
                   0, "--tb_path", folder / "logs", "--save_checkpoint_steps", 1000, "--keep_checkpoints", 1,
                   *(["--resume"] if done else [])]
        if not self.method.headless:
            options += ["--dev_path", setting.dev, "--eval_steps", max(1, self.steps // EVALUATIONS)]
        if self.method.objective:
            commands.run(folder, "experiments/peers.py", *options, "--output_model_path", output, "--student_path",
                         self.student)
        else:
            commands.run(folder, "pretrain.py", *options, "--output_model_path", output)

    def _teacher(self) -> list[Any]:
        return ["--pretrained_model_path", self.setting.teacher, "--target_dim", self.target,
                "--compactor_mask_strategy", self.method.strategy]

    def _start(self, commands: Commands, folder: Path) -> list[Any]:
        """What the run starts from."""
        if self.method.start == "teacher":
            masks = ["--mask_path", folder / "model.masks.txt"] if self.method.masked else []
            return [*self._teacher(), *masks]
        if self.method.start == "layers":
            return []
        by = "random" if self.method.start == "random" else "norm"
        picked = folder / "picked.bin"
        if not picked.exists():
            commands.run(folder, "demo/picking.py", "--pretrained_model_path", self.setting.teacher,
                         "--target_dim", self.target, "--by", by, "--output_model_path", picked)
        return ["--config_path", config_of(picked), *(["--pretrained_model_path", picked]
                                                      if self.method.start != "scratch" else [])]

    def _curve(self, folder: Path) -> list[dict[str, Any]]:
        """Held-out figures of a run against steps and operations; of a headless one only the end."""
        lines = current(read_lines(folder / "logs" / "metrics.jsonl"))
        phases = [line for line in lines if line["kind"] == "model"]
        phases = [phase for i, phase in enumerate(phases) if i == 0 or phase["step"] > phases[i - 1]["step"]]
        more = self._teachers_operations(phases[0]) if self.method.taught or self.method.objective else 0.0

        def operations(step: int) -> float:
            total = more * step
            for phase, end in zip(phases, [*(later["step"] for later in phases[1:]), step]):
                total += max(0, min(end, step) - phase["step"]) * (self._products(phase) + phase.get("composition", 0))
            return total

        points = {line["step"]: line for line in lines if line["kind"] == "dev"}
        points.setdefault(self.steps, {"loss": None, "accuracy": None})
        return [{"step": step, "operations": operations(step), "loss": point["loss"], "accuracy": point["accuracy"]}
                for step, point in sorted(points.items())]

    def _products(self, phase: dict[str, Any]) -> float:
        return sum(count for part, count in phase["operations"].items()
                   if not (self.method.headless and part == MADE_BY_HEAD))

    def _teachers_operations(self, phase: dict[str, Any]) -> float:
        """Of the teacher's forward pass in a step."""
        start = phase["start"]
        step = Step(**{field.name: start[field.name] for field in fields(Step) if field.name in start})
        with open(self.setting.vocab, encoding="utf-8") as vocab:
            tables = {"vocab": sum(1 for _ in vocab), "positions": 0, "segments": 0}
        cost = plain_cost(load_config(config_of(self.setting.teacher)), tables, step)
        return self._products({"operations": cost.operations}) / 3


def evaluate(setting: Setting, commands: Commands, model: Path | str, folder: Path) -> dict[str, Any]:
    """A model's held-out loss and accuracy, and its parameters."""
    figures = folder / "figures.json"
    commands.run(folder, "evaluate.py", "--model_path", model, "--dataset_path", setting.dev, "--output_path", figures,
                 *setting.precision)
    found = json.loads(figures.read_text())
    return {key: found[key] for key in ("loss", "accuracy", "predicted", "parameters")}


def refuse_others(found: dict[str, Any], now: dict[str, Any], where: Path) -> None:
    """`UserError` where what is there was made in another way than it would be now."""
    if differ := differences(found, now, {key: key for key in now}):
        raise UserError(f"{where}: made in another way: {'; '.join(differ)}; delete it, or take another --work_path")


def bind(work: Path, now: dict[str, Any]) -> None:
    """Give a folder of results to what they are made from; `UserError` where it is of something else."""
    file = work / "made_from.json"
    work.mkdir(parents=True, exist_ok=True)
    found = json.loads(file.read_text()) if file.exists() else now
    refuse_others(found, {**found, **now}, work)
    write(file, {**found, **now})


def config_of(model: str | Path) -> Path:
    """Where the config of a UER file is."""
    return Path(model).with_name(f"{Path(model).stem}_config.json")


def file_name(words: str) -> str:
    """Words as a file name: letters, digits, single hyphens."""
    return "-".join("".join(letter if letter.isalnum() else " " for letter in words.lower()).split())


def write(file: Path, content: dict[str, Any]) -> None:
    """Write JSON, whole or not at all."""
    partial = file.with_suffix(".tmp")
    partial.write_text(json.dumps(content))
    os.replace(partial, file)
