"""Streaming first and second moments of several vectors seen together, and linear regression from them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from uer.distributed import sum_over_ranks

ROUNDING = 1e-13  # a moment below this share of its factors' sizes is what rounding leaves of 0
CUTOFF = 1e-10  # eigenvalue of a correlation matrix below which a direction counts as constant


class Moments:
    """Weighted sums of x, 1 and x xᵀ over tokens, float64; memory does not grow with the tokens.

    Args:
        device: where the sums live.
        widths: the vectors by name, with their widths.
    """

    def __init__(self, device: torch.device, **widths: int):
        self.slices: dict[str, slice] = {}
        start = 0
        for name, width in widths.items():
            self.slices[name] = slice(start, start + width)
            start += width
        self.products = torch.zeros(start, start, dtype=torch.float64, device=device)
        self.sums = torch.zeros(start, dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, weights: torch.Tensor, **vectors: torch.Tensor) -> None:
        """Add tokens: weights [n]; each vector [n, width]."""
        joint = torch.cat([vectors[name].double() for name in self.slices], 1)
        weighted = joint * weights[:, None]
        self.products.addmm_(weighted.T, joint)
        self.sums += weighted.sum(0)
        self.weight += weights.sum()

    def share(self) -> Moments:
        """Sum over all processes."""
        sum_over_ranks([self.products, self.sums, self.weight.view(1)])
        return self

    def mean(self, name: str) -> torch.Tensor:
        """[width]"""
        return self.sums[self.slices[name]] / self.weight

    def second(self, a: str, b: str) -> torch.Tensor:
        """E[a bᵀ]: [width a, width b]"""
        return self.products[self.slices[a], self.slices[b]] / self.weight

    def covariance(self, a: str, b: str | None = None) -> torch.Tensor:
        """Cov[a, b]: [width a, width b]"""
        b = a if b is None else b
        return self.second(a, b) - torch.outer(self.mean(a), self.mean(b))


class Affine(NamedTuple):
    """y ≈ matrix x + offset, and the share of y's variance that it explains."""

    matrix: torch.Tensor
    offset: torch.Tensor
    explained: float


def solve(residual: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """residual · covariance⁺: the shortest correction, on the scale of correlations, that least squares allows.

    Directions that vary by less than `CUTOFF` of a typical one count as constant: states behind a LayerNorm always have
    one, since their standardised entries add up to 0.

    Args:
        residual: [y, x], covariance: [x, x], of any rank
    Returns:
        [y, x]
    """
    scale = covariance.diagonal().clamp_min(0).sqrt()
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    correlation = covariance / scale[:, None] / scale
    values, vectors = torch.linalg.eigh((correlation + correlation.T) / 2)
    inverse = torch.where(values > CUTOFF, 1 / values.clamp_min(CUTOFF), 0.0)
    return ((residual / scale) @ vectors * inverse) @ vectors.T / scale


def regress(moments: Moments, x: str, y: str, prior: torch.Tensor, offset: torch.Tensor | None = None,
            index: torch.Tensor | None = None) -> Affine:
    """Least squares of y on x (and a constant), as a correction to a prior map.

    Where the prior is right already, the correction is 0 whatever the covariance of x is.

    Args:
        moments: of x and y.
        prior: [width y, width x]; `offset` [width y]: the prior's constant.
        index: use these entries of x only (then the prior is [width y, len(index)]).
    """
    cov_xx, cov_yx = moments.covariance(x), moments.covariance(y, x)
    mean_x, mean_y = moments.mean(x), moments.mean(y)
    if index is not None:
        cov_xx, cov_yx, mean_x = cov_xx[index][:, index], cov_yx[:, index], mean_x[index]
    return regress_moments(cov_xx, cov_yx, moments.covariance(y).diagonal(), mean_x, mean_y, prior)


def regress_moments(cov_xx: torch.Tensor, cov_yx: torch.Tensor, var_y: torch.Tensor, mean_x: torch.Tensor,
                    mean_y: torch.Tensor, prior: torch.Tensor) -> Affine:
    """`regress` from covariances: cov_xx [x, x], cov_yx [y, x], var_y [y], means [x], [y], prior [y, x]."""
    rms_x, rms_y = (cov_xx.diagonal() + mean_x**2).clamp_min(0).sqrt(), (var_y + mean_y**2).clamp_min(0).sqrt()
    residual = cov_yx - prior @ cov_xx
    noise = ROUNDING * torch.outer(rms_y + prior.abs() @ rms_x, rms_x)
    matrix = prior + solve(torch.where(residual.abs() > noise, residual, 0.0), cov_xx)
    unexplained = var_y - 2 * (matrix * cov_yx).sum(1) + ((matrix @ cov_xx) * matrix).sum(1)
    explained = 1 - (unexplained.sum() / var_y.sum().clamp_min(1e-300)).item()
    return Affine(matrix, mean_y - matrix @ mean_x, explained)
