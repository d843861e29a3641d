"""The vocabulary's loss, in slices and blocks, against torch's cross entropy of all logits."""

from __future__ import annotations

import pytest
import torch
from small import THREE_BY_8, batch, normal, plain_bert, teacher
from torch import nn

from uer.cpu import vocabulary
from uer.models.bert import mlm_loss
from uer.targets import vocabulary_loss as vocabulary_loss_module
from uer.targets.vocabulary_loss import vocabulary_loss


def small_blocks(monkeypatch: pytest.MonkeyPatch, block: int, line: int = 1) -> None:
    """Blocks of so many logits, a multiple of `line` wide."""
    for module in (vocabulary, vocabulary_loss_module):
        monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(vocabulary, "LINE", line)


@pytest.mark.parametrize("line", [1, 4])
@pytest.mark.parametrize("block", [1, 14, 30, 1000])  # of a slice of all rows: one column, two, four or five, all nine
@pytest.mark.parametrize("elements", [1, 27, 45, 1000])  # of a slice: one row, three rows, five, all seven
def test_vocabulary_loss_in_slices(monkeypatch: pytest.MonkeyPatch, elements: int, block: int, line: int):
    monkeypatch.setitem(vocabulary_loss_module.SLICE, "cpu", elements)
    small_blocks(monkeypatch, block, line)
    monkeypatch.setattr(vocabulary, "FEW_ROWS", 1)
    inputs = [normal(7, 4), normal(9, 4, seed=1), normal(9, seed=2)]
    labels = torch.tensor([3, 1, 4, 1, 5, 0, 8])
    for tensor in inputs:
        tensor.requires_grad_()
    logits = inputs[0] @ inputs[1].T + inputs[2]
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    loss, right = vocabulary_loss(*inputs, labels)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert right == (logits.argmax(1) == labels).sum() > 0
    for mine, theirs in zip(torch.autograd.grad(loss / 3, inputs), torch.autograd.grad(expected / 3, inputs)):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        assert vocabulary_loss(*inputs, labels)[0].item() == loss.item()


@pytest.mark.parametrize("low, high", [(-900.0, -900.0), (-70.0, -50.0), (-50.0, 60.0), (60.0, 80.0), (900.0, 900.0)])
def test_vocabulary_loss_of_small_and_large_logits(monkeypatch: pytest.MonkeyPatch, low: float, high: float):
    """Rows whose exponentials are a float32 in a slice with others whose are not."""
    small_blocks(monkeypatch, 45)
    features, weight = normal(30, 4), normal(9, 4, seed=1)
    features[:, 0], weight[:, 0] = torch.linspace(low, high, 30), 1.0  # this much in all logits of a row
    labels = torch.arange(30) % 9
    exact = [tensor.float().double().requires_grad_() for tensor in (features, weight, normal(9, seed=2))]
    logits = exact[0] @ exact[1].T + exact[2]
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    gradients = torch.autograd.grad(expected, exact)
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        inputs = [tensor.detach().to(dtype).requires_grad_() for tensor in exact]
        loss, right = vocabulary_loss(*inputs, labels)
        assert loss.item() == pytest.approx(expected.item(), rel=tolerance)
        assert right == (logits.argmax(1) == labels).sum() > 0
        for mine, theirs in zip(torch.autograd.grad(loss, inputs), gradients):
            torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=tolerance * theirs.abs().max().item())


@pytest.mark.parametrize("words", [50, 64])
def test_words_that_fill_up_the_vocabulary_count_for_nothing(monkeypatch: pytest.MonkeyPatch, words: int):
    monkeypatch.setitem(vocabulary_loss_module.SLICE, "cpu", 3 * words)
    lengths, logits_of = [], vocabulary.logits_of
    monkeypatch.setattr(vocabulary_loss_module, "logits_of",
                        lambda features, *table: lengths.append(len(table[0])) or logits_of(features, *table))
    exact = [normal(7, 16), normal(words, 16, seed=1), normal(words, seed=2) - 20]  # below a 0 of theirs
    exact = [tensor.half().double().requires_grad_() for tensor in exact]
    labels = torch.tensor([3, 1, 4, 1, 49, 0, 8])
    logits = exact[0] @ exact[1].T + exact[2]
    expected = nn.functional.cross_entropy(logits, labels, reduction="sum")
    inputs = [tensor.detach().half().requires_grad_() for tensor in exact]
    loss, right = vocabulary_loss(*inputs, labels)
    assert set(lengths) == {64} and len(lengths) > 1
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    assert right == (logits.argmax(1) == labels).sum()
    for mine, theirs in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(expected, exact)):
        torch.testing.assert_close(mine.double(), theirs, rtol=0, atol=5e-3 * theirs.abs().max().item())


