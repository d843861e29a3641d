"""--target_layers: fewer layers, made up for by those below them; nothing dropped is the teacher."""

from __future__ import annotations

import argparse
import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from bench import CONFIG, make_bench
from commands import call, pretrain_options, refused
from corpora import TOKENS
from test_calibration import batches as random_batches
from workers import processes

from uer.calibration.depth import Depths, Shorter, layers_to_keep
from uer.calibration.stream import Stream
from uer.calibration.student import calibration_batches
from uer.config import SPAN_LABELS, ModelConfig
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.formats import load_model
from uer.models.bert import Bert, from_scratch
from uer.parallel.collectives import Place

DEEP = ModelConfig(hidden_size=32, layers_num=4, heads_num=2, feedforward_size=64, max_seq_length=32)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("depth"))


@pytest.fixture(scope="module")
def batches(bench):
    return calibration_batches(Dataset.open([str(bench / "dynamic.pt")]), 3, 5, Place(0, 1, torch.device("cpu")))


def lively(config: ModelConfig = DEEP) -> Bert:
    """A random teacher in float64 whose layers do something."""
    teacher = from_scratch(config, 90, seed=2).double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in teacher.encoder.layers():
            for linear in (*layer.self_attn.linears(), layer.feed_forward.linear_1, layer.feed_forward.linear_2):
                linear.weight.normal_(0, 0.3, generator=generator)
    return teacher


def shorten(teacher: Bert, batches, target: int, keep=None) -> Shorter:
    return Depths(Stream(teacher, batches)).shorter(target, keep)


def states(model: Bert, layers, batches) -> torch.Tensor:
    """Last states of the real tokens."""
    model = copy.deepcopy(model)
    model.encoder.transformer = torch.nn.ModuleList(layers)
    with torch.no_grad():
        return torch.cat([model.hidden_states(batch.src, batch.seg)[batch.seg > 0] for batch in batches])


def test_nothing_dropped_is_the_teacher(batches):
    teacher = lively()
    same = shorten(teacher, batches, 4)
    assert same.kept == [0, 1, 2, 3]
    expected, found = (states(teacher, layers, batches) for layers in (teacher.encoder.layers(), same.layers))
    assert torch.equal(found, expected)


def test_a_layer_that_does_next_to_nothing_is_found_and_not_missed(batches):
    """Layer 2 adds nothing to what layer 1 gives, so it leaves, and layer 1 has nothing to make up for."""
    teacher = lively()
    with torch.no_grad():
        idle = teacher.encoder.layers()[2]
        for linear in (idle.self_attn.final_linear, idle.feed_forward.linear_2):
            linear.weight.zero_()
            linear.bias.zero_()
    shorter = shorten(teacher, batches, 3)
    assert shorter.kept == [0, 1, 3]
    assert shorter.line(teacher.config).startswith("3 of 4 layers stay, numbers 0, 1 and 3; ")
    expected, found = (states(teacher, layers, batches) for layers in (teacher.encoder.layers(), shorter.layers))
    assert (found - expected).abs().max() < 1e-6  # LayerNorm's eps


@pytest.mark.parametrize("keep", [[0, 2], [0, 3], [0]])
def test_made_up_for_is_nearer_than_left_out(batches, keep: list[int]):
    teacher = lively()
    all_layers = teacher.encoder.layers()
    whole = states(teacher, all_layers, batches)
    fitted = states(teacher, shorten(teacher, batches, len(keep), keep).layers, batches)
    left_out = states(teacher, [all_layers[i] for i in keep], batches)
    assert (fitted - whole).square().sum() < 0.9 * (left_out - whole).square().sum()


def test_what_cannot_be_kept():
    for target, keep, message in ((5, None, "--target_layers 5: must be from 1 to the teacher's 4"),
                                  (0, None, "--target_layers 0"), (None, [1, 2], "the lowest always stays"),
                                  (None, [0, 4], "others up to 3"), (None, [0, 2, 1], "ascending"),
                                  (3, [0, 2], "--keep_layers names 2 layers, --target_layers is 3")):
        with pytest.raises(UserError, match=message):
            layers_to_keep(4, target, keep)
    assert (layers_to_keep(4, 2, [0, 3]), layers_to_keep(4, None, [0]), layers_to_keep(4, None, None)) == (2, 1, 4)


