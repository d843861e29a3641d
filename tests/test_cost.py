"""The cost model: operations against counted ones, parameters and bytes against real tensors."""

import argparse
import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import Shape, plain_bert, teacher
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from uer.formats.shapes import table_sizes
from uer.planning.cost import Step, activation_bytes, distinct_tokens, plain_cost
from uer.planning.wid_cost import activations_cost, student_shapes, wid_cost
from uer.squeeze.groups import build_groups
from uer.squeeze.importance import build_scores
from uer.squeeze.master import Master
from uer.squeeze.penalty import build_penalty
from uer.training.optimizers import AdamW, parameter_groups
from uer.training.wid_learner import WidLearner

ROOT = Path(__file__).resolve().parents[1]
SHAPE = Shape(hidden=48, heads=4, feedforward=192, layers=3, vocab=400, positions=32)
TABLES = {"vocab": 400, "positions": 32, "segments": 3}
STEPS = {"multiplied": Step(rows=20, seq=32), "applied": Step(rows=4, seq=32),
         "two": Step(rows=20, seq=32, micro_steps=2)}
aten = torch.ops.aten


def _attention(query, key, value, *_, **__) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad_out, query, key, value, *_, **__) -> int:
    return sdpa_backward_flop_count(grad_out, query, key, value)


def _added_product(total, a, b, **_) -> int:
    return 2 * a[0] * a[1] * b[1]


NOT_KNOWN_TO_TORCH = {aten._scaled_dot_product_flash_attention_for_cpu: _attention,
                      aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
                      aten.addmm_: _added_product}


def counted(run) -> int:
    """Operations of the products that `run` makes, forward and backward."""
    with FlopCounterMode(display=False, custom_mapping=NOT_KNOWN_TO_TORCH) as counter:
        run()
    return counter.get_total_flops()


