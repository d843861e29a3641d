"""Streaming first and second moments of several vectors seen together, and linear regression from them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from uer.parallel.collectives import sum_over_ranks

ROUNDING = 1e-13  # a moment below this share of its factors' sizes is what rounding leaves of 0
BLOCK = 256  # rows of a product at a time
RIDGES = (0.0, *(10 ** (x / 4) for x in range(-24, 3)))  # shares of the mean variance
CUTOFF = 1e-10  # share of the mean variance below which a direction counts as constant


class Moments:
    """Sums of x, 1 and x xᵀ over tokens, float64; memory does not grow with the tokens.

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

    def add(self, **vectors: torch.Tensor) -> None:
        """Add tokens: each vector [n, width]."""
        joint = torch.cat([vectors[name].double() for name in self.slices], 1)
        for start in range(0, joint.shape[1], BLOCK):  # the upper triangle, in blocks of rows
            self.products[start:start + BLOCK, start:].addmm_(joint[:, start:start + BLOCK].T, joint[:, start:])
        self.sums += joint.sum(0)
        self.weight += len(joint)

    @property
    def tokens(self) -> float:
        return self.weight.item()

    def share(self) -> Moments:
        """Sum over all processes and complete the sums: to be called once, before anything is read."""
        sum_over_ranks([self.products, self.sums, self.weight.view(1)])
        self.products = self.products.triu() + self.products.triu(1).T
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


class Spectrum:
    """A covariance, diagonalised, to solve with it under any ridge."""

    def __init__(self, covariance: torch.Tensor):
        self.scale = covariance.diagonal().mean().clamp_min(1e-300)
        values, self.vectors = torch.linalg.eigh((covariance + covariance.T) / (2 * self.scale))
        self.values = torch.where(values > CUTOFF, values, torch.inf)  # directions that count as constant say nothing

    def solve(self, residual: torch.Tensor, variance: float, tokens: float, heard: torch.Tensor,
              slack: float) -> torch.Tensor:
        """residual · (covariance + ridge)⁻¹, with a ridge of (about) least generalised cross-validation error.

        Where x explains y without a rest, that is no ridge at all; where tokens are few for the regressors, it keeps
        least squares from following their noise. (Golub, Heath, Wahba 1979.)

        Args:
            residual: Cov[y, x], [y, x]
            variance: of heard · y, summed.
            tokens: that the covariances come from.
            heard: how much an error in each entry of y counts when the ridge is chosen, [y]
            slack: share by which the error may exceed the least: of the ridges within it, the largest is taken.
        Returns:
            [y, x]
        """
        turned = residual @ self.vectors / self.scale.sqrt()  # [y, x]
        energy = (heard[:, None] * turned).pow(2).sum(0)
        ridges = torch.tensor(RIDGES, dtype=energy.dtype, device=energy.device)[:, None]
        shrunk = self.values + ridges  # [ridges, x]
        left = (variance - (energy * (1 + ridges / shrunk) / shrunk).sum(1)).clamp_min(0)
        freedom = 1 - ((self.values / shrunk).nan_to_num(0.0).sum(1) + 1) / tokens
        error = torch.where(freedom > 0.01, left / freedom.clamp_min(0.01) ** 2, torch.inf)
        chosen = int((error <= (1 + slack) * error.min()).nonzero().max())
        return (turned / shrunk[chosen]) @ self.vectors.T / self.scale.sqrt()


def regress(moments: Moments, x: str, y: str, prior: torch.Tensor, index: torch.Tensor | None = None,
            heard: torch.Tensor | None = None, slack: float = 0.0) -> Affine:
    """Least squares of y on x (and a constant), as a correction to a prior map.

    Where the prior is right already, the correction is 0 whatever the covariance of x is.

    Args:
        moments: of x and y.
        prior: [width y, width x]
        index: use these entries of x only (then the prior is [width y, len(index)]).
        heard: how much an error in each entry of y counts when the ridge is chosen (default: all alike), [width y]
        slack: share of the error that may be given for a larger ridge, that is for a map nearer to the prior.
    """
    cov_xx, cov_yx = moments.covariance(x), moments.covariance(y, x)
    mean_x, mean_y = moments.mean(x), moments.mean(y)
    if index is not None:
        cov_xx, cov_yx, mean_x = cov_xx[index][:, index], cov_yx[:, index], mean_x[index]
    return regress_moments(cov_xx, cov_yx, moments.covariance(y).diagonal(), mean_x, mean_y, prior, moments.tokens,
                           heard, slack)


def regress_moments(cov_xx: torch.Tensor, cov_yx: torch.Tensor, var_y: torch.Tensor, mean_x: torch.Tensor,
                    mean_y: torch.Tensor, prior: torch.Tensor, tokens: float,
                    heard: torch.Tensor | None = None, slack: float = 0.0) -> Affine:
    """`regress` from covariances: cov_xx [x, x], cov_yx [y, x], var_y [y], means [x], [y], prior [y, x]."""
    rms_x, rms_y = (cov_xx.diagonal() + mean_x**2).clamp_min(0).sqrt(), (var_y + mean_y**2).clamp_min(0).sqrt()
    residual = cov_yx - prior @ cov_xx
    noise = ROUNDING * torch.outer(rms_y + prior.abs() @ rms_x, rms_x)
    residual = torch.where(residual.abs() > noise, residual, 0.0)
    matrix = prior
    if residual.any():
        heard = torch.ones_like(var_y) if heard is None else heard
        variance = (heard**2 * _unexplained(prior, cov_xx, cov_yx, var_y)).sum().item()
        matrix = prior + Spectrum(cov_xx).solve(residual, variance, tokens, heard, slack)
    unexplained = _unexplained(matrix, cov_xx, cov_yx, var_y)
    explained = 1 - (unexplained.sum() / var_y.sum().clamp_min(1e-300)).item()
    return Affine(matrix, mean_y - matrix @ mean_x, explained)


def rescaled(moments: Moments, x: str, y: str, factors: torch.Tensor,
             index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares of each y[index[j]] on x[j] alone, as a correction to prior factors.

    Args:
        factors: [width x], index: int64 [width x]
    Returns:
        factors, offsets: [width x]
    """
    positions = torch.arange(len(index), device=factors.device)
    variance, shared = moments.covariance(x).diagonal(), moments.covariance(y, x)[index, positions]
    floor = 1e-12 * variance.max().clamp_min(1e-300)
    found = factors + torch.where(variance > floor, (shared - factors * variance) / variance.clamp_min(floor), 0.0)
    return found, moments.mean(y)[index] - found * moments.mean(x)


def _unexplained(matrix: torch.Tensor, cov_xx: torch.Tensor, cov_yx: torch.Tensor, var_y: torch.Tensor) -> torch.Tensor:
    """Variance of y − matrix x: [y]"""
    return var_y - 2 * (matrix * cov_yx).sum(1) + ((matrix @ cov_xx) * matrix).sum(1)
