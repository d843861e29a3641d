"""What is done to the gradients and moments of masked entries, every step.

Published (g gradient, p parameter, m first moment, λ = l2_lambda):

    s ≤ w_step   compactors:                             g ← g + p
    s > w_step   compactors, and bias, gamma, beta:
                 kept entries                            g;           if λ > 1:  m ← 0.9 m
                 dropped entries                         g ← min(λ,1) p;  if λ > 1:  m ← 0.9 m + 0.1 (λ − 1) p

Fade: the gradient of dropped compactor entries is 0, and after the update they are multiplied by a factor, so that they
shrink a thousandfold in w_step steps. Nothing is done to bias (it sits before R, in another basis), gamma and beta.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from uer.squeeze.groups import MaskGroup
from uer.squeeze.master import Master, Moments
from uer.squeeze.wiring import MaskedTensor, masked_compactors, masked_vectors

SURGERY = 0.9  # the published code runs Adam's β₁ average once more
FADE_PER_INTERVAL = 1e-3


class Penalty:
    """Base: which tensors are under a mask now."""

    def __init__(self, master: Master, moments: Moments, w_step: int):
        self.master, self.moments, self.w_step = master, moments, w_step
        self.matrices = self._trained(masked_compactors(master.config))
        self.vectors = self._trained(masked_vectors(master.config))
        self._masks: dict[tuple[str, bool, bool], tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _trained(self, tensors: list[MaskedTensor]) -> list[MaskedTensor]:
        return [tensor for tensor in tensors if self.master.parameters[tensor.name].requires_grad]

    def masked(self, tensors: list[MaskedTensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """(parameter, kept, dropped) of the tensors that have dropped entries; the masks are 1.0 or 0.0 and broadcast.

        Masks, not indices: a pass over the whole tensor is far cheaper than gathering columns.
        """
        for tensor in tensors:
            group = self.master.groups[tensor.group]
            parameter = self.master.parameters[tensor.name]
            length = parameter.shape[tensor.dim]  # a bias sits before R: it keeps the teacher's, and its penalty
            if (group.penalised and length == group.size) or (group.masked and length == group.width):
                upright = tensor.dim == 0 and parameter.dim() == 2
                yield parameter, *self._masks_of(group, upright, length == group.size)

    def _masks_of(self, group: MaskGroup, upright: bool, whole: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """(kept, dropped), of all dimensions or of those that are there, made when the group's masks change."""
        key = group.name, upright, whole
        if self._masks.get(key, (None,))[0] is not group.dropped:
            assert group.keep is not None
            kept = (group.keep if whole else group.keep_there()).to(self.master.like.dtype)
            kept = kept[:, None] if upright else kept
            self._masks[key] = group.dropped, kept, 1 - kept
        return self._masks[key][1:]

    def before_update(self, step: int) -> None:
        """Called between backward and the optimizer, once per optimizer step (counted from 1)."""

    def after_update(self, step: int) -> None:
        """Called after the optimizer."""


class PublishedPenalty(Penalty):
    """The published gradient and moment surgery."""

    def __init__(self, master: Master, moments: Moments, w_step: int, l2_lambda: float):
        super().__init__(master, moments, w_step)
        self.l2_lambda = l2_lambda

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        if step <= self.w_step:
            for tensor in self.matrices:
                compactor = self.master.parameters[tensor.name]
                if compactor.grad is not None:
                    compactor.grad.add_(compactor)
            return
        if self.l2_lambda > 1:
            torch._foreach_mul_([self._moment(self.master.parameters[tensor.name])
                                 for tensor in self.matrices + self.vectors], SURGERY)
        for tensors in (self.matrices, self.vectors):  # a vector's masks have its shape: on a GPU a kernel for all
            self._replace(list(self.masked(tensors)))

    def _replace(self, masked: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
        """Put the penalty in the place of dropped entries' gradients, also where the objective gave none."""
        if not masked:
            return
        parameters, kept, dropped = zip(*masked)
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_mul_(gradients, kept)
        torch._foreach_addcmul_(gradients, parameters, dropped, value=min(self.l2_lambda, 1.0))
        if self.l2_lambda > 1:
            torch._foreach_addcmul_([self._moment(parameter) for parameter in parameters], parameters, dropped,
                                    value=(1 - SURGERY) * (self.l2_lambda - 1))

    def _moment(self, parameter: torch.Tensor) -> torch.Tensor:
        return self.moments[parameter]["exp_avg"]


class FadePenalty(Penalty):
    """Dropped compactor entries shrink by a constant factor per step."""

    @property
    def factor(self) -> float:
        return FADE_PER_INTERVAL ** (1 / self.w_step)

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        for parameter, kept, _ in self.masked(self.matrices):
            if parameter.grad is not None:
                parameter.grad.mul_(kept)

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        for parameter, kept, dropped in self.masked(self.matrices):
            parameter.mul_(kept + dropped * self.factor)


def build_penalty(name: str, master: Master, moments: Moments, w_step: int, l2_lambda: float) -> Penalty:
    """The penalty called `name`, `published` or `fade`."""
    if name == "published":
        return PublishedPenalty(master, moments, w_step, l2_lambda)
    return FadePenalty(master, moments, w_step)


def simulate_decay(rates: list[float], l2_lambda: float, before: int | None = None) -> list[float]:
    """How a dropped entry that starts at 1 moves under the published update, for one learning rate per step.
    `before`: the steps before these, where the bias of AdamW's moments is corrected; None: it is not.

    Returns its value after each step. The recurrence is that of the module header with AdamW (weight decay and
    task gradients left out), so oscillation and decay show exactly as they will in training.
    """
    p, m, v = 1.0, 0.0, 0.0
    path = []
    for step, rate in enumerate(rates, (before or 0) + 1):
        if l2_lambda > 1:
            m = SURGERY * m + (1 - SURGERY) * (l2_lambda - 1) * p
        g = min(l2_lambda, 1.0) * p
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        first, second = (1.0, 1.0) if before is None else (1 - 0.9**step, 1 - 0.999**step)
        p -= rate * m / first / (math.sqrt(v / second) + 1e-6)
        path.append(p)
    return path
