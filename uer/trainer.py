"""The training loop.

Every random choice is a pure function of (seed, step, rank): batches by their number, dropout by a generator that is
seeded anew each step. So a run goes on from a step number alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from uer.checkpoint import optimizer_state, save_checkpoint
from uer.cost import Step
from uer.distributed import Place, sum_over_ranks, wait_for_all
from uer.errors import UserError
from uer.learner import Learner
from uer.objective import SoftTargets, evaluate, training_loss
from uer.record import Recorder
from uer.reports import Reports, duration
from uer.squeeze.learner import WidLearner
from uer.squeeze.mask_file import append_masks

if TYPE_CHECKING:
    from uer.data.loader import MlmBatch, MlmLoader

REMEDY = "a smaller --learning_rate or --compactor_learning_rate, or a longer --warmup, is what usually helps"


@dataclass
class Run:
    """What the loop needs to know, apart from what it trains."""

    output: str
    total_steps: int
    factor: Callable[[int], float]
    accumulation_steps: int = 1
    save_checkpoint_steps: int = 10000
    report_steps: int = 100
    eval_steps: int | None = None
    seed: int = 7
    mask_path: str | None = None
    bf16: bool = False

    def facts(self) -> dict[str, Any]:
        """What a report on the run is to know."""
        return {"total_steps": self.total_steps, "output": self.output, "mask_path": self.mask_path}


class Trainer:
    """Trains a learner.

    Args:
        learner: what to train.
        batches: this process's training data.
        run: steps, learning-rate factors, file names.
        place: this process.
        reports: where lines and numbers go.
        card: what checkpoints say about themselves.
        dev: held-out data, on the leading process.
        soft: soft labels.
        carried: tensors that nothing here trains and every checkpoint has: the teacher's pooler.
    """

    def __init__(self, learner: Learner, batches: MlmLoader, run: Run, place: Place, reports: Reports,
                 card: dict[str, Any], dev: MlmLoader | None = None, soft: SoftTargets | None = None,
                 carried: dict[str, torch.Tensor] | None = None):
        self.learner, self.batches, self.run, self.place = learner, batches, run, place
        self.reports, self.card, self.dev, self.soft, self.carried = reports, card, dev, soft, carried or {}
        step = Step(batches.batch_size, batches.dataset.header["seq_length"], run.accumulation_steps, place.world_size,
                    run.bf16, place.device.type == "cuda")
        self.recorder = Recorder(learner, reports, step, {**card, **asdict(step), **run.facts()})
        self._clear()

    def train(self, start: int = 0) -> None:
        """Run the steps after `start` up to the last one; writes checkpoints, the last step's included."""
        run = self.run
        stream = self.batches.stream(start * run.accumulation_steps)
        self.learner.student.train()
        self.recorder.start(start)
        self.begun = time.perf_counter()
        try:
            for step in range(start + 1, run.total_steps + 1):
                self._step(step, stream, run.factor(step - 1))
                last = step == run.total_steps
                if step % run.report_steps == 0 or last:
                    self._report(step, start)
                if self.dev is not None and (last or (run.eval_steps and step % run.eval_steps == 0)):
                    self._evaluate(step)
                if step % run.save_checkpoint_steps == 0 or last:
                    self.save(step)
        finally:
            stream.close()

    # -- one step --------------------------------------------------------------------------------------------------

    def _step(self, step: int, stream: Generator[MlmBatch, None, None], factor: float) -> None:
        batches = [next(stream).to(self.place.device) for _ in range(self.run.accumulation_steps)]
        predicted = torch.tensor(float(sum(len(batch.labels) for batch in batches)), device=self.place.device)
        sum_over_ranks([predicted])
        torch.manual_seed(step_seed(self.run.seed, step, self.place.rank))
        self.learner.prepare()
        report = torch.zeros(2, device=self.place.device)
        for batch in batches:
            with self._precision():
                loss, sums = training_loss(self.learner.student, batch, self.soft)
            (loss / predicted.clamp_min(1)).backward()
            report += sums
        self._share_gradients()
        changed = self.learner.finish(step, factor)
        self._count(report, batches)
        if isinstance(self.learner, WidLearner):
            if changed:
                self._record_masks(step)
            if step % self.learner.w_step == 0:
                self.recorder.masks(step)
                self._squeeze(step, batches[0])

    def _precision(self) -> torch.autocast:
        """bfloat16 products where asked for; the master and all sums stay in its own precision."""
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.run.bf16)

    def _share_gradients(self) -> None:
        if self.place.world_size > 1:
            sum_over_ranks([p.grad for p in self.learner.student.parameters() if p.grad is not None])

    def _squeeze(self, step: int, batch: MlmBatch) -> None:
        """Let groups leave that are ready, and say what it did to the loss of a batch."""
        assert isinstance(self.learner, WidLearner)
        leaving = self.learner.ready_to_leave(step)
        if not leaving:
            return
        before = self._loss_of(batch)
        self.learner.squeeze(leaving)
        self.learner.student.train()
        after = self._loss_of(batch)
        names = [group.name for group in leaving]
        change = (after - before) / before
        self.reports.record(step, "squeeze", {"groups": names, "loss_before": before, "loss_after": after})
        self.recorder.squeezed(step)
        self.reports.say(f"step {step}: squeezed {summary(names)}; loss of a batch {before:.5f} -> {after:.5f} "
                         f"({change:+.1e})")

    @torch.no_grad()
    def _loss_of(self, batch: MlmBatch) -> float:
        self.learner.prepare()
        self.learner.student.eval()
        with self._precision():
            _, sums = training_loss(self.learner.student, batch, None)
        self.learner.student.train()
        return sums[0].item() / max(len(batch.labels), 1)

    # -- reports ---------------------------------------------------------------------------------------------------

    def _clear(self) -> None:
        self.sums = torch.zeros(3, device=self.place.device)  # cross entropy, right predictions, predictions
        self.tokens, self.steps, self.since = 0, 0, time.perf_counter()

    def _count(self, report: torch.Tensor, batches: list[MlmBatch]) -> None:
        predicted = sum(len(batch.labels) for batch in batches)
        self.sums += torch.cat([report, report.new_tensor([predicted])])
        self.tokens += sum(batch.tokens for batch in batches)
        self.steps += 1

    def _report(self, step: int, start: int) -> None:
        tokens = torch.tensor(float(self.tokens), device=self.place.device)
        sum_over_ranks([self.sums, tokens])
        loss, correct, predicted = self.sums.tolist()
        seconds = time.perf_counter() - self.since
        values: dict[str, Any] = {"loss": loss / max(predicted, 1), "accuracy": correct / max(predicted, 1),
                                  "tokens_per_second": tokens.item() / seconds,
                                  "seconds_per_step": seconds / self.steps}
        if not math.isfinite(values["loss"]):
            raise UserError(f"the loss is {values['loss']} at step {step}; {REMEDY}")
        factor = self.run.factor(step - 1)
        for group in self.learner.optimizer.param_groups:
            values[group["kind"]] = group["base_lr"] * factor
        line = (f"step {step}/{self.run.total_steps} | loss {values['loss']:.4f} | accuracy "
                f"{100 * values['accuracy']:.1f} % | {values['tokens_per_second']:,.0f} tokens/s")
        if self.learner.groups():
            values.update(self._group_values())
            line += f" | kept {self._kept()} | largest dropped {values['largest_dropped']:.1e}"
        left = (time.perf_counter() - self.begun) / (step - start) * (self.run.total_steps - step)
        self.reports.say(f"{line} | {duration(left)} left")
        self.reports.record(step, "train", values)
        self._clear()

    def _group_values(self) -> dict[str, Any]:
        assert isinstance(self.learner, WidLearner)
        groups = list(self.learner.groups().values())
        largest = torch.stack([self.learner.master.largest_dropped(group) for group in groups]).max().item()
        return {"largest_dropped": largest, **{f"kept/{group.name}": group.kept for group in groups}}

    def _kept(self) -> str:
        groups = self.learner.groups()
        return " ".join(f"{name.partition('.')[0]} {groups[name].kept}" for name in ("hidden", "ffn.0", "mlm"))

    def _evaluate(self, step: int) -> None:
        self.learner.prepare()
        if self.dev is not None and self.place.leads:
            with self._precision():
                result = evaluate(self.learner.student, self.dev.sequential(), self.place.device)
            self.reports.say(f"step {step}: held-out loss {result.loss:.4f}, accuracy {100 * result.accuracy:.2f} %, "
                             f"{result.predicted} predictions")
            self.card = {**self.card, "dev_loss": result.loss, "dev_accuracy": result.accuracy}
            self.reports.record(step, "dev", {"loss": result.loss, "accuracy": result.accuracy})
        wait_for_all()

    # -- files -----------------------------------------------------------------------------------------------------

    def _record_masks(self, step: int) -> None:
        if self.place.leads and self.run.mask_path:
            append_masks(self.run.mask_path, step, self.learner.groups().values())

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, and its masks; `UserError` instead if the weights are no finite numbers."""
        scores = self.learner.scores.state_dict() if isinstance(self.learner, WidLearner) else {}
        if self.place.leads:
            tensors = {**self.carried, **self.learner.state_dict()}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise UserError(f"the weights are no finite numbers any more at step {step}; {REMEDY}")
            groups = self.learner.groups()
            if any(group.keep is not None for group in groups.values()):
                self._record_masks(step)
            resume = {
                "optimizer": optimizer_state(self.learner.named_parameters(), self.learner.optimizer),
                "keep": {name: group.keep.cpu() for name, group in groups.items() if group.keep is not None},
                "penalised": {name: len(group.dropped) > 0 for name, group in groups.items()},
                "scores": scores,
            }
            card = {**self.card, "squeezed": [name for name, group in groups.items() if group.squeezed]}
            path = save_checkpoint(self.run.output, step, tensors, card, resume)
            self.reports.say(f"step {step}: wrote {path}")
        wait_for_all()


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for dropout in each step on each rank (a mixing of the three numbers, below 2⁶³)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed * 0xD6E8FEB86659FD93 & (2**63 - 1)


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