def batch(step: Step):
    """src, seg, positions, labels of a micro-step: full rows."""
    generator = torch.Generator().manual_seed(2)
    src = torch.randint(5, SHAPE.vocab, (step.rows, step.seq), generator=generator)
    order = torch.arange(step.rows * step.seq).view(step.rows, step.seq).t().flatten()  # every row in turn
    positions = order[:step.predicted // step.micro_steps].sort().values
    return src, torch.ones_like(src), positions, src.flatten()[positions]


def run_step(student, step: Step) -> None:
    """Forward and backward of all micro-steps."""
    src, seg, positions, labels = batch(step)
    for _ in range(step.micro_steps):
        student.loss(src, seg, positions, labels, padded=False)[0].backward()


def float_teacher() -> dict[str, torch.Tensor]:
    return {name: tensor.float() for name, tensor in teacher(SHAPE).items()}


def learner_in(phase: str, step: Step, strategy: str, scores: str = "norm", tied: bool = False,
               comp_only: bool = False, mlm: int | None = None) -> WidLearner:
    """A learner before its first masks, with all of them, where half of who is masked has left, or squeezed."""
    config = SHAPE.config(tie_weights=tied)
    groups = build_groups(config, 24, strategy, mlm)
    alone = step.processes == 1
    load = (step.tokens, step.predicted) if alone else (1 << 40, 1 << 40)
    weights = float_teacher()
    if tied:
        del weights["target.mlm_linear_2.weight"]
    master = Master(config, weights, groups, *load)
    for group in groups.values() if phase != "fresh" else ():
        group.set_keep(group.choose(torch.rand(group.size).double(), 32))
    for name, parameter in master.named_parameters():
        parameter.requires_grad_(not comp_only or "compactor" in name)
    optimizer = AdamW(parameter_groups(master.named_parameters(), 1e-4))
    penalty = build_penalty("published", master, optimizer.state, 1, 20)
    learner = WidLearner(master, optimizer, penalty, 1, None, build_scores(scores, master))
    for group in groups.values() if phase == "thinner" else ():
        master.thin(group, group.staying(torch.arange(len(group.dropped)) % 2 < 1), optimizer.state)
    if phase in ("squeezed", "thinner"):
        learner.squeeze(list(groups.values()) if phase == "squeezed" else [])
    return learner


@pytest.mark.parametrize("load", STEPS)
def test_a_plain_model(load):
    step, config = STEPS[load], SHAPE.config()
    model = plain_bert(SHAPE, config, float_teacher()).train()
    cost = plain_cost(config, TABLES, step)
    assert counted(lambda: run_step(model, step)) == pytest.approx(cost.all_operations, rel=0.01)
    assert sum(cost.student.values()) == sum(p.numel() for p in model.parameters())
    assert cost.memory["weights"] == sum(p.nbytes for p in model.parameters())
    tied = plain_cost(replace(config, tie_weights=True), TABLES, step)
    assert sum(cost.student.values()) - sum(tied.student.values()) == 400 * 48


@pytest.mark.parametrize("load", STEPS)
def test_what_muon_multiplies_and_keeps(load):
    step, config = STEPS[load], SHAPE.config()
    model = plain_bert(SHAPE, config, float_teacher()).train()
    optimizer = AdamW(parameter_groups(model.named_parameters(), 1e-4, optimizer="muon"))
    run_step(model, step)
    cost, usual = (plain_cost(config, TABLES, replace(step, optimizer=name)) for name in ("muon", "adamw"))
    assert counted(optimizer.step) == cost.all_operations - usual.all_operations > 0
    assert cost.memory["optimizer"] == sum(moment.nbytes for state in optimizer.state.values()
                                           for key, moment in state.items() if key != "step")


@pytest.mark.parametrize("phase", ["fresh", "masked", "thinner", "squeezed"])
@pytest.mark.parametrize(("load", "strategy", "variant"), [
    ("two", "dim", {}), *((load, strategy, variant) for load in ("multiplied", "applied") for strategy, variant in (
        ("dim", {}), ("head", {}), ("dim", {"scores": "taylor"}), ("dim", {"comp_only": True}), ("dim", {"tied": True}),
        ("dim", {"mlm": 40})))])
def test_a_step_of_master_and_student(load, phase, strategy, variant):
    step = replace(STEPS[load], distinct=len(batch(STEPS[load])[0].unique()))
    learner = learner_in(phase, step, strategy, **variant)
    master = learner.master
    cost = wid_cost(master.config, TABLES, learner.groups(), step, comp_only=variant.get("comp_only", False),
                    spares="scores" not in variant)

    def whole_step() -> None:
        learner.prepare()
        run_step(learner.student, step)
        learner.master.backward(spare_dropped="scores" not in variant)

    assert counted(whole_step) == pytest.approx(cost.all_operations, rel=0.01)
    trained = {name: parameter for name, parameter in master.named_parameters() if parameter.requires_grad}
    assert sum(cost.student.values()) == sum(p.numel() for p in learner.student.parameters())
    assert sum(cost.trained.values()) == sum(p.numel() for p in trained.values())
    assert cost.memory["weights"] == sum(p.nbytes for _, p in master.named_parameters())
    moments = [learner.optimizer.state[p][key] for p in trained.values() for key in ("exp_avg", "exp_avg_sq")]
    assert cost.memory["optimizer"] == sum(tensor.nbytes for tensor in moments)
    assert cost.memory["gradients"] == cost.memory["optimizer"] // 2


def test_distinct_tokens_are_what_chance_gives():
    tokens = torch.multinomial(torch.arange(1, 401).double() ** -1.1, 640, replacement=True,
                               generator=torch.Generator().manual_seed(1))
    assert distinct_tokens(640, 400) == pytest.approx(len(tokens.unique()), rel=0.1)
    assert distinct_tokens(1, 400) == 1


def test_several_processes_send_the_student():
    step = replace(STEPS["applied"], processes=4)
    learner = learner_in("squeezed", step, "dim")
    cost = wid_cost(learner.master.config, TABLES, learner.groups(), step)
    assert cost.sent == 2 * 3 / 4 * sum(p.nbytes for p in learner.student.parameters())
    assert wid_cost(learner.master.config, TABLES, learner.groups(), replace(step, wire=2)).sent == cost.sent / 2
    assert wid_cost(learner.master.config, TABLES, learner.groups(), STEPS["applied"]).sent == 0


def test_the_students_own_memory():
    """Composed tensors are counted once where they are the master's, twice (gradients) where they are not."""
    for load, step in STEPS.items():
        learner = learner_in("squeezed", step, "dim")
        learner.prepare()
        theirs = {p.data_ptr() for _, p in learner.master.named_parameters()}
        own = sum(p.nbytes for p in learner.student.parameters() if p.data_ptr() not in theirs)
        cost = wid_cost(learner.master.config, TABLES, learner.groups(), step)
        assert cost.memory["student"] == 2 * own, load
        assert {name: tuple(p.shape) for name, p in learner.student.named_parameters()} == student_shapes(
            learner.master.config, learner.master.sizes(), load == "applied", load == "applied")


def test_compactors_on_activations():
    spec = importlib.util.spec_from_file_location("step_time", ROOT / "benchmarks/step_time.py")
    step_time = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(step_time)
    args = argparse.Namespace(batch_size=4, seq_length=32, layers_num=2, hidden_size=128, target_dim=64, vocabulary=300,
                              strategy="dim")
    make = step_time.build("published", args, step_time.random_batch(args))
    config = step_time.teacher_config(args)
    groups, tables = build_groups(config, 64, "dim"), {"vocab": 300, "positions": 512, "segments": 3}
    cost = activations_cost(config, tables, groups, Step(rows=4, seq=32))
    assert counted(make) == pytest.approx(cost.all_operations, rel=0.01)
    master, _, _ = step_time.masked_master(args)
    assert sum(cost.trained.values()) == sum(p.numel() for _, p in master.named_parameters())


@pytest.mark.parametrize("layernorm", ["uer", "huggingface"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_what_the_forward_pass_keeps(layernorm, dropout):
    """Counted storages that autograd saves, without weights; attention's dropout aside, which only GPUs fuse."""
    step, config = Step(rows=64, seq=32), SHAPE.config(layernorm=layernorm, dropout=dropout)
    model = plain_bert(SHAPE, config, float_teacher()).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and tensor.is_floating_point() | (tensor.dtype == torch.bool):
            saved[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    src, seg, positions, labels = batch(step)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.loss(src, seg, positions, labels, padded=False)
    gradients = sum(p.nbytes for p in model.target.mlm_linear_2.parameters())  # counted as gradients
    assert sum(saved.values()) - gradients == pytest.approx(activation_bytes(model.sizes, config, step), rel=0.05)


def test_tables_are_counted():
    assert table_sizes(teacher(SHAPE)) == TABLES


def test_groups_are_not_changed():
    groups = build_groups(SHAPE.config(), 24, "dim")
    before = copy.deepcopy(groups)
    activations_cost(SHAPE.config(), TABLES, groups, STEPS["two"])
    wid_cost(SHAPE.config(), TABLES, groups, STEPS["two"])
    assert all(vars(groups[name]).keys() == vars(before[name]).keys() and groups[name].width == before[name].width
               for name in groups)
