"""LayerNorm as UER files mean it, over all dimensions or over the kept ones.

    uer           y = gamma * (x - mean) / (std + eps) + beta                          eps = 1e-6
    huggingface   y = gamma * (x - mean) / sqrt(var + eps * n / (n - 1)) + beta        eps = 1e-12

std and var are unbiased (over n - 1), n the number of dimensions that count. So gamma always is UER's, and the second
form equals Hugging Face's sqrt(var_biased + eps) with gamma_hf = gamma * sqrt((n - 1) / n): the same function, which
the fused kernel serves.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from uer.config import LAYERNORM_EPS


def standardise(x: torch.Tensor, style: str, eps: float) -> torch.Tensor:
    """LayerNorm over all dimensions without gamma and beta: x [..., size] -> [..., size]."""
    return _statistics(x, style, eps, None, x.shape[-1])[0]


def _statistics(x: torch.Tensor, style: str, eps: float, keep: torch.Tensor | None,
                n: int | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised x [..., size]; its scale s and the q of `_Norm`'s gradient, both [..., 1]."""
    if keep is None:
        centred = x - x.mean(-1, keepdim=True)
        var = centred.square().sum(-1, keepdim=True) / (n - 1)
    else:
        centred = x - (x @ keep).unsqueeze(-1) / n
        var = (centred.square() @ keep).unsqueeze(-1) / (n - 1)
    if style == "uer":
        std = var.sqrt()
        scale = 1 / (std + eps)
        return centred.mul_(scale), scale, 1 / std.clamp_min(torch.finfo(std.dtype).tiny)  # z is 0 where std is
    scale = torch.rsqrt(var + eps * n / (n - 1))
    return centred.mul_(scale), scale, scale


class _Norm(torch.autograd.Function):
    """gamma * z + beta with z = (x - mean) * s, in fewer passes over memory than autograd would make.

    With g = dy * gamma and k = 1 for the dimensions that count, 0 for others,
    dx = s g - k (s sum(g) / n + q z sum(g z) / (n - 1)), where q = 1 / std (uer) or s (huggingface).
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, style: str, eps: float,
                keep: torch.Tensor | None, n: int | torch.Tensor) -> torch.Tensor:
        z, scale, q = _statistics(x, style, eps, keep, n)
        ctx.save_for_backward(z, scale, q, gamma, keep)
        ctx.n = n
        return torch.addcmul(beta, z, gamma)

    @staticmethod
    def backward(ctx, dy: torch.Tensor):
        z, scale, q, gamma, keep = ctx.saved_tensors
        along_z = dy * z
        d_gamma, d_beta = along_z.flatten(0, -2).sum(0), dy.flatten(0, -2).sum(0)
        shift = (dy @ gamma).unsqueeze(-1) * (scale / ctx.n)
        stretch = (along_z @ gamma).unsqueeze(-1) * (q / (ctx.n - 1))
        if keep is None:
            dx = (dy * gamma).mul_(scale).sub_(shift).addcmul_(z, stretch, value=-1)
        else:
            dx = (dy * gamma).mul_(scale).addcmul_(torch.addcmul(shift, z, stretch), keep, value=-1)
        return dx, d_gamma, d_beta, None, None, None, None


class LayerNorm(nn.Module):
    """LayerNorm with UER's `gamma` and `beta`.

    Args:
        size: number of dimensions.
        style: `uer` or `huggingface`, see above.
        eps: the constant in the denominator; default: the style's own.

    `keep` (float [size], 1 = counts) restricts mean and std to the kept dimensions; `None` means all. The result is
    still applied to all dimensions.
    """

    def __init__(self, size: int, style: str = "uer", eps: float | None = None):
        super().__init__()
        self.style = style
        self.eps = LAYERNORM_EPS[style] if eps is None else eps
        self.gamma = nn.Parameter(torch.ones(size))
        self.beta = nn.Parameter(torch.zeros(size))
        self.keep: torch.Tensor | None = None
        self.kept: int | torch.Tensor = size  # a tensor where masked: a compiled graph must not depend on its value

    def set_keep(self, keep: torch.Tensor | None, kept: int) -> None:
        """Let only `kept` dimensions, those where `keep` [size] is 1, count for mean and std; `None`: all count."""
        self.keep, self.kept = keep, kept if keep is None else keep.new_tensor(kept)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., size] -> [..., size]"""
        n = self.kept
        if self.keep is None and self._kernel_serves(x):
            assert isinstance(n, int)
            eps = self.eps if self.style == "huggingface" else self.eps**2
            return F.layer_norm(x, (n,), self.gamma * math.sqrt((n - 1) / n), self.beta, eps)
        with torch.autocast(x.device.type, enabled=False):
            return _Norm.apply(x.to(self.gamma.dtype), self.gamma, self.beta, self.style, self.eps, self.keep, n)

    def _kernel_serves(self, x: torch.Tensor) -> bool:
        """Whether the fused kernel is exact enough: always in its own form; in UER's form where rounding is coarser."""
        if self.style == "huggingface":
            return True
        return torch.is_autocast_enabled(x.device.type) or x.dtype in (torch.float16, torch.bfloat16)
