"""What tests let several processes do: pretrain.py's work in float64, watched."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from commands import ROOT

import uer.training.build_trainer
from uer.config import parse_with_config
from uer.opts import pretrain_parser
from uer.parallel import spawn
from uer.parallel.collectives import Place, differing
from uer.parallel.launch import launch
from uer.parallel.replica import Replica
from uer.parallel.signals import StopSignals
from uer.report.writer import Reports
from uer.training.precision import norm_of
from uer.training.trainer import step_seed

FORKS = torch.multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch._dynamo", "uer.training.build_trainer"])


@contextmanager
def forking() -> Iterator[None]:
    """Processes are forks of one that has imported torch, which takes each of those that begin anew four seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        patch.setattr(spawn.mp, "get_context", lambda method: FORKS)
        yield


def processes(worker, world_size: int, **values) -> None:
    """Run `worker(place, args)` in this many processes; `values` become attributes of args."""
    settings = {"gpu_ranks": [], "master_ip": None, "backend": "gloo", "rendezvous_timeout": 60.0}
    with forking():
        launch(worker, argparse.Namespace(world_size=world_size, **{**settings, **values}))


class Sent:
    """Counts the bytes that a process hands to collectives, by their name."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}
        for name in ("all_reduce", "reduce", "broadcast"):
            setattr(dist, name, self._counting(name, getattr(dist, name)))

    def _counting(self, name: str, function):
        def counted(tensor, *more, **options):
            self.bytes[name] = self.bytes.get(name, 0) + tensor.nbytes
            return function(tensor, *more, **options)

        return counted


def runs_in_float64(place: Place, args: argparse.Namespace) -> None:
    """The runs of `args.runs`, command lines, one after the other; what they held and sent goes to <output>.facts."""
    load = uer.training.build_trainer.load_teacher

    def load_double(options: argparse.Namespace, vocab_size: int):
        loaded = load(options, vocab_size)
        for name, tensor in loaded.weights.items():  # not exactly 0 anywhere: there rounding would decide
            away = 0.01 * torch.arange(1, tensor.numel() + 1, dtype=torch.float64).sin().view_as(tensor)
            loaded.weights[name] = tensor.double() + away
        return loaded

    uer.training.build_trainer.load_teacher = load_double
    sent = Sent() if place.world_size > 1 else None
    try:
        for words in args.runs:
            options, _ = parse_with_config(pretrain_parser, words)
            reports = Reports(place.leads)
            if place.leads:  # without TensorBoard, which takes seconds to import
                reports.metrics = open(f"{options.output_model_path}.metrics", "w", encoding="utf-8")  # noqa: SIM115
            trainer, start = uer.training.build_trainer.build_trainer(place, options, reports, StopSignals())
            first = trainer.replica
            if sent is not None:
                sent.bytes.clear()
            trainer.train(start)
            reports.close()
            held = sum(p.nbytes for _, p in trainer.learner.named_parameters()) + sum(
                tensor.nbytes for state in trainer.learner.optimizer.state.values() for tensor in state.values())
            everyone = [held] * place.world_size
            if place.world_size > 1:
                dist.all_gather_object(everyone, held)
            if place.leads:
                Path(f"{options.output_model_path}.facts").write_text(json.dumps({
                    "held": everyone, "sent": sent.bytes if sent else {}, "gradients": first.bytes,
                    "student": sum(p.nbytes for p in first.student.parameters())}))
    finally:
        uer.training.build_trainer.load_teacher = load


def one_fails(place: Place, args: argparse.Namespace) -> None:
    """Rank 1 ends as `args.how` says; the others wait for it in a collective, or know nothing of it."""
    exchanges(place)
    if place.rank == 1:
        if args.how == "error":
            raise KeyError("no such thing")
        os.kill(os.getpid(), signal.SIGKILL)
    if args.waiting == "backward":
        replica = Replica(torch.nn.Linear(5, 4), lambda model, x: model(x).sum(), place)
        with replica.micro_step(last=True):
            replica.loss(torch.ones(2, 5)).backward()
    time.sleep(120)


def exchanges(place: Place) -> None:
    """What two processes tell each other: gradients in buckets, what differs, held-out data."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 3), torch.nn.Linear(4, 3))  # the last: idle
    inputs = [[torch.full((2, 5), 1.0 + rank + 10 * micro) for micro in range(2)] for rank in range(place.world_size)]

    def objective(student: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return student[:2](x).square().sum()

    objective.partial = True
    expected = torch.autograd.grad(sum(objective(model, x) for micro in inputs for x in micro),
                                   model.parameters(), materialize_grads=True)
    for owner in (None, lambda name: int(name[0]) % 2):
        replica = Replica(model, objective, place, owner)
        for step in range(3):  # in new storage each time, as the composition gives it
            for parameter in model.parameters():
                parameter.data, parameter.grad = parameter.detach().clone(), None
            for micro, x in enumerate(inputs[place.rank]):
                with replica.micro_step(last=micro == 1):
                    replica.summed(replica.loss(x)).backward()
            gradients = replica.gradients()
            for (name, parameter), wanted in zip(model.named_parameters(), expected, strict=True):
                if owner is None or owner(name) == place.rank:
                    torch.testing.assert_close(parameter.grad if parameter.grad is not None else 0 * wanted, wanted)
                else:
                    assert parameter.grad is None, step
        whole = torch.stack([wanted.norm() for wanted in expected]).norm().double()
        torch.testing.assert_close(norm_of(gradients, place.device, shared=owner is not None), whole)
        assert replica.bytes == sum(p.nbytes for p in model.parameters())
    named = list(model.named_parameters())
    assert differing(named) == []
    if place.rank == 1:
        with torch.no_grad():
            named[2][1][1, 2] += 1e-7
    assert differing(named) == [(1, named[2][0])]
    assert [step_seed(7, 3, rank) for rank in (0, 1)].index(step_seed(7, 3, place.rank)) == place.rank
