"""Running means of the student's gradient and of its square: what its own AdamW starts from when a run folds.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²        handed over: m / (1 − β₁ⁿ), v / (1 − β₂ⁿ)

They are kept only between the last squeeze and the fold, when the student already is the plain one, number for number.
Dividing by what n steps have gathered makes a mean of few steps as large as one of many: the bias is out of them, and
AdamW goes on as after very many steps, whether it corrects a bias or not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from uer.parallel.collectives import sum_over_ranks
from uer.training.learner import Clip
from uer.training.optimizers import BETAS


class GradientMeans:
    """The means of a student's gradients.

    Args:
        student: of its final size.
        owns: whether this process has the gradient of a parameter; None: every process has all.
    """

    def __init__(self, student: nn.Module, owns: Callable[[str], bool] | None):
        self.student, self.owns, self.steps = student, owns, 0
        self.means = {name: [torch.zeros_like(parameter) for _ in BETAS] for name, parameter in
                      student.named_parameters()}

    @torch.no_grad()
    def observe(self, clip: Clip | None) -> None:
        """Take in the gradients that the student has now, clipped as a plain student's would be."""
        found = [(name, p.grad) for name, p in self.student.named_parameters() if p.grad is not None]
        gradients = [gradient for _, gradient in found]
        if clip is not None:
            gradients = [gradient.clone() for gradient in gradients]
            clip(gradients)
        self.steps += 1
        if found:
            first, second = zip(*(self.means[name] for name, _ in found))
            torch._foreach_lerp_(first, gradients, 1 - BETAS[0])
            torch._foreach_mul_(second, BETAS[1])
            torch._foreach_addcmul_(second, gradients, gradients, value=1 - BETAS[1])

    def moments(self) -> dict[str, dict[str, torch.Tensor]]:
        """AdamW's moments by parameter. Every process must call it."""
        corrections = [1 - beta**self.steps for beta in BETAS]
        return {name: {key: mean / correction for key, mean, correction in
                       zip(("exp_avg", "exp_avg_sq"), pair, corrections)} for name, pair in self._whole().items()}

    def state_dict(self) -> dict[str, Any]:
        """What going on needs. Every process must call it."""
        return {"steps": self.steps, "means": {name: torch.stack(pair).cpu() for name, pair in self._whole().items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""
        self.steps = state["steps"]
        for name, pair in state["means"].items():
            if self.owns is None or self.owns(name):
                for mean, found in zip(self.means[name], pair):
                    mean.copy_(found)

    def _whole(self) -> dict[str, list[torch.Tensor]]:
        """All processes' together."""
        whole = {name: [mean.clone() for mean in pair] for name, pair in self.means.items()}
        if self.owns is not None:
            sum_over_ranks([mean for pair in whole.values() for mean in pair])
        return whole
