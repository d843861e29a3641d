"""The package against the oracle: losses, masks, parameters; squeezing; the fade penalty."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from small import (
    FOUR_BY_32,
    MULTIPLIED,
    PROJECTED,
    THREE_BY_8,
    Product,
    Shape,
    batch,
    micro_batches,
    pair,
    teacher,
    trained_teacher,
)

RATES = {"learning_rate": 2e-4, "compactor_learning_rate": 1e-3}


def assert_same_state(product: Product, oracle: Oracle) -> None:
    """All parameters and both moments."""
    parameters = product.master.parameters
    assert parameters.keys() == oracle.p.keys()
    for name in oracle.trained:
        state = product.optimizer.state[parameters[name]]
        for what, mine, theirs in (("value", parameters[name], oracle.p[name]), ("m", state["exp_avg"], oracle.m[name]),
                                   ("v", state["exp_avg_sq"], oracle.v[name])):
            torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=1e-9, atol=1e-8,
                                       msg=lambda text, name=name, what=what: f"{what} of {name}: {text}")


def run_both(product: Product, oracle: Oracle, shape: Shape, steps: int, micro: int = 2) -> None:
    """Step both and compare losses and masks at every step, the whole state at the end."""
    for step in range(1, steps + 1):
        batches = micro_batches(shape, step, micro)
        assert product.step(batches) == pytest.approx(oracle.step(batches), rel=1e-10, abs=0), f"loss of step {step}"
        assert product.dropped() == oracle.dropped, f"masks of step {step}"
    assert_same_state(product, oracle)


# -- the published method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("strategy", "l2_lambda"), [("dim", 20.0), ("dim", 0.7), ("head", 20.0)])
def test_four_heads_of_32_through_the_whole_schedule(strategy: str, l2_lambda: float):
    product, oracle = pair(FOUR_BY_32, target_dim=32, strategy=strategy, w_step=1, l2_lambda=l2_lambda, **RATES)
    run_both(product, oracle, FOUR_BY_32, steps=19)
    assert {name: len(dropped) for name, dropped in oracle.dropped.items()} == {
        "hidden": 96, "attention.0": 96, "attention.1": 96, "ffn.0": 192, "ffn.1": 192, "mlm": 96}


@pytest.mark.parametrize(("strategy", "load"), [("dim", MULTIPLIED), ("head", PROJECTED)])
def test_three_heads_of_8_three_micro_batches_and_a_warm_up(strategy: str, load: tuple[int, int]):
    product, oracle = pair(THREE_BY_8, load=load, target_dim={"dim": 9, "head": 16}[strategy], strategy=strategy,
                           w_step=2, l2_lambda=20.0, factor=lambda step: min(1.0, (step - 1) / 10), **RATES)
    projections = {name for name, _ in product.learner.student.named_parameters() if name.endswith("projection")}
    assert projections == ({"embedding.projection", "target.projection"} if load == PROJECTED else set())
    run_both(product, oracle, THREE_BY_8, steps=36, micro=3)


@pytest.mark.parametrize("load", [MULTIPLIED, PROJECTED], ids=["multiplied", "projected"])
def test_a_tied_vocabulary(load: tuple[int, int]):
    weights = teacher(THREE_BY_8)
    weights["target.mlm_linear_2.weight"] = weights["embedding.word_embedding.weight"]
    product, oracle = pair(THREE_BY_8, weights, load=load, tied=True, target_dim=12, strategy="dim", w_step=2,
                           l2_lambda=20.0, **RATES)
    run_both(product, oracle, THREE_BY_8, steps=12)
    state = product.master.state_dict()
    assert torch.equal(state["target.mlm_linear_2.weight"], state["embedding.word_embedding.weight"])


def test_a_teacher_with_layer_norms_of_hugging_face():
    product, oracle = pair(THREE_BY_8, layernorm="huggingface", target_dim=12, strategy="dim", w_step=2, l2_lambda=20.0,
                           **RATES)
    run_both(product, oracle, THREE_BY_8, steps=12)


def test_compactors_alone():
    weights = teacher(THREE_BY_8)
    product, oracle = pair(THREE_BY_8, weights, compactors_only=True, target_dim=12, strategy="dim", w_step=2,
                           l2_lambda=20.0, **RATES)
    run_both(product, oracle, THREE_BY_8, steps=12)
    for name, tensor in weights.items():
        assert torch.equal(product.master.parameters[name], tensor), name


def test_spared_gradients_are_those_that_the_penalty_replaces(monkeypatch: pytest.MonkeyPatch):
    """With all gradients computed, the same run; without, dropped entries have none and kept entries theirs."""
    seen: list[dict[str, torch.Tensor]] = []
    runs = []
    for spare in (True, False):
        product, _ = pair(THREE_BY_8, target_dim=12, strategy="dim", w_step=2, l2_lambda=20.0, **RATES)
        backward, master = product.master.backward, product.master

        def record(spare_dropped: bool, spare=spare, backward=backward, master=master) -> None:
            backward(spare_dropped and spare)
            seen.append({name: p.grad.clone() for name, p in master.parameters.items()})

        monkeypatch.setattr(product.master, "backward", record)
        for step in range(1, 20):
            product.step(micro_batches(THREE_BY_8, step, 1))
        runs.append(product.master.state_dict())
    for name, tensor in runs[0].items():
        torch.testing.assert_close(tensor, runs[1][name], rtol=0, atol=1e-10, msg=name)
    name = "encoder.transformer.0.feed_forward.linear_2_left_compactor.weight"
    spared, whole = seen[18][name], seen[19 + 18][name]
    gone = product.groups["ffn.0"].dropped
    assert not spared[:, gone].any() and whole[:, gone].abs().min() > 0
    kept = product.groups["ffn.0"].kept_index()
    torch.testing.assert_close(spared[:, kept], whole[:, kept], rtol=1e-6, atol=1e-12)


# -- squeeze -----------------------------------------------------------------------------------------------------------

TRAINED = Shape(hidden=24, heads=3, feedforward=60, vocab=30)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    return trained_teacher(TRAINED)


@pytest.mark.parametrize(("strategy", "target"), [("dim", 12), ("head", 16)])
def test_squeezing_a_trained_model_changes_nothing_that_matters(trained: dict, strategy: str, target: int):
    product, oracle = pair(TRAINED, trained, squeeze_tolerance=1e-4, target_dim=target, strategy=strategy, w_step=2,
                           l2_lambda=20.0, learning_rate=1e-4, compactor_learning_rate=1e-3)
    learner, left = product.learner, []
    held_out = [batch(TRAINED, 10**5, rows=64)]
    for step in range(1, 131):
        batches = micro_batches(TRAINED, step, 1)
        assert product.step(batches) == pytest.approx(oracle.step(batches), rel=1e-4), f"step {step}, after {left}"
        ready = learner.ready_to_leave(step)
        if not ready:
            continue
        learner.prepare()
        before = product.loss(held_out)
        learner.squeeze(ready)
        left += [group.name for group in ready]
        learner.prepare()
        assert product.loss(held_out) == pytest.approx(before, rel=1e-4), f"step {step}, leaving {left}"
        assert before < 2.5  # the teacher had 1.3, guessing has ln 25 = 3.2
    assert sorted(left) == ["attention.0", "attention.1", "ffn.0", "ffn.1", "hidden", "mlm"]
    assert learner.ready_to_leave(step) == []
    sizes = learner.student.sizes
    assert sizes.hidden == sizes.mlm == target
    assert {layer.feedforward for layer in sizes.layers} == {target * 5 // 2}


def test_a_squeeze_narrows_the_optimizer_with_the_parameters():
    product, oracle = pair(THREE_BY_8, target_dim=12, strategy="dim", w_step=2, l2_lambda=20.0, **RATES)
    for step in range(1, 35):
        batches = micro_batches(THREE_BY_8, step, 1)
        product.step(batches)
        oracle.step(batches)
    product.learner.squeeze([product.groups["hidden"], product.groups["ffn.1"]])
    compactors, vectors = oracle.masked_axes()
    for name, (axis, group) in (compactors | vectors).items():
        if group in ("hidden", "ffn.1") and not name.endswith("bias"):
            keep = torch.tensor(sorted(set(range(oracle.p[name].shape[axis])) - set(oracle.dropped[group])))
            for values in (oracle.p, oracle.m, oracle.v):
                values[name] = values[name].detach().index_select(axis, keep)
    assert_same_state(product, oracle)
    product.step(micro_batches(THREE_BY_8, 35, 1))


def test_a_squeeze_between_composing_and_stepping():
    states = []
    for composed in (True, False):
        product, _ = pair(THREE_BY_8, target_dim=12, strategy="dim", w_step=1, l2_lambda=20.0, **RATES)
        for step in range(1, 9):
            product.step(micro_batches(THREE_BY_8, step, 1))
        if composed:
            product.learner.prepare()  # as for an evaluation
        product.learner.squeeze([product.groups["hidden"]])
        product.step(micro_batches(THREE_BY_8, 9, 1))
        states.append(product.learner.checkpoint()[0])
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_groups_leave_when_schedule_and_entries_allow():
    product, _ = pair(THREE_BY_8, squeeze_tolerance=1e-3, target_dim=12, strategy="dim", w_step=2, l2_lambda=20.0,
                      **RATES)
    for step in range(1, 17):
        product.step(micro_batches(THREE_BY_8, step, 1))
    attention = product.groups["attention.0"]
    assert product.learner.ready_to_leave(16) == []  # entries too large
    with torch.no_grad():
        product.master.parameters["encoder.transformer.0.self_attn.final_linear_left_compactor.weight"][
            :, attention.dropped] = 0
        for j in range(3):
            product.master.parameters[f"encoder.transformer.0.self_attn.right_compactor.{j}.weight"][
                attention.dropped] = 9e-4
    assert product.learner.ready_to_leave(16) == [attention]
    assert product.learner.ready_to_leave(15) == []  # schedule not complete
    product.learner.squeeze_tolerance = 8e-4
    assert product.learner.ready_to_leave(16) == []
    product.learner.squeeze_tolerance = None
    assert product.learner.ready_to_leave(16) == []


# -- fade --------------------------------------------------------------------------------------------------------------


def test_fade_multiplies_dropped_entries_and_touches_nothing_else():
    """Dropped entries: no gradient, AdamW with what is left of their momentum, then a thousandth per w_step steps."""
    w_step = 5
    method = {"target_dim": 12, "strategy": "dim", "w_step": w_step, "l2_lambda": 20.0, **RATES}
    _, oracle = pair(THREE_BY_8, **method)
    faded = Product(THREE_BY_8, teacher(THREE_BY_8), penalty="fade", **method)
    for step in range(1, 13):
        batches = micro_batches(THREE_BY_8, step, 2)
        oracle.dropped = faded.dropped()
        loss = oracle.loss(batches)
        gradients = dict(zip(oracle.trained, torch.autograd.grad(loss, [oracle.p[name] for name in oracle.trained])))
        assert faded.step(batches) == pytest.approx(loss.item(), rel=1e-10, abs=0)
        oracle.dropped = faded.dropped()  # masks of this step act in this step's update
        rows = {name: (axis, torch.tensor(oracle.dropped[group], dtype=torch.long))
                for name, (axis, group) in oracle.masked_axes()[0].items()}
        for name, gradient in gradients.items():
            if name in rows:
                gradient.index_fill_(*rows[name], 0.0)
            oracle.adamw(name, gradient, 1.0)
            if name in rows:
                axis, index = rows[name]
                entries = oracle.p[name].detach().index_select(axis, index) * 1e-3 ** (1 / w_step)
                oracle.p[name].data.index_copy_(axis, index, entries)
    assert_same_state(faded, oracle)


def test_fade_lets_groups_leave_soon_after_their_schedule():
    product = Product(THREE_BY_8, teacher(THREE_BY_8), target_dim=12, strategy="dim", w_step=4, l2_lambda=20.0,
                      penalty="fade", squeeze_tolerance=1e-4, **RATES)
    squeezed_at = {}
    for step in range(1, 4 * 22 + 1):
        product.step(micro_batches(THREE_BY_8, step, 1))
        ready = product.learner.ready_to_leave(step)
        product.learner.squeeze(ready)
        squeezed_at |= {group.name: step for group in ready}
    for name, group in product.groups.items():
        assert 0 < squeezed_at[name] - 4 * group.last_interval < 24, name
