#!/usr/bin/env python3
"""Students of one teacher before and after a short training, by every way to start: the table of benchmarks/RESULTS.md.

    python3 benchmarks/calibrated_students.py --teacher teacher.bin --vocab_path vocab.txt \
        --dataset_path train.pt --dev_path dev.pt --work_path work --target_dim 192 96

The teacher has an MLM head (a plain run of pretrain.py adapts one; convert.py writes the file). Each row runs the real
scripts; rows that are in <work_path>/rows.json already are not run again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CALIBRATED = ("--weight_squeeze", "--compactor_init", "calibrated")
STUDENT = (*CALIBRATED, "--train", "student")
SOFT = ("--soft_targets_weight", "0.5")
# name: how it starts, options of pretrain.py, its learning rates
METHODS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "calibrated, merged student trained": ("teacher", STUDENT, ("1e-4", "2e-4")),
    "calibrated, compactors and teacher trained": ("teacher", CALIBRATED, ("2e-5", "5e-5")),
    "calibrated, merged student, soft labels": ("teacher", (*STUDENT, *SOFT), ("2e-4",)),
    "picked weights": ("picked", (), ("3e-4",)),
    "from scratch": ("scratch", (), ("5e-4",)),
}


def main() -> None:
    """Run the rows that are missing, print the table."""
    args = parser().parse_args()
    work = Path(args.work_path)
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(args, work)
    bench.evaluate("teacher", args.teacher, 0.0)
    for target in args.target_dim:
        bench.calibrate(target)
        for name, (start, options, rates) in METHODS.items():
            for rate in rates if args.rates is None else args.rates:
                bench.train(target, name, start, options, rate)
    print(bench.table())


class Bench:
    """Rows of figures, kept in a file so that a run that was interrupted goes on."""

    def __init__(self, args: argparse.Namespace, work: Path):
        self.args, self.work, self.path = args, work, work / "rows.json"
        self.rows = json.loads(self.path.read_text()) if self.path.exists() else {}

    def calibrate(self, target: int) -> None:
        """The student without training."""
        output = self.work / f"calibrated-{target}.bin"
        row = f"{target}: calibrated, no training"
        if row not in self.rows:
            seconds = self._run("calibrate.py", *self._teacher(target), "--dataset_path", self.args.dataset_path,
                                "--vocab_path", self.args.vocab_path, "--output_model_path", output)
            self.evaluate(row, output, seconds)

    def train(self, target: int, name: str, start: str, options: tuple[str, ...], rate: str) -> None:
        """A student after a short training at one learning rate."""
        steps = str(self.args.steps)
        output = self.work / f"{target}-{name.replace(' ', '-').replace(',', '')}-{rate}.bin"
        if start == "teacher":
            model = self._teacher(target)
            if options == CALIBRATED:
                model += ["--mask_path", f"{output}.masks.txt", "--compactor_learning_rate", rate]
        else:
            picked = self.work / f"picked-{target}.bin"
            if not picked.exists():
                self._run("demo/picking.py", "--pretrained_model_path", self.args.teacher, "--target_dim", target,
                          "--output_model_path", picked)
            config = ["--config_path", self.work / f"picked-{target}_config.json"]
            model = ["--pretrained_model_path", picked, *config] if start == "picked" else config
        row = f"{target}: {name}, rate {rate}"
        if row in self.rows:
            return
        seconds = self._run(
            "pretrain.py", *model, *options, "--dataset_path", self.args.dataset_path, "--output_model_path", output,
            "--vocab_path", self.args.vocab_path, "--total_steps", steps, "--batch_size", 16, "--learning_rate", rate,
            "--warmup", 0.05, "--dropout", 0, "--seed", 11, *(["--bf16"] if self.args.bf16 else []))
        self._run("convert.py", "--load_model_path", f"{output}-{steps}", "--output_model_path", f"{output}.merged.bin")
        self.evaluate(row, f"{output}.merged.bin", seconds)

    def evaluate(self, row: str, model: str | Path, seconds: float) -> None:
        """Add a row with a model's figures."""
        if row in self.rows:
            return
        figures = self.work / "figures.json"
        self._run("evaluate.py", "--model_path", model, "--dataset_path", self.args.dev_path, "--output_path", figures,
                  *(["--bf16"] if self.args.bf16 else []))
        self.rows[row] = {**json.loads(figures.read_text()), "seconds": seconds}
        self.path.write_text(json.dumps(self.rows, indent=2))

    def table(self) -> str:
        """The rows as Markdown."""
        best = self.rows["teacher"]["accuracy"]
        lines = ["| model | parameters | loss | accuracy | of the teacher | seconds |", "|---|---|---|---|---|---|"]
        lines += [f"| {name} | {row['parameters'] / 1e6:.1f} M | {row['loss']:.3f} | {100 * row['accuracy']:.1f} % | "
                  f"{100 * row['accuracy'] / best:.0f} % | {row['seconds']:.0f} |" for name, row in self.rows.items()]
        return "\n".join(lines)

    def _teacher(self, target: int) -> list:
        return ["--pretrained_model_path", self.args.teacher, "--target_dim", target, "--compactor_mask_strategy",
                self.args.strategy]

    def _run(self, script: str, *options) -> float:
        """Run a script of the repository, its output goes to log.txt; returns the seconds it took."""
        command = [sys.executable, str(ROOT / script), *map(str, options)]
        with open(self.work / "log.txt", "a") as log:
            log.write(" ".join(command) + "\n")
            log.flush()
            begun = time.perf_counter()
            subprocess.run(command, check=True, stdout=log, stderr=log)
            return time.perf_counter() - begun


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("teacher", "vocab_path", "dataset_path", "dev_path", "work_path"):
        out.add_argument(f"--{name}", required=True, metavar="PATH")
    out.add_argument("--target_dim", type=int, nargs="+", required=True)
    out.add_argument("--strategy", choices=("dim", "head"), default="dim")
    out.add_argument("--steps", type=int, default=300)
    out.add_argument("--rates", nargs="+", help="learning rates instead of each method's own")
    out.add_argument("--bf16", action="store_true", help="bfloat16 products in training and evaluation")
    return out


if __name__ == "__main__":
    main()
