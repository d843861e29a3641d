"""The loss of a batch, soft labels, evaluation, and what a run says about its own penalty."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.models.bert import from_scratch, mlm_loss
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master
from uer.squeeze.penalty import FadePenalty, PublishedPenalty, simulate_decay
from uer.training.objective import TaughtMlm, evaluate, logits_of
from uer.training.optimizers import AdamW, parameter_groups

CONFIG = ModelConfig(16, 1, 2, 32, 16, dropout=0.0)


def batch(rows: int = 3, width: int = 10, seed: int = 0) -> MlmBatch:
    src = torch.randint(5, 50, (rows, width), generator=torch.Generator().manual_seed(seed))
    positions = torch.arange(1, rows * width, 4)
    return MlmBatch(src, torch.ones_like(src), positions, src.flatten()[positions], rows * width)


def model(seed: int):
    made = from_scratch(CONFIG, 50, seed).double()
    for parameter in made.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    return made


def test_mlm_loss_and_its_gradient_are_cross_entropy():
    logits = torch.randn(7, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(7)
    loss, correct = mlm_loss(logits, labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    twin = logits.detach().requires_grad_()
    wanted = F.cross_entropy(twin, labels, reduction="sum")
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, twin)[0])
    assert correct == (logits.argmax(1) == labels).sum()


def test_soft_loss_is_the_divergence_over_the_teachers_likeliest_tokens():
    teacher, student, data = model(1), model(2), batch()
    soft = TaughtMlm(teacher, weight=0.3, temperature=2.0, top_k=5)
    logits = logits_of(student, data)
    wanted = 0.0
    for given, theirs in zip(logits, logits_of(teacher, data)):
        top = theirs.topk(5).indices
        p, q = (F.softmax(x[top].double() / 2, 0) for x in (theirs.float(), given.float()))
        wanted += 4 * (p * (p / q).log()).sum().item()
    states = teacher.hidden_states(data.src, data.seg, positions=data.positions)
    assert soft.soft(logits, states).item() == pytest.approx(wanted, rel=1e-5)
    loss, report = soft(student, data)
    hard = mlm_loss(logits, data.labels)[0]
    assert loss.item() == pytest.approx(0.7 * hard.item() + 0.3 * wanted, rel=1e-5)
    assert report[0].item() == pytest.approx(hard.item())


def test_soft_loss_vanishes_on_the_teacher_itself_and_leaves_it_alone():
    teacher, data = model(1), batch()
    soft = TaughtMlm(teacher, weight=1.0)
    loss, _ = soft(model(1).load_state_dict(teacher.state_dict()) and teacher, data)
    assert abs(loss.item()) < 1e-5
    student = model(2)
    soft(student, data)[0].backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_evaluation_weighs_every_prediction_alike_and_restores_the_mode():
    data = [batch(3), batch(1, 4, seed=1)]
    tested = model(3).train()
    result = evaluate(tested, data, torch.device("cpu"))
    logits = torch.cat([logits_of(tested, part) for part in data])
    labels = torch.cat([part.labels for part in data])
    assert result.loss == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-9)
    assert result.accuracy == (logits.argmax(1) == labels).double().mean().item()
    assert result.predicted == len(labels) and tested.training


def one_dropped_entry(l2_lambda: float, rate: float, steps: int, reached: bool, corrected: bool) -> list[float]:
    """A compactor's diagonal entry under the real penalty and optimizer, the gradient of the task 0 or (not reached by
    the objective) None, no decay."""
    groups = build_groups(CONFIG, 8, "dim")
    weights = {name: tensor.detach() for name, tensor in model(4).state_dict().items()}
    master = Master(CONFIG, weights, groups)
    compactor = master.parameters["target.mlm_linear_2_left_compactor.weight"]
    optimizer = AdamW(parameter_groups(master.named_parameters(), rate, weight_decay=0.0), corrected)
    keep = torch.ones(16, dtype=torch.bool)
    keep[3] = False
    groups["mlm"].set_keep(keep)
    penalty = PublishedPenalty(master, optimizer.state, 1, l2_lambda)
    path = []
    for step in range(2, steps + 2):
        for _, parameter in master.named_parameters():
            parameter.grad = torch.zeros_like(parameter) if reached else None
        penalty.before_update(step)
        optimizer.set_factor(1.0)
        optimizer.step()
        path.append(compactor[3, 3].item())
    return path


@pytest.mark.parametrize("reached", [True, False])
@pytest.mark.parametrize("l2_lambda", [0.5, 20.0])
@pytest.mark.parametrize("corrected", [True, False])
def test_simulated_decay_is_the_decay_of_the_real_update(l2_lambda, reached, corrected):
    real = one_dropped_entry(l2_lambda, 1e-3, 60, reached, corrected)
    assert simulate_decay([1e-3] * 60, l2_lambda, 0 if corrected else None) == pytest.approx(real, rel=1e-9)


def test_published_rates_fade_and_large_ones_swing():
    slow = simulate_decay([5e-5] * 4000, 20)
    assert 0 < slow[400] / slow[0] < 0.7 and abs(slow[-1]) < 1e-3
    assert min(simulate_decay([5e-4] * 400, 20)) > -0.1
    assert min(simulate_decay([5e-3] * 300, 20)) < -0.25


def test_fade_shrinks_a_thousandfold_in_w_steps():
    master = Master(CONFIG, {name: tensor.detach() for name, tensor in model(4).state_dict().items()},
                    build_groups(CONFIG, 8, "dim"))
    penalty = FadePenalty(master, AdamW(parameter_groups(master.named_parameters(), 1e-3)).state, 40)
    assert math.pow(penalty.factor, 40) == pytest.approx(1e-3)
