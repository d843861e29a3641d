"""What the layers in between say, beside another objective: the teacher's, told from the student's by linear maps.

    a layer's loss = |C z + c − x|² / var(x), mean over a text's tokens: the share of x that the map does not tell

z and x are what a layer of the student and of the teacher puts out (or its attention, or its feed-forward part). C and
c are least squares over the tokens of the last steps, found anew as the student moves: there the loss does not change
with them to first order, so they need no gradient, no rate and no place in the model. (TinyBERT, Jiao et al. 2020, and
Low-Rank Clone, Hao et al. 2025, train their maps from random ones.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from uer.cpu.padding import real_tokens
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.layers.transformer import TransformerLayer
from uer.models.bert import Bert
from uer.parallel.collectives import sum_over_ranks
from uer.training.objective import Teaching
from uer.training.relations import text_weights

SIGNALS = {"output": lambda layer: layer, "attention": lambda layer: layer.self_attn,
           "feedforward": lambda layer: layer.feed_forward}
KEPT = 0.8  # of what earlier tokens weigh, at every renewal of the maps
EARLY, EVERY = 20, 4  # the maps are renewed in each of the first micro-steps, then in one of so many
RIDGE = 1e-4  # of the mean variance of z


class LayerTargets:
    """An `Objective`: another one and the layers' losses, mean over layers and signals, summed over texts.

    Args:
        objective: it runs both models, each once.
        weight: of the layers' losses, a text, beside one of the objective's units.
        signals: some of `SIGNALS`.
        layers: of the student, counted from 0 (default: all); each is compared with the teacher's at the same height.
    """

    def __init__(self, objective: Teaching, weight: float = 1.0, signals: Sequence[str] = ("output",),
                 layers: Sequence[int] | None = None):
        self.objective, self.teacher, self.weight = objective, objective.teacher, weight
        self.signals, self.layers = tuple(signals), layers
        self.maps: dict[str, LeastSquares] = {}
        self.last: torch.Tensor | None = None  # the layers' loss of the last micro-step, a text
        for name in ("figure", "partial"):  # that not every objective has
            if hasattr(objective, name):
                setattr(self, name, getattr(objective, name))

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss, and what the other objective reports."""
        ours, theirs = student.encoder.layers(), self.teacher.encoder.layers()
        chosen = range(len(ours)) if self.layers is None else self.layers
        above = {layer: (layer + 1) * len(theirs) // len(ours) - 1 for layer in chosen}
        with listening({str(layer): ours[layer] for layer in above}, self.signals) as given, \
                listening({str(layer): theirs[above[layer]] for layer in above}, self.signals) as wanted:
            loss, sums = self.objective(student, batch)
        apart = self.apart(given, wanted, batch, student.training)
        if student.training:
            self.last = apart.detach() / len(batch.src)
        return loss + self.weight * batch.units_a_text * apart, sums

    def apart(self, given: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], batch: MlmBatch,
              renew: bool) -> torch.Tensor:
        """The layers' losses, their mean, summed over texts.

        Args:
            given, wanted: signal -> the student's and the teacher's states, [batch, seq, hidden], packed on a CPU where
                padding is left out, or of some positions.
            renew: whether the maps may follow.
        """
        losses, packed = [], real_tokens(batch.seg) if batch.padded else None
        for name, z in given.items():
            if z.shape[:-1] != wanted[name].shape[:-1]:
                raise UserError(f"--layer_weight: student and teacher pool in ways ({self.teacher.config.pooling} the "
                                f"teacher) that leave their last layers unlike rows; --layer_numbers can leave it out")
            weights = text_weights(batch, z, packed if packed is not None and len(packed.rows) == len(z) else None)
            found = self.maps.get(name)
            if found is None or not found.fits(z, wanted[name]):  # at first, or another student after a squeeze
                found = self.maps[name] = LeastSquares(z, wanted[name])
            if renew:
                found.see(z.detach(), wanted[name], weights)
            losses.append(found.loss(z, wanted[name], weights))
        return torch.stack(losses).mean()

    def facts(self) -> dict[str, float]:
        """For TensorBoard and metrics.jsonl: the share of the teacher's layers that the student's tell."""
        return {} if self.last is None else {"layers_told": 1 - self.last.item()}

    def state(self) -> dict[str, Any]:
        return {name: found.state() for name, found in self.maps.items()}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """The inverse of `state`."""
        self.maps = {name: LeastSquares.restored(part, device) for name, part in state.items()}


