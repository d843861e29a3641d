"""What the trainer trains: anything with a student to run and a way from its gradients to new weights."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from uer.models.bert import Bert
from uer.optimizers import AdamW
from uer.squeeze.groups import MaskGroup


class Learner(Protocol):
    """A step is `prepare`, forward and backward of `student` on any number of micro-batches, `finish`."""

    student: Bert
    optimizer: AdamW

    def prepare(self) -> None:
        """Bring the student's parameters up to date and clear their gradients."""

    def finish(self, step: int, factor: float) -> bool:
        """Update the weights from the student's gradients; returns whether masks changed."""

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimizer trains, under the names of checkpoints."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors under the published names."""

    def groups(self) -> dict[str, MaskGroup]:
        """The mask groups; none in a plain run."""


class PlainLearner:
    """A BERT trained as it is."""

    def __init__(self, student: Bert, optimizer: AdamW):
        self.student, self.optimizer = student, optimizer

    def prepare(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def finish(self, step: int, factor: float) -> bool:
        self.optimizer.set_factor(factor)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return False

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(self.student.named_parameters())

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {name: tensor.detach() for name, tensor in self.student.state_dict().items()}

    def groups(self) -> dict[str, MaskGroup]:
        return {}
