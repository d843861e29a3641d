"""Effective weight and bias of a linear with its compactors, and their gradients.

    W̃ = R W C        b̃ = R b

    dR = dW̃ (W C)ᵀ + db̃ bᵀ        dW = Rᵀ dW̃ Cᵀ        dC = (R W)ᵀ dW̃        db = Rᵀ db̃

The order of the two products is the one that costs less. Autograd would do the same, but for two things: the bias needs
no pass of its own over dR, and rows of dR and columns of dC that nobody wants are left out (they are 0).
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from uer.cpu.products import mm

Wanted = Callable[[], tuple[torch.Tensor | None, torch.Tensor | None]]


def rows_first(now: int, out: int, size: int, now_in: int) -> bool:
    """Whether (R W) C costs no more than R (W C), for R [now, out], W [out, size], C [size, now_in]."""
    return now * size * (out + now_in) <= out * now_in * (size + now)


def applies_to_rows(tokens: int, table_rows: int) -> bool:
    """Whether a compactor on the gathered embeddings of `tokens` costs less than multiplying the tables out."""
    return tokens < table_rows


def applies_to_features(predicted: int, vocab: int, inner: int, width: int) -> bool:
    """Whether C [inner, width] costs less on `predicted` features than multiplied with a table [vocab, inner]."""
    return predicted * inner * (width + vocab) < vocab * width * (inner + predicted)


def effective(rows: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor,
              wanted: Wanted = lambda: (None, None)) -> tuple[torch.Tensor, torch.Tensor]:
    """R W C and R b.

    Args:
        rows, weight, columns: R [out now, out], W [out, in], C [in, in now].
        bias: b [out].
        wanted: asked in the backward pass for the rows of dR and the columns of dC to find: int64 indices, None = all.
    """
    return _Effective.apply(rows, weight, columns, bias, wanted)


class _Effective(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor, weight: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor,
                wanted: Wanted) -> tuple[torch.Tensor, torch.Tensor]:
        (now, out), (size, now_in) = rows.shape, columns.shape
        ctx.rows_first = rows_first(now, out, size, now_in)
        inner = mm(rows, weight) if ctx.rows_first else mm(weight, columns)
        ctx.save_for_backward(rows, weight, columns, bias, inner)
        ctx.wanted = wanted
        return mm(inner, columns) if ctx.rows_first else mm(rows, inner), rows @ bias

    @staticmethod
    def backward(ctx, d_product: torch.Tensor, d_offset: torch.Tensor):
        rows, weight, columns, bias, inner = ctx.saved_tensors
        needs_rows, needs_weight, needs_columns, needs_bias, _ = ctx.needs_input_grad
        some_rows, some_columns = ctx.wanted()
        if ctx.rows_first:  # inner = R W
            d_inner = mm(d_product, columns.t())
            for_rows, by_rows, for_columns, by_columns = d_inner, weight, d_product, inner
            d_weight = mm(rows.t(), d_inner) if needs_weight else None
        else:  # inner = W C
            d_inner = mm(rows.t(), d_product)
            for_rows, by_rows, for_columns, by_columns = d_product, inner, d_inner, weight
            d_weight = mm(d_inner, columns.t()) if needs_weight else None
        d_rows = _row_gradient(for_rows, by_rows, d_offset, bias, some_rows) if needs_rows else None
        d_columns = _column_gradient(by_columns, for_columns, some_columns) if needs_columns else None
        return d_rows, d_weight, d_columns, rows.t() @ d_offset if needs_bias else None, None


def _row_gradient(gradient: torch.Tensor, factor: torch.Tensor, d_offset: torch.Tensor, bias: torch.Tensor,
                  some: torch.Tensor | None) -> torch.Tensor:
    """gradient @ factorᵀ + d_offset biasᵀ, in the rows `some`."""
    if some is None:
        return mm(gradient, factor.t()).addr_(d_offset, bias)
    part = mm(gradient[some], factor.t()).addr_(d_offset[some], bias)
    return part.new_zeros(len(gradient), part.shape[1]).index_copy_(0, some, part)


def _column_gradient(factor: torch.Tensor, gradient: torch.Tensor, some: torch.Tensor | None) -> torch.Tensor:
    """factorᵀ @ gradient, in the columns `some`."""
    if some is None:
        return mm(factor.t(), gradient)
    part = mm(factor.t(), gradient[:, some])
    return part.new_zeros(len(part), gradient.shape[1]).index_copy_(1, some, part)
