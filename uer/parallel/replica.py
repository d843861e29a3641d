"""This process's student and what its gradients are taken of; among others, inside DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from uer.errors import UserError
from uer.parallel.collectives import Place, collective


def check_comm_hook(hook: str) -> None:
    """`UserError` where gradients cannot travel as --ddp_comm_hook wants them to."""
    if hook != "none" and not (dist.is_initialized() and dist.get_backend() == "nccl"):
        raise UserError(f"--ddp_comm_hook {hook} needs several processes on GPUs with --backend nccl, as torch's hook "
                        f"does; leave it out")


class Replica:
    """Sums the student's gradients over the processes while the backward pass is still running.

    The composition may hand the student's parameters new storage between steps; a new student needs a new replica.

    Args:
        student: the module whose gradients are summed.
        objective: `objective(student, batch)` gives the loss to run backward on, and what to report. One that leaves
            parameters of the student out says so by an attribute `partial`.
        place: this process.
        owner: parameter name -> rank that alone needs its gradient; None: every process needs every gradient.
        hook: `none`, or `bf16`: gradients travel in bfloat16.
    """

    def __init__(self, student: nn.Module, objective: Callable[[Any, Any], Any], place: Place,
                 owner: Callable[[str], int] | None = None, hook: str = "none"):
        self.student, self.place, self.owner = student, place, owner
        self.named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        self.active = dist.is_initialized()
        self.bytes = 0  # that each step's gradients take on their way
        self.loss: nn.Module = _Loss(student, objective)
        self.distributed: DistributedDataParallel | None = None
        if self.active:
            self.bytes = sum(p.numel() * (2 if hook == "bf16" else p.element_size()) for _, p in self.named)
            self.loss = self.distributed = DistributedDataParallel(
                self.loss, init_sync=False, gradient_as_bucket_view=True,
                find_unused_parameters=getattr(objective, "partial", False))
        if hook == "bf16" and self.distributed:
            from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook

            self.distributed.register_comm_hook(None, bf16_compress_hook)

    @contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        """Around forward and backward pass of a micro-step; the last one's gradients are summed over the processes."""
        with self.distributed.no_sync() if self.distributed and not last else nullcontext(), collective(mixed=True):
            yield

    def summed(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to run backward on, for gradients that are the sum of the processes', where torch takes the mean."""
        return loss * self.place.world_size if self.active else loss

    def gradients(self) -> list[torch.Tensor]:
        """The gradients after the last micro-step; those that another process owns are given up."""
        for name, parameter in self.named:
            if self.owner is not None and self.owner(name) != self.place.rank:
                parameter.grad = None
        return [parameter.grad for _, parameter in self.named if parameter.grad is not None]


class _Loss(nn.Module):
    def __init__(self, student: nn.Module, objective: Callable[[Any, Any], Any]):
        super().__init__()
        self.student, self.objective = student, objective

    def forward(self, batch: Any) -> Any:
        return self.objective(self.student, batch)
