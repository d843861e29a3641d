"""Layers, optimizer and learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from small import THREE_BY_8, batch, plain_bert, student_sizes, teacher
from torch import nn

from uer.embeddings.word_pos_seg import WordPosSegEmbedding
from uer.layers.layer_norm import LayerNorm
from uer.layers.multi_headed_attn import MultiHeadedAttention, places_of
from uer.layers.position_ffn import ACTIVATIONS, PositionwiseFeedForward
from uer.models.bert import Bert, initialise, mlm_loss
from uer.sizes import BertSizes
from uer.targets import vocabulary_loss as vocabulary_loss_module
from uer.targets.vocabulary_loss import vocabulary_loss
from uer.training.optimizers import SCHEDULERS, AdamW, parameter_groups, schedule


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# -- LayerNorm ---------------------------------------------------------------------------------------------------------


def norm_of(size: int, style: str, eps: float | None = None) -> LayerNorm:
    """With gamma and beta that are not 1 and 0."""
    norm = LayerNorm(size, style, eps).double()
    with torch.no_grad():
        norm.gamma.copy_(1 + 0.2 * normal(size, seed=1))
        norm.beta.copy_(0.2 * normal(size, seed=2))
    return norm


def formula(norm: LayerNorm, x: torch.Tensor, style: str, keep: list[int] | None = None,
            eps: float | None = None) -> torch.Tensor:
    """gamma (x − mean) / (std + eps) + beta, or Hugging Face's with gamma √((n − 1) / n)."""
    counted = x if keep is None else x[..., keep]
    n = counted.shape[-1]
    centred = x - counted.mean(-1, keepdim=True)
    if style == "uer":
        return norm.gamma * centred / (counted.std(-1, keepdim=True) + (eps or 1e-6)) + norm.beta
    var = counted.var(-1, keepdim=True, unbiased=False)
    return norm.gamma * math.sqrt((n - 1) / n) * centred / torch.sqrt(var + (eps or 1e-12)) + norm.beta


@pytest.mark.parametrize("scale", [1.0, 1e-6])  # 1e-6: there eps counts
@pytest.mark.parametrize("style", ["uer", "huggingface"])
def test_layer_norm(style: str, scale: float):
    norm, x = norm_of(10, style), (0.3 + normal(4, 5, 10)) * scale
    torch.testing.assert_close(norm(x), formula(norm, x, style), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("keep", [None, [0, 3, 4, 5, 8]])
@pytest.mark.parametrize("style", ["uer", "huggingface"])
def test_layer_norm_has_the_gradients_of_its_formula(style: str, keep: list[int] | None):
    norm, x = norm_of(10, style, eps=0.1), normal(2, 4, 10).requires_grad_()
    if keep:
        norm.set_keep(torch.zeros(10, dtype=torch.float64).index_fill(0, torch.tensor(keep), 1.0), len(keep))
    weights = normal(2, 4, 10, seed=3)
    inputs = [x, norm.gamma, norm.beta]
    mine = torch.autograd.grad((norm(x) * weights).sum(), inputs)
    theirs = torch.autograd.grad((formula(norm, x, style, keep, eps=0.1) * weights).sum(), inputs)
    for name, a, b in zip(("x", "gamma", "beta"), mine, theirs):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("style", ["uer", "huggingface"])
def test_layer_norm_counts_the_kept_dimensions_and_writes_all(style: str):
    norm, x = norm_of(6, style), normal(3, 6)
    norm.set_keep(torch.tensor([1.0, 0, 1, 1, 0, 1], dtype=torch.float64), 4)
    masked = norm(x)
    torch.testing.assert_close(masked, formula(norm, x, style, keep=[0, 2, 3, 5]), rtol=1e-9, atol=1e-12)
    norm.set_keep(None, 6)
    torch.testing.assert_close(norm(x), formula(norm, x, style), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(masked, norm(x))


@pytest.mark.parametrize("style", ["uer", "huggingface"])
def test_layer_norm_in_float32_and_bfloat16(style: str):
    exact, x = norm_of(192, style), 0.5 + 2 * normal(50, 192)
    single = norm_of(192, style).float()
    expected = exact(x)
    torch.testing.assert_close(single(x.float()).double(), expected, rtol=0, atol=5e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(single(x.bfloat16()).double(), expected, rtol=0, atol=0.05)
    single.set_keep(torch.tensor([1.0, 0.0]).repeat(96), 96)
    exact.set_keep(torch.tensor([1.0, 0.0]).repeat(96).double(), 96)
    expected = exact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(single(x.bfloat16()).double(), expected, rtol=0, atol=0.05)
        torch.testing.assert_close(single(x.float()).double(), expected, rtol=0, atol=5e-6)  # no rounding of its own


# -- attention, feed-forward, embedding, model -------------------------------------------------------------------------


def test_attention_is_softmax_over_the_real_tokens():
    attention = MultiHeadedAttention(hidden_size=12, heads_num=3, head_size=5, dropout=0.0).double()
    x, seg = normal(2, 7, 12), torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 0, 0, 0, 0]])
    q, k, v = (linear(x) for linear in attention.linear_layers)
    expected = torch.zeros(2, 7, 15, dtype=torch.float64)
    for row, length in enumerate((7, 3)):
        for head in range(3):
            part = slice(5 * head, 5 * head + 5)
            weights = torch.softmax(q[row, :, part] @ k[row, :length, part].T / math.sqrt(5), -1)
            expected[row, :, part] = weights @ v[row, :length, part]
    mask = (seg > 0)[:, None, None, :]
    torch.testing.assert_close(attention.context(x, mask), expected)
    torch.testing.assert_close(attention(x, mask), attention.final_linear(expected))
    torch.testing.assert_close(attention(x[:1], None), attention(x[:1], mask[:1]))


