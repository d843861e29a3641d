"""`--dryrun`: every stage of a run once, on a few instances, before hours are spent in a queue.

Teacher, data, options and processes are the real ones; batches are small, the mask schedule is done in one leap, and
whatever is written goes to a folder beside the output that is removed at the end (so its disk is tried as well).
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from uer.conversion.outputs import output_paths, write_outputs
from uer.conversion.stage1 import student_source
from uer.errors import Stopped, UserError
from uer.parallel.collectives import Place, wait_for_all
from uer.parallel.launch import launch
from uer.parallel.signals import StopSignals
from uer.report.writer import Reports
from uer.training.build_trainer import build_trainer
from uer.training.checkpoint import find_checkpoint, load_checkpoint, open_checkpoint
from uer.training.tally import memory_gb
from uer.training.trainer import Trainer
from uer.training.wid_learner import WidLearner

BATCH_SIZE, ACCUMULATION_STEPS, CALIBRATION_BATCHES, EVALUATION_BATCHES = 4, 2, 1, 2


def dryrun(args: argparse.Namespace) -> None:
    """Rehearse the run that the options describe, in all its processes, and print how long each stage took.
    `UserError` for what the run would fail with."""
    if args.resume:
        open_checkpoint(find_checkpoint(args.output_model_path, args.resume))
    output = Path(args.output_model_path).absolute()
    folder = output.with_name(f".{output.name}.dryrun")
    try:
        launch(rehearse, small(args, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def small(args: argparse.Namespace, folder: Path) -> argparse.Namespace:
    changed = {
        "output_model_path": str(folder / "model.bin"), "mask_path": args.mask_path and str(folder / "masks.txt"),
        "tb_path": None, "log_path": None, "resume": None, "keep_checkpoints": None,
        "batch_size": min(args.batch_size, BATCH_SIZE),
        "accumulation_steps": min(args.accumulation_steps, ACCUMULATION_STEPS),
        "calibration_batches": min(args.calibration_batches or CALIBRATION_BATCHES, CALIBRATION_BATCHES)}
    return argparse.Namespace(**{**vars(args), **changed})


class Stages:
    """Names and seconds of what has been done."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        yield
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = time.perf_counter() - begun

    def table(self) -> list[str]:
        """A line per stage, and their sum."""
        rows = [*self.seconds.items(), ("all", sum(self.seconds.values()))]
        return [f"{'stage':<28}{'seconds':>9}", *(f"{name:<28}{seconds:9.2f}" for name, seconds in rows)]


def rehearse(place: Place, args: argparse.Namespace) -> None:
    reports, stage = Reports(place.leads), Stages()
    with StopSignals(place.world_size) as signals:
        with stage("load teacher and data"):
            trainer, _ = build_trainer(place, args, reports, signals)
        trainer.learner.student.train()
        with closing(trainer.batches.stream()) as stream:
            with stage("step"):
                _step(trainer, 1, stream)
            last = _masks_and_squeeze(trainer, stream, stage) if isinstance(trainer.learner, WidLearner) else 1
        with stage("comparison of processes"):
            trainer.check_replicas(last)
        with stage("evaluation"):
            data = trainer.dev or trainer.batches
            trainer.dev = SimpleNamespace(  # type: ignore[assignment]
                sequential=lambda: itertools.islice(data.sequential(), EVALUATION_BATCHES))
            trainer.evaluate(last)
        with stage("checkpoint"):
            trainer.save(last)
        del trainer
        with stage("resume, step"):
            _resume(place, argparse.Namespace(**{**vars(args), "resume": "newest"}), reports, signals, last)
    if place.leads:
        with stage("merge, conversion"):
            _merge(args, last, reports)
    wait_for_all()
    for line in stage.table():
        reports.say(line)
    reports.say(f"the dry run found nothing wrong; {memory_gb(place.device):.1f} GB of memory at most (batches of "
                f"{args.batch_size})")


def _step(trainer: Trainer, number: int, stream) -> None:
    """A step; `Stopped` where a signal has asked any process for an end."""
    trainer.step(number, stream, 1.0)
    if trainer.judge.stopping is not None:
        raise Stopped(trainer.judge.stopping)


def _masks_and_squeeze(trainer: Trainer, stream, stage: Stages) -> int:
    """The last masks of the schedule at once, their groups leave, the fold; returns the last step's number."""
    learner = trainer.learner
    assert isinstance(learner, WidLearner)
    groups = learner.groups().values()
    if all(group.squeezed for group in groups):  # calibrated
        return 1
    step = learner.w_step * max(group.last_interval for group in groups)
    with stage("step with new masks"):
        _step(trainer, step, stream)
    if learner.squeeze_tolerance is None:
        return step
    with stage("squeeze"):
        trainer.squeeze([group for group in groups if group.masked], step, next(stream).to(trainer.place.device))
    with stage("step after the squeeze"):
        _step(trainer, step + 1, stream)
    if learner.folding is None:
        return step + 1
    if trainer.learner is learner:  # it waits for more steps than this one
        with stage("fold"):
            trainer.fold(step + 1, next(stream).to(trainer.place.device))
    with stage("step after the fold"):
        _step(trainer, step + 2, stream)
    return step + 2


def _resume(place: Place, args: argparse.Namespace, reports: Reports, signals: StopSignals, last: int) -> None:
    """Build everything from the checkpoint, compare, make a step."""
    trainer, start = build_trainer(place, args, reports, signals)
    tensors, _ = trainer.learner.checkpoint()
    if place.leads:
        saved, _, _ = load_checkpoint(Path(f"{args.output_model_path}-{last}"))
        tensors = {**trainer.carried, **tensors}
        unlike = [name for name, tensor in saved.items() if not torch.equal(tensor, tensors[name].cpu())]
        if unlike or start != last:
            raise UserError(f"dry run: what was resumed is not what was saved ({', '.join(unlike[:5])}); is another "
                            f"run writing to {args.output_model_path}?")
    stream = trainer.batches.stream(start)
    trainer.learner.student.train()
    _step(trainer, start + 1, stream)
    stream.close()


def _merge(args: argparse.Namespace, step: int, reports: Reports) -> None:
    """What convert.py does with the checkpoint."""
    masks = args.mask_path if args.weight_squeeze and args.compactor_init == "identity" else None
    options = SimpleNamespace(
        load_model_path=f"{args.output_model_path}-{step}", layers_num=None, hidden_size=None, feedforward_size=None,
        heads_num=None, config_path=None, compactor_mask_strategy=None, mask_path=masks,
        mask_step=step if masks else None, keep_attention_scale=False, keep_embedding_size=False, vocab_path=None,
        spm_model_path=None)
    paths = output_paths(str(Path(args.output_model_path).with_name("student.bin")), ["uer"])
    write_outputs(student_source(options, "--dryrun", reports.say), paths)  # type: ignore[arg-type]
