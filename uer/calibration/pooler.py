"""The teacher's pooler, p = tanh(W x + b) of the first token's state x, through the squeeze.

    W_student = W[rows] · C        b_student = b[rows]

No target but a classifier's reaches the pooler, so it has no compactors of its own. C is the column compactor of the
target's first linear, which reads the same states: whatever the student has learned to read as the teacher's x, the
pooler reads so too. Its outputs can be picked but not mixed, for tanh acts on each alone. `rows` are picked greedily so
that the others' inputs to tanh are explained best, taking what the last LayerNorm normalises as uncorrelated; W C has
rank hidden_size of the student at most, so that as many rows carry all of it. Nothing dropped: the teacher's pooler.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uer.calibration.selection import greedy_regressors
from uer.formats import shapes


def take_pooler(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the pooler from published names -> tensors, and return it; {} where there is none."""
    if not all(name in tensors for name in shapes.POOLER):
        return {}
    return {name: tensors.pop(name) for name in shapes.POOLER}


def last_gamma(layers_num: int) -> str:
    """The name of the gamma behind the encoder's output."""
    return f"encoder.transformer.{layers_num - 1}.layer_norm_2.gamma"


@torch.no_grad()
def shift_pooler(pooler: Mapping[str, torch.Tensor], offset: torch.Tensor) -> dict[str, torch.Tensor]:
    """The pooler of states of which `offset` [d] has been taken away; {} stays {}."""
    if not pooler:
        return {}
    weight, bias = (pooler[name] for name in shapes.POOLER)
    shifted = bias.double() + weight.double() @ offset.double().to(weight.device)
    return {**pooler, shapes.POOLER[1]: shifted.to(bias.dtype)}


@torch.no_grad()
def squeeze_pooler(pooler: Mapping[str, torch.Tensor], columns: torch.Tensor,
                   gamma: torch.Tensor) -> dict[str, torch.Tensor]:
    """The student's pooler; {} stays {}.

    Args:
        pooler: W [d, d] and b [d] of the teacher.
        columns: C [d, kept]
        gamma: of the student's last LayerNorm, [kept]
    """
    if not pooler:
        return {}
    weight, bias = (pooler[name] for name in shapes.POOLER)
    columns, gamma = columns.to(weight.device).double(), gamma.to(weight.device).double()
    matrix = weight.double() @ columns  # [d, kept]
    scaled = matrix * gamma
    covariance = scaled @ scaled.T
    rows = greedy_regressors(covariance, covariance, columns.shape[1])
    return dict(zip(shapes.POOLER, (matrix[rows].to(weight.dtype).contiguous(), bias[rows])))
