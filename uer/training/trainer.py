"""The training loop.

Every random choice is a pure function of (seed, step, rank): batches by their number, dropout by a generator that is
seeded anew each step. So a run goes on from a step number alone.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from uer.data.loader import MlmBatch, MlmLoader
from uer.errors import Stopped, UserError
from uer.parallel.collectives import Place, differing, sum_over_ranks, wait_for_all
from uer.parallel.replica import Replica
from uer.parallel.signals import StopSignals
from uer.planning.cost import WIRE, Step
from uer.report.writer import Reports
from uer.squeeze.mask_file import append_masks, masks_of, masks_sha256
from uer.training.checkpoint import save_checkpoint
from uer.training.compilation import compile_encoder
from uer.training.delayed import sent
from uer.training.judge import Judge, remedy
from uer.training.layer_states import LayerTargets
from uer.training.learner import Learner
from uer.training.objective import Objective, evaluate, mlm_objective
from uer.training.precision import Precision
from uer.training.recorder import Recorder
from uer.training.tally import Tally, forget_memory, histograms, summary
from uer.training.wid_learner import WidLearner


@dataclass
class Run:
    """What the loop needs to know, apart from what it trains."""

    output: str
    total_steps: int
    factor: Callable[[int], float]
    accumulation_steps: int = 1
    save_checkpoint_steps: int = 10000
    keep_checkpoints: int | None = None
    report_steps: int = 100
    eval_steps: int | None = None
    check_replicas_steps: int = 1000
    tb_histograms_steps: int | None = None
    seed: int = 7
    mask_path: str | None = None
    data_since: int = 0  # the step after which the present order of the data began
    ddp_comm_hook: str = "none"
    optimizer: str = "adamw"

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
        precision: number formats (default: float32).
        signals: what may ask the run to end (default: nothing).
        dev: this process's share of held-out data.
        objective: what a step runs backward on (default: the cross entropy).
        carried: tensors that nothing here trains and every checkpoint has: the teacher's pooler.
        lag: steps after which the host looks at a step's figures (default: 1 on a GPU, else 0).
    """

    def __init__(self, learner: Learner, batches: MlmLoader, run: Run, place: Place, reports: Reports,
                 card: dict[str, Any], precision: Precision | None = None, signals: StopSignals | None = None,
                 dev: MlmLoader | None = None, objective: Objective | None = None,
                 carried: dict[str, torch.Tensor] | None = None, lag: int | None = None):
        self.learner, self.batches, self.run, self.place = learner, batches, run, place
        self.reports, self.card, self.dev, self.carried = reports, card, dev, carried or {}
        self.objective: Objective = objective or mlm_objective
        self.judged_by = self.objective if hasattr(self.objective, "figure") else mlm_objective
        self.figure = getattr(self.judged_by, "figure", "accuracy")
        self.precision = precision or Precision(place.device)
        self.signals = signals or StopSignals()
        self.held_out: tuple[int, dict[str, Any]] = (0, {})  # a step and its figures on held-out data
        self.replica = self._wire()
        self.judge = Judge(learner, self.precision, reports, run.factor, run.output, place.device, lag)
        self.tally = Tally(reports, place.device, 0, run.total_steps, self.figure)
        step = Step(batches.batch_size, batches.dataset.header["seq_length"], run.accumulation_steps, place.world_size,
                    self.precision.half is not None, place.device.type == "cuda", wire=WIRE[run.ddp_comm_hook],
                    optimizer=run.optimizer)
        self.recorder = Recorder(learner, reports, step, {**card, **asdict(step), **run.facts(), "figure": self.figure})

    def train(self, start: int = 0) -> None:
        """Run the steps after `start` up to the last one; writes checkpoints, the last step's included.

        Raises:
            Stopped: a signal asked for an end; a checkpoint has been written.
            UserError: a loss that is no finite number, replicas that differ, a checkpoint that cannot be written.
        """
        run = self.run
        stream = self.batches.stream((start - run.data_since) * run.accumulation_steps)
        self.learner.student.train()
        self.signals.waiting = True
        self.recorder.start(start)
        self.tally = Tally(self.reports, self.place.device, start, run.total_steps, self.figure)
        if self.replica.active:
            self.reports.say(f"each step sends {self.replica.bytes / 1e6:,.1f} MB of gradients, the student's")
            self.reports.record(start, "exchange", {"gradient_bytes": self.replica.bytes})
        try:
            for step in range(start + 1, run.total_steps + 1):
                self.step(step, stream, run.factor(step - 1))
                self._after(step)
        finally:
            stream.close()
            self.tally.close()

    def _after(self, step: int) -> None:
        run = self.run
        last, leaving = step == run.total_steps, self.judge.stopping is not None

        def due(every: int | None) -> bool:
            return last or bool(every and step % every == 0)

        if due(run.check_replicas_steps) and not (leaving and not last):
            self.check_replicas(step)
        if due(run.report_steps):
            layers = self.objective.facts() if isinstance(self.objective, LayerTargets) else {}
            self.tally.report(step, self.learner, run.factor(step - 1), {**self.precision.facts(), **layers})
        if run.tb_histograms_steps and step % run.tb_histograms_steps == 0:
            histograms(self.reports, step, self.learner)
        if self.dev is not None and due(run.eval_steps):
            self.evaluate(step)
        if due(run.save_checkpoint_steps) or leaving:
            self.save(step)
        if self.judge.stopping is not None and not last:
            name = signal.Signals(self.judge.stopping).name
            self.reports.say(f"step {step}: {name} ended the run; the same command with --resume goes on from here")
            raise Stopped(self.judge.stopping)

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, step: int, stream: Generator[MlmBatch, None, None], factor: float) -> None:
        """One optimizer step, and the squeeze if it is time for one."""
        batches = [next(stream).to(self.place.device) for _ in range(self.run.accumulation_steps)]
        told = sent(torch.tensor([sum(batch.units for batch in batches), sum(batch.tokens for batch in batches),
                                  sum(len(batch.src) for batch in batches), *self.signals.flags()],
                                 dtype=torch.float64), self.place.device)
        sum_over_ranks([told])
        for batch in batches:
            batch.of_step = (told[0] / told[2]).to(torch.get_default_dtype())
        torch.manual_seed(step_seed(self.run.seed, step, self.place.rank))
        self._prepare()
        if self.replica.student is not self.learner.student:
            self.replica = self._wire()
        report = torch.zeros(3, dtype=torch.float64, device=self.place.device)  # the last: all that is trained on
        for number, batch in enumerate(batches, 1):
            with self.replica.micro_step(last=number == len(batches)):
                with self.precision.products():
                    loss, sums = self.replica.loss(batch)
                self.precision.scaled(self.replica.summed(loss / told[0].to(loss.dtype).clamp_min(1))).backward()
            report += torch.cat([sums, loss.detach().to(sums.dtype)[None]])
        gradients = self.replica.gradients()
        self.precision.unscale(gradients)
        sum_over_ranks([report])
        loss = report[2] / told[0].clamp_min(1)
        update = self.judge.update(step, loss, told[3:], gradients)
        with self.precision.composing():
            changed = self.learner.finish(step, factor, update, self._clip)
        self.tally.count(torch.cat([report[:2], told[:2]]))
        if isinstance(self.learner, WidLearner):
            if changed:
                self._record_masks(step)
            if step % self.learner.w_step == 0:
                self.recorder.masks(step)
                leaving = self.learner.ready_to_leave(step)
                if self.learner.thin(leaving) and not leaving:
                    self.recorder.changed(step)
                self.squeeze(leaving, step, batches[0])
            if self.learner.ready_to_fold():
                self.fold(step, batches[0])

    def _prepare(self) -> None:
        with self.precision.composing():
            self.learner.prepare()

    def _wire(self) -> Replica:
        """Make a student that has just been built ready for training."""
        if self.precision.compiled:
            compile_encoder(self.learner.student)
        return Replica(self.learner.student, self.objective, self.place, self.learner.owner, self.run.ddp_comm_hook)

    def _clip(self, gradients: list[torch.Tensor]) -> None:
        self.precision.clip(gradients, shared=self.learner.owner is not None)

    def squeeze(self, leaving: list, step: int, batch: MlmBatch) -> None:
        """Let groups leave, and say what it did to the loss of a batch."""
        assert isinstance(self.learner, WidLearner)
        if not leaving:
            return
        before = self._loss_of(batch)
        self.learner.squeeze(leaving)
        names = [group.name for group in leaving]
        self._changed("squeeze", {"groups": names}, f"squeezed {summary(names)}", step, batch, before)

    def fold(self, step: int, batch: MlmBatch) -> None:
        """Go on with the plain student, and say what it did to the loss of a batch."""
        assert isinstance(self.learner, WidLearner)
        before = self._loss_of(batch)
        self.learner, facts = self.learner.fold()
        self.judge.learner = self.recorder.learner = self.learner
        self.replica = self._wire()
        forget_memory(self.place.device)  # nothing holds on to the master any more
        self.card = {**self.card, **facts, "folded": step}
        self._changed("fold", {}, "folded into the plain student", step, batch, before)

    def _changed(self, kind: str, facts: dict[str, Any], words: str, step: int, batch: MlmBatch, before: float) -> None:
        after = self._loss_of(batch)
        change = (after - before) / before if before else 0.0
        self.reports.record(step, kind, {**facts, "loss_before": before, "loss_after": after})
        self.recorder.changed(step)
        self.reports.say(f"step {step}: {words}; loss of a batch {before:.5f} -> {after:.5f} ({change:+.1e})")

    @torch.no_grad()
    def _loss_of(self, batch: MlmBatch) -> float:
        self._prepare()
        self.learner.student.eval()
        with self.precision.products():
            _, sums = self.judged_by(self.learner.student, batch)
        self.learner.student.train()
        return sums[0].item() / max(batch.units, 1)

    # -- now and then ----------------------------------------------------------------------------------------------

    def check_replicas(self, step: int) -> None:
        """`UserError` where a process has other weights than the leading one."""
        with self.precision.composing():
            unlike = differing(self.learner.replicated())
        if unlike:
            (rank, name), others = unlike[0], len(unlike) - 1
            raise UserError(f"step {step}: rank {rank} has other weights than rank 0 in {name} ({others} more such "
                            f"places): one of the devices or hosts computes wrongly; go on elsewhere with --resume")

    def evaluate(self, step: int) -> None:
        """Loss and accuracy on held-out data, of which every process takes a share."""
        assert self.dev is not None
        self._prepare()
        with self.precision.products():
            result = evaluate(self.learner.student, self.dev.sequential(), self.place.device, share=True,
                              objective=self.judged_by)
        self.reports.say(f"step {step}: held-out loss {result.loss:.4f}, {self.figure} {100 * result.accuracy:.2f} %, "
                         f"{result.predicted} {'predictions' if self.figure == 'accuracy' else 'texts'}")
        self.held_out = step, {"dev_loss": result.loss, "dev_accuracy": result.accuracy,
                               **({} if self.figure == "accuracy" else {"figure": self.figure})}
        self.reports.record(step, "dev", {"loss": result.loss, "accuracy": result.accuracy})

    # -- files -----------------------------------------------------------------------------------------------------

    def _record_masks(self, step: int) -> None:
        if self.place.leads and self.run.mask_path:
            append_masks(self.run.mask_path, step, self.learner.groups().values())

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, and its masks; `UserError` instead if the weights are no finite numbers.

        Every process must call it.
        """
        self.judge.heed(everything=True)
        whole = self.place.leads or self.learner.owner is not None  # where it is sharded, all have a part of it
        tensors, resume = self.learner.checkpoint() if whole else ({}, {})
        if self.place.leads:
            tensors = {**self.carried, **tensors}
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise UserError(f"the weights are no finite numbers any more at step {step}; {remedy(self.learner)}")
            groups = self.learner.groups()
            if any(group.keep is not None for group in groups.values()):
                self._record_masks(step)
            if self.precision.scale is not None:
                resume["loss_scale"] = self.precision.scale.state()
            if isinstance(self.objective, LayerTargets):
                resume["objective"] = self.objective.state()
            masks = masks_of(groups.values())
            judged, figures = self.held_out
            card = {**self.card, **(figures if judged == step else {}),
                    "squeezed": [name for name, group in groups.items() if group.squeezed],
                    "masks_sha256": masks_sha256(masks) if masks else None}
            path = save_checkpoint(self.run.output, step, tensors, card, resume, self.run.keep_checkpoints)
            self.reports.say(f"step {step}: wrote {path}")
        wait_for_all()


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for dropout in each step on each rank (a mixing of the three numbers, below 2⁶³)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + rank * 0x94D049BB133111EB) & (2**64 - 1)
    mixed ^= mixed >> 31
    return mixed * 0xD6E8FEB86659FD93 & (2**63 - 1)
