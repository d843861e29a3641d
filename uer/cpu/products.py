"""Matrix products and linear layers: torch's own, and a faster way to the same on some CPUs.

On x86 torch gives float32 products to MKL, which keeps to AVX2 on AMD's processors; convolutions it gives to oneDNN,
which uses what there is. A product is a convolution with a kernel of one: rows are pixels, columns are channels. On
processors with AVX-512 units of full width (Zen 5) that takes half the time (`benchmarks/cpu_products.py`); everywhere
else, for any other dtype, under autocast and in compiled graphs, torch's own way is taken. What decides is the kind of
processor and not a clock, so that a resumed run goes on with the same rounding.
"""

from __future__ import annotations

import functools
import os
import re

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input, conv2d_weight

from uer.system import processor

LEAST_OPERATIONS = 1 << 23  # multiplications; below, a convolution has more to prepare than to gain
LEAST_NUMBERS = 1 << 15  # of the input; torch keeps smaller convolutions from oneDNN
KERNELS = "128"  # for oneDNN to remember
FAMILY = 26  # AMD's number of Zen 5; Zen 4 takes two turns for 512 bits, so AVX2 does as well there
DILATION = 2  # of a kernel of one: means nothing, but that torch gives it to oneDNN for a single thread, too
LONG = 20  # times as many rows as are summed: more are slow as the gradient of a kernel
BEGINS = 64  # bytes, of which the address of memory of torch's own is a multiple
WIDE = 512  # columns from which on a short aᵀ is better copied than multiplied as it lies


@functools.cache
def convolutions_are_faster() -> bool:
    """Whether this is a CPU on which float32 products are faster as convolutions.

    Where it is, oneDNN is told to remember fewer kernels than it would, unless the environment says how many: every
    number of rows has its own, batches differ, and a thousand of them take up to 1 GB.
    """
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    about = processor()
    family = re.search(r"family\D*(\d+)", about, re.IGNORECASE)
    faster = (torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in about
              and family is not None and int(family[1]) >= FAMILY)
    if faster:
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", KERNELS)  # read when the first one is made
    return faster


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or a copy of it where it is part of a larger one and begins off the usual boundary.

    The last digits of MKL's products depend on where operands begin (float64 on AMD's processors), and the gradients
    that DDP sums begin elsewhere in a run's first step than later: a resumed run would not go on bit for bit.
    """
    return tensor.clone() if tensor.data_ptr() % BEGINS else tensor


def mm(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """a b + bias, outside autograd.

    Args:
        a, b: float [m, k], [k, n]; either may be the transpose of a contiguous matrix.
        bias: float [n]
    Returns:
        float [m, n]
    """
    kind = f"{_layout(a)}{_layout(b)}" if _as_convolution(a, b) else ""
    (m, k), n = a.shape, b.shape[1]
    if kind == "nt":
        return _rows(F.conv2d(_pixels(a), _kernel(b.t()), bias, dilation=DILATION))
    if kind == "nn" or (kind == "tn" and n >= WIDE and k < 2 * n):
        out = _rows(conv2d_input((1, n, 1, m), _kernel(b), _pixels(a.contiguous()), dilation=DILATION))
    elif kind == "tn" and m < LONG * k:
        out = conv2d_weight(_pixels(b), (m, n, 1, 1), _pixels(a.t()), dilation=DILATION).view(m, n)
    else:
        return a @ b if bias is None else torch.addmm(bias, a, b)
    return out if bias is None else out.add_(bias)


def add_mm(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a b, outside autograd: total float [m, n]; a, b as for `mm`, of no more precision than total."""
    if total.dtype == a.dtype and not _as_convolution(a, b):
        total.addmm_(a, b)
    else:
        total += mm(a, b)


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a b with its gradients: float [m, k], [k, n] -> [m, n]; either may be the transpose of a contiguous matrix."""
    if not _as_convolution(a, b):
        return a @ b
    return _Product.apply(a, b, None)


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`: x [..., in], weight [out, in], bias [out] -> [..., out]"""
    if not _as_convolution(x, weight.t()):
        return F.linear(x, weight, bias)
    return _Product.apply(x.reshape(-1, x.shape[-1]), weight.t(), bias).view(*x.shape[:-1], len(weight))


class Linear(nn.Linear):
    """`torch.nn.Linear`, by `linear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """[..., in] -> [..., out]"""
        return linear(input, self.weight, self.bias)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(a, b)
        return mm(a, b, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor):
        a, b = ctx.saved_tensors
        gradient = gradient.contiguous()
        needs_a, needs_b, needs_bias = ctx.needs_input_grad
        d_b = None
        if needs_b:  # laid out as b
            d_b = mm(a.t(), gradient) if b.is_contiguous() else mm(gradient.t(), a).t()
        return mm(gradient, b.t()) if needs_a else None, d_b, gradient.sum(0) if needs_bias else None


def _as_convolution(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether to take a convolution for the product of a [..., k] and b [k, n]."""
    if (torch.compiler.is_compiling() or not convolutions_are_faster()
            or a.device.type != "cpu" or not a.dtype == b.dtype == torch.float32 or torch.is_autocast_enabled("cpu")):
        return False
    operations = a.numel() * b.shape[1]
    return operations >= LEAST_OPERATIONS and min(a.numel(), b.numel(), operations // len(b)) >= LEAST_NUMBERS


def _layout(matrix: torch.Tensor) -> str:
    """n: rows side by side; t: columns; -: neither."""
    return "n" if matrix.is_contiguous() else "t" if matrix.t().is_contiguous() else "-"


def _pixels(matrix: torch.Tensor) -> torch.Tensor:
    """[m, k] -> an image in one row, [1, k, 1, m], channels last."""
    return matrix.view(1, 1, *matrix.shape).permute(0, 3, 1, 2)


def _kernel(matrix: torch.Tensor) -> torch.Tensor:
    """[n, k] -> [n, k, 1, 1], channels last."""
    return matrix.view(len(matrix), 1, 1, -1).permute(0, 3, 1, 2)


def _rows(image: torch.Tensor) -> torch.Tensor:
    """The inverse of `_pixels`."""
    return image.permute(0, 2, 3, 1).reshape(image.shape[3], image.shape[1])
