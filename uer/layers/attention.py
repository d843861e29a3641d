"""softmax(q kᵀ / √size) v: torch's fused kernel, and another one for CPUs where that is slow.

On a CPU, torch's kernel knows no dropout, and its backward pass takes three times as long in bfloat16 as in float32. In
these cases weights are found for a few instances at a time, so that they stay in the caches, and once more in the
backward pass instead of being kept:

    p = softmax(q kᵀ / √size)   in float32        w = dropout(p)        o = w v
    dv = wᵀ do        dp = dropout(do vᵀ), the same entries        ds = p (dp − Σ do o)        dq = ds k / √size
    dk = dsᵀ q / √size

(Σ do o is Σ p dp of the softmax's gradient: Dao et al. 2022, FlashAttention.)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from uer.layers.dropout import Keep, new_seed

WEIGHTS = 1 << 20  # at a time


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
              dropout: float = 0.0) -> torch.Tensor:
    """What each position takes from the others.

    Args:
        query, key, value: float [batch, heads, seq, size]
        mask: bool [batch, 1, 1, seq], True = attend; None = to all.
        dropout: share of the weights to drop.
    Returns:
        [batch, heads, seq, size]
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    slow = query.device.type == "cpu" and (dropout > 0 or (half and query.requires_grad))
    if not slow or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return _Attention.apply(query, key, value, mask, dropout)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
                dropout: float) -> torch.Tensor:
        ctx.dropout, ctx.seed = dropout, new_seed() if dropout else 0
        keep = Keep(dropout, ctx.seed)
        out = _side_by_side(query)
        with torch.autocast("cpu", enabled=False):
            for part in _parts(query):
                weights = _weights(query[part], key[part], None if mask is None else mask[part])
                if dropout:
                    weights.mul_(keep.mask(weights.shape))
                out[part] = torch.matmul(weights.to(value.dtype), value[part]).mul_(keep.scale)
        ctx.save_for_backward(query, key, value, mask, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        query, key, value, mask, out = ctx.saved_tensors
        keep, scale = Keep(ctx.dropout, ctx.seed), query.shape[-1] ** -0.5
        d_query, d_key, d_value = (_side_by_side(query) for _ in range(3))
        with torch.autocast("cpu", enabled=False):
            inner = (gradient.to(_full(query)) * out).sum(-1, keepdim=True)  # Σ do o
            for part in _parts(query):
                weights = _weights(query[part], key[part], None if mask is None else mask[part])
                d_weights = torch.matmul(gradient[part], value[part].transpose(-1, -2)).to(weights.dtype)
                kept = weights
                if ctx.dropout:
                    kept_entries = keep.mask(weights.shape)
                    kept = weights * kept_entries
                    d_weights.mul_(kept_entries).mul_(keep.scale)
                d_scores = d_weights.sub_(inner[part]).mul_(weights).to(query.dtype)
                d_value[part] = torch.matmul(kept.to(value.dtype).transpose(-1, -2), gradient[part]).mul_(keep.scale)
                d_query[part] = torch.matmul(d_scores, key[part]).mul_(scale)
                d_key[part] = torch.matmul(d_scores.transpose(-1, -2), query[part]).mul_(scale)
        return d_query, d_key, d_value, None, None


def _full(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """p [batch, heads, seq, seq], float32 at least."""
    full = _full(query)
    scores = torch.matmul(query.to(full) * query.shape[-1] ** -0.5, key.to(full).transpose(-1, -2))
    if mask is not None:
        scores.masked_fill_(~mask, torch.finfo(full).min)
    return torch.softmax(scores, -1)


def _parts(query: torch.Tensor) -> Iterator[slice]:
    """Instances at a time."""
    batch, heads, seq, _ = query.shape
    rows = max(1, WEIGHTS // (heads * seq * seq))
    return (slice(start, start + rows) for start in range(0, batch, rows))


def _side_by_side(query: torch.Tensor) -> torch.Tensor:
    """Room for [batch, heads, seq, size] in which the heads of a position are neighbours."""
    batch, heads, seq, size = query.shape
    return query.new_empty(batch, seq, heads, size).transpose(1, 2)
