"""What a run tells about its steps: one line with all that matters; the same numbers for TensorBoard and JSON."""

from __future__ import annotations

import gc
import time
from typing import Any

import torch

from uer.cpu.memory import give_memory_back
from uer.progress import Progress, duration
from uer.report.writer import Reports
from uer.system import peak_memory
from uer.training.learner import Learner
from uer.training.wid_learner import WidLearner


class Tally:
    """Sums up steps between two reports.

    Args:
        reports: where lines and numbers go.
        device: of the sums, and whose memory is told.
        first, last: the steps of this run, first exclusive.
        figure: what stands in the place of the accuracy.
    """

    def __init__(self, reports: Reports, device: torch.device, first: int, last: int, figure: str = "accuracy"):
        self.figure = figure
        self.reports, self.device, self.first, self.last = reports, device, first, last
        self.begun = time.perf_counter()
        self.bar: Progress | None = None
        self._clear()

    def _clear(self) -> None:
        self.sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        self.steps, self.since = 0, time.perf_counter()

    def count(self, sums: torch.Tensor) -> None:
        """Add a step: cross entropy, right predictions, predictions, tokens, summed over all processes."""
        self.sums += sums
        self.steps += 1
        self.bar = self.bar or Progress("pretrain", self.last - self.first, "steps", self.reports.leads)
        self.bar.advance()

    def close(self) -> None:
        if self.bar:
            self.bar.close()

    def report(self, step: int, learner: Learner, factor: float, more: dict[str, float]) -> None:
        """Tell what the steps since the last report were like. Every process must call it.

        Args:
            factor: of the learning rates in this step.
            more: numbers to record beside the others.
        """
        loss, correct, predicted, tokens = self.sums.tolist()
        seconds = time.perf_counter() - self.since
        values: dict[str, Any] = {"loss": loss / max(predicted, 1), "accuracy": correct / max(predicted, 1),
                                  "tokens_per_second": tokens / seconds, "seconds_per_step": seconds / self.steps}
        for group in learner.optimizer.param_groups:
            values[group["kind"].removeprefix("student_")] = group["base_lr"] * factor
        line = (f"step {step}/{self.last} | loss {values['loss']:.4f} | {self.figure} {100 * values['accuracy']:.1f} % "
                f"| {values['tokens_per_second']:,.0f} tokens/s")
        if isinstance(learner, WidLearner):
            groups = learner.groups().values()
            dropped = torch.stack([learner.master.largest_dropped(group) for group in groups])
            values["largest_dropped"] = dropped.max().item()
            values |= {f"kept/{group.name}": group.kept for group in groups}
            line += f" | kept {_kept(learner)} | largest dropped {values['largest_dropped']:.1e}"
        left = (time.perf_counter() - self.begun) / (step - self.first) * (self.last - step)
        values["memory_gb"] = memory_gb(self.device)
        self.reports.say(f"{line} | {values['memory_gb']:.1f} GB | {duration(left)} left")
        self.reports.record(step, "train", {**values, **more})
        if self.bar:
            self.bar.told()
        self._clear()


def _kept(learner: WidLearner) -> str:
    groups = learner.groups()
    kept: dict[str, set[int]] = {}
    for name, group in groups.items():
        kept.setdefault(name.partition(".")[0], set()).add(group.kept)
    return " ".join(f"{kind} {'-'.join(map(str, sorted({min(kept[kind]), max(kept[kind])})))}"
                    for kind in ("hidden", "ffn", "mlm", "cls") if kind in kept)


def forget_memory(device: torch.device) -> None:
    """Give back what is free, and let `memory_gb` start from here."""
    gc.collect()  # DistributedDataParallel lies in circles
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_memory_back()


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has held so far (after a fold: since), in GB: of the GPU, or resident on a CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return peak_memory() / 1e9


def histograms(reports: Reports, step: int, learner: Learner) -> None:
    """Distributions of the weights that this process trains, for TensorBoard."""
    for name, parameter in learner.named_parameters():
        reports.histogram(step, f"weights/{name}", parameter.detach())


def summary(names: list[str]) -> str:
    """Group names, briefly: hidden, attention.0-5, ffn.0-5, mlm."""
    kinds: dict[str, list[int]] = {}
    for name in names:
        kind, _, layer = name.partition(".")
        kinds.setdefault(kind, []).extend([int(layer)] if layer else [])
    parts = []
    for kind, layers in kinds.items():
        whole = layers == list(range(layers[0], layers[-1] + 1)) if layers else False
        span = f".{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else "".join(f".{x}" for x in layers)
        parts.append(kind + span)
    return ", ".join(parts)
