"""One fine-tuning run: epochs over the training data, an evaluation after each, the best weights kept.

AdamW here corrects its bias (`--no_bias_correction`: as UER's does not): with the few steps of a small task, its first
ones would otherwise be several times too long (Zhang et al. 2021, Revisiting Few-sample BERT Fine-tuning).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from uer.cpu.memory import keep_freed_memory
from uer.errors import UserError
from uer.formats.uer_names import heads_out
from uer.progress import duration, tracked
from uer.report.writer import Reports
from uer.training.optimizers import AdamW, parameter_groups, schedule
from uer.training.trainer import step_seed

REMEDY = "a smaller --learning_rate or a longer --warmup is what usually helps"


class Combination(NamedTuple):
    """What differs between the runs of a grid."""

    learning_rate: float
    batch_size: int
    seed: int

    @property
    def words(self) -> str:
        return f"learning rate {self.learning_rate:g}, batch {self.batch_size}, seed {self.seed}"


@dataclass
class Settings:
    """What all runs of a grid share."""

    epochs: int = 3
    warmup: float = 0.1
    scheduler: str = "linear"
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    bias_correction: bool = True
    precision: str = "fp32"
    report_steps: int = 100
    group_by_length: bool = False

    @classmethod
    def of(cls, args: argparse.Namespace) -> Settings:
        """As the options say."""
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32"
        return cls(args.epochs_num, args.warmup, args.scheduler, args.weight_decay, args.max_grad_norm,
                   args.bias_correction, precision, args.report_steps, args.group_by_length)

    def facts(self) -> dict[str, Any]:
        """What a run's figures hang on."""
        return {key: value for key, value in vars(self).items() if key != "report_steps"}

    @property
    def half(self) -> torch.dtype | None:
        """The dtype of matrix products, None = float32."""
        return {"fp32": None, "fp16": torch.float16, "bf16": torch.bfloat16}[self.precision]

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, self.half or torch.bfloat16, enabled=self.half is not None)


class Evaluation(NamedTuple):
    """A figure to choose epochs by, and all figures to report."""

    score: float
    figures: dict[str, float]


class Problem(Protocol):
    """What is to be learned."""

    def batches(self, batch_size: int, seed: int, epoch: int, grouped: bool) -> Sequence[Any]:
        """What `loss` takes, in the order of an epoch; `grouped`: batches of like length."""

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of a batch."""

    def evaluate(self, model: nn.Module) -> Evaluation:
        """On the dev data, the model being in evaluation mode."""


@dataclass
class Outcome:
    """What a run came to.

    Attributes:
        best_epoch: from 1.
        score, figures: of that epoch.
        epochs: figures of every epoch, the mean training loss as `loss`.
        weights: of the best epoch, on the CPU, under the names of files.
    """

    best_epoch: int
    score: float
    figures: dict[str, float]
    seconds: float
    epochs: list[dict[str, float]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """All but the weights."""
        return {key: value for key, value in vars(self).items() if key != "weights"}


def tune(model: nn.Module, problem: Problem, combination: Combination, settings: Settings, device: torch.device,
         reports: Reports, spoken: str = "", left: Callable[[float], str] = lambda share: "") -> Outcome:
    """Train `model` for some epochs; dropout and order follow from the combination's seed alone.

    Args:
        spoken: in front of every line.
        left: share of this run that is done -> words on the time left.
    Raises:
        UserError: the loss is no finite number any more.
    """
    keep_freed_memory()
    model.to(device)
    groups = parameter_groups(model.named_parameters(), combination.learning_rate, weight_decay=settings.weight_decay)
    optimizer = AdamW(groups, bias_correction=settings.bias_correction)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    per_epoch = len(problem.batches(combination.batch_size, combination.seed, 0, settings.group_by_length))
    total = per_epoch * settings.epochs
    factor, step, begun = schedule(settings.scheduler, total, settings.warmup), 0, time.perf_counter()
    best: Outcome | None = None
    history: list[dict[str, float]] = []
    for epoch in range(settings.epochs):
        model.train()
        losses = torch.zeros((), dtype=torch.float64, device=device)
        batches = problem.batches(combination.batch_size, combination.seed, epoch, settings.group_by_length)
        for number, batch in enumerate(tracked(batches, per_epoch, f"epoch {epoch + 1}", "steps"), 1):
            torch.manual_seed(step_seed(combination.seed, step, 0))
            with settings.autocast(device):
                loss = problem.loss(model, batch)
            scaler.scale(loss).backward()
            if settings.max_grad_norm:
                scaler.unscale_(optimizer)  # type: ignore[arg-type]  # all it takes are groups and a step
                nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
            optimizer.set_factor(factor(step))
            scaler.step(optimizer)  # type: ignore[arg-type]
            scaler.update()
            optimizer.zero_grad()
            losses += loss.detach()
            step += 1
            if step % settings.report_steps == 0:
                mean = _finite(losses.item() / number, combination)
                reports.say(f"{spoken}step {step}/{total} | loss {mean:.4f}{left(step / total)}")
        mean = _finite(losses.item() / per_epoch, combination)
        result = evaluate(model, problem, settings, device)
        history.append({"loss": mean, **result.figures})
        reports.say(f"{spoken}epoch {epoch + 1}/{settings.epochs} | loss {mean:.4f} | {in_words(result.figures)}"
                    f"{left(step / total)}")
        reports.record(step, "dev", {"loss": mean, **result.figures})
        if best is None or result.score > best.score:
            best = Outcome(epoch + 1, result.score, result.figures, 0.0, weights=heads_out({
                name: tensor.detach().to("cpu", copy=True) for name, tensor in model.state_dict().items()}))
    assert best is not None
    best.seconds, best.epochs = time.perf_counter() - begun, history
    return best


def _finite(loss: float, combination: Combination) -> float:
    """The loss; `UserError` where it is no finite number."""
    if not math.isfinite(loss):
        raise UserError(f"{combination.words}: the loss is {loss}; {REMEDY}")
    return loss


@torch.no_grad()
def evaluate(model: nn.Module, problem: Problem, settings: Settings, device: torch.device) -> Evaluation:
    """The problem's evaluation, dropout off, in the run's precision."""
    model.eval()
    with settings.autocast(device):
        return problem.evaluate(model)


def in_words(figures: dict[str, float]) -> str:
    """Names and values: shares in percent."""
    return ", ".join(f"{name} {100 * value:.2f}" for name, value in figures.items())


class Clock:
    """Time left of several runs of about the same length."""

    def __init__(self, runs: int):
        self.runs, self.done, self.begun = runs, 0.0, time.perf_counter()

    def left(self, share: float) -> str:
        """Words on the time left when `share` of the present run is done."""
        done = self.done + share
        seconds = (time.perf_counter() - self.begun) / done * (self.runs - done)
        return f" | {duration(seconds)} left"
