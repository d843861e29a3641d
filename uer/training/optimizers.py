"""AdamW as UER runs it, with Muon for matrices where asked for, and learning-rate schedules.

    m ← β₁ m + (1 − β₁) g        v ← β₂ v + (1 − β₂) g²
    p ← p − lr · m / (√v + eps);   p ← p − lr · decay · p        (no bias correction)

torch's fused AdamW decays first and corrects the bias. With a step count of 2³⁰ the correction is exactly 1, and
lr' = lr (1 − lr·decay), decay' = decay / (1 − lr·decay) turn its order into the one above.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim.adamw import adamw

from uer.training.muon import muon

BETAS = (0.9, 0.999)
EPS = 1e-6
NO_DECAY = ("bias", "gamma", "beta")
LONG_AGO = float(2**30)
MOMENTS = ("exp_avg", "exp_avg_sq", "step")  # what is kept of each parameter; of Muon's only the first


class AdamW:
    """AdamW, its bias corrected or not, and Muon for groups that say so; rates are set per step by `set_factor`.

    Not a `torch.optim.Optimizer`: the first use of one imports torch's compiler, which takes more than a second.

    Args:
        groups: dicts with `params`, `lr` and `weight_decay`; `muon`: True where they are matrices for Muon.
        bias_correction: divide m by 1 − β₁ᵗ and v by 1 − β₂ᵗ after all.
    Attributes:
        param_groups: the groups, with the `lr` and `weight_decay` of the next step.
        state: of each parameter, its `step`, `exp_avg` and `exp_avg_sq`; of Muon's, its `exp_avg`.
        found_inf: where set to a float tensor, it is looked at on the device: not 0 leaves weights and moments as they
            are.
        grad_scale: where there is one, a float tensor, AdamW's gradients are divided by it; Muon takes any scale.
    """

    found_inf: torch.Tensor | None = None
    grad_scale: torch.Tensor | None
    _step_supports_amp_scaling = True  # so torch's GradScaler sets both for a step, instead of waiting for the device

    def __init__(self, groups: Iterable[dict], bias_correction: bool = False):
        self.param_groups = [{**group, "base_lr": group["lr"], "base_decay": group["weight_decay"]} for group in groups]
        self.state = {parameter: {"exp_avg": torch.zeros_like(parameter)} if group.get("muon") else {
            "step": torch.tensor(0.0 if bias_correction else LONG_AGO, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            for group in self.param_groups for parameter in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        """Update the parameters that have a gradient."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if group.get("muon"):
                muon(parameters, self.state, group["lr"], group["weight_decay"], self.found_inf)
                continue
            steps, means, squares = ([self.state[parameter][key] for parameter in parameters]
                                     for key in ("step", "exp_avg", "exp_avg_sq"))
            adamw(parameters, [parameter.grad for parameter in parameters], means, squares, [], steps, fused=True,
                  grad_scale=getattr(self, "grad_scale", None), found_inf=self.found_inf, amsgrad=False,
                  beta1=BETAS[0], beta2=BETAS[1], lr=group["lr"], weight_decay=group["weight_decay"], eps=EPS,
                  maximize=False)

    def zero_grad(self) -> None:
        """Gradients become None."""
        for parameter in self.state:
            parameter.grad = None

    def set_factor(self, factor: float) -> None:
        """Use factor × base learning rate in the next step."""
        for group in self.param_groups:
            rate, decay = group["base_lr"] * factor, group["base_decay"]
            group["lr"] = rate * (1 - rate * decay)
            group["weight_decay"] = decay / (1 - rate * decay)


def parameter_groups(named: Iterable[tuple[str, nn.Parameter]], learning_rate: float,
                     special: Callable[[str], float | None] = lambda name: None,
                     weight_decay: float = 0.01, kind: str = "learning_rate",
                     special_kind: str = "special_learning_rate", optimizer: str = "adamw") -> list[dict]:
    """Optimizer groups: decay on matrices, none on bias, gamma, beta; `special(name)` may give another rate.

    `kind` in a group says which rate it has: `kind` or `special_kind`. `optimizer`: `adamw`, or `muon` for the matrices
    of the layers; tables, what is read out of the encoder, biases and LayerNorms are AdamW's all the same.
    """
    groups: dict[tuple[str, float, bool], dict] = {}
    for name, parameter in named:
        if not parameter.requires_grad:
            continue
        other = special(name)
        rate = learning_rate if other is None else other
        decay = 0.0 if name.endswith(NO_DECAY) else weight_decay
        its = kind if other is None else special_kind
        matrix = optimizer == "muon" and name.startswith("encoder.") and parameter.dim() == 2
        group = groups.setdefault((its, decay, matrix), {
            "params": [], "lr": rate, "weight_decay": decay, "kind": its, "muon": matrix})
        group["params"].append(parameter)
    return list(groups.values())


def schedule(name: str, total_steps: int, warmup: float) -> Callable[[int], float]:
    """Factor f of the learning rate after t steps; step s (from 1) uses f(s − 1).

    Args:
        name: one of `uer.opts.SCHEDULERS`.
        total_steps: optimizer steps of the run.
        warmup: share of them during which the factor rises from 0 (not for `constant`).
    """
    rise = total_steps * warmup

    def progress(t: int) -> float:
        return min(1.0, (t - rise) / max(1.0, total_steps - rise))

    after: dict[str, Callable[[int], float]] = {
        "linear": lambda t: 1 - progress(t),
        "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * progress(t))),
        "constant_with_warmup": lambda t: 1.0,
        "inverse_sqrt": lambda t: math.sqrt(max(rise, 1.0) / max(t, rise, 1.0)),
        "polynomial": lambda t: (1 - progress(t)) ** 2,
    }
    if name == "constant":
        return lambda t: 1.0
    return lambda t: t / max(1.0, rise) if t < rise else after[name](t)
