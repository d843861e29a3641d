"""Which numbers run in which format, and what is done to gradients before the update.

    student     float32, or bfloat16 / float16 products by autocast; its weights and gradients stay float32
    master      float32, always: weights, compactors, moments, updates
    composing   full float32; TF32 products on GPUs whose student's products are half-precision, or where asked for
                (`--compose_dtype`): what is composed is rounded to fewer digits by the student's own products anyway

Clipping acts on the gradient of all that is trained, weights and compactors together, summed over all processes and
micro-batches, before the penalty on masked entries is added: the norm does not depend on how many processes there are.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F

from uer.errors import UserError
from uer.parallel.collectives import sum_over_ranks

START, GROWTH_STEPS, LOWEST = 2.0**16, 2000, 2.0**-14
TRIAL = 128, 512, 512  # rows, width before and after of the layer that CPUs are tried with
SLOW = 1.5  # times as long as in float32: worth a word


class LossScale:
    """fp16: the loss is multiplied so that small gradients do not vanish; a power of two, so nothing is rounded.

    Halved when a gradient overflows (that step's update is left out), doubled after `GROWTH_STEPS` steps without.
    """

    def __init__(self) -> None:
        self.value, self.good = START, 0

    def update(self, finite: bool, step: int) -> None:
        """Take note of whether a step's gradients were finite; `UserError` where no scale helps."""
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == GROWTH_STEPS:
            self.value, self.good = self.value * 2, 0
        if self.value < LOWEST:
            raise UserError(f"--fp16: gradients overflow at every loss scale at step {step}; --bf16 has the range "
                            f"that this model needs")

    def state(self) -> dict[str, float]:
        """What going on needs."""
        return {"value": self.value, "good": self.good}

    def restore(self, state: dict[str, float]) -> None:
        """The inverse of `state`."""
        self.value, self.good = float(state["value"]), int(state["good"])


class Precision:
    """The formats of a run.

    Args:
        device: where it runs.
        half: dtype of the student's products, None = float32.
        compose: dtype of the composition's products, float32 or tf32 (default: tf32 on a GPU with `half`).
        max_grad_norm: largest norm of the gradient, None = any.
        compiled: compile the student.
    """

    def __init__(self, device: torch.device, half: torch.dtype | None = None, compose: str | None = None,
                 max_grad_norm: float | None = None, compiled: bool = False):
        self.device, self.half, self.max_grad_norm, self.compiled = device, half, max_grad_norm, compiled
        self.compose = compose or ("tf32" if half is not None and device.type == "cuda" else "float32")
        self.scale = LossScale() if half is torch.float16 else None
        self.norm: torch.Tensor | None = None  # of the last gradient that `clip` has seen

    def products(self) -> torch.autocast:
        """Around the student's forward pass."""
        return torch.autocast(self.device.type, self.half or torch.bfloat16, enabled=self.half is not None)

    @contextmanager
    def composing(self) -> Iterator[None]:
        """Around composition and its backward pass."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.compose == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """What to run backward on."""
        return loss if self.scale is None else loss * self.scale.value

    def facts(self) -> dict[str, float]:
        """What is worth recording: the last gradient's norm, the loss scale."""
        facts = {} if self.norm is None else {"gradient_norm": self.norm.item()}
        return facts if self.scale is None else {**facts, "loss_scale": self.scale.value}

    def unscale(self, gradients: list[torch.Tensor]) -> None:
        """Take the loss scale out of gradients, in place."""
        if self.scale is not None and gradients:
            torch._foreach_mul_(gradients, 1 / self.scale.value)

    @torch.no_grad()
    def clip(self, gradients: list[torch.Tensor], shared: bool) -> None:
        """Scale gradients down to `max_grad_norm`, in place, where their norm is larger.
        `shared`: these are this process's part of the gradient; every process must call it then."""
        if self.max_grad_norm is None:
            return
        self.norm = norm_of(gradients, self.device, shared)
        factor = (self.max_grad_norm / (self.norm + 1e-6)).clamp(max=1.0)
        if gradients:
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))


def slowdown(half: torch.dtype, device: torch.device, training: bool = True) -> float:
    """How many times as long as in float32 a linear layer takes in `half`, tried out on CPUs; elsewhere 1.

    A CPU without units for it (most before 2020, and many laptops') can take thirty times as long.
    `training`: with its backward pass.
    """
    if device.type != "cpu":
        return 1.0
    return _seconds(half, training) / _seconds(torch.float32, training)


def slow_products(half: torch.dtype | None, device: torch.device, training: bool = True) -> list[str]:
    """What to tell who asked for `half` (None = float32) where that is slower than float32.

    It must be so three times: another process that holds a core makes it look so now and then.
    """
    for _ in range(3):
        times = slowdown(half, device, training) if half is not None else 1.0
        if times < SLOW:
            return []
    option = "--bf16" if half is torch.bfloat16 else "--fp16"
    return [f"warning: {option} is slow on this CPU: its products take {times:.0f} times as long as in float32; leave "
            f"{option} out"]


def _seconds(dtype: torch.dtype, training: bool) -> float:
    """The fastest of a few passes of a linear layer."""
    rows, width, out = TRIAL
    x, weight = (torch.ones(n, width, dtype=dtype, requires_grad=training) for n in (rows, out))
    times = []
    for _ in range(4):
        begun = time.perf_counter()
        y = F.linear(x, weight)
        if training:
            torch.autograd.grad(y, (x, weight), torch.ones_like(y))
        times.append(time.perf_counter() - begun)
    return min(times)


def norm_of(tensors: list[torch.Tensor], device: torch.device, shared: bool) -> torch.Tensor:
    """Norm of all tensors together, a float64 scalar; `shared`: of those of all processes."""
    square = torch.zeros((), dtype=torch.float64, device=device)
    if tensors:
        square += torch.stack(torch._foreach_norm(tensors)).double().square().sum()
    if shared:
        sum_over_ranks([square])
    return square.sqrt()
