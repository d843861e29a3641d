"""Optimizer and learning-rate schedules against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
from small import normal
from torch import nn

from uer.opts import SCHEDULERS
from uer.training.muon import orthogonal
from uer.training.optimizers import AdamW, parameter_groups, schedule


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


def test_muon_moves_matrices_by_their_orthogonal_momentum():
    """Against singular vectors in float64; entries move as far as AdamW's would; the rest is AdamW's."""
    names = ["encoder.a.weight", "encoder.b.weight", "encoder.c.weight", "encoder.a.bias", "embedding.weight"]
    shapes = [(6, 6), (6, 6), (4, 9), (6,), (7, 3)]
    parameters = {name: nn.Parameter(normal(*shape, seed=i)) for i, (name, shape) in enumerate(zip(names, shapes))}
    groups = parameter_groups(parameters.items(), learning_rate=0.1, weight_decay=0.3, optimizer="muon")
    optimizer = AdamW(groups)
    kept = [set(optimizer.state[parameter]) for parameter in parameters.values()]
    assert kept == [*3 * [{"exp_avg"}], *2 * [{"step", "exp_avg", "exp_avg_sq"}]]
    means = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in zip(names, shapes)}
    for step in range(3):
        before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        for i, parameter in enumerate(parameters.values()):
            parameter.grad = normal(*parameter.shape, seed=10 * step + i)
        optimizer.set_factor(1.0)
        optimizer.step()
        for name in names[:3]:
            g = parameters[name].grad
            means[name] = 0.95 * means[name] + 0.05 * g
            u, _, v = torch.linalg.svd(0.95 * means[name] + 0.05 * g, full_matrices=False)
            moved = (before[name] - parameters[name].detach() / (1 - 0.1 * 0.3)) / 0.1 / 0.2
            moved = moved / max(g.shape) ** 0.5  # the orthogonal matrix, nearly
            assert (u.T @ moved @ v.T).diagonal().sub(0.95).abs().max() < 0.3
            assert (u.T @ moved @ v.T - torch.diag((u.T @ moved @ v.T).diagonal())).abs().max() < 1e-9
            torch.testing.assert_close(optimizer.state[parameters[name]]["exp_avg"], means[name])


def test_muon_leaves_all_as_it_is_where_a_gradient_overflows():
    matrix = nn.Parameter(normal(4, 5))
    optimizer = AdamW(parameter_groups([("encoder.a.weight", matrix)], 0.1, optimizer="muon"))
    optimizer.set_factor(1.0)
    kept = matrix.detach().clone()
    for found, gradient in ((1.0, torch.inf), (1.0, torch.nan), (0.0, 2.0)):
        matrix.grad = torch.full_like(matrix, gradient)
        optimizer.found_inf = torch.tensor(found)
        optimizer.step()
        assert torch.equal(matrix, kept) == bool(found) == torch.equal(optimizer.state[matrix]["exp_avg"],
                                                                      torch.zeros_like(matrix))
    assert matrix.isfinite().all()


def test_muon_does_not_wait_for_the_device():
    """On the device that is none whatever looks at a number raises."""
    matrices = [nn.Parameter(torch.empty(shape, device="meta")) for shape in ((4, 5), (4, 5), (6, 3))]
    optimizer = AdamW(parameter_groups([(f"encoder.{i}.weight", p) for i, p in enumerate(matrices)], 1e-3,
                                       optimizer="muon"))
    optimizer.found_inf = torch.empty((), device="meta")
    for matrix in matrices:
        matrix.grad = torch.empty_like(matrix)
    optimizer.set_factor(1.0)
    optimizer.step()


@pytest.mark.parametrize("size", [1e-20, 1e-30, 1e-42, 0.0])
def test_muon_bears_gradients_that_vanish(size: float):
    """Squares of small numbers are 0 in float32, and the smallest have no reciprocal."""
    matrices = normal(2, 4, 5, dtype=torch.float32) * size
    found = orthogonal(matrices)
    assert found.isfinite().all() and (found == 0).all() == (size == 0)
    if size > 1e-37:
        torch.testing.assert_close(found, orthogonal(normal(2, 4, 5, dtype=torch.float32)), rtol=1e-3, atol=1e-3)


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
