"""--budget --uneven: what heads and neurons are worth, and how a budget is spent on them."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from bench import assert_same
from commands import call
from corpora import TOKENS
from test_calibration import batches, config_of, random_teacher
from test_layer_sizes import FOUR_HEADS, calibrate

from uer.calibration.reducer import shape_of
from uer.calibration.stream import Stream, double_teacher
from uer.calibration.worth import Step, Worth, fisher, hull, spread, worth_of_layers
from uer.config import ModelConfig
from uer.formats import load_model
from uer.formats.shapes import parameter_count, sizes_of
from uer.models.bert import from_scratch
from uer.planning.budget import Budget
from uer.planning.cost import forward_operations
from uer.sizes import LayerShape, LayerSizes


def test_the_information_tells_what_a_small_error_costs():
    """½ eᵀ F e against the divergence itself, an error in one token's sum before a LayerNorm."""
    config = config_of(16, 2, 1, 24)
    data = batches(200, rows=4, width=6)
    for batch in data:
        batch.positions = torch.arange(batch.src.numel())[batch.seg.flatten() > 0]
    stream = Stream(double_teacher(config, random_teacher(config)), data)
    information = fisher(stream)[1]  # at the last LayerNorm an error costs its own token alone
    error, lost, tokens = 1e-3 * torch.randn(16, generator=torch.Generator().manual_seed(3)).double(), 0.0, 0
    for number, real in enumerate(stream.real):
        u, layer = stream.sum(number, 2), stream.teacher.encoder.layers()[0]
        was, now = (stream.teacher.target(layer.layer_norm_2(x)[real]).log_softmax(-1) for x in (u, u + error))
        lost += (was.exp() * (was - now)).sum().item()
        tokens += len(was)
    assert 0.5 * float(error @ information @ error) == pytest.approx(lost / tokens, rel=0.1)
    stream.close()


def test_a_layer_that_says_nothing_is_worth_nothing():
    teacher = random_teacher(FOUR_HEADS)
    for part in ("self_attn.final_linear", "feed_forward.linear_2"):
        teacher[f"encoder.transformer.0.{part}.weight"].zero_()
    stream = Stream(double_teacher(FOUR_HEADS, teacher), batches())
    silent, loud = worth_of_layers(stream, 8)
    stream.close()
    for worth in (silent, loud):
        assert [sum(step.units for step in steps) for steps in worth] == [4, 64]
    assert max(step.gain for steps in silent for step in steps) < 1e-20 < loud.neurons[0].gain
    assert spread([silent, loud], 8 * 63, 1000, 8) == [LayerShape(1, 1), LayerShape(1, 64)]


def test_a_budget_goes_where_it_is_worth_most():
    assert list(hull([Step(1, 1.0), Step(1, 3.0), Step(2, 2.0)])) == [Step(2, 4.0), Step(2, 2.0)]
    worths = [Worth([Step(1, 9.0), Step(1, 5.0)], [Step(4, 4.0), Step(4, 0.4)]),
              Worth([Step(1, 9.0), Step(1, 0.1)], [Step(4, 40.0), Step(4, 8.0)])]
    assert spread(worths, 6, 10, 1) == [LayerShape(1, 1), LayerShape(1, 7)]
    assert spread(worths, 10, 10, 1) == [LayerShape(1, 4), LayerShape(1, 8)]
    assert spread(worths, 20, 10, 1) == [LayerShape(2, 4), LayerShape(1, 8)]
    assert spread(worths, 1000, 10, 1) == [LayerShape(2, 8), LayerShape(2, 8)]


@pytest.mark.parametrize("text", ["9M", "0.3GFLOP"])
def test_a_budget_counts_layers_that_differ(text: str):
    config, layers = ModelConfig(48, 2, 4, 96), (LayerShape(1, 20), LayerShape(4, 50))
    tables = {"vocab": 50, "positions": 512, "segments": 3}
    budget = Budget(text, config, tables, 16, False)
    student = replace(config, hidden_size=24, uneven_layers=layers, feedforward_size=50)
    count = sum(tensor.numel() for tensor in from_scratch(student, 50, seed=1).parameters())
    assert budget.cost(shape_of(student), layers) == \
        (count if text == "9M" else forward_operations(sizes_of(student, **tables), 16))


@pytest.mark.parametrize("budget", ["0.02M", "0.0003GFLOP"])
def test_a_budget_spent_over_layers(bench, tmp_path, monkeypatch, capsys, budget: str):
    """It is kept, nearly spent, and the options that are printed give the same student."""
    monkeypatch.chdir(tmp_path)
    call("calibrate.py", *calibrate(bench, "--budget", budget, "--uneven", "--target_dim", 16, "--output_model_path",
                                    "spent.bin"))
    said = capsys.readouterr().out
    loaded = load_model("spent.bin", config=None, vocab_size=len(TOKENS))
    tables = {"vocab": len(TOKENS), "positions": 32, "segments": 3}
    spent = parameter_count(loaded.weights) if "M" in budget else \
        forward_operations(sizes_of(loaded.config, **tables), 32)
    most = float(re.match(r"[\d.]+", budget)[0]) * (1e6 if "M" in budget else 1e9)
    full = loaded.config.layers == (LayerSizes(2, 8, 64),) * 2
    assert loaded.config.hidden_size == 16 and (full or 0.97 * most < spent <= most) and spent <= most
    again = re.search(r"the same shape again: (.*)", said)[1].split()
    call("calibrate.py", *calibrate(bench, *again, "--output_model_path", "again.bin"))
    assert_same(torch.load("spent.bin", weights_only=True), torch.load("again.bin", weights_only=True))
    assert " ".join(again[:2]) in said.splitlines()[-1] and "--weight_squeeze" in said.splitlines()[-1]


def test_a_budget_chooses_the_width_where_none_is_given(bench, tmp_path, monkeypatch, capsys):
    """Of one layer and one table; the options that are printed give it again, and so do they after ONNX alone."""
    words = ["--budget", "0.015M", "--uneven", "--tie_student", "--target_layers", 1, "--output_model_path"]
    call("calibrate.py", *calibrate(bench, *words, tmp_path / "spent.bin"))
    with monkeypatch.context() as patch:
        patch.setattr("uer.calibration.command.write_outputs", lambda source, paths: [])
        patch.setattr("uer.calibration.command.check_outputs", lambda paths, text: None)
        call("calibrate.py", *calibrate(bench, *words, tmp_path / "x.onnx", "--output_format", "onnx"))
    said = capsys.readouterr().out
    for again, sizes in zip(re.findall(r"the same shape again: (.*)", said), ("spent_config", "x_layer_sizes"),
                            strict=True):
        assert f"{sizes}.json" in again and again in said
        call("calibrate.py", *calibrate(bench, *again.split(), "--output_model_path", tmp_path / "again.bin"))
        assert_same(*(torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("spent", "again")))
    loaded = load_model(tmp_path / "spent.bin", config=None, vocab_size=None)
    assert 2 < loaded.config.hidden_size <= 32 and loaded.config.layers_num == 1
    assert 0.9 * 15000 < parameter_count(loaded.weights) <= 15000