class LeastSquares:
    """x ≈ C z + c over weighted tokens, of which earlier ones weigh less and less.

    Attributes:
        moments: Σ w (z, 1)(z, 1)ᵀ, Σ w (z, 1) xᵀ and Σ w |x|², float32 at least.
        steps: how often tokens were seen.
        map: (C, c) as one matrix [d + 1, D]; variance: of x, a scalar.
    """

    def __init__(self, z: torch.Tensor, x: torch.Tensor):
        dtype, device = torch.promote_types(z.dtype, torch.float32), z.device
        width, wanted = z.shape[-1] + 1, x.shape[-1]
        self.moments = [torch.zeros(width, width, dtype=dtype, device=device),
                        torch.zeros(width, wanted, dtype=dtype, device=device),
                        torch.zeros((), dtype=dtype, device=device)]
        self.steps = 0
        self.map = torch.zeros(width, wanted, dtype=dtype, device=device)
        self.variance = torch.ones((), dtype=dtype, device=device)

    def fits(self, z: torch.Tensor, x: torch.Tensor) -> bool:
        """Whether it maps such states."""
        return self.map.shape == (z.shape[-1] + 1, x.shape[-1])

    @torch.no_grad()
    def see(self, z: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> None:
        """Take in tokens (of all processes), where it is time for it.

        Args:
            z, x: [..., d] and [..., D]; weights: [...], 0 of padding.
        """
        self.steps += 1
        if self.steps > EARLY and self.steps % EVERY:
            return
        with torch.autocast(z.device.type, enabled=False):
            z, x = (states.flatten(0, -2).to(self.map.dtype) for states in (z, x))
            scaled = weights.flatten()[:, None] * with_one(z)
            fresh = [scaled.T @ with_one(z), scaled.T @ x, (weights.flatten() * x.pow(2).sum(1)).sum()]
            sum_over_ranks(fresh)
            self.moments = [KEPT * old + new for old, new in zip(self.moments, fresh)]
            self.solve()

    def solve(self) -> None:
        """The map and the variance of these moments."""
        zz, zx, xx = (moment.double() for moment in self.moments)
        count = zz[-1, -1]
        ridge = torch.full_like(zz[0], RIDGE) * (zz.trace() - count) / (len(zz) - 1)
        ridge[-1] = 0
        factor, _ = torch.linalg.cholesky_ex(zz + ridge.diag())
        self.map = torch.cholesky_solve(zx, factor).to(self.map.dtype)
        self.variance = (xx / count - (zx[-1] / count).pow(2).sum()).clamp_min(1e-12).to(self.map.dtype)

    def loss(self, z: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Weighted sum over tokens of |C z + c − x|² / var(x)."""
        apart = (z @ self.map[:-1] + self.map[-1] - x).to(self.map.dtype)
        return (weights * apart.pow(2).sum(-1)).sum() / self.variance

    def state(self) -> dict[str, Any]:
        return {"moments": [moment.cpu() for moment in self.moments], "steps": self.steps, "map": self.map.cpu(),
                "variance": self.variance.cpu()}

    @classmethod
    def restored(cls, state: Mapping[str, Any], device: torch.device) -> LeastSquares:
        """The inverse of `state`."""
        out = cls.__new__(cls)
        out.moments, out.steps = [moment.to(device) for moment in state["moments"]], state["steps"]
        out.map, out.variance = state["map"].to(device), state["variance"].to(device)
        return out


def with_one(z: torch.Tensor) -> torch.Tensor:
    """[n, d] -> [n, d + 1], the last a constant 1."""
    return torch.cat([z, torch.ones_like(z[:, :1])], 1)


@contextmanager
def listening(layers: Mapping[str, TransformerLayer], signals: Sequence[str]) -> Iterator[dict[str, torch.Tensor]]:
    """`<layer> <signal>` -> what it puts out while this is open."""
    heard: dict[str, torch.Tensor] = {}

    def listener(name: str):
        def listen(module: nn.Module, given: Any, out: torch.Tensor) -> None:
            heard[name] = out

        return listen

    with ExitStack() as stack:
        for number, layer in layers.items():
            for signal in signals:
                hook = SIGNALS[signal](layer).register_forward_hook(listener(f"{number} {signal}"))
                stack.callback(hook.remove)
        yield heard