def test_attention_drops_out_in_training_only():
    attention = MultiHeadedAttention(hidden_size=12, heads_num=3, head_size=4, dropout=0.5).double()
    x = normal(2, 7, 12)
    assert torch.equal(attention.eval()(x, None), attention(x, None))
    assert not torch.equal(attention.train()(x, None), attention(x, None))


@pytest.mark.parametrize(("name", "function"), [
    ("gelu", lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))),
    ("gelu_fast", lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))),
    ("relu", lambda x: x * (x > 0)), ("silu", lambda x: x / (1 + torch.exp(-x))), ("tanh", torch.tanh)])
def test_activations(name: str, function):
    ffn, x = PositionwiseFeedForward(6, 10, name).double(), normal(4, 6)
    inner = function(x @ ffn.linear_1.weight.T + ffn.linear_1.bias)
    torch.testing.assert_close(ffn(x), inner @ ffn.linear_2.weight.T + ffn.linear_2.bias)
    assert name in ACTIVATIONS


def test_padding_does_not_reach_real_tokens():
    model = plain_bert(THREE_BY_8, THREE_BY_8.config(), teacher(THREE_BY_8))
    src, _, seg = batch(THREE_BY_8, 3)
    real = seg.flatten() > 0
    other = torch.where(seg == 0, 17, src)
    assert (other != src).any()
    torch.testing.assert_close(model(src, seg)[real], model(other, seg)[real])


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("positions", [[8, 1, 2, 13, 6], [3], [], list(range(21))])
def test_attention_of_some_positions_is_that_of_all_picked(monkeypatch, positions: list[int], compiling: bool):
    """In any order, as many of a row as there are, or none; with the queries wanted alone, or all as in a compiled
    graph: values and gradients."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    attention = MultiHeadedAttention(hidden_size=12, heads_num=3, head_size=5, dropout=0.0).double()
    x = normal(3, 7, 12).requires_grad_()
    mask = (torch.tensor([[1] * 7, [1] * 6 + [0], [1] * 7]) > 0)[:, None, None, :]
    wanted = torch.tensor(positions, dtype=torch.long)
    expected, found = attention(x, mask).flatten(0, 1)[wanted], attention(x, mask, wanted)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    weights, to = normal(*expected.shape, seed=1), [x, *attention.parameters()]
    for one, other in zip(torch.autograd.grad((found * weights).sum(), to),
                          torch.autograd.grad((expected * weights).sum(), to)):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_places_are_side_by_side_in_every_row():
    places, most = places_of(torch.tensor([9, 0, 2, 8, 1, 23]), batch=4, seq=6)
    assert most == 3 and places.tolist() == [3, 0, 1, 4, 2, 9]


def test_dropout_reaches_the_positions_picked():
    attention = MultiHeadedAttention(hidden_size=12, heads_num=3, head_size=4, dropout=0.5).double()
    x, positions = normal(2, 7, 12), torch.tensor([0, 3, 9])
    draws = torch.stack([attention(x, None, positions) for _ in range(2000)]).detach()
    spread = draws.std(0) / 2000**0.5
    assert (spread > 0).all()
    exact = attention.eval()(x, None, positions)
    assert ((draws.mean(0) - exact).abs() < 6 * spread).all()


def test_positions_select_rows_and_padded_is_only_a_promise():
    model = plain_bert(THREE_BY_8, THREE_BY_8.config(), teacher(THREE_BY_8))
    src, _, seg = batch(THREE_BY_8, 3)
    positions = torch.tensor([1, 13, 26])
    torch.testing.assert_close(model(src, seg, positions), model(src, seg)[positions])
    full = seg.clamp_min(1)
    torch.testing.assert_close(model(src, full, positions, padded=False), model(src, full, positions))


def test_loss_is_summed_and_counts_right_predictions():
    logits, labels = normal(5, 9), torch.tensor([3, 1, 4, 1, 5])
    logits[2, 4] = 99.0
    loss, right = mlm_loss(logits, labels)
    expected = sum(math.log(row.exp().sum()) - row[label].item() for row, label in zip(logits, labels))
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert right == (logits.argmax(1) == labels).sum() > 0
    assert mlm_loss(logits.bfloat16(), labels)[0].dtype == torch.float32


def small_blocks(monkeypatch: pytest.MonkeyPatch, block: int, line: int = 1) -> None:
    """Blocks of so many logits, a multiple of `line` wide."""
    monkeypatch.setattr(vocabulary_loss_module, "BLOCK", block)
    monkeypatch.setattr(vocabulary_loss_module, "LINE", line)


@pytest.mark.parametrize("line", [1, 4])
@pytest.mark.parametrize("block", [1, 14, 30, 1000])  # of a slice of all rows: one column, two, four or five, all nine
@pytest.mark.parametrize("elements", [1, 27, 45, 1000])  # of a slice: one row, three rows, five, all seven
def test_vocabulary_loss_in_slices(monkeypatch: pytest.MonkeyPatch, elements: int, block: int, line: int):
    monkeypatch.setitem(vocabulary_loss_module.SLICE, "cpu", elements)
    small_blocks(monkeypatch, block, line)
    monkeypatch.setattr(vocabulary_loss_module, "FEW_ROWS", 1)
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


@pytest.mark.parametrize("vocabulary", [50, 64])
def test_words_that_fill_up_the_vocabulary_count_for_nothing(monkeypatch: pytest.MonkeyPatch, vocabulary: int):
    monkeypatch.setitem(vocabulary_loss_module.SLICE, "cpu", 3 * vocabulary)
    lengths, logits_of = [], vocabulary_loss_module._Sums._logits
    monkeypatch.setattr(vocabulary_loss_module._Sums, "_logits",
                        lambda sums, *rest: lengths.append(len(sums.table)) or logits_of(sums, *rest))
    exact = [normal(7, 16), normal(vocabulary, 16, seed=1), normal(vocabulary, seed=2) - 20]  # below a 0 of theirs
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
        parts = vocabulary_loss_module._parts(length, 3, room, multiple)
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


def test_initialise():
    config = THREE_BY_8.config()
    model = Bert(student_sizes(THREE_BY_8, config), config)
    initialise(model, torch.Generator().manual_seed(1))
    first = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    matrices = torch.cat([tensor.flatten() for tensor in first.values() if tensor.dim() == 2])
    assert matrices.std().item() == pytest.approx(0.02, rel=0.03) and abs(matrices.mean().item()) < 1e-3
    for name, tensor in first.items():
        if tensor.dim() == 1:
            assert (tensor == (1.0 if name.endswith("gamma") else 0.0)).all(), name
    initialise(model, torch.Generator().manual_seed(1))
    assert all(torch.equal(tensor, first[name]) for name, tensor in model.state_dict().items())


# -- optimizer ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unscaled", [False, True])
def test_adamw_leaves_overflows_to_the_device(monkeypatch: pytest.MonkeyPatch, unscaled: bool):
    """With torch's GradScaler: the step is called, told of the overflow, and changes nothing; else as without."""
    parameters = [nn.Parameter(normal(5, dtype=torch.float32)) for _ in range(2)]
    scaled, plain = (AdamW([{"params": [p], "lr": 0.1, "weight_decay": 0.01}], bias_correction=True)
                     for p in parameters)
    told, step = [], AdamW.step
    monkeypatch.setattr(AdamW, "step", lambda self: told.append(self.found_inf) or step(self))
    scaler = torch.amp.GradScaler("cpu")
    for factor in (1.0, torch.inf, 2.0):
        scaler.scale((parameters[0].square() * factor).sum()).backward()
        if unscaled:
            scaler.unscale_(scaled)
        scaler.step(scaled)
        scaler.update()
        scaled.zero_grad()
        if factor < torch.inf:
            (parameters[1].square() * factor).sum().backward()
            step(plain)
            plain.zero_grad()
        torch.testing.assert_close(*parameters)
    assert [float(found) for found in told] == [0, 1, 0] and scaled.found_inf is None


