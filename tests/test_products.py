"""Products as convolutions against torch's: every layout, gradients, and where torch's own are to be taken."""

from __future__ import annotations

import os
from functools import partial

import pytest
import small
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from uer.config import ModelConfig
from uer.cpu import products
from uer.cpu.products import Linear, add_mm, linear, mm, product
from uer.models.bert import Bert, initialise
from uer.sizes import BertSizes


class Operations(TorchDispatchMode):
    """Names of what torch is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CPU where they are faster, from small sizes on."""
    monkeypatch.setattr(products, "convolutions_are_faster", lambda: True)
    monkeypatch.setattr(products, "LEAST_OPERATIONS", 1 << 12)
    monkeypatch.setattr(products, "LEAST_NUMBERS", 1 << 7)


normal = partial(small.normal, dtype=torch.float32)


def numbers(rows: int, columns: int, seed: int, transposed: bool = False) -> torch.Tensor:
    """A matrix, perhaps the transpose of a contiguous one."""
    return normal(columns, rows, seed=seed).t() if transposed else normal(rows, columns, seed=seed)


def operations(run) -> set[str]:
    with Operations() as seen:
        run()
    return seen.names


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize("shape", [(40, 24, 56), (37, 61, 29), (64, 20, 600), (20, 300, 64), (600, 20, 64)])
@pytest.mark.parametrize("left", [False, True], ids=["a", "aᵀ"])
@pytest.mark.parametrize("right", [False, True], ids=["b", "bᵀ"])
def test_every_layout(shape: tuple[int, int, int], left: bool, right: bool):
    m, k, n = shape
    a, b, bias = numbers(m, k, 1, left), numbers(k, n, 2, right), numbers(1, n, 3)[0]
    torch.testing.assert_close(mm(a, b), a @ b, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(mm(a, b, bias), a @ b + bias, rtol=1e-5, atol=1e-4)
    assert mm(a, b).is_contiguous()
    used = any("convolution" in name for name in operations(lambda: mm(a, b)))
    slow = left and (right or m > 20 * k)  # two transposes; a long gradient of few rows
    assert used == (not slow)
    strided = numbers(m, 2 * k, 4)[:, ::2]
    torch.testing.assert_close(mm(strided, b), strided @ b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("convolved", [False, True], ids=["torch", "convolutions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_added_up(convolved: bool, dtype: torch.dtype, request: pytest.FixtureRequest):
    if convolved:
        request.getfixturevalue("convolutions")
    a, b, start = numbers(40, 24, 1, transposed=True).to(dtype), numbers(24, 56, 2).to(dtype), normal(80, 56)
    total = start.clone()
    add_mm(total[20:60], a, b)  # part of a larger one
    torch.testing.assert_close(total[20:60], start[20:60] + (a @ b).float(), rtol=1e-5, atol=1e-4)
    assert torch.equal(total[:20], start[:20]) and torch.equal(total[60:], start[60:])


@pytest.mark.usefixtures("convolutions")
@pytest.mark.parametrize("transposed", [False, True], ids=["b", "bᵀ"])
def test_gradients_of_a_product(transposed: bool):
    leaves = [numbers(40, 24, 1), numbers(56, 24, 2) if transposed else numbers(24, 56, 2)]
    for leaf in leaves:
        leaf.requires_grad_()
    weights = numbers(40, 56, 3)
    found = []
    for way in (product, torch.matmul):
        out = way(leaves[0], leaves[1].t() if transposed else leaves[1])
        found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
        assert mine.is_contiguous()  # an optimizer reads it side by side with the parameter


@pytest.mark.usefixtures("convolutions")
def test_a_linear_layer_and_its_gradients():
    layer = Linear(24, 56)
    x = normal(5, 8, 24).transpose(0, 1).requires_grad_()  # not contiguous
    leaves = (x, layer.weight, layer.bias)
    weights = normal(8, 5, 56, seed=1)
    found = []
    for way in (layer, lambda x: F.linear(x, layer.weight, layer.bias)):
        out = way(x)
        found.append((out.detach(), *torch.autograd.grad((out * weights).sum(), leaves)))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-4)
    assert any("convolution" in name for name in operations(lambda: layer(x)))
    x = x.detach()
    assert torch.equal(linear(x, layer.weight)[0], linear(x, layer.weight, torch.zeros(56))[0])
    layer.bias.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is None and x.grad is None


@pytest.mark.usefixtures("convolutions")
def test_where_torch_s_own_products_are_taken(monkeypatch: pytest.MonkeyPatch):
    layer, x = Linear(24, 56), normal(40, 24)
    assert "convolution" in str(operations(lambda: layer(x)))
    with torch.autocast("cpu", torch.bfloat16):
        assert "convolution" not in str(operations(lambda: layer(x)))
    assert "convolution" not in str(operations(lambda: layer.double()(x.double())))
    layer.float()
    assert "convolution" not in str(operations(lambda: layer(x[:2])))  # too small
    for strict in (False, True):
        program = torch.export.export(layer, (x,), strict=strict)  # as for ONNX
        assert "conv" not in str(program.graph) and "linear" in str(program.graph)
    monkeypatch.setattr(products, "convolutions_are_faster", lambda: False)
    assert "convolution" not in str(operations(lambda: layer(x)))


@pytest.mark.parametrize("processor, capability, faster", [
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t: 2\n", "AVX512", True),
    ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", "AVX512", True),  # Windows
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n", "AVX2", False),
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", "AVX512", False),
    ("vendor_id\t: GenuineIntel\ncpu family\t: 6\n", "AVX512", False),
    ("", "DEFAULT", False)])
def test_which_cpus(monkeypatch: pytest.MonkeyPatch, processor: str, capability: str, faster: bool):
    monkeypatch.setattr(products, "processor", lambda: processor)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    assert products.convolutions_are_faster.__wrapped__() == faster
    assert ("ONEDNN_PRIMITIVE_CACHE_CAPACITY" in os.environ) == faster
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not products.convolutions_are_faster.__wrapped__()


def test_a_model_is_the_same_either_way(monkeypatch: pytest.MonkeyPatch, convolutions: None):
    model = Bert(BertSizes.uniform(vocab=200, hidden=32, layers=2, heads=2, feedforward=128, positions=64),
                 ModelConfig(32, 2, 2, 128, 64, dropout=0.0))
    initialise(model, torch.Generator().manual_seed(1))
    src = torch.randint(5, 200, (8, 16), generator=torch.Generator().manual_seed(2))
    positions = torch.arange(0, 128, 3)
    batch = (src, torch.ones_like(src), positions, src.flatten()[positions])
    found = []
    for way in (True, False):
        monkeypatch.setattr(products, "convolutions_are_faster", lambda way=way: way)
        loss, right = model.loss(*batch)
        found.append((loss.detach(), right, *torch.autograd.grad(loss, list(model.parameters()))))
    for mine, theirs in zip(*found):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
