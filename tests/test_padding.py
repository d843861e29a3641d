"""Padding left out: the same numbers and gradients as with it, for every target; what is left out, and when."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_calibration import batches, config_of, random_teacher
from test_targets import KINDS, headed
from test_teaching import pair

from uer.cpu import padding
from uer.cpu.padding import RealTokens, real_tokens
from uer.data.loader import MlmBatch
from uer.models.bert import Bert, from_weights, mlm_loss
from uer.training.layer_states import LayerTargets
from uer.training.relations import RelationTargets, text_weights
from uer.training.teaching import LogitTargets, StateTargets


def short(rows: int = 12, width: int = 16) -> MlmBatch:
    """A batch of which half is padding."""
    [batch] = batches(1, seed=3, rows=rows, width=width)
    lengths = 2 + torch.arange(rows) * (width - 2) // (rows - 1)
    seg = (torch.arange(width) < lengths[:, None]).long()
    positions = (seg.flatten() > 0).nonzero().flatten()[::5]
    return replace(batch, src=batch.src.clamp(min=5) * seg, seg=seg, positions=positions,
                   labels=batch.src.flatten()[positions], tokens=int(seg.sum()))


def both(monkeypatch, calculate) -> list[list[torch.Tensor]]:
    """What is calculated with padding left out and with padding."""
    found, left_out = [calculate()], padding.WORTH
    monkeypatch.setattr(padding, "WORTH", 0)
    found.append(calculate())
    monkeypatch.setattr(padding, "WORTH", left_out)
    return found


def alike(monkeypatch, model: Bert, calculate) -> None:
    """The same number, and gradients of the model; padding is left out once."""
    packs = []
    monkeypatch.setattr(RealTokens, "pack", lambda self, x, pack=RealTokens.pack: packs.append(len(x)) or pack(self, x))

    def with_gradients() -> list[torch.Tensor]:
        out = calculate()
        return [out.detach(), *torch.autograd.grad(out, list(model.parameters()), allow_unused=True)]

    packed, padded = both(monkeypatch, with_gradients)
    assert padded[0].abs() > 1e-3 and packs
    for one, other in zip(packed, padded):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("target", "pooling", "outputs"), [*KINDS, ("cls", "last", 2)])
def test_a_model_says_the_same(monkeypatch, target, pooling, outputs):
    batch = short()
    model = from_weights(*headed(target, pooling, outputs))
    real = (batch.seg > 0).flatten()

    def calculate() -> torch.Tensor:
        if target == "states":
            return model.pooled(batch.src, batch.seg).square().sum()
        out = model(batch.src, batch.seg)
        return (out[real] if target == "tokens" else out).square().sum()

    alike(monkeypatch, model, calculate)


@pytest.mark.parametrize("some_padding", [False, True])
def test_masked_tokens_are_predicted_the_same(monkeypatch, some_padding):
    batch = short()
    model = from_weights(config_of(), random_teacher(config_of()))
    if some_padding:  # asked for, it is told all the same
        last = (batch.seg.flatten() == 0).nonzero()[-1]
        assert last not in real_tokens(batch.seg).rows
        batch = replace(batch, positions=torch.cat([batch.positions, last]),
                        labels=torch.cat([batch.labels, torch.tensor([7])]))
    alike(monkeypatch, model, lambda: model.loss(batch.src, batch.seg, batch.positions, batch.labels)[0])
    logits = model(batch.src, batch.seg, batch.positions)
    torch.testing.assert_close(mlm_loss(logits, batch.labels)[0],
                               model.loss(batch.src, batch.seg, batch.positions, batch.labels)[0])


@pytest.mark.parametrize("objective", [StateTargets, LogitTargets, RelationTargets])
@pytest.mark.parametrize("signals", [(), ("output",), ("attention", "feedforward")])
def test_a_student_learns_the_same(monkeypatch, objective, signals):
    kind = ("cls", 3) if objective is LogitTargets else ("states", 24)
    teacher, student = (model.double() for model in pair(*kind))
    student.train()

    def calculate() -> torch.Tensor:
        target = objective(teacher)
        target = LayerTargets(target, 3.0, signals) if signals else target
        return target(student, replace(short(), masked=False))[0]

    alike(monkeypatch, student, calculate)


def test_half_precision(monkeypatch):
    batch = short()
    model = from_weights(*headed("cls", "mean", 3)).float()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        packed, padded = both(monkeypatch, lambda: model(batch.src, batch.seg).float())
    torch.testing.assert_close(packed, padded, rtol=0, atol=0.02)
    assert padded.std(0).min() > 0.1  # texts differ by far more


def test_what_is_left_out():
    batch = short(32, 16)
    real = real_tokens(batch.seg)
    count = int(batch.seg.sum())
    assert real is not None and len(real.rows) % padding.TOGETHER == 0 and count <= len(real.rows) < count + 32
    assert len(set(real.rows.tolist())) == len(real.rows) and real.rows[:count].tolist() == \
        (batch.seg.flatten() > 0).nonzero().flatten().tolist()
    states = torch.randn(32, 16, 3)
    apart = real.unpack(real.pack(states)) - states
    assert torch.equal(apart[batch.seg > 0], torch.zeros(count, 3)) and apart.abs().max() > 0
    torch.testing.assert_close(text_weights(batch, real.pack(states), real),
                               real.pack(text_weights(batch, states)[..., None])[:, 0])
    asked = real_tokens(batch.seg, batch.positions)
    assert torch.equal(asked.rows[asked.wanted], batch.positions) and real.wanted is None
    assert real_tokens(torch.ones(32, 16, dtype=torch.long)) is None
    assert real_tokens((torch.arange(20) < 19).long().expand(64, 20)) is None  # so little is not worth it
    assert real_tokens(torch.ones(1, 2, dtype=torch.long)) is None
    assert real_tokens(batch.seg.to("meta")) is None


def test_a_compiled_graph_leaves_nothing_out(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert real_tokens(short().seg) is None
