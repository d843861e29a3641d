"""Low-rank maps inside attention heads, and lifting an effective matrix into a column compactor."""

from __future__ import annotations

import torch

FLOOR = 1e-12  # under the eigenvalues of a second moment, as a share of the largest
NOTHING = 1e-30  # a second moment whose largest eigenvalue is below has nothing in it (a head that is all zero)


def symmetric_root(second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """S^½ and S^-½ of a second-moment matrix [n, n], rank-deficient ones included (a floor under the eigenvalues).

    Of a matrix of zeros both are zero.
    """
    values, vectors = torch.linalg.eigh((second + second.T) / 2)
    largest = values[-1]
    roots = values.clamp_min(FLOOR * largest.clamp_min(NOTHING)).sqrt()
    there = (largest > NOTHING).to(roots)
    return (vectors * (roots * there)) @ vectors.T, (vectors * (there / roots)) @ vectors.T


def bilinear(query: torch.Tensor, key: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank-r maps that keep q·k best under the data.

    With L_q, L_k the roots of the second moments and L_q L_k = U S Vᵀ:
    R_q = S_r^½ U_rᵀ L_q⁻¹,  R_k = S_r^½ V_rᵀ L_k⁻¹.

    Args:
        query, key: E[q qᵀ], E[k kᵀ] of a head, [size, size]; k centred: a constant key shifts all scores of a query
            alike, which the softmax does not see.
    Returns:
        R_q, R_k: [rank, size]
    """
    if rank == len(query):
        eye = torch.eye(rank).to(query)
        return eye, eye
    root_q, inverse_q = symmetric_root(query)
    root_k, inverse_k = symmetric_root(key)
    left, values, right = torch.linalg.svd(root_q @ root_k)
    scale = values[:rank].sqrt()[:, None]
    return scale * left[:, :rank].T @ inverse_q, scale * right[:rank] @ inverse_k


def value_directions(covariance: torch.Tensor, out: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The rank-r part of a head's context that the output map `out` needs most.

    With the covariance L Lᵀ and out L = U S Vᵀ:  R_v = V_rᵀ L⁻¹,  C_o = L V_r.

    Args:
        covariance: of the head's context, [size, size]
        out: [targets, size]
    Returns:
        R_v [rank, size], C_o [size, rank]
    """
    if rank == len(covariance):
        eye = torch.eye(rank).to(covariance)
        return eye, eye
    root, inverse = symmetric_root(covariance)
    directions = torch.linalg.svd(out @ root, full_matrices=True)[2][:rank]
    return directions @ inverse, root @ directions.T


def balance(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gauge in which two maps, one after the other, weigh the same: G first and second G⁻¹.

    With second first = U S Vᵀ:  G first = S^½ Vᵀ,  second G⁻¹ = U S^½. What the product does not have, G leaves out.

    Args:
        first: [rank, in], second: [out, rank]; rank ≤ in, out
    Returns:
        G, G⁻¹: [rank, rank]
    """
    upper_1, upper_2 = torch.linalg.qr(first.T)[1], torch.linalg.qr(second)[1]
    left, values, right = torch.linalg.svd(upper_2 @ upper_1.T)
    inverse = torch.where(values > FLOOR * values[0].clamp_min(NOTHING), values.rsqrt(), 0.0)
    return inverse[:, None] * (left.T @ upper_2), upper_1.T @ right.T * inverse


def lift(wanted: torch.Tensor, weight: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """C with weight C = wanted, as near as possible to a start: C = start + weight⁺ (wanted − weight start).

    Args:
        wanted: [out, new], weight: [out, in] with out ≤ in, start: [in, new]
    Returns:
        [in, new]
    """
    return start + torch.linalg.lstsq(weight, wanted - weight @ start, driver="gelsd").solution \
        if weight.device.type == "cpu" else start + torch.linalg.pinv(weight) @ (wanted - weight @ start)
