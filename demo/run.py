#!/usr/bin/env python3
"""The whole job on what every installation already has: text, a teacher, students, a table and a plot.

Everything is done by scripts; each command is shown before it runs, and can be pasted in the repository's folder.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from demo.report import EncoderRow, Row, encoder_table, plot, read_metrics, table
from demo.runner import ROOT, Runner, end_on_sigterm, fingerprint, say_heading, work_folder
from demo.setting import Amount, Teacher, find_teacher, remembered_speed
from uer.errors import run_script

BATCH = 16
REPORT_STEPS = 5
CALIBRATION_BATCHES = 8  # of 16 × 128 tokens
RECIPE = ["--compactor_init", "calibrated", "--learning_rate", "1e-4",
          "--soft_targets_weight", "0.5"]  # the README's, in small
ENCODER_BATCHES = 32  # of 16 paragraphs
Command = list[str | Path]


class Demo:
    """The steps of the demo, in the order of the methods.

    Args:
        work: folder of all files.
        runner: runs the commands.
        amount: training steps, and paragraphs to fine-tune with.
        bf16: run the products in bfloat16.
    """

    def __init__(self, work: Path, runner: Runner, teacher: Teacher, amount: Amount, bf16: bool):
        self.work = work
        self.runner, self.teacher, self.bf16 = runner, teacher, bf16
        self.precision = ["--bf16"] if bf16 else []
        self.teacher_steps, self.student_steps, self.paragraphs = amount
        self.corpus, self.dev = work / "corpus.pt", work / "dev.pt"
        self.rows: list[Row] = []
        self.encoders: list[EncoderRow] = []
        self.runs: dict[str, Path] = {}  # label -> folder of the reports of a student's training
        self.tuned: list[tuple[str, str, Command]] = []  # label, name, model options of what is fine-tuned

    # -- command lines ---------------------------------------------------------------------------------------------

    def pretrain(self, name: str, steps: int, *more: str | Path) -> Command:
        """pretrain.py, with reports in the folder of this name."""
        return ["pretrain.py", "--dataset_path", self.corpus, *self.teacher.text_options(), *more,
                "--total_steps", str(steps), "--batch_size", str(BATCH), "--dropout", "0", *self.precision,
                "--output_model_path", self.work / f"{name}.bin", "--report_steps", str(REPORT_STEPS),
                "--tb_path", self.work / "logs" / name]

    def evaluate(self, name: str, model: str | Path, config: str | None = None) -> Command:
        """evaluate.py; the figures go to the file of this name."""
        return ["evaluate.py", "--model_path", model, *(["--config_path", config] if config else []),
                "--dataset_path", self.dev, *self.precision, "--output_path", self._figures(name)]

    def squeeze(self, teacher: Teacher, strategy: str) -> Command:
        """What calibrate.py and pretrain.py need to know of a student by weight-inherited distillation."""
        return [*teacher.model_options(), "--compactor_mask_strategy", strategy, "--target_dim",
                str(teacher.half(strategy))]

    def compactors(self, strategy: str) -> Path:
        """Where calibrate.py writes them and pretrain.py finds them."""
        return self.work / f"compactors-{strategy}.pt"

    def _figures(self, name: str) -> Path:
        return self.work / "figures" / f"{name}.json"

    def _row(self, label: str, steps: int, name: str, seconds: float) -> Row:
        found = json.loads((ROOT / self._figures(name)).read_text(encoding="utf-8"))
        row = Row(label, steps, found["parameters"], found["loss"], found["accuracy"], found["tokens_per_second"],
                  seconds)
        self.rows.append(row)
        return row

    # -- steps -----------------------------------------------------------------------------------------------------

    def text(self) -> None:
        """Corpus and held-out text."""
        self.runner.step(
            "text", "TEXT. The docstrings of Python's standard library, torch and numpy, and the chapters that help() "
            "shows: a paragraph a line, a document a module. One document in forty is held out.",
            ["demo/harvest.py", "--corpus_path", self.work / "corpus.txt", "--dev_path", self.work / "dev.txt"])

    def encoder(self) -> None:
        """The first act: the teacher as what it is, a sentence encoder, and one of half the width."""
        teacher, student, figures = self.teacher, self.work / "encoder.bin", self._figures("encoder")
        done = self.runner.step(
            "encoder", "A SENTENCE ENCODER OF HALF THE WIDTH, without labels and without training: calibrate.py reads "
            f"{16 * ENCODER_BATCHES} paragraphs. How far does it agree with its teacher on held-out ones: in the "
            "teacher's space (cosine), on which texts are alike (similarities), on the ten nearest to each text?",
            ["calibrate.py", *teacher.model_options(), *teacher.text_options(), "--target_dim",
             str(teacher.half("dim")), "--corpus_path", self.work / "corpus.txt", "--calibration_batches",
             str(ENCODER_BATCHES), "--skip_evaluation", "--output_model_path", student, "--output_format", "uer",
             "huggingface"],
            ["evaluate.py", "--task", "agreement", "--model_path", student, "--teacher_path", teacher.path,
             *teacher.text_options(), "--test_path", self.work / "dev.txt", *self.precision, "--output_path", figures])
        found = json.loads((ROOT / figures).read_text(encoding="utf-8"))
        speeds = [found.pop(key) for key in ("teacher_texts_per_second", "texts_per_second")]
        self.encoders = [EncoderRow("teacher", parameters(teacher.path), {}, speeds[0], 0.0),
                         EncoderRow("calibrated", parameters(ROOT / student), found, speeds[1], done["seconds"][0])]
        print(f"\n{encoder_table(self.encoders)}", end="", flush=True)

    def datasets(self) -> None:
        """Both, for masked language modelling."""
        corpus, dev = self.work / "corpus.txt", self.work / "dev.txt"
        common = [*self.teacher.text_options(), "--data_processor", "mlm", "--full_sentences"]
        self.runner.step(
            "datasets", "DATASETS, for masked language modelling. Text becomes token ids. Training masks other tokens "
            "in every epoch; the held-out text is masked once and for all, so that all models are asked the same.",
            ["preprocess.py", "--corpus_path", corpus, "--dataset_path", self.corpus, *common, "--dynamic_masking",
             "--processes_num", "2"],
            ["preprocess.py", "--corpus_path", dev, "--dataset_path", self.dev, *common, "--dup_factor", "1"])

    def adapted_teacher(self) -> Teacher:
        """The teacher as the students get it: with an MLM head that has learned something."""
        teacher, seconds, steps = self.teacher, 0.0, 0
        if teacher.needs_head:
            steps = self.teacher_steps
            done = self.runner.step(
                "teacher", "TEACHER. It has no head for masked language modelling (MLM), so it gets one, and a plain "
                "run of pretrain.py adapts it to the task.",
                self.pretrain("teacher", steps, *teacher.model_options(), "--allow_missing_head",
                              "--learning_rate", "1e-4", "--head_learning_rate", "3e-4"))
            seconds = sum(done["seconds"])
            teacher = replace(teacher, path=str(self.work / f"teacher.bin-{steps}"), config_path=None, needs_head=False)
        self.runner.step("teacher-figures", "The teacher's figures on the held-out text:",
                         self.evaluate("teacher", teacher.path, teacher.config_path))
        self._row("teacher", steps, "teacher", seconds)
        self.tuned.append(("teacher", "teacher", [*teacher.model_options()]))
        return teacher

    def calibrated(self, teacher: Teacher, strategy: str) -> float:
        """A student in closed form; returns the seconds it took."""
        name = f"calibrated-{strategy}"
        what = {"dim": "every head and every layer gets half as wide", "head": "half of the heads leave"}[strategy]
        done = self.runner.step(
            name, f"A STUDENT WITHOUT TRAINING, strategy {strategy}: {what}. A few batches through the teacher tell "
            f"which dimensions can be rebuilt from the others; the compactors follow in closed form and are merged.",
            ["calibrate.py", "--dataset_path", self.corpus, *self.teacher.text_options(),
             *self.squeeze(teacher, strategy), "--calibration_batches", str(CALIBRATION_BATCHES), "--skip_evaluation",
             "--compactors_path", self.compactors(strategy), "--output_model_path", self.work / f"{name}.bin"],
            self.evaluate(name, self.work / f"{name}.bin"))
        return self._row(f"WID {strategy}, calibrated", 0, name, done["seconds"][0]).seconds

    def distilled(self, teacher: Teacher, strategy: str, before: float) -> None:
        """The calibrated student, trained, converted, evaluated.

        Args:
            before: seconds that went into its compactors.
        """
        name, label, steps = f"wid-{strategy}", f"WID {strategy}, calibrated, trained", self.student_steps
        student = self.work / f"{name}-student.bin"
        done = self.runner.step(
            name, f"THE SAME STUDENT, TRAINED, strategy {strategy}. pretrain.py starts from the compactors just "
            f"calibrated, folds them into the student and trains it for {steps} steps; half of the loss are the "
            f"teacher's soft labels. convert.py writes it for UER and for Hugging Face.",
            self.pretrain(name, steps, *self.squeeze(teacher, strategy), "--weight_squeeze", *RECIPE,
                          "--compactors_path", self.compactors(strategy)),
            ["convert.py", "--load_model_path", self.work / f"{name}.bin-{steps}", "--output_model_path", student,
             "--output_format", "uer", "huggingface", *self.teacher.text_options()[:2]],
            self.evaluate(name, student))
        self._row(label, steps, name, before + done["seconds"][0])
        self.runs[label] = self.work / "logs" / name
        self.tuned.append((label, name, ["--pretrained_model_path", student]))

    def plain(self, name: str, label: str, words: str, model: list[str | Path], *before: Command) -> None:
        """A student by a plain MLM run from the weights that `model` names."""
        steps = self.student_steps
        done = self.runner.step(
            name, words, *before, self.pretrain(name, steps, *model, "--learning_rate", "3e-4"),
            self.evaluate(name, self.work / f"{name}.bin-{steps}"))
        self._row(label, steps, name, sum(done["seconds"][:-1]))
        self.runs[label] = self.work / "logs" / name
        self.tuned.append((label, name, ["--pretrained_model_path", self.work / f"{name}.bin-{steps}"]))

    def students(self, teacher: Teacher) -> None:
        """All students of the MLM teacher, of one size.

        The published start is not among them: its dimensions need some 500 updates to leave (experiments/RESULTS.md).
        """
        self.distilled(teacher, "dim", self.calibrated(teacher, "dim"))
        self.calibrated(teacher, "head")
        size = str(teacher.half("dim"))
        picked = self.work / "picked-start.bin"
        self.plain("picked", "picked weights", "PICKED WEIGHTS, for comparison: half of the teacher's dimensions, "
                   "those of the largest norm, then plain training.", ["--pretrained_model_path", picked],
                   ["demo/picking.py", *teacher.model_options(), "--target_dim", size, "--by", "norm",
                    "--output_model_path", picked])
        self.plain("scratch", "from scratch", "FROM SCRATCH, for comparison: a student of the same size with random "
                   "weights.", ["--config_path", self.work / "picked-start_config.json"])

    def fine_tuned(self) -> None:
        """The models' use for a task of one's own."""
        train, dev = self.work / "package-train.tsv", self.work / "package-dev.tsv"
        made = {name: self.work / f"package-{name}.bin" for _, name, _ in self.tuned}
        self.runner.step(
            "fine-tuning", "FINE-TUNING. Does a docstring come from the standard library, torch or numpy? Each model "
            f"reads {3 * self.paragraphs:,} paragraphs once and is asked about {3 * self.paragraphs // 2:,} others.",
            ["demo/origin.py", "--train_path", train, "--dev_path", dev, "--train_examples", str(self.paragraphs),
             "--dev_examples", str(self.paragraphs // 2)],
            *(["finetune/run_classifier.py", "--train_path", train, "--dev_path", dev, *model,
               *self.teacher.text_options(), "--seq_length", "64", "--pooling", "mean", "--dropout", "0",
               "--epochs_num", "1", "--learning_rate", "2e-4", *self.precision, "--output_model_path", made[name]]
              for _, name, model in self.tuned))
        for label, name, _ in self.tuned:
            found = json.loads((ROOT / f"{made[name]}.results.json").read_text(encoding="utf-8"))
            place = next(i for i, row in enumerate(self.rows) if row.model == label)
            self.rows[place] = self.rows[place]._replace(package=found["runs"][0]["figures"]["accuracy"])

    # -- results ---------------------------------------------------------------------------------------------------

    def results(self, seconds: float) -> str:
        """Write table, plot and results.json; returns the table and what goes with it."""
        precision = "bfloat16" if self.bf16 else "float32"
        predictions = json.loads((ROOT / self._figures("teacher")).read_text())["predicted"]
        lines = [encoder_table(self.encoders) if self.encoders else "", table(self.rows),
                 f"Held-out text, {predictions:,} masked tokens; students trained for {self.student_steps} steps "
                 f"of {BATCH} × 128 tokens in {precision}.",
                 f"package: docstrings whose package is told after fine-tuning with {3 * self.paragraphs:,} of them "
                 "(a guess: 33 %).",
                 "tokens/s: evaluation. seconds: calibration and training (of the teacher: its adaptation).",
                 f"Machine: {os.cpu_count()} cores, {platform.machine()}, {platform.system()}. "
                 f"The whole demo took {seconds / 60:.1f} minutes."]
        text = "\n".join(lines).lstrip() + "\n"
        folder = ROOT / self.work
        losses = {label: [(entry["step"], entry["loss"]) for entry in read_metrics(ROOT / logs)]
                  for label, logs in self.runs.items()}
        plot(folder / "plot.png", losses, self.rows,
             f"Students of half the teacher's width, {self.student_steps} steps")
        (folder / "results.md").write_text(text, encoding="utf-8")
        found = {"steps": [self.teacher_steps, self.student_steps], "precision": precision, "seconds": seconds,
                 "encoders": [row._asdict() for row in self.encoders], "rows": [row._asdict() for row in self.rows]}
        (folder / "results.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return text


def parameters(path: str | Path) -> int:
    """Of a model, without what stands on its encoder."""
    from uer.formats import load_model

    weights = load_model(path, config=None, vocab_size=None, encoder_only=True).weights
    return sum(tensor.numel() for tensor in weights.values())


def parser() -> argparse.ArgumentParser:
    """The command line."""
    out = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    out.add_argument("--teacher", default=os.environ.get("TEACHER") or None, metavar="PATH",
                     help="Hugging Face folder or UER file (default: $TEACHER, else the one that pip brought)")
    out.add_argument("--config_path", default=os.environ.get("CONFIG") or None, metavar="FILE",
                     help="its config, where there is none beside it (default: $CONFIG)")
    out.add_argument("--vocab_path", default=os.environ.get("VOCAB") or None, metavar="FILE",
                     help="its vocabulary, where there is none beside it (default: $VOCAB)")
    out.add_argument("--work_path", default="demo/work", type=Path, metavar="DIR",
                     help="folder of all files, within the repository or absolute (default: demo/work)")
    out.add_argument("--float32", action="store_true", help="do not use bfloat16 even where it is faster")
    out.add_argument("--share", type=float, default=1.0, metavar="X", help=argparse.SUPPRESS)
    return out


def main() -> None:
    """Set the stage, run the steps, show the results."""
    args = parser().parse_args()
    end_on_sigterm()
    begun = time.perf_counter()
    print(f"The demo makes small students of a BERT and compares them. Everything goes to {args.work_path}.\n"
          f"Ctrl-C stops it; `make demo` then goes on where it stopped. Every command is shown and can be pasted in\n"
          f"{ROOT}, after  . .venv/bin/activate")
    with work_folder(ROOT / args.work_path) as lock:
        teacher = find_teacher(args.teacher, args.config_path, args.vocab_path)
        speed = remembered_speed(ROOT / args.work_path / "speed.json", args.float32)
        amount = Amount(*(max(20, round(count * args.share)) for count in speed.amount()))
        runner = Runner(ROOT / args.work_path, fingerprint(teacher.files()), lock)
        demo = Demo(args.work_path, runner, teacher, amount, speed.bf16)
        demo.text()
        if teacher.needs_head:
            demo.encoder()
        demo.datasets()
        demo.students(demo.adapted_teacher())
        demo.fine_tuned()
        text = demo.results(runner.before + time.perf_counter() - begun)
    say_heading("RESULTS")
    print(f"\n{text}\nwritten: {args.work_path}/results.md, results.json, plot.png", flush=True)


if __name__ == "__main__":
    run_script(main)
