"""Looks at every step before its update: its loss, its gradient, and whether the run is asked to end.

A step whose figures are no finite numbers is never taken: on a CPU they are looked at before the update; on a GPU,
where looking would make the device wait, the update is masked there and the host hears of it a step later. In float16
the host does wait for the gradient's norm: the loss scale of the next step depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from uer.errors import UserError
from uer.parallel.signals import SIGNALS, StopSignals
from uer.report.writer import Reports
from uer.training.checkpoint import checkpoint_path, checkpoint_steps
from uer.training.delayed import Delayed
from uer.training.learner import Learner
from uer.training.precision import Precision, norm_of


def remedy(learner: Learner) -> str:
    """What usually helps, by the options that count for what is trained."""
    rates = sorted({f"--{group['kind']}" for group in learner.optimizer.param_groups}, reverse=True)
    return f"a smaller {' or '.join(rates)}, or a longer --warmup, is what usually helps"


class Judge:
    """What is decided on a step, alike in all processes.

    Args:
        learner: whose optimizer leaves an update out when told so on the device.
        precision: number formats.
        reports: for what is worth a line.
        factor: of the learning rates, by step.
        output: of the run's checkpoints.
        device: of the figures.
        lag: steps after which the host looks at them (default: 1 on a GPU, else 0).

    `stopping` is the signal that ends the run, once one has been received anywhere.
    """

    def __init__(self, learner: Learner, precision: Precision, reports: Reports, factor: Callable[[int], float],
                 output: str, device: torch.device, lag: int | None = None):
        self.learner, self.precision, self.reports = learner, precision, reports
        self.factor, self.output = factor, output
        self.delayed = Delayed(device, lag)
        self.broken = torch.zeros((), device=device)  # 1 once a step's figures were no finite numbers
        self.stopping: int | None = None

    def update(self, step: int, loss: torch.Tensor, flags: torch.Tensor, gradients: list[torch.Tensor]) -> bool:
        """Judge a step; returns whether there is to be an update.

        Args:
            loss: mean over all processes' predictions, a scalar.
            flags: how many processes have received each of `SIGNALS`.
            gradients: of the student, as far as this process has them.
        Raises:
            UserError: a loss, or (float16 apart) a gradient, that is no finite number.
        """
        update, scale = True, self.precision.scale
        figures = [loss, *flags]
        if scale is not None or self.precision.max_grad_norm is not None:
            norm = norm_of(gradients, loss.device, shared=self.learner.owner is not None)
            if scale is not None:
                update = bool(norm.isfinite()) or not bool(loss.isfinite())  # a loss that is lost is told below
                scale.update(update, step)
                if not update:
                    self.reports.say(f"step {step}: a gradient overflowed in float16; this update is left out, the "
                                     f"loss scale is {scale.value:g} now")
            if update:
                figures.append(norm)
        values = torch.stack(figures)
        if self.delayed.lag:
            self.broken = torch.maximum(self.broken, (~values.isfinite().all()).float())
            self.learner.optimizer.found_inf = self.broken  # the fused update looks at it
        self.delayed.put(step, values)
        self.heed()
        return update

    def heed(self, everything: bool = False) -> None:
        """Act on what the host hears of earlier steps (on a CPU: of this one); `everything`: of all so far."""
        for step, (loss, *more) in self.delayed.take(everything):
            flags, norm = more[:len(SIGNALS)], more[len(SIGNALS):]
            if not all(map(math.isfinite, [loss, *norm])):
                what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm[0]}"
                raise UserError(f"{what} at step {step}; {remedy(self.learner)}; {self._hints(step)}")
            self.stopping = self.stopping or StopSignals.agreed(flags)

    def _hints(self, step: int) -> str:
        """What to look at, and where to go on, when a step cannot be taken."""
        rates = sorted({f"{group['kind']} {group['base_lr'] * self.factor(step - 1):.2e}"
                        for group in self.learner.optimizer.param_groups})
        steps = checkpoint_steps(self.output)
        onward = f"go on from {checkpoint_path(self.output, steps[-1])} with --resume" if steps else "start again"
        format_ = "" if self.precision.half is None else f", {self.precision.half} products (float32 is the default)"
        return (f"no weight was updated with it. Look at this step's rates ({', '.join(rates)}){format_} and at "
                f"--max_grad_norm, then {onward}")
