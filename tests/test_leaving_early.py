"""Decayed dimensions leave at the next mask update, before their group's last: that changes nothing but the cost."""

from types import SimpleNamespace

import pytest
import torch
from small import Product, Shape, micro_batches, teacher

from uer.planning.plan import before_squeeze
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.master import Master
from uer.training.mask_schedule import leaves_early

SHAPE = Shape(hidden=32, heads=4, feedforward=80)
W_STEP = 4
METHOD = {"w_step": W_STEP, "l2_lambda": 20.0, "penalty": "fade", "squeeze_tolerance": 1e-4, "learning_rate": 1e-4,
          "compactor_learning_rate": 1e-4}
KINDS = {"dim": ("dim", 16, "norm"), "head": ("head", 16, "norm"), "taylor": ("dim", 16, "taylor")}


def product(kind: str, early: bool) -> Product:
    strategy, target, scores = KINDS[kind]
    return Product(SHAPE, teacher(SHAPE), target_dim=target, strategy=strategy, scores=scores, early=early, **METHOD)


def go(run: Product, step: int) -> float:
    """A step as the trainer makes it."""
    loss = run.step(micro_batches(SHAPE, step, 1))
    if step % W_STEP == 0:
        ready = run.learner.ready_to_leave(step)
        if ready:
            run.learner.squeeze(ready)
        run.learner.thin()
    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_losses_and_the_same_student(kind: str):
    early, late = product(kind, True), product(kind, False)
    thinner = set()
    for step in range(1, 4 * 19):
        losses = [go(run, step) for run in (early, late)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-4), f"step {step}"
        for name, group in early.groups.items():
            other = late.groups[name]
            assert torch.equal(group.keep, other.keep) if step >= W_STEP else group.keep is None
            assert (group.squeezed, group.kept) == (other.squeezed, other.kept) and group.width <= other.width
            if group.width < other.width:
                thinner.add(name)
    assert thinner == {"hidden", "attention.0", "attention.1", "ffn.0", "ffn.1", "mlm"}
    assert early.master.has_left and late.master.has_left
    for name, tensor in late.master.state_dict().items():
        assert torch.allclose(early.master.state_dict()[name], tensor, rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_has_the_teachers_sizes_until_the_squeeze(kind: str):
    """And a master made of it is the one that wrote it, to the bit."""
    early = product(kind, True)
    whole = {name: tensor.shape for name, tensor in early.master.state_dict().items()}
    for step in range(1, 4 * 5 + 1):
        go(early, step)
    hidden = early.groups["hidden"]
    assert hidden.target < hidden.width < hidden.size and not hidden.squeezed
    state, more = early.learner.checkpoint()
    assert {name: tensor.shape for name, tensor in state.items()} == whole
    again = product(kind, True)
    for name, group in again.groups.items():
        group.there = more["there"].get(name)
        group.set_keep(more["keep"][name])
    again.master = Master(again.config, state, again.groups)
    for (name, one), (_, other) in zip(again.master.named_parameters(), early.master.named_parameters()):
        assert torch.equal(one, other), name
        for key, moment in early.optimizer.state[other].items():
            saved = more["optimizer"][name][key]
            assert saved.shape == (whole[name] if moment.dim() else ()), name
            assert torch.equal(again.master.narrowed(name, saved), moment), name


def test_what_published_code_does_to_biases_goes_on():
    """They sit before R and keep all entries, whoever has left."""
    late = product("dim", False)
    for step in range(1, 13):
        go(late, step)
    group = late.groups["ffn.0"]
    bias = "encoder.transformer.0.feed_forward.linear_1.bias"

    def dropped() -> list[int]:
        penalty = late.learner.penalty
        found = [masks[1] for masks in penalty.masked(penalty.vectors)
                 if masks[0] is late.master.parameters[bias]]
        return found[0].nonzero().flatten().tolist()

    before = [i for i, kept in enumerate(group.keep.tolist()) if kept]
    assert dropped() == before
    late.master.thin(group, group.staying(torch.ones(len(group.dropped), dtype=torch.bool)), late.optimizer.state)
    assert not len(group.dropped) and group.width == len(before) and dropped() == before


def test_as_many_stay_as_a_gpu_takes_at_once():
    group = MaskGroup("hidden", 48, 12, 2, False, "x")
    group.set_keep(torch.arange(48) % 24 < 12)
    decayed = torch.ones(24, dtype=torch.bool)
    assert len(group.staying(decayed, 8)) == 2 * 16 and len(group.staying(decayed, 4)) == 2 * 12
    decayed[:9] = False  # 3 of 12 have decayed in the first block: 21 would stay
    assert len(group.staying(decayed, 8)) == 48 and len(group.staying(decayed)) == 2 * 21


@pytest.mark.parametrize(("blocks", "whole", "dropped", "decayed", "staying"), [
    (0, False, [1, 6, 7], [True, False, True], [0, 2, 3, 4, 5, 6]),
    (2, False, [0, 1, 4, 5], [True, True, True, False], [1, 2, 3, 5, 6, 7]),  # one of each block
    (2, False, [0, 1, 4, 5], [True, True, False, False], [0, 1, 2, 3, 4, 5, 6, 7]),
    (4, True, [0, 1, 6, 7], [True, True, True, False], [2, 3, 4, 5, 6, 7])])
def test_who_stays(blocks, whole, dropped, decayed, staying):
    group = MaskGroup("hidden", 8, 4, blocks, whole, "x")
    keep = torch.ones(8, dtype=torch.bool).index_fill_(0, torch.tensor(dropped), False)
    group.set_keep(keep)
    assert group.staying(torch.tensor(decayed)).tolist() == staying
    group.thin(torch.tensor(staying))
    assert group.width == len(staying) and group.heads == (len(staying) // 2 if whole else blocks)
    assert group.kept == int(keep.sum())


@pytest.mark.parametrize(("said", "early"), [
    ({}, True), ({"penalty": "published"}, False), ({"compile": True}, False), ({"no_squeeze": True}, False),
    ({"objective": "states"}, True), ({"objective": "relations"}, False), ({"relation_weight": 0.5}, False),
    ({"layer_weight": 1.0}, False)])
def test_who_waits_for_the_last_of_the_group(said, early):
    """Where nothing settles, where a change costs minutes, and where the loss hangs on the student's widths."""
    usual = {"penalty": "fade", "compile": False, "no_squeeze": False, "objective": None, "relation_weight": 0.0,
             "layer_weight": 0.0}
    assert leaves_early(SimpleNamespace(**{**usual, **said})) == early


def test_the_plan_knows_how_many_are_there():
    """Dimension by dimension and step by step as in a run."""
    early = product("dim", True)
    seen = 0
    for step in range(1, 4 * 18 + 1):
        seen += sum(group.width for group in early.groups.values())  # of this step: masks come at its end
        go(early, step)
    args = SimpleNamespace(w_step=W_STEP, penalty="fade", l2_lambda=20.0, learning_rate=1e-4, total_steps=200,
                           compactor_learning_rate=1e-4, squeeze_tolerance=1e-4, no_squeeze=False, compile=False,
                           weight_squeeze=True, compactor_init="identity", mask_schedule_share=None,
                           objective=None, after_squeeze="compactors", student_learning_rate=None, layer_weight=0,
                           relation_weight=0, soft_targets_weight=0, bias_correction=None)
    groups = build_groups(early.config, 16, "dim")
    until, mean = before_squeeze(args, groups, lambda now: sum(group.width for group in now.values()))
    assert until == 4 * 18 and early.master.has_left
    assert mean * until == pytest.approx(seen, rel=0.02)  # the first step of a run has no number of its own
