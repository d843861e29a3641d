"""A training step on the device that is none: `meta` tensors have no numbers, so whatever waits for one raises.

What a GPU would make the host wait for (`.item()`, `nonzero()`, a copy back) or not do at all (a sum
of tensors of two devices) shows here without one. Tensors elsewhere than on a CPU take the ways that a GPU takes.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo  # before anything stands in for what it remembers of torch
from small import MULTIPLIED, PROJECTED, Product, Shape, batch, plain_bert, teacher

from uer.data.loader import MlmBatch
from uer.parallel.collectives import Place
from uer.report.writer import Reports
from uer.training.delayed import Delayed
from uer.training.layer_states import SIGNALS, LayerTargets
from uer.training.objective import TaughtMlm, mlm_objective
from uer.training.precision import Precision
from uer.training.recorder import Recorder
from uer.training.trainer import Run, Trainer
from uer.training.wid_learner import WidLearner

META = torch.device("meta")
SHAPE = Shape(hidden=32, heads=4, feedforward=64, layers=1, vocab=90)
W_STEP = 3
ALLOWED_WAITS = [  # everything that may wait, and when; in float16 also `Judge.update`, for the loss scale
    (Delayed, "take", lambda *_: []),  # a step's figures, a step later, when they have long been there
    (WidLearner, "update_masks", lambda *_: True),  # every w_step steps: how many are masked shapes what follows
    (WidLearner, "ready_to_leave", lambda *_: []),  # every w_step steps
    (WidLearner, "thin", lambda *_: False),  # the same
    (Recorder, "masks", lambda *_: None),  # every w_step steps
    (Trainer, "_record_masks", lambda *_: None),  # when masks have changed
]  # and outside `Trainer.step`: reports, evaluation, checkpoints, the check of replicas; a squeeze


@pytest.fixture(autouse=True)
def without_waits(monkeypatch):
    """Nothing of what may wait; autocast, which does not know `meta`, takes it for a CPU."""
    for owner, name, stand_in in ALLOWED_WAITS:
        monkeypatch.setattr(owner, name, stand_in)
    autocast, enabled = torch.autocast, torch.is_autocast_enabled
    monkeypatch.setattr(torch, "autocast", lambda kind, *more, **options: autocast(
        "cpu" if kind == "meta" else kind, *more, **options))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: enabled("cpu" if kind == "meta" else kind))


def trainer(phase: str, objective=mlm_objective, load: tuple[int, int] = MULTIPLIED, **method) -> Trainer:
    """On `meta`: before masks, while masked, or squeezed."""
    method = {"strategy": "dim", "penalty": "published", "scores": "norm", **method}
    with META:
        product = Product(SHAPE, {name: tensor.to(META) for name, tensor in teacher(SHAPE).items()}, load=load,
                          target_dim=16, w_step=W_STEP, l2_lambda=20, learning_rate=1e-4,
                          compactor_learning_rate=1e-3, dropout=0.1, **method)
    for group in product.groups.values() if phase != "before masks" else ():
        group.set_keep(group.choose(torch.arange(group.size).double(), 100))
        group.keep, group.dropped, group._kept_index = (
            tensor.to(META) for tensor in (group.keep, group.dropped, group._kept_index))
    product.master.set_norm_masks(product.learner.student)
    if phase == "squeezed":
        product.learner.squeeze(list(product.groups.values()))
    made = Trainer(product.learner, SimpleNamespace(batch_size=3, dataset=SimpleNamespace(header={"seq_length": 12})),
                   Run("none", 100, lambda step: 1.0), Place(0, 1, META), Reports(False), {},
                   Precision(META, max_grad_norm=1.0), objective=objective, lag=1)
    made.learner.student.train()
    return made


def stream():
    """Batches on the CPU, as the loader gives them."""
    while True:
        src, tgt, seg = batch(SHAPE, 1)
        positions = (tgt.flatten() > 0).nonzero().flatten()
        yield MlmBatch(src, seg, positions, tgt.flatten()[positions], int((seg > 0).sum()))


@pytest.mark.parametrize("phase", ["before masks", "while masked", "squeezed"])
@pytest.mark.parametrize(("strategy", "penalty", "scores"), [
    ("dim", "published", "norm"), ("dim", "fade", "taylor"), ("head", "published", "taylor"), ("head", "fade", "norm")])
def test_a_step_waits_for_nothing(strategy: str, penalty: str, scores: str, phase: str):
    """With dropout and clipping, at a mask update; tables multiplied out, or applied, with soft labels, relations,
    layers."""
    soft = TaughtMlm(plain_bert(SHAPE, SHAPE.config(), teacher(SHAPE)).to(META), 0.5, top_k=5, relations=1.0)
    for objective, load in ((mlm_objective, MULTIPLIED), (LayerTargets(soft, 1.0, list(SIGNALS)), PROJECTED)):
        made = trainer(phase, objective, load, strategy=strategy, penalty=penalty, scores=scores)
        made.step(W_STEP if phase == "before masks" else 3 * W_STEP, stream(), 1.0)
        assert made.tally.steps == 1


@pytest.mark.parametrize("fault", [
    lambda model, batch: batch.labels.sum().item(), lambda model, batch: batch.src.nonzero(),
    lambda model, batch: batch.seg + torch.zeros(batch.seg.shape),
    lambda model, batch: bool(model.target.mlm_linear_1.bias.isfinite().all())])
def test_a_step_that_waits_is_found(fault):
    def objective(model, batch):
        fault(model, batch)
        return mlm_objective(model, batch)

    with pytest.raises((RuntimeError, NotImplementedError)):
        trainer("while masked", objective).step(3 * W_STEP, stream(), 1.0)
