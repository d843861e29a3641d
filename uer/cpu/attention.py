"""softmax(q kᵀ / √size) v: torch's fused kernels, and another one for CPUs where that is slow.

A GPU's fused kernels take heads of whole eights of dimensions in half precision, of fours in float32; others are filled
up with zeros, which change nothing, or all scores would be kept.

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

from uer.cpu.dropout import Keep, new_seed

WEIGHTS = 1 << 19  # at a time
TILE = 8  # dimensions that a GPU's kernels take at once


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
              dropout: float = 0.0) -> torch.Tensor:
    """What each position takes from the others.

    Args:
        query: float [batch, heads, wanted, size]
        key, value: float [batch, heads, seq, size]
        mask: bool [batch, 1, 1, seq], True = attend; None = to all.
        dropout: share of the weights to drop.
    Returns:
        [batch, heads, wanted, size]
    """
    half = query.dtype in (torch.bfloat16, torch.float16)
    slow = query.device.type == "cpu" and (dropout > 0 or (half and query.requires_grad))
    if slow and not torch.compiler.is_compiling():
        return _Attention.apply(query, key, value, mask, dropout)
    return fused(query, key, value, mask, dropout, 1 if query.device.type == "cpu" else TILE)


def fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, dropout: float,
          tile: int) -> torch.Tensor:
    """`attention` by torch, heads filled up to a multiple of `tile`."""
    size = query.shape[-1]
    if fill := -size % tile:
        query, key, value = (F.pad(tensor, (0, fill)) for tensor in (query, key, value))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, scale=size**-0.5)
    return out[..., :size] if fill else out


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None,
                dropout: float) -> torch.Tensor:
        ctx.dropout, ctx.seed = dropout, new_seed() if dropout else 0
        keep = Keep(dropout, ctx.seed)
        out = _side_by_side(query)
        with torch.autocast("cpu", enabled=False):
            room = _room(query, key)
            for part in _parts(query, key):
                q, k, v = _heads(part, query, key, value)
                weights = _weights(q, k, None if mask is None else mask[part], room)
                if dropout:
                    weights.mul_(keep.mask(weights.shape))
                _put(torch.bmm(weights.to(v.dtype), v), keep.scale, out[part])
        ctx.save_for_backward(query, key, value, mask, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        query, key, value, mask, out = ctx.saved_tensors
        keep, scale = Keep(ctx.dropout, ctx.seed), query.shape[-1] ** -0.5
        d_query, d_key, d_value = (_side_by_side(tensor) for tensor in (query, key, value))
        with torch.autocast("cpu", enabled=False):
            inner = (gradient.to(_full(query)) * out).sum(-1)  # Σ do o
            room, d_room = _room(query, key), _room(query, key, query.dtype)
            for part in _parts(query, key):
                q, k, v, d_out = _heads(part, query, key, value, gradient)
                weights = _weights(q, k, None if mask is None else mask[part], room)
                d_weights = torch.bmm(d_out, v.transpose(1, 2), out=d_room[: len(q)]).to(weights.dtype)
                kept = weights
                if ctx.dropout:
                    kept_entries = keep.mask(weights.shape)
                    kept = weights * kept_entries
                    d_weights.mul_(kept_entries).mul_(keep.scale)
                d_scores = d_weights.sub_(inner[part].reshape(len(q), -1, 1)).mul_(weights).to(q.dtype)
                _put(torch.bmm(kept.to(v.dtype).transpose(1, 2), d_out), keep.scale, d_value[part])
                _put(torch.bmm(d_scores, k), scale, d_query[part])
                _put(torch.bmm(d_scores.transpose(1, 2), q), scale, d_key[part])
        return d_query, d_key, d_value, None, None


def _full(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _room(query: torch.Tensor, key: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """For the weights of a part, [instances * heads, wanted, seq]; float32 at least, or of this dtype."""
    batch, heads, wanted, _ = query.shape
    instances = min(batch, _instances(query, key))
    return query.new_empty(instances * heads, wanted, key.shape[2], dtype=dtype or _full(query))


def _heads(part: slice, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """These instances of tensors [batch, heads, seq, size], as [instances * heads, seq, size] in one piece."""
    return [tensor[part].reshape(-1, *tensor.shape[2:]) for tensor in tensors]


def _put(heads: torch.Tensor, factor: float, to: torch.Tensor) -> None:
    """The inverse of `_heads`, times factor."""
    torch.mul(heads.view_as(to), factor, out=to)


def _weights(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, room: torch.Tensor) -> torch.Tensor:
    """p [instances * heads, wanted, seq] in `room`; query, key as `_heads` gives them, mask [instances, 1, 1, seq]."""
    query, key = query.to(room.dtype), key.to(room.dtype).transpose(1, 2)
    scores = room[: len(query)]
    torch.baddbmm(scores, query, key, beta=0, alpha=query.shape[-1] ** -0.5, out=scores)
    if mask is not None:
        padding = torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, torch.finfo(scores.dtype).min / 2)
        scores.view(len(mask), -1, *scores.shape[1:]).add_(padding)  # filling takes eight times as long
    return torch.softmax(scores, -1, out=scores)


def _instances(query: torch.Tensor, key: torch.Tensor) -> int:
    """How many of them at a time."""
    _, heads, wanted, _ = query.shape
    return max(1, WEIGHTS // (heads * wanted * key.shape[2]))


def _parts(query: torch.Tensor, key: torch.Tensor) -> Iterator[slice]:
    rows = _instances(query, key)
    return (slice(start, start + rows) for start in range(0, len(query), rows))


def _side_by_side(like: torch.Tensor) -> torch.Tensor:
    """Room for [batch, heads, seq, size] in which the heads of a position are neighbours."""
    batch, heads, seq, size = like.shape
    return like.new_empty(batch, seq, heads, size).transpose(1, 2)
