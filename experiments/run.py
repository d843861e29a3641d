#!/usr/bin/env python3
"""Students of one teacher by every way to make them: same data, same number of steps; the tables of RESULTS.md.

    python3 experiments/run.py --work_path work --teacher teacher.bin --vocab_path vocab.txt \
        --dataset_path train.pt --dev_path dev.pt --target_dim 192 96 [--rows "from scratch" …] [--seeds 11 12]
    python3 experiments/run.py --work_path work … --glue_path glue        # fine-tunes the best of each row

The teacher has an MLM head; `--teacher_from <encoder>` adapts one first. Each row runs the real scripts once per
learning rate of its grid, the better rate also with the other seeds, and keeps the figures in <work_path>/rows; what is
there already is not run again, so rows may be run one by one, or by several processes at once. The table shows the
better rate of each; its minutes are those of all cores together, from the start of calibration or training to the
student's file; its operations those of the products in training.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from experiments.methods import METHODS, UNTRAINED, Method
from uer.config import load_config
from uer.planning.cost import Step, plain_cost

ROOT = Path(__file__).resolve().parents[1]
BATCH_SIZE = 16
GLUE_EPOCHS, GLUE_RATE, GLUE_SEEDS = "2", "2e-4", ("1", "2", "3")


def main() -> None:
    """Run the rows that are missing, print the table."""
    args = parser().parse_args()
    experiment = Experiment(args)
    if args.teacher_from and not Path(args.teacher).exists():
        experiment.adapt_teacher()
    experiment.evaluate("teacher", args.teacher, 0.0)
    if args.glue_path:
        experiment.glue()
        return
    chosen = [method for method in METHODS if args.rows is None or method.name in args.rows]
    for turn in range(max(len(method.rates) for method in chosen)):  # the likelier rates of all rows come first
        for target in args.target_dim:
            for method in chosen:
                for rate in method.rates[turn:turn + 1]:
                    experiment.student(target, method, rate, args.seeds[0])
    for seed in args.seeds[1:]:
        for target in args.target_dim:
            for method in chosen:
                if method is not UNTRAINED:
                    experiment.student(target, method, experiment.best_rate(target, method), seed)
    print(experiment.table())
    experiment.picture()


class Experiment:
    """Rows of figures, a file each."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.work = args, Path(args.work_path)
        self.precision = ["--bf16"] if args.bf16 else []
        (self.work / "rows").mkdir(parents=True, exist_ok=True)

    def adapt_teacher(self) -> None:
        """Give an encoder an MLM head and let both get used to the corpus."""
        trained = self.work / "adapted"
        steps = str(self.args.teacher_steps)
        self._run("pretrain.py", "--pretrained_model_path", self.args.teacher_from, "--allow_missing_head",
                  *self._data(self.args.seeds[0]), "--output_model_path", trained, "--total_steps", steps,
                  "--learning_rate", "1e-4", "--head_learning_rate", "3e-4")
        self._run("convert.py", "--load_model_path", f"{trained}-{steps}", "--output_model_path", self.args.teacher)

    def student(self, target: int, method: Method, rate: str, seed: int) -> None:
        """One student: made, trained, merged, evaluated."""
        row = row_name(target, method, rate, seed)
        if self._file(row).exists():
            return
        output = self._model(row)
        teacher = ["--pretrained_model_path", self.args.teacher, "--target_dim", target, "--compactor_mask_strategy",
                   method.strategy]
        if method is UNTRAINED:
            seconds = self._run("calibrate.py", *teacher, "--dataset_path", self.args.dataset_path, "--vocab_path",
                                self.args.vocab_path, "--output_model_path", output)
            self.evaluate(row, output, seconds)
            return
        steps = self.args.steps
        options = [*method.options(steps, self.args.teacher), *method.rate_options(rate)]
        if method.start == "teacher":
            options += [*teacher, "--mask_path", f"{output}.masks.txt"]
        else:
            options += self._start(method.start, target)
        checkpoint = f"{output}-{steps}"
        logs = Path(f"{output}.logs")
        (logs / "metrics.jsonl").unlink(missing_ok=True)  # of a run that was interrupted
        seconds = self._run("pretrain.py", *options, *self._data(seed), "--output_model_path", output, "--total_steps",
                            steps, "--warmup", 0.05, "--dropout", 0, "--tb_path", logs)
        seconds += self._run("convert.py", "--load_model_path", checkpoint, "--output_model_path", output,
                             *(["--mask_path", f"{output}.masks.txt", "--mask_step", steps] if method.masked else []))
        self.evaluate(row, output, seconds, self._operations(logs, method))
        for left in self.work.glob(f"{Path(checkpoint).name}*"):  # the student is all that is wanted
            left.unlink()

    def _operations(self, logs: Path, method: Method) -> float:
        """Operations of a run's products, by the cost model: its phases, and its teacher's soft labels."""
        lines = map(json.loads, (logs / "metrics.jsonl").read_text().splitlines())
        phases = [line for line in lines if line["kind"] == "model"]
        ends = [*(phase["step"] for phase in phases[1:]), self.args.steps]
        total = sum((end - phase["step"]) * (sum(phase["operations"].values()) + phase.get("composition", 0))
                    for phase, end in zip(phases, ends))
        if method.soft:
            step = Step(**{field.name: phases[0]["start"][field.name] for field in fields(Step)})
            with open(self.args.vocab_path, encoding="utf-8") as vocab:
                tables = {"vocab": sum(1 for _ in vocab), "positions": 0, "segments": 0}
            teacher = load_config(Path(self.args.teacher).with_name(f"{Path(self.args.teacher).stem}_config.json"))
            total += self.args.steps * plain_cost(teacher, tables, step).all_operations / 3  # its forward passes
        return total

    def evaluate(self, row: str, model: str | Path, seconds: float, operations: float = 0) -> None:
        """Write a row's figures."""
        if self._file(row).exists():
            return
        figures = self._file(row).with_suffix(".tmp")
        self._run("evaluate.py", "--model_path", model, "--dataset_path", self.args.dev_path, "--output_path", figures,
                  *self.precision)
        self._file(row).write_text(json.dumps({"name": row, **json.loads(figures.read_text()), "seconds": seconds,
                                               "operations": operations}))
        figures.unlink()

    def glue(self) -> None:
        """Fine-tune the teacher and the best student of each row on the GLUE tasks in a folder."""
        models, names = [self.args.teacher], ["teacher"]
        for target in self.args.target_dim:
            for method in METHODS:
                rate, found = self._best(target, method)
                if found and (self.args.rows is None or method.name in self.args.rows):
                    models.append(str(self._model(row_name(target, method, rate, self.args.seeds[0]))))
                    names.append(f"{target}: {method.name}")
        self._run("finetune/run_glue.py", "--data_dir", self.args.glue_path, "--vocab_path", self.args.vocab_path,
                  "--pretrained_model_path", *models, "--model_names", *names, "--output_path", self.work / "glue",
                  "--pooling", "mean", "--epochs_num", GLUE_EPOCHS, "--learning_rate", GLUE_RATE, "--seeds",
                  *GLUE_SEEDS, "--resume", *self.precision)

    def table(self) -> str:
        """The best row of each method as Markdown."""
        teacher = json.loads(self._file("teacher").read_text())
        lines = ["| model | rate | parameters | MLM loss | accuracy | of the teacher's | TFLOP | minutes |",
                 "|---|---:|---:|---:|---:|---:|---:|---:|",
                 f"| teacher |  | {teacher['parameters'] / 1e6:.1f} M | {teacher['loss']:.3f} | "
                 f"{100 * teacher['accuracy']:.1f} % | 100 % |  |  |"]
        for target in self.args.target_dim:
            for method in METHODS:
                rate, rows = self._best(target, method)
                if rows:
                    accuracy = statistics.mean(row["accuracy"] for row in rows)
                    share = accuracy / teacher["accuracy"]
                    lines.append(f"| {target}: {method.name} | {rate} | {rows[0]['parameters'] / 1e6:.1f} M | "
                                 f"{statistics.mean(row['loss'] for row in rows):.3f} | {spread(rows)} | "
                                 f"{100 * share:.0f} % | {rows[0]['operations'] / 1e12:.0f} | "
                                 f"{statistics.median(row['seconds'] for row in rows) / 60:.1f} |")
        return "\n".join(lines)

    def picture(self) -> None:
        """Draw the table's accuracies to <work_path>/students.png; where matplotlib is missing, say so."""
        try:
            from experiments.figure import draw
        except ImportError:
            print("no picture: the package matplotlib is not installed")
            return
        teacher = json.loads(self._file("teacher").read_text())["accuracy"]
        best = {target: {method.name: self._best(target, method)[1] for method in METHODS}
                for target in self.args.target_dim}
        shares = {target: {name: statistics.mean(row["accuracy"] for row in rows) / teacher
                           for name, rows in methods.items() if rows}
                  for target, methods in best.items()}
        ours = {method.name for method in METHODS if "--weight_squeeze" in method.extra or method is UNTRAINED}
        draw(self.work / "students.png", {target: rows for target, rows in shares.items() if rows}, ours,
             f"Held-out MLM accuracy after {self.args.steps} steps, of the teacher's (blue: weight-inherited)")

    def best_rate(self, target: int, method: Method) -> str:
        """The rate with the lowest loss under the first seed; "" where nothing has been run."""
        files = {rate: self._file(row_name(target, method, rate, self.args.seeds[0])) for rate in method.rates}
        losses = {rate: json.loads(file.read_text())["loss"] for rate, file in files.items() if file.exists()}
        return min(losses, key=losses.__getitem__, default="")

    def _best(self, target: int, method: Method) -> tuple[str, list[dict]]:
        """The best rate and its figures, a seed each."""
        rate = self.best_rate(target, method)
        names = dict.fromkeys(row_name(target, method, rate, seed) for seed in self.args.seeds)  # untrained: one name
        files = [self._file(name) for name in names]
        return rate, [json.loads(file.read_text()) for file in files if file.exists()]

    def _file(self, row: str) -> Path:
        return self.work / "rows" / f"{file_name(row)}.json"

    def _model(self, row: str) -> Path:
        return self.work / f"{file_name(row)}.bin"

    def _data(self, seed: int) -> list:
        return ["--dataset_path", self.args.dataset_path, "--vocab_path", self.args.vocab_path, "--batch_size",
                BATCH_SIZE, "--seed", seed, *self.precision]

    def _start(self, start: str, target: int) -> list:
        """Options for a model that starts from picked weights, or from nothing but their config."""
        by = start if start in ("random", "norm") else "norm"
        picked = self.work / f"picked-{by}-{target}.bin"
        config = self.work / f"picked-{by}-{target}_config.json"
        if not config.exists():
            self._run("demo/picking.py", "--pretrained_model_path", self.args.teacher, "--target_dim", target, "--by",
                      by, "--output_model_path", picked)
        return ["--config_path", config, *(["--pretrained_model_path", picked] if start != "scratch" else [])]

    def _run(self, script: str, *options) -> float:
        """Run a script of the repository, its output goes to log.txt; returns the seconds of all its threads."""
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        with open(self.work / "log.txt", "a") as log:
            log.write(" ".join(command) + "\n")
            log.flush()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            if subprocess.run(command, stdout=log, stderr=log).returncode:
                sys.exit(f"{script} failed; the end of {log.name} says why")
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def spread(rows: list[dict]) -> str:
    """Mean accuracy, and the lowest and highest of several seeds."""
    values = [100 * row["accuracy"] for row in rows]
    several = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{several} %"


