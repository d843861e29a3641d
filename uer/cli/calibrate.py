"""Teacher + corpus -> a smaller BERT in closed form, without any training."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from uer.arguments import SHAPE, typed_again
from uer.cli import command_line, importing, learning, readable_one, same_tokenizer, suggestion, taught_by
from uer.config import parse_with_config
from uer.errors import UserError
from uer.files import vocab_path_for
from uer.opts import calibrate_parser as parser
from uer.progress import ending


def main() -> None:
    args, _ = parse_with_config(parser)
    if args.student_path:
        return end_of_refit(args)
    if args.uneven and (args.sweep or not args.budget):
        raise UserError("--uneven goes with --budget, which it spends on one student, and without --sweep")
    if args.sweep or (args.budget and not args.uneven):
        return end_of_sweep(args)
    if args.sweep_path:
        raise UserError("--sweep_path goes with --sweep or --budget, and without --uneven")
    with importing():
        from uer.calibration.command import make_student

    made = make_student(args, command_line())
    ending(", ".join(map(str, made.paths.values())), said(made.figures), following(args, made.paths, made.target))


def end_of_refit(args: argparse.Namespace) -> None:
    """Fit a student's map anew; what comes next is to judge it beside the teacher's vectors."""
    with importing():
        from uer.calibration.refit import refit_student

    made = refit_student(args, command_line())
    ending(", ".join(map(str, made.paths.values())), said(made.figures[-1:]), suggestion(
        "evaluate", "--task", "retrieval", "--model_path", readable_one(made.paths) or "STUDENT", "--teacher_path",
        args.pretrained_model_path, same_tokenizer(args), "--test_path", "FOLDER"))


def said(figures: list[tuple[str, str]]) -> str:
    """How good it is, in words."""
    return "; ".join(f"{what}: {found}" for what, found in figures) or "unknown, as nothing was compared"


def end_of_sweep(args: argparse.Namespace) -> None:
    """Compare shapes; what comes next is the student that was found to be worth most."""
    with importing():
        from uer.evaluation.agreement import spelled
        from uer.planning.sweep import picture_path, sweep

    teacher, *students = sweep(args)
    best = max(students, key=lambda row: row.worth)
    made = f"{args.sweep_path} and {picture_path(args.sweep_path)}" if args.sweep_path else \
        "a table, and nothing else: --sweep_path keeps it"
    ending(made, f"{teacher.measure}: {best.name} {spelled(best.measure, best.worth)}, "
                 f"the teacher {spelled(teacher.measure, teacher.worth)}",
           suggestion("calibrate", typed_again(parser(), args, without=("sweep", "budget", "sweep_path")),
                      "--target_layers", best.shape.layers, "--target_dim", best.shape.hidden,
                      "--target_feedforward_size", best.shape.feedforward, "--target_heads", best.shape.heads,
                      "--output_model_path", f"{best.name}.bin"))


def following(args: argparse.Namespace, paths: dict[str, Path], target: str) -> str:
    """The command that trains the student: from its teacher, or where it has words or depth of its own, as it is.

    Args:
        paths: what was written, by format.
        target: of the model; what has no MLM head learns from its teacher alone, which has to have the same words.
    """
    output = args.output_model_path.rstrip(os.sep).removesuffix(".bin")
    trained = ["--output_model_path", f"{output}-trained.bin"]
    text = args.dataset_path or ["DATASET"]
    if args.target_vocab or not args.target_dim:
        readable = readable_one(paths)
        if readable is None:
            return suggestion("calibrate", sys.argv[1:], "--output_format", "uer")
        new = readable if readable == paths.get("huggingface") else vocab_path_for(readable)
        words = ["--vocab_path", new] if args.target_vocab else same_tokenizer(args)
        if target == "mlm":
            return suggestion("pretrain", "--dataset_path", "DATASET" if args.target_vocab else text, words,
                              "--pretrained_model_path", readable, *trained)
        teacher = args.pretrained_model_path
        if args.target_vocab:
            return suggestion("evaluate", "--task", "agreement", "--model_path", readable, "--teacher_path", teacher,
                              "--test_path", "TEXT")
        return suggestion("pretrain", "--dataset_path", text, words, "--pretrained_model_path", readable,
                          taught_by(teacher, target), *trained)
    return suggestion("pretrain", "--dataset_path", text, same_tokenizer(args),
                      "--pretrained_model_path", args.pretrained_model_path,
                      args.config_path and ["--config_path", args.config_path], "--weight_squeeze",
                      typed_again(parser(), args, SHAPE), "--compactor_init", "calibrated",
                      args.compactors_path and ["--compactors_path", args.compactors_path], learning(target), *trained)
