"""Which dimensions to keep: greedy choices on covariances."""

from __future__ import annotations

import torch

FLOOR = 1e-12  # variance left, relative to the start, below which a dimension counts as explained


def pivoted_cholesky(covariance: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of `count` dimensions, each time the one with the largest variance that the chosen ones do not explain.

    Args:
        covariance: [n, n]
    Returns:
        int64 [count], ascending
    """
    return greedy_regressors(covariance, covariance, count)


def greedy_regressors(covariance: torch.Tensor, cross: torch.Tensor, count: int, block: int = 16) -> torch.Tensor:
    """Indices of `count` regressors x_j that explain the targets best: forward selection.

    Gain of j: ‖Cov[y, x_j | chosen]‖² / Var[x_j | chosen]. Chosen in blocks: exact among the best 4·block candidates
    of a round, which are then projected out of everything at once.

    Args:
        covariance: of x, [n, n]
        cross: Cov[y, x], [targets, n]
        block: choices per round.
    Returns:
        int64 [count], ascending
    """
    n = len(covariance)
    left, cross = covariance.clone(), cross.clone()
    start = left.diagonal().clone()
    floor = FLOOR * start.clamp_min(start.max() * 1e-30)
    free = torch.ones(n, dtype=torch.bool, device=left.device)
    chosen: list[int] = []
    while len(chosen) < count:
        variance = left.diagonal()
        usable = free & (variance > floor)
        gain = torch.where(usable, cross.pow(2).sum(0) / variance.clamp_min(1e-300), -torch.ones_like(variance))
        take = min(block, count - len(chosen))
        candidates = torch.argsort(gain, descending=True, stable=True)[: min(4 * take, int(free.sum()))]
        candidates = candidates[gain[candidates] >= 0]
        if len(candidates) == 0:  # nothing left to explain: the lowest free indices, so that the count is met
            chosen += free.nonzero().flatten()[: count - len(chosen)].tolist()
            break
        picked = _greedy_among(left[candidates][:, candidates].cpu(), cross[:, candidates].cpu(), take,
                               floor[candidates].cpu())
        index = candidates[picked.to(candidates.device)]
        chosen += index.tolist()
        free[index] = False
        if len(chosen) < count:
            _project_out(left, cross, index)
    return torch.tensor(sorted(chosen), device=covariance.device)


def _greedy_among(left: torch.Tensor, cross: torch.Tensor, count: int, floor: torch.Tensor) -> torch.Tensor:
    """Exact forward selection among a few candidates: positions of up to `count` of them."""
    left, cross = left.clone(), cross.clone()
    picked: list[int] = []
    free = torch.ones(len(left), dtype=torch.bool)
    while len(picked) < min(count, len(left)):
        variance = left.diagonal()
        usable = free & (variance > floor)
        if not usable.any():
            break
        gain = torch.where(usable, cross.pow(2).sum(0) / variance.clamp_min(1e-300), -torch.ones_like(variance))
        j = int(gain.argmax())
        picked.append(j)
        free[j] = False
        column = left[:, j] / variance[j]
        cross -= torch.outer(cross[:, j].clone(), column)
        left -= torch.outer(left[:, j].clone(), column)
    return torch.tensor(picked)


def _project_out(left: torch.Tensor, cross: torch.Tensor, index: torch.Tensor) -> None:
    """Condition on x_index, in place."""
    columns = left[:, index].clone()
    inner = columns[index]
    scale = inner.diagonal().sqrt()
    eye = torch.eye(len(index)).to(inner)
    lower = torch.linalg.cholesky(inner / scale[:, None] / scale + 1e-13 * eye)
    half = torch.linalg.solve_triangular(lower, (columns / scale).T, upper=False)  # [block, n]
    cross_half = torch.linalg.solve_triangular(lower, (cross[:, index] / scale).T, upper=False)  # [block, targets]
    left -= half.T @ half
    cross -= cross_half.T @ half