def row_name(target: int, method: Method, rate: str, seed: int) -> str:
    """What a row is called: "192: from scratch, rate 5e-4, seed 11"."""
    return f"{target}: {method.name}" + (f", rate {rate}, seed {seed}" if rate else "")


def file_name(row: str) -> str:
    """The same as a file name."""
    return "".join(letter if letter.isalnum() or letter == "-" else "-" for letter in row.replace(": ", "-")).lower()


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("work_path", "teacher", "vocab_path", "dataset_path", "dev_path"):
        out.add_argument(f"--{name}", required=True, metavar="PATH")
    out.add_argument("--teacher_from", metavar="PATH", help="encoder to make the teacher from, where there is none yet")
    out.add_argument("--teacher_steps", type=int, default=250, help="default: 250")
    out.add_argument("--target_dim", type=int, nargs="+", required=True)
    out.add_argument("--steps", type=int, default=300, help="default: 300")
    out.add_argument("--seeds", type=int, nargs="+", default=[11], help="of batches (default: 11)")
    out.add_argument("--rows", nargs="+", metavar="NAME", choices=[method.name for method in METHODS],
                     help="only these methods")
    out.add_argument("--glue_path", metavar="FOLDER", help="fine-tune on these GLUE tasks instead")
    out.add_argument("--bf16", action="store_true", help="bfloat16 products everywhere")
    return out


if __name__ == "__main__":
    main()
