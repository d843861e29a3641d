"""Losses of texts beside masked words: a step's gradient does not hang on how its texts are split."""

import copy

import pytest
import torch
from test_objective import model

from uer.data.loader import MlmBatch
from uer.training.layer_states import LayerTargets
from uer.training.objective import TaughtMlm
from uer.training.relations import _Divergence

UNITS = (2, 5, 1, 8)  # positions to predict in each piece


def step():
    """A batch of 8 texts of 12 tokens, and the same in pieces of 2."""
    torch.manual_seed(3)
    src = torch.randint(5, 40, (8, 12))
    places = [torch.randperm(24)[:units].sort()[0] for units in UNITS]
    whole = torch.cat([24 * piece + places[piece] for piece in range(4)])
    pieces = [MlmBatch(src[2 * i:2 * i + 2], torch.ones(2, 12, dtype=torch.long), places[i],
                       src[2 * i:2 * i + 2].flatten()[places[i]], 24) for i in range(4)]
    return MlmBatch(src, torch.ones_like(src), whole, src.flatten()[whole], 96), pieces


@pytest.mark.parametrize("layers", [False, True])
def test_pieces_add_up_to_the_whole(layers):
    """As the trainer sums micro-steps and processes, each divided by the units of all."""
    teacher, student = model(1).double().eval(), model(2).double().eval()
    whole, pieces = step()
    objective = TaughtMlm(teacher, 0.0 if layers else 0.3, relations=0.0 if layers else 0.7)
    if layers:
        objective = LayerTargets(objective, 0.8)
        objective(student.train(), whole)  # maps, that stay as they are then
        student.eval()
    gradients = []
    for batches in ([whole], pieces):
        tried = copy.deepcopy(student)
        units, texts = sum(batch.units for batch in batches), sum(len(batch.src) for batch in batches)
        for batch in batches:
            batch.of_step = torch.tensor(units / texts, dtype=torch.float64)
            (objective(tried, batch)[0] / units).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in tried.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-9, atol=1e-12)


def test_a_batch_alone_speaks_for_itself():
    whole, _ = step()
    assert whole.units_a_text == sum(UNITS) / 8
    whole.masked = False
    assert whole.units == 8 and whole.units_a_text == 1


def test_relations_in_half_precision_are_rounded_once_their_scale_is_in_them():
    """Near the teacher a gradient is smaller than float16 knows; the scale of the loss is there to lift it."""
    torch.manual_seed(4)
    x = torch.randn(4, 32, 48).half()
    y = (x + 1e-2 * torch.randn(4, 32, 48)).half()
    weights, found = torch.full((4, 32), 1 / 32), []
    for dtype, scale in ((torch.float32, 1.0), (torch.float16, 2.0**14)):
        given = x.to(dtype).requires_grad_()
        (scale * _Divergence.apply(given, y.to(dtype), 12, weights, None)).backward()
        found.append(given.grad.float() / scale)
    assert found[0].abs().mean() < 1e-4
    assert (found[1] - found[0]).norm() < 1e-3 * found[0].norm()
