"""What tests let several processes do: pretrain.py's work in float64, watched."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

import uer.pretraining
from uer.config import parse_with_config
from uer.distributed import Place
from uer.errors import UserError
from uer.launch import launch
from uer.opts import pretrain_parser
from uer.reports import Reports
from uer.signals import StopSignals


def processes(worker, world_size: int, **values) -> None:
    """Run `worker(place, args)` in this many processes; `values` become attributes of args."""
    settings = {"gpu_ranks": [], "master_ip": None, "backend": "gloo", "rendezvous_timeout": 60.0}
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
    load = uer.pretraining.load_teacher

    def load_double(options: argparse.Namespace, vocab_size: int):
        loaded = load(options, vocab_size)
        for name, tensor in loaded.weights.items():  # not exactly 0 anywhere: there rounding would decide
            away = 0.01 * torch.arange(1, tensor.numel() + 1, dtype=torch.float64).sin().view_as(tensor)
            loaded.weights[name] = tensor.double() + away
        return loaded

    uer.pretraining.load_teacher = load_double
    sent = Sent() if place.world_size > 1 else None
    try:
        for words in args.runs:
            options, _ = parse_with_config(pretrain_parser, words)
            reports = Reports(place.leads)
            if place.leads:  # without TensorBoard, which takes seconds to import
                reports.metrics = open(f"{options.output_model_path}.metrics", "w", encoding="utf-8")  # noqa: SIM115
            trainer, start = uer.pretraining.build_trainer(place, options, reports, StopSignals())
            first = trainer.exchange
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
        uer.pretraining.load_teacher = load


def one_fails(place: Place, args: argparse.Namespace) -> None:
    """Rank `args.culprit` ends as `args.how` says; the others wait for it in a collective, or busily."""
    if place.rank == args.culprit:
        time.sleep(0.5)
        if args.how == "user":
            raise UserError("the disk of this rank is full")
        if args.how == "error":
            raise KeyError("no such thing")
        os.kill(os.getpid(), signal.SIGKILL)
    if args.waiting == "collective":
        dist.all_reduce(torch.zeros(1))
    time.sleep(120)
