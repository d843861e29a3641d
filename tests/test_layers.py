"""Layers against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from small import THREE_BY_8, batch, normal, plain_bert, student_sizes, teacher
from torch import nn

from uer.cpu.queries import places_of
from uer.embeddings.word_pos_seg import WordPosSegEmbedding
from uer.layers.layer_norm import LayerNorm
from uer.layers.multi_headed_attn import MultiHeadedAttention
from uer.layers.position_ffn import ACTIVATIONS, PositionwiseFeedForward
from uer.models.bert import Bert, initialise, mlm_loss
from uer.sizes import BertSizes

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
