"""Which dimensions to keep: greedy choices on covariances."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK = 16  # choices per round
FLOOR = 1e-12  # variance left, relative to the start, below which a dimension counts as explained


def greedy_regressors(covariance: torch.Tensor, cross: torch.Tensor, count: int, ridge: float = 0.0) -> torch.Tensor:
    """Indices of `count` regressors x_j that explain the targets best: forward selection.

    Gain of j: ‖Cov[y, x_j | chosen]‖² / (Var[x_j | chosen] + ridge). Chosen in blocks: exact among the best 4·BLOCK
    candidates of a round, which are then projected out of everything at once.

    Args:
        covariance: of x, [n, n]
        cross: Cov[y, x], [targets, n]; the covariance itself asks for what explains all of x best.
        ridge: share of the mean variance; keeps away from regressors that hardly vary, which only large weights on
            them could use.
    Returns:
        int64 [count], ascending
    """
    chosen = [index for index, _ in regressors_in_order(covariance, cross, count, ridge)]
    return torch.cat([*chosen, torch.empty(0, dtype=torch.long, device=covariance.device)]).sort()[0]


def regressors_in_order(covariance: torch.Tensor, cross: torch.Tensor, count: int,
                        ridge: float = 0.0) -> Iterator[tuple[torch.Tensor, float]]:
    """The choices of `greedy_regressors`, round by round: indices, and the variance of the targets that they add."""
    left, cross = covariance.clone(), cross.clone()
    start = left.diagonal().clone()
    floor = FLOOR * start.clamp_min(start.max() * 1e-30)
    added = ridge * start.mean()
    free = torch.ones(len(left), dtype=torch.bool, device=left.device)
    found = 0
    while found < count:
        gain = _gain(left, cross, floor, added).masked_fill(~free, -1.0)
        take = min(BLOCK, count - found)
        candidates = torch.argsort(gain, descending=True, stable=True)[: 4 * take]
        candidates = candidates[gain[candidates] > 0]
        if len(candidates) == 0:  # nothing left to explain: the lowest free indices, so that the count is met
            yield free.nonzero().flatten()[: count - found], 0.0
            return
        among = left[candidates][:, candidates], cross[:, candidates], floor[candidates], added
        picked, added_variance = _greedy_among(*among, take)
        index = candidates[picked]
        yield index, added_variance
        found += len(index)
        free[index] = False
        if found < count:
            _project_out(left, cross, index, floor)


def _gain(left: torch.Tensor, cross: torch.Tensor, floor: torch.Tensor, added: torch.Tensor) -> torch.Tensor:
    """What each dimension would explain: [n], 0 where nothing of it is left."""
    variance = left.diagonal()
    gain = cross.pow(2).sum(0) / (torch.maximum(variance, floor).clamp_min(1e-300) + added)
    return torch.where(variance > floor, gain, 0.0)


def _greedy_among(left: torch.Tensor, cross: torch.Tensor, floor: torch.Tensor, added: torch.Tensor,
                  count: int) -> tuple[torch.Tensor, float]:
    """Exact forward selection among a few candidates: positions of up to `count` of them, and their gains' sum."""
    device = left.device
    left, cross, floor, added = left.cpu().clone(), cross.cpu().clone(), floor.cpu(), added.cpu()
    picked, total = list[int](), 0.0
    while len(picked) < min(count, len(left)):
        gain = _gain(left, cross, floor, added)
        gain[picked] = -1.0
        j = int(gain.argmax())
        if gain[j] <= 0:
            break
        picked.append(j)
        total += gain[j].item()
        _project_out(left, cross, torch.tensor([j]), floor)
    return torch.tensor(picked, device=device), total


def _project_out(left: torch.Tensor, cross: torch.Tensor, index: torch.Tensor, floor: torch.Tensor) -> None:
    """Condition on x_index, in place."""
    columns = left[:, index].clone()  # [n, block]
    inner = columns[index]
    variance = inner.diagonal()
    scale = torch.where(variance > floor[index], variance, torch.inf).sqrt()  # a constant takes nothing out
    eye = torch.eye(len(index), dtype=left.dtype, device=left.device)
    correlation = inner / scale[:, None] / scale
    lower = torch.linalg.cholesky(correlation.tril(-1) + correlation.triu(1) + (1 + 1e-13) * eye)
    half = torch.linalg.solve_triangular(lower, (columns / scale).T, upper=False)  # [block, n]
    cross_half = torch.linalg.solve_triangular(lower, (cross[:, index] / scale).T, upper=False)
    left.addmm_(half.T, half, alpha=-1)
    cross.addmm_(cross_half.T, half, alpha=-1)


def greedy_blocks(covariance: torch.Tensor, cross: torch.Tensor, size: int, count: int) -> list[int]:
    """Forward selection of whole blocks of `size` neighbouring regressors: `count` block numbers, ascending.

    Args:
        covariance: of x, [n, n]
        cross: Cov[y, x], [targets, n]
    """
    return sorted(block for block, _ in blocks_in_order(covariance, cross, size, count))


def blocks_in_order(covariance: torch.Tensor, cross: torch.Tensor, size: int, count: int) -> list[tuple[int, float]]:
    """The choices of `greedy_blocks`, one by one: block number, and the variance of the targets that it adds."""
    left, cross = covariance.clone(), cross.clone()
    chosen: dict[int, float] = {}
    while len(chosen) < count:
        best, best_gain, best_half = -1, -1.0, None
        for block in sorted(set(range(len(left) // size)) - set(chosen)):
            part = slice(block * size, (block + 1) * size)
            values, vectors = torch.linalg.eigh(left[part, part])
            usable = values > FLOOR * covariance[part, part].diagonal().max().clamp_min(1e-300)
            half = vectors[:, usable] / values[usable].sqrt()  # half halfᵀ = (left of the block)⁺
            gain = (cross[:, part] @ half).pow(2).sum().item()
            if gain > best_gain:
                best, best_gain, best_half = block, gain, half
        assert best_half is not None
        part = slice(best * size, (best + 1) * size)
        half = left[:, part] @ best_half
        cross -= (cross[:, part] @ best_half) @ half.T
        left -= half @ half.T
        chosen[best] = best_gain
    return list(chosen.items())
