"""Gradients of the student, summed over the processes while the backward pass is still running."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from uer.parallel.collectives import collective

BUCKET_BYTES = 25 << 20


def _tell(exchange: weakref.ref[GradientExchange], number: int) -> None:
    """A gradient of this bucket is final."""
    alive = exchange()
    if alive is not None:
        alive.arrived(number)


class GradientExchange:
    """Sums gradients in buckets that leave as soon as the last micro-step's backward pass has filled them.

    This is what DistributedDataParallel does; it is not used, because it holds on to the parameters it was built with,
    while here the composition hands the student new storage every step and a squeeze a new student, and because with a
    sharded master each gradient is summed on the one process that owns it, which is half the traffic.

    Args:
        student: the module whose gradients are exchanged.
        owner: parameter name -> rank that alone needs its gradient; None: every process needs every gradient.
    """

    def __init__(self, student: nn.Module, owner: Callable[[str], int] | None = None):
        self.student, self.owner = student, owner
        self.active = dist.is_initialized()
        named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
        self.parameters = [parameter for _, parameter in named]
        self.bytes = sum(p.numel() * p.element_size() for p in self.parameters) if self.active else 0
        self._buckets = self._divide(named) if self.active else []
        self._armed, self._next = False, 0
        self._missing: list[int] = []
        self._sent: list[tuple[torch.Tensor, Any]] = []
        me = weakref.ref(self)  # or the parameters' hooks would keep a student that a squeeze has replaced
        for number, (_, parameters) in enumerate(self._buckets):
            for parameter in parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, number=number: _tell(me, number))

    def _divide(self, named: list[tuple[str, nn.Parameter]]) -> list[tuple[int | None, list[nn.Parameter]]]:
        """(owner, parameters): about `BUCKET_BYTES` each, in the order in which the backward pass meets them."""
        buckets: list[tuple[int | None, list[nn.Parameter]]] = []
        room = 0
        for name, parameter in reversed(named):
            size = parameter.numel() * parameter.element_size()
            owner = self.owner(name) if self.owner else None
            if not buckets or room < size or buckets[-1][0] != owner or buckets[-1][1][0].dtype != parameter.dtype:
                buckets.append((owner, []))
                room = BUCKET_BYTES
            buckets[-1][1].append(parameter)
            room -= size
        return buckets

    def expect(self) -> None:
        """Call before the backward pass of the last micro-step: from now on gradients are final when they arrive."""
        self._armed, self._next = self.active, 0
        self._missing = [len(parameters) for _, parameters in self._buckets]

    def arrived(self, number: int) -> None:
        """Called for each gradient of a bucket; sends the buckets that are full."""
        if not self._armed:
            return
        self._missing[number] -= 1
        while self._next < len(self._buckets) and not self._missing[self._next]:
            self._send()

    def _send(self) -> None:
        """Start the next bucket's transfer: all processes send them in the same order."""
        owner, parameters = self._buckets[self._next]
        self._next += 1
        flat = torch.cat([(p.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1)) for p in parameters])
        with collective():
            work = dist.all_reduce(flat, async_op=True) if owner is None else dist.reduce(flat, owner, async_op=True)
        self._sent.append((flat, work))

    def finish(self) -> None:
        """Return once the sums are the parameters' `grad`; with owners, None on every process but the owner."""
        if not self.active:
            return
        self._armed = False
        while self._next < len(self._buckets):  # those with a parameter that took no part in this step
            self._send()
        for (owner, parameters), (flat, work) in zip(self._buckets, self._sent):
            with collective():
                work.wait()
            mine = owner is None or owner == dist.get_rank()
            for parameter, piece in zip(parameters, flat.split([p.numel() for p in parameters])):
                parameter.grad = piece.view_as(parameter) if mine else None
        self._sent.clear()

    def gradients(self) -> list[torch.Tensor]:
        """The gradients that this process holds after `finish`."""
        return [parameter.grad for parameter in self.parameters if parameter.grad is not None]