def test_adamw_is_the_formula_without_bias_correction_and_decays_last():
    matrix, bias = nn.Parameter(normal(3, 4)), nn.Parameter(normal(4, seed=1))
    groups = parameter_groups([("a.weight", matrix), ("a.bias", bias)], learning_rate=0.1, weight_decay=0.3)
    optimizer = AdamW(groups)
    expected = {p: [p.detach().clone(), torch.zeros_like(p), torch.zeros_like(p)] for p in (matrix, bias)}
    for step, factor in enumerate((0.0, 0.5, 1.0, 0.7)):
        optimizer.set_factor(factor)
        for index, (parameter, decay) in enumerate(((matrix, 0.3), (bias, 0.0))):
            g, (p, m, v) = normal(*parameter.shape, seed=10 * step + index), expected[parameter]
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            p = p - 0.1 * factor * m / (v.sqrt() + 1e-6)
            p = p - 0.1 * factor * decay * p
            expected[parameter], parameter.grad = [p, m, v], g
        optimizer.step()
        for parameter, (p, m, v) in expected.items():
            state = optimizer.state[parameter]
            torch.testing.assert_close(parameter.detach(), p, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(state["exp_avg"], m, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(state["exp_avg_sq"], v, rtol=1e-12, atol=1e-12)


def test_parameter_groups():
    names = ["x.weight", "x.bias", "n.gamma", "n.beta", "x_compactor.weight", "frozen.weight"]
    parameters = {name: nn.Parameter(torch.zeros(2)) for name in names}
    parameters["frozen.weight"].requires_grad_(False)
    groups = parameter_groups(parameters.items(), 1e-3, lambda name: 5e-2 if "compactor" in name else None)
    found = {name: (group["lr"], group["weight_decay"]) for name, parameter in parameters.items()
             for group in groups for other in group["params"] if other is parameter}
    assert found == {"x.weight": (1e-3, 0.01), "x.bias": (1e-3, 0.0), "n.gamma": (1e-3, 0.0), "n.beta": (1e-3, 0.0),
                     "x_compactor.weight": (5e-2, 0.01)}
    assert len(groups) == 3


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedules_start_at_zero_under_warm_up(name: str):
    factor = schedule(name, total_steps=100, warmup=0.1)
    if name == "constant":
        assert [factor(t) for t in (0, 50, 100)] == [1.0, 1.0, 1.0]
        return
    assert [factor(t) for t in (0, 1, 5, 10)] == pytest.approx([0.0, 0.1, 0.5, 1.0])
    assert all(0 <= factor(t) <= 1 for t in range(101))


@pytest.mark.parametrize(("name", "values"), [
    ("linear", [1.0, 0.5, 0.0, 0.0]), ("cosine", [1.0, 0.5, 0.0, 0.0]), ("constant_with_warmup", [1.0, 1.0, 1.0, 1.0]),
    ("inverse_sqrt", [1.0, math.sqrt(10 / 55), math.sqrt(10 / 100), math.sqrt(10 / 120)])])
def test_schedules_after_warm_up(name: str, values: list[float]):
    factor = schedule(name, total_steps=100, warmup=0.1)
    assert [factor(t) for t in (10, 55, 100, 120)] == pytest.approx(values, abs=1e-12)


def test_without_warm_up_the_first_step_has_the_whole_rate():
    assert all(schedule(name, total_steps=100, warmup=0.0)(0) == 1.0 for name in SCHEDULERS)


@pytest.mark.parametrize("compiling", [False, True])
def test_a_projected_embedding_is_that_of_multiplied_tables(monkeypatch, compiling):
    """Each distinct token projected once, or every token as in a compiled graph: values and gradients."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    generator = torch.Generator().manual_seed(1)
    sizes = BertSizes.uniform(vocab=40, hidden=6, layers=1, heads=1, feedforward=8, positions=12)
    embedding = WordPosSegEmbedding(sizes, dropout=0.0, layernorm="uer", layernorm_eps=1e-6).double()
    tables = [embedding.word_embedding, embedding.position_embedding, embedding.segment_embedding]
    for table in tables:
        wide = torch.randn(len(table.weight), 10, generator=generator, dtype=torch.float64)
        table.weight = nn.Parameter(wide)
    embedding.projection = nn.Parameter(torch.randn(6, 10, generator=generator, dtype=torch.float64))
    src = torch.randint(0, 9, (3, 11), generator=generator)
    seg = torch.randint(0, 3, (3, 11), generator=generator)
    weights = torch.randn(3, 11, 6, generator=generator, dtype=torch.float64)

    word, position, segment = (table.weight @ embedding.projection.T for table in tables)
    expected = word[src] + position[:11] + segment[seg]
    parameters = [*(table.weight for table in tables), embedding.projection]
    gradients = torch.autograd.grad((expected * weights).sum(), parameters)
    found = embedding.sum(src, seg)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad((found * weights).sum(), parameters), gradients):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("style", ["uer", "huggingface"])
def test_rows_without_spread_have_finite_gradients(style):
    norm = LayerNorm(6, style)
    x = torch.zeros(2, 6, requires_grad=True)
    norm(x).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
