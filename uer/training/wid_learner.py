"""The WID side of a training step: compose, backward to the master, masks, penalty, update, squeeze, fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from uer.cpu.attention import TILE
from uer.models.bert import Bert
from uer.squeeze.groups import MaskGroup
from uer.squeeze.importance import NormScores
from uer.squeeze.master import Master
from uer.squeeze.penalty import Penalty
from uer.training.checkpoint import optimizer_state, restore_optimizer
from uer.training.gradient_means import GradientMeans
from uer.training.learner import Clip, PlainLearner, State
from uer.training.optimizers import AdamW


class Folding(NamedTuple):
    """How a run goes on once everything has left.

    Attributes:
        wait: steps from the last squeeze to the fold, in which the moments of the student's gradient are gathered.
        student_of: from a master to the learner of its plain student, and what checkpoints say about that.
    """

    wait: int
    student_of: Callable[[Master], tuple[PlainLearner, dict[str, Any]]]


class WidLearner:
    """Trains a master through its student.

    Args:
        master: teacher weights, compactors, groups.
        optimizer: over the master's parameters.
        penalty: what pushes the masked entries to zero.
        w_step: steps between mask updates.
        squeeze_tolerance: dropped compactor entries below this have decayed, and what has decayed leaves for good: a
            group whose schedule is complete as a whole; None: nothing leaves.
        scores: what masks are chosen by (default: column norms).
        folding: how the run goes on once everything has left; None: as before.
        early: whether decayed dimensions leave at the next mask update, and do not wait for their group's last.
    """

    owner: Callable[[str], int] | None = None
    owns: Callable[[str], bool] | None = None  # whether this process needs a gradient of the student; None: all of them

    def __init__(self, master: Master, optimizer: AdamW, penalty: Penalty, w_step: int,
                 squeeze_tolerance: float | None = None, scores: NormScores | None = None,
                 folding: Folding | None = None, early: bool = False):
        self.master = master
        self.scores = scores or NormScores(master)
        self.optimizer = optimizer
        self.penalty = penalty
        self.w_step = w_step
        self.squeeze_tolerance = squeeze_tolerance
        self.folding = folding
        self.early = early
        self.means: GradientMeans | None = None
        self.student: Bert = self._build_student()

    def _build_student(self) -> Bert:
        """The student of the groups as they are; from the last squeeze before a fold on, the plain one."""
        folds = self.folding is not None and self.master.has_left
        if folds:
            self.master.multiply_out()
        student = self.master.build_student()
        if folds:
            self.means = GradientMeans(student, self.owns)
        return student

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.master.named_parameters())

    def checkpoint(self) -> State:
        return self.master.state_dict(), {"optimizer": self._moments(), **self._gathered()}

    def _moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """Of the parameters that are here, as files have them."""
        return {name: {key: self.master.widened(name, moment) for key, moment in moments.items()}
                for name, moments in optimizer_state(self.named_parameters(), self.optimizer).items()}

    def _gathered(self) -> dict[str, Any]:
        groups = self.groups()
        return {"keep": {name: group.keep.cpu() for name, group in groups.items() if group.keep is not None},
                "there": {name: group.there.cpu() for name, group in groups.items() if group.there is not None},
                "penalised": {name: group.penalised for name, group in groups.items()},
                "scores": self.scores.state_dict(),
                **({"means": self.means.state_dict()} if self.means is not None else {})}

    def restore(self, resume: dict[str, Any]) -> None:
        moments = {name: {key: self.master.narrowed(name, moment) for key, moment in moments.items()}
                   for name, moments in resume["optimizer"].items()}
        restore_optimizer(moments, self.named_parameters(), self.optimizer)
        self.scores.load_state_dict(resume.get("scores", {}))
        if self.means is not None and "means" in resume:
            self.means.load_state_dict(resume["means"])

    def replicated(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, parameter.detach()) for name, parameter in self.named_parameters()]

    def groups(self) -> dict[str, MaskGroup]:
        return self.master.groups

    def prepare(self) -> None:
        self.master.compose_into(self.student)

    def finish(self, step: int, factor: float, update: bool = True, clip: Clip | None = None) -> bool:
        """As `Learner` has it: masks are chosen whether or not there is an update; `clip` comes before the penalty."""
        changed = step % self.w_step == 0 and self.update_masks(step)
        if update:
            spare = step > self.w_step and not self.scores.needs_gradients  # the penalty replaces these gradients
            if self.means is not None:
                self.means.observe(clip)
            self.master.backward(spare_dropped=spare)
            self.scores.observe()
            if clip is not None:
                clip([p.grad for _, p in self.named_parameters() if p.grad is not None])
            self.penalty.before_update(step)
            self.optimizer.set_factor(factor)
            self.optimizer.step()
            self.penalty.after_update(step)
        self.optimizer.zero_grad()
        return changed

    def update_masks(self, step: int) -> bool:
        """Choose the masks of interval step // w_step from the current compactors; returns whether any changed."""
        k = step // self.w_step
        changed = False
        for group in self.master.groups.values():
            if not group.squeezed:
                changed |= group.set_keep(group.choose(self.scores.of(group), k))
        if changed:
            self.master.set_norm_masks(self.student)
        return changed

    def ready_to_leave(self, step: int) -> list[MaskGroup]:
        """The groups whose schedule is complete and whose dropped entries have decayed. Reads from the device."""
        if self.squeeze_tolerance is None:
            return []
        waiting = [group for group in self.master.groups.values()
                   if not group.squeezed and step // self.w_step >= group.last_interval and len(group.dropped)]
        if not waiting:
            return []
        largest = torch.stack([self.master.largest_dropped(group) for group in waiting]).tolist()
        return [group for group, entry in zip(waiting, largest) if entry < self.squeeze_tolerance]

    def squeeze(self, groups: list[MaskGroup]) -> None:
        """Drop these groups' masked dimensions for good and rebuild the student."""
        for group in groups:
            self.master.squeeze(group, self.optimizer.state)
        self.student = self._build_student()

    def thin(self, leaving: Sequence[MaskGroup] = ()) -> bool:
        """Let decayed dimensions leave early, of all groups but those that are `leaving` as a whole; returns whether
        any have. Reads from the device."""
        if self.squeeze_tolerance is None or not self.early:
            return False
        left, whole = False, {group.name for group in leaving}
        for name, group in self.master.groups.items():
            if group.masked and name not in whole:
                decayed = self.master.largest_of_each(group) < self.squeeze_tolerance
                staying = group.staying(decayed, 1 if decayed.device.type == "cpu" else TILE)
                if len(staying) < group.width:
                    self.master.thin(group, staying, self.optimizer.state)
                    self.scores.thin(group, staying)
                    left = True
        if left:
            self.student = self._build_student()
        return left

    def ready_to_fold(self) -> bool:
        """Whether everything has left, for long enough."""
        return self.folding is not None and self.means is not None and self.means.steps >= self.folding.wait

    def fold(self) -> tuple[PlainLearner, dict[str, Any]]:
        """The plain student with its moments, to go on with instead, and what checkpoints say from now on."""
        assert self.folding is not None and self.means is not None
        learner, facts = self.folding.student_of(self.master)
        restore_optimizer(self.means.moments(), learner.named_parameters(), learner.optimizer)
        return learner, facts
