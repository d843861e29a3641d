"""What the trainer trains: anything with a student to run and a way from its gradients to new weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from uer.models.bert import Bert
from uer.squeeze.groups import MaskGroup
from uer.training.checkpoint import optimizer_state, restore_optimizer
from uer.training.optimizers import AdamW

Clip = Callable[[list[torch.Tensor]], None]
State = tuple[dict[str, torch.Tensor], dict[str, Any]]


class Learner(Protocol):
    """A step is `prepare`, forward and backward of `student` on any number of micro-batches, `finish`."""

    student: Bert
    optimizer: AdamW

    @property
    def owner(self) -> Callable[[str], int] | None:
        """Student parameter -> rank that needs its gradient; None: every process does."""

    def prepare(self) -> None:
        """Bring the student's parameters up to date and clear their gradients."""

    def finish(self, step: int, factor: float, update: bool = True, clip: Clip | None = None) -> bool:
        """Update the weights from the student's gradients (or let them be); returns whether masks changed.

        Args:
            step: counted from 1; `factor`: of the base learning rates in it.
            clip: may change the gradients of this process's weights in place.
        """

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What this process's optimizer trains, under the names of checkpoints."""

    def checkpoint(self) -> State:
        """The checkpoint's tensors under the published names, and what going on needs; every process calls it.

        Whole on the leading process.
        """

    def restore(self, resume: dict[str, Any]) -> None:
        """Bring what going on needs, apart from the tensors, to where a checkpoint left it."""

    def replicated(self) -> list[tuple[str, torch.Tensor]]:
        """What all processes must hold in the same values."""

    def groups(self) -> dict[str, MaskGroup]:
        """The mask groups; none in a plain run."""


class PlainLearner:
    """A BERT trained as it is."""

    owner = None

    def __init__(self, student: Bert, optimizer: AdamW):
        self.student, self.optimizer = student, optimizer

    def prepare(self) -> None:
        self.optimizer.zero_grad()

    def finish(self, step: int, factor: float, update: bool = True, clip: Clip | None = None) -> bool:
        if update:
            if clip is not None:
                clip([p.grad for p in self.student.parameters() if p.grad is not None])
            self.optimizer.set_factor(factor)
            self.optimizer.step()
        self.optimizer.zero_grad()
        return False

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.student.named_parameters())

    def checkpoint(self) -> State:
        tensors = {name: tensor.detach() for name, tensor in self.student.state_dict().items()}
        return tensors, {"optimizer": optimizer_state(self.named_parameters(), self.optimizer)}

    def restore(self, resume: dict[str, Any]) -> None:
        restore_optimizer(resume["optimizer"], self.named_parameters(), self.optimizer)

    def replicated(self) -> list[tuple[str, torch.Tensor]]:
        return [(name, parameter.detach()) for name, parameter in self.named_parameters()]

    def groups(self) -> dict[str, MaskGroup]:
        return {}
