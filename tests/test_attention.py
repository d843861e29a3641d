"""Attention and dropout of CPUs against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from uer.cpu import attention as attention_module
from uer.cpu.attention import attention, fused
from uer.cpu.dropout import Dropout, Keep


def inputs(dtype=torch.float64, batch=5, heads=3, seq=14, size=8, wanted=14) -> list[torch.Tensor]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, heads, length, size, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
            for length in (wanted, seq, seq)]


def padding(batch=5, seq=14) -> torch.Tensor:
    lengths = torch.arange(seq - batch, seq)
    return (torch.arange(seq) < lengths[:, None])[:, None, None, :]


def with_gradients(out: torch.Tensor, *parameters: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, parameters, weights)]


@pytest.fixture(params=[1 << 20, 2 * 3 * 14 * 14])
def weights_at_a_time(request, monkeypatch):
    """All instances at once, or two."""
    monkeypatch.setattr(attention_module, "WEIGHTS", request.param)


@pytest.mark.parametrize("wanted", [14, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("weights_at_a_time")
def test_attention_with_dropout_is_what_torch_computes_with_the_same_entries_kept(masked, wanted, monkeypatch):
    monkeypatch.setattr(attention_module, "new_seed", lambda: 77)
    query, key, value = inputs(wanted=wanted)
    mask, keep = padding() if masked else None, Keep(0.25, 77)
    rows = max(1, attention_module.WEIGHTS // (3 * wanted * 14))
    kept = torch.cat([keep.mask(torch.Size((len(part), 3, wanted, 14))) for part in query.split(rows)])
    scores = query @ key.transpose(-1, -2) / 8**0.5
    weights = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(-1)
    expected = with_gradients((weights * kept * keep.scale) @ value, query, key, value)
    found = with_gradients(attention(query, key, value, mask, 0.25), query, key, value)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wanted", [14, 4])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.usefixtures("weights_at_a_time")
def test_attention_in_bfloat16_is_as_exact_as_torchs(masked, wanted):
    mask, half = padding() if masked else None, torch.bfloat16
    exact = with_gradients(F.scaled_dot_product_attention(*(x := inputs(wanted=wanted)), attn_mask=mask), *x)
    theirs = with_gradients(F.scaled_dot_product_attention(*(y := inputs(half, wanted=wanted)), attn_mask=mask), *y)
    ours = with_gradients(attention(*(z := inputs(half, wanted=wanted)), mask), *z)
    for one, other, true in zip(ours, theirs, exact):
        assert one.dtype == torch.bfloat16
        assert (one - true).norm() < 1.15 * (other - true).norm() + 1e-3 * true.norm()


def test_attention_under_autocast_has_scores_in_float32():
    x = inputs(torch.bfloat16)
    expected = with_gradients(attention(*x, None), *x)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradients(attention(*x, None), *x)
    assert all(torch.equal(one, other) for one, other in zip(found, expected))


@pytest.mark.parametrize("dtype, training", [(torch.float32, True), (torch.float32, False), (torch.bfloat16, False)])
def test_the_rest_is_torchs(dtype, training):
    """float32 without dropout, and evaluation: only the backward pass is slow in bfloat16."""
    x = [tensor.detach().requires_grad_(training) for tensor in inputs(dtype)]
    assert torch.equal(attention(*x, padding()), F.scaled_dot_product_attention(*x, attn_mask=padding()))


@pytest.mark.parametrize("masked", [False, True])
def test_heads_filled_up_for_a_gpus_kernels_are_the_same(masked):
    mask, x = padding() if masked else None, inputs(size=5)
    for one, other in zip(*(with_gradients(fused(*x, mask, 0.0, tile), *x) for tile in (1, 8))):
        assert one.shape[-1] == 5
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_right_share_and_the_mean(rate):
    torch.manual_seed(3)
    x = torch.ones(1000, 1001, requires_grad=True)
    y = Dropout(rate)(x)
    share = (y > 0).double().mean().item()
    assert share == pytest.approx(1 - rate, abs=5 * (rate * (1 - rate) / x.numel()) ** 0.5 + 2**-17)
    assert y.max().item() == pytest.approx(1 / (1 - rate), rel=1e-3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, y)
    rows = (y > 0).double()
    independent = rate * (1 - rate) * (2 / rows.numel()) ** 0.5  # spread of the mean product of neighbours
    for neighbours in (rows[:, 1:] * rows[:, :-1], rows[1:] * rows[:-1]):
        assert neighbours.mean().item() == pytest.approx((1 - rate) ** 2, abs=10 * independent)


def test_dropout_repeats_with_torchs_seed_and_stops_in_evaluation():
    dropout, x = Dropout(0.3), torch.randn(64, 33)
    torch.manual_seed(5)
    first, second = dropout(x), dropout(x)
    torch.manual_seed(5)
    assert torch.equal(dropout(x), first) and torch.equal(dropout(x), second) and not torch.equal(first, second)
    assert dropout.eval()(x) is x and Dropout(0.0)(x) is x


@pytest.mark.parametrize("rate", [1e-9, 1 - 1e-9])
def test_extreme_rates_stay_finite(rate):
    y = Dropout(rate)(torch.ones(100_000))
    assert y.isfinite().all() and (rate > 0.5 or bool((y == 1).all()))


def test_a_compiled_graph_has_torchs_dropout(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.randn(50, 60)
    torch.manual_seed(1)
    found = Dropout(0.2)(x)
    torch.manual_seed(1)
    assert torch.equal(found, nn.Dropout(0.2)(x))
