"""Muon: a matrix moves by its momentum made orthogonal, so that no direction waits for the large ones.

    m ← μ m + (1 − μ) g        u = (1 − μ) g + μ m        O = U Vᵀ of u = U S Vᵀ, nearly
    p ← p − lr · 0.2 √max(rows, columns) · O;   p ← p − lr · decay · p

(Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks"; the factor by Liu et al. 2025, arXiv
2502.16982: the mean square of O is 1 / max(rows, columns), so entries move about as far as AdamW's, and AdamW's rates
serve.) O is a polynomial of u, five times over, which takes singular values from 0.003 to 1 into 0.7 to 1.2: products
alone, matrices of one shape at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch

MOMENTUM = 0.95
POLYNOMIAL, TIMES = (3.4445, -4.7750, 2.0315), 5  # a x + b x³ + c x⁵
SIZE = 0.2  # root mean square of AdamW's updates, in units of the rate


@torch.no_grad()
def muon(parameters: Sequence[torch.Tensor], state: Mapping[torch.Tensor, Mapping[str, torch.Tensor]], rate: float,
         decay: float, found_inf: torch.Tensor | None = None) -> None:
    """Update matrices from their gradients.

    Args:
        parameters: matrices that have a gradient, of any shapes.
        state: of each its `exp_avg`, of the same shape.
        decay: is done first, at this rate, as torch's AdamW does it.
        found_inf: where it is there and not 0, everything stays as it is.
    """
    shapes: dict[torch.Size, list[torch.Tensor]] = {}
    for parameter in parameters:
        shapes.setdefault(parameter.shape, []).append(parameter)
    for (rows, columns), alike in shapes.items():
        gradients = cast(list[torch.Tensor], [parameter.grad for parameter in alike])
        means = [state[parameter]["exp_avg"] for parameter in alike]
        new = torch._foreach_lerp(means, gradients, 1 - MOMENTUM)
        updates = orthogonal(torch.stack([*torch._foreach_lerp(gradients, new, MOMENTUM)]))
        moved = torch._foreach_mul(alike, 1 - rate * decay)
        torch._foreach_add_(moved, list(updates), alpha=-rate * SIZE * max(rows, columns) ** 0.5)
        for old, value in zip([*means, *alike], [*new, *moved]):
            old.copy_(value if found_inf is None else torch.where(found_inf != 0, old, value))


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns] -> the nearest matrices with singular values of 1, but for a third of that; 0 of 0."""
    upright = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if upright else matrices
    tiny = torch.finfo(x.dtype).tiny
    x = x / x.abs().amax((1, 2), keepdim=True).clamp_min(tiny)  # else the squares of small entries vanish
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(tiny)
    a, b, c = POLYNOMIAL
    for _ in range(TIMES):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if upright else x
