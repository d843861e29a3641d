"""The maps of all heads of a layer, in balanced coordinates.

A head's function leaves its inner coordinates open: any invertible G between query and key or between value and output,
with its inverse on the other side, changes nothing. Least squares ends in whitened coordinates, where one side has
weights ten times the teacher's and the other a tenth: AdamW, whose steps are alike for all entries, hardly moves the
one and overshoots the other. So every head gets the G in which both sides weigh the same (`balance`).
"""

from __future__ import annotations

import torch

from uer.calibration.maps import balance, bilinear, value_directions
from uer.calibration.moments import Affine, Moments, regress_moments


def query_key_maps(query: torch.Tensor, query_bias: torch.Tensor, key: torch.Tensor, covariance: torch.Tensor,
                   mean: torch.Tensor, rank: int, balanced: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """R_q, R_k of every head, from the queries and keys that the student's states predict.

    Args:
        query, key: from those states, [kept, heads, size]; query_bias: [heads, size]
        covariance, mean: of the states, [kept, kept], [kept]
        balanced: otherwise the maps are as found, which at full rank is the identity.
    Returns:
        [heads, rank, size] each
    """
    maps = []
    for q, bias, k in zip(query.unbind(1), query_bias, key.unbind(1)):
        mean_q = mean @ q + bias
        rows_q, rows_k = bilinear(q.T @ covariance @ q + torch.outer(mean_q, mean_q), k.T @ covariance @ k, rank)
        if balanced:
            gauge, inverse = balance(rows_k @ k.T, torch.cat([q, bias[None]]) @ rows_q.T)
            shrink = (rank / len(bias)) ** 0.25  # composition folds the square of it into the query
            rows_q, rows_k = inverse.T @ rows_q / shrink, gauge @ rows_k * shrink
        maps.append((rows_q, rows_k))
    return torch.stack([rows_q for rows_q, _ in maps]), torch.stack([rows_k for _, rows_k in maps])


def value_maps(moments: Moments, rows: torch.Tensor, value: torch.Tensor | None, out: torch.Tensor,
               heard: torch.Tensor, size: int, rank: int) -> tuple[torch.Tensor, torch.Tensor, Affine]:
    """R_v of the kept heads, the start of their C_o, and the output map, by least squares of the residual error.

    Args:
        moments: of the contexts (of all heads, at full width) and the residual error.
        rows: the kept heads' dimensions, `size` each.
        value: values from the student's states, [d, kept], to balance with; None: the maps stay as found.
        out: the teacher's output map onto the kept residual dimensions, [kept, d]
        heard: how much an error in each of these counts, [kept]
    Returns:
        R_v [heads' * rank, heads' * size], C_o [heads' * size, heads' * rank], output from R_v context
    """
    out, covariance = out[:, rows], moments.covariance("context")[rows][:, rows]
    parts = [slice(start, start + size) for start in range(0, len(rows), size)]
    maps = [value_directions(covariance[part, part], heard[:, None] * out[:, part], rank) for part in parts]
    reduce, start = (torch.block_diag(*side) for side in zip(*maps))
    fitted = regress_moments(reduce @ covariance @ reduce.T, moments.covariance("error", "context")[:, rows] @ reduce.T,
                             moments.covariance("error").diagonal(), reduce @ moments.mean("context")[rows],
                             moments.mean("error"), out @ start, moments.tokens, heard)
    if value is not None:
        pairs = zip((reduce @ value[rows]).split(rank), fitted.matrix.split(rank, 1))
        gauge, inverse = (torch.block_diag(*side) for side in zip(*(balance(*pair) for pair in pairs)))
        reduce, start, fitted = gauge @ reduce, start @ inverse, fitted._replace(matrix=fitted.matrix @ inverse)
    return reduce, start, fitted