def test_vocabulary_loss_of_what_is_not_a_number():
    features = normal(3, 4).index_fill(0, torch.tensor([1]), torch.nan)
    assert vocabulary_loss(features, normal(9, 4), torch.zeros(9), torch.tensor([3, 1, 4]))[0].isnan()
    outside = normal(3, 4), normal(9, 4), torch.zeros(9), torch.tensor([3, 9, 4])
    with torch.no_grad():
        assert vocabulary_loss(*outside)[0].isnan()
    with pytest.raises(IndexError):
        vocabulary_loss(*outside)


def test_vocabulary_loss_without_rows_and_of_unlikely_labels(monkeypatch: pytest.MonkeyPatch):
    weight = normal(9, 4, dtype=torch.float32).requires_grad_()
    empty, right = vocabulary_loss(torch.zeros(0, 4), weight, torch.zeros(9), torch.zeros(0, dtype=torch.long))
    empty.backward()
    assert empty == 0 and right == 0 and not weight.grad.any()
    bias = torch.zeros(9).index_fill(0, torch.tensor([2]), 1e4)
    for block in (1000, 3):  # logits
        small_blocks(monkeypatch, block)
        loss, _ = vocabulary_loss(torch.zeros(1, 4), weight, bias, torch.tensor([3]))
        assert loss == 1e4
        weight.grad = None
        loss.backward()
        assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize("block", [1, 6, 1000])
def test_of_equal_logits_the_first_is_the_prediction(monkeypatch: pytest.MonkeyPatch, block: int):
    small_blocks(monkeypatch, block)
    weight, labels = torch.zeros(9, 4), torch.tensor([0, 3, 8])
    assert vocabulary_loss(torch.ones(3, 4), weight, torch.zeros(9), labels)[1] == 1
    bias = torch.zeros(9).index_fill(0, torch.tensor([3, 8]), 1.0)
    assert vocabulary_loss(torch.ones(3, 4), weight, bias, labels)[1] == 1


@pytest.mark.parametrize("multiple", [1, 4, 16])
@pytest.mark.parametrize("length", [0, 1, 9, 15, 16, 17, 100])
def test_parts_are_multiples(length: int, multiple: int):
    for room in (1, 30, 1000):
        parts = vocabulary.parts(length, 3, room, multiple)
        assert [i for part in parts for i in range(part.start, part.stop)] == list(range(length))
        assert all((part.stop - part.start) % multiple == 0 for part in parts[:-1])
        assert all(3 * (part.stop - part.start - multiple) < room for part in parts)


def test_vocabulary_loss_under_autocast(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(vocabulary_loss_module.SLICE, "cpu", 50 * 128)  # three slices
    features, weight, bias = (normal(*shape, seed=i, dtype=torch.float32).requires_grad_()
                              for i, shape in enumerate(((300, 64), (50, 64), (50,))))
    labels = torch.arange(300) % 50
    expected = nn.functional.cross_entropy(features @ weight.T + bias, labels, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = vocabulary_loss(features, weight, bias, labels)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=1e-3)
    for mine, theirs in zip(torch.autograd.grad(loss, (features, weight, bias)),
                            torch.autograd.grad(expected, (features, weight, bias))):
        assert mine.dtype == torch.float32 and mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=0.05, atol=0.02 * theirs.abs().max().item())


@pytest.mark.parametrize("projected", [False, True])
def test_the_model_s_loss_is_that_of_its_logits(projected: bool):
    model = plain_bert(THREE_BY_8, THREE_BY_8.config(), teacher(THREE_BY_8))
    if projected:
        model.target.projection = nn.Parameter(normal(24, 24))
    src, tgt, seg = batch(THREE_BY_8, 3)
    positions = tgt.flatten().nonzero().flatten()
    labels = tgt.flatten()[positions]
    loss, right = model.loss(src, seg, positions, labels)
    expected, expected_right = mlm_loss(model(src, seg)[positions], labels)  # of every position, through every layer
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12) and right == expected_right
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
