"""Which dimensions matter: what a group's masks are chosen by.

    norm      ‖C[:, j]‖₂ of the scoring compactor, the published choice
    taylor    Σ_i |g_ij · C_ij|, a running mean over the steps (Molchanov et al. 2017): to first order, how much the
              loss changes if column j goes; g as it comes from the loss, before any penalty
"""

from __future__ import annotations

import torch

from uer.errors import UserError
from uer.squeeze.groups import MaskGroup
from uer.squeeze.master import Master

MEMORY = 0.99  # share of the mean that stays in a step


class NormScores:
    """Column norms, as they are now."""

    needs_gradients = False

    def __init__(self, master: Master):
        self.master = master

    def of(self, group: MaskGroup) -> torch.Tensor:
        """Scores of a group that has not been squeezed: float64 [width]."""
        return self.master.scores(group)

    def observe(self) -> None:
        """Called once per optimizer step, with the gradients of the loss in the master's parameters."""

    def thin(self, group: MaskGroup, staying: torch.Tensor) -> None:
        """All but the dimensions at these positions have left the group."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What has to be kept for a resumed run to choose the same masks. Every process must call it."""
        return {}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state_dict`."""


class TaylorScores(NormScores):
    """The running mean of |g · p|."""

    needs_gradients = True

    def __init__(self, master: Master):
        super().__init__(master)
        self.means = {name: torch.zeros(group.width, dtype=torch.float64, device=group.dropped.device)
                      for name, group in master.groups.items() if not group.squeezed}

    def of(self, group: MaskGroup) -> torch.Tensor:
        return self.master.told(group, self.means[group.name])

    @torch.no_grad()
    def observe(self) -> None:
        for name, mean in self.means.items():
            group = self.master.groups[name]
            compactor = self.master.parameters[f"{group.scored_by}.weight"]
            if not group.squeezed and compactor.grad is not None:
                mean.lerp_((compactor.grad * compactor).abs().sum(0).double(), 1 - MEMORY)

    def thin(self, group: MaskGroup, staying: torch.Tensor) -> None:
        self.means[group.name] = self.means[group.name][staying]

    def state_dict(self) -> dict[str, torch.Tensor]:
        waiting = [self.master.groups[name] for name in self.means if not self.master.groups[name].squeezed]
        return {group.name: self.of(group).cpu() for group in waiting}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        missing = [name for name in self.means if name not in state]
        if missing:
            raise UserError(f"--resume: the checkpoint has no Taylor scores for {', '.join(missing)}; its run had "
                            f"another --mask_scores")
        for name, mean in self.means.items():
            mean.copy_(state[name])


def build_scores(name: str, master: Master) -> NormScores:
    """The scores called `name`, `norm` or `taylor`."""
    return TaylorScores(master) if name == "taylor" else NormScores(master)