def test_fewer_layers_go_on_from_more_layers(batches):
    """Asked in any order, as those found one by one, and none twice."""
    teacher = lively()
    depths = Depths(Stream(teacher, batches))
    two, three = depths.shorter(2), depths.shorter(3)
    assert set(two.kept) < set(three.kept)
    assert (two.kept, three.kept) == (shorten(teacher, batches, 2).kept, shorten(teacher, batches, 3).kept)


def shorten_a_share(place: Place, args: argparse.Namespace) -> None:
    depths = Depths(Stream(lively(), random_batches(4)[place.rank::2]))
    shorter = depths.shorter(2, [0, 2])
    torch.save({"chosen": depths.shorter(2).kept, "lost": shorter.lost, **shorter.layers[0].state_dict()},
               args.folder / f"{place.rank}.pt")


def test_two_processes_find_what_one_finds(tmp_path):
    processes(shorten_a_share, 2, folder=tmp_path)
    alone = shorten(lively(), random_batches(4), 2, [0, 2])
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert ranks[0]["chosen"] == ranks[1]["chosen"]
    for found in ranks:
        assert found["lost"] == pytest.approx(alone.lost, rel=1e-9)
        for name, tensor in alone.layers[0].state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("target, outputs", [("states", 32), ("tokens", 3), ("tokens", 2), ("cls", 3), ("cls", 1)])
def test_what_other_targets_say_is_compared(batches, target: str, outputs: int):
    config = replace(DEEP, target=target, outputs=outputs, pooling="mean", labels=SPAN_LABELS if outputs == 2 else ())
    teacher = lively(config)
    shorter = shorten(teacher, batches, 3)
    assert len(shorter.kept) == 3 and 0 < shorter.lost < 1
    how = "1 - cosine" if target == "states" else "a squared error of" if outputs == 1 else "nats"
    assert how in shorter.line(config)
    assert shorten(teacher, batches, 4).lost == pytest.approx(0, abs=1e-12)


def options(bench, *more) -> list:
    return ["calibrate.py", "--pretrained_model_path", bench / "teacher.bin", "--config_path",
            bench / "config.json", "--dataset_path", bench / "dynamic.pt", "--output_model_path", bench / "short.bin",
            *more]


def test_a_teacher_like_any_other(bench, capsys):
    call(*options(bench, "--target_layers", 1))
    said = capsys.readouterr().out
    assert "1 of 2 layers stays, number 0; on the text that they were fitted to" in said
    assert re.search(r"student +\S+ M", said) and "explained" not in said
    assert json.loads((bench / "short_config.json").read_text())["layers_num"] == 1
    short = load_model(bench / "short.bin", config=None, vocab_size=len(TOKENS))
    assert short.config.layers_num == 1 and short.config.hidden_size == CONFIG.hidden_size


def test_training_a_student_of_less_depth_alone(bench, tmp_path):
    """As wide as its teacher, as if that had been said."""
    words = ["--weight_squeeze", "--compactor_init", "calibrated", "--target_layers", 1]
    call("pretrain.py", *pretrain_options(bench, tmp_path / "a.bin", *words, dataset_path=bench / "dynamic.pt"))
    call("pretrain.py", *pretrain_options(bench, tmp_path / "b.bin", *words, "--target_dim", CONFIG.hidden_size,
                                          dataset_path=bench / "dynamic.pt"))
    found = [torch.load(tmp_path / f"{name}.bin-2", weights_only=True) for name in "ab"]
    assert found[0].keys() == found[1].keys() and all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    call("convert.py", "--load_model_path", tmp_path / "a.bin-2", "--output_model_path", tmp_path / "student.bin")
    config = json.loads((tmp_path / "student_config.json").read_text())
    assert (config["layers_num"], config["hidden_size"]) == (1, CONFIG.hidden_size)
    call("pretrain.py", "--plan", *pretrain_options(bench, tmp_path / "a.bin", *words))


def test_refusals_write_nothing(bench, capsys):
    (bench / "short.bin").unlink(missing_ok=True)
    assert "what is the student to be?" in refused(capsys, bench, *options(bench))
    assert "must be from 1 to the teacher's 2" in refused(capsys, bench, *options(bench, "--target_layers", 3))
