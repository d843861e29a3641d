"""calibrate.py --sweep: shapes side by side; what the table says of one is what calibrate.py makes of it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace

import pytest
import torch
from bench import CONFIG
from commands import call, refused
from corpora import TOKENS
from torch.utils.flop_counter import FlopCounterMode

from uer.arguments import typed_again
from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.shapes import sizes_of
from uer.models.bert import from_scratch
from uer.opts import calibrate_parser
from uer.planning import sweep
from uer.planning.budget import Budget
from uer.planning.cost import forward_operations
from uer.planning.sweep import shape_from
from uer.report.frontier import frontier
from uer.sizes import Shape

TEACHER = ModelConfig(hidden_size=384, layers_num=6, heads_num=12, feedforward_size=1536)


@pytest.mark.parametrize(("text", "strategy", "shape"), [
    ("4x312", "dim", Shape(4, 312, 1248, 12)), ("6x256", "dim", Shape(6, 256, 1024, 8)),
    ("6x192", "dim", Shape(6, 192, 768, 12)), ("6x192x500", "head", Shape(6, 192, 500, 6)),
    ("6x384", "head", Shape(6, 384, 1536, 12))])
def test_a_shape_takes_its_heads_from_the_teacher(text: str, strategy: str, shape: Shape):
    assert shape_from(text, TEACHER, strategy) == shape


@pytest.mark.parametrize(("text", "words"), [
    ("4-312", "like 4x312 or 4x312x1200"), ("7x192", "the teacher is 6x384, from which 1 to 6 layers"),
    ("0x192", "1 to 6 layers"), ("6x400", "2 to 384 dimensions"), ("6x257", "6x256 would do"),
    ("6x192x2000", "--target_feedforward_size 2000: must be from 1 to the teacher's feedforward_size 1536")])
def test_shapes_that_cannot_be(text: str, words: str):
    with pytest.raises(UserError, match=words):
        shape_from(text, TEACHER, "dim")


def test_operations_are_those_that_torch_counts():
    config = ModelConfig(hidden_size=24, layers_num=2, heads_num=3, feedforward_size=40, max_seq_length=16)
    model = from_scratch(config, 50, seed=1).eval()
    src = torch.ones(1, 16, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    attention = torch.nn.functional.scaled_dot_product_attention
    torch.nn.functional.scaled_dot_product_attention = lambda q, k, v, **_: (q @ k.transpose(2, 3)).softmax(3) @ v
    try:
        with counter, torch.no_grad():
            model.hidden_states(src, src)
    finally:
        torch.nn.functional.scaled_dot_product_attention = attention
    assert forward_operations(sizes_of(config, vocab=50, positions=16, segments=3), 16) == counter.get_total_flops()


def test_whom_no_other_beats_in_both():
    assert frontier([-3.0, -2.0, -1.0, -2.5], [9.0, 5.0, 6.0, 7.0]) == [2, 3, 0]


@pytest.mark.parametrize("text", ["9M", "20M", "0.3GFLOP"])
@pytest.mark.parametrize("tied", [False, True])
def test_a_budget_is_spent_and_kept(text: str, tied: bool):
    """The next width of the same depth would not do; no shape is less than another one everywhere."""
    budget = Budget(text, TEACHER, {"vocab": 30522, "positions": 512, "segments": 3}, 128, tied)
    shapes = budget.shapes("dim")
    assert len({shape.layers for shape in shapes}) > 2
    for shape in shapes:
        wider = [other for other in budget.grid(shape.layers, shape.feedforward / shape.hidden / 4, "dim")
                 if other.hidden > shape.hidden]
        assert budget.cost(shape) <= budget.most and (not wider or budget.cost(wider[0]) > budget.most)
        assert not any(other != shape and all(a >= b for a, b in zip(other, shape)) for other in shapes)


@pytest.mark.parametrize(("text", "most", "parameters"), [
    ("9M", 9e6, True), ("9m", 9e6, True), ("9 M", 9e6, True), ("9000000", 9e6, True), ("900k", 9e5, True),
    ("0.3B", 3e8, True), ("0.75GFLOP", 7.5e8, False), ("750 mflops", 7.5e8, False), ("1.5gflops", 1.5e9, False)])
def test_how_budgets_are_written(text, most, parameters):
    budget = Budget(text, TEACHER, {"vocab": 30522, "positions": 512, "segments": 3}, 128, False)
    assert budget.most == pytest.approx(most) and budget.counts_parameters == parameters


def test_a_budget_counts_what_the_student_has():
    config = replace(TEACHER, layers_num=2, hidden_size=24, heads_num=3, feedforward_size=40)
    student = from_scratch(config, 50, seed=1)
    tables = {"vocab": 50, "positions": 512, "segments": 3}
    count = sum(parameter.numel() for parameter in student.parameters())
    assert Budget("1M", config, tables, 16, False).cost(Shape(2, 24, 40, 3)) == count
    assert Budget("1M", config, tables, 16, True).cost(Shape(2, 24, 40, 3)) == count - 50 * 24
    assert Budget("1GFLOP", config, tables, 16, True).cost(Shape(2, 24, 40, 3)) == \
        forward_operations(sizes_of(config, **tables), 16)


def options(bench, *more) -> list:
    return ["calibrate.py", "--pretrained_model_path", bench / "teacher.bin", "--config_path", bench / "config.json",
            "--dataset_path", bench / "dynamic.pt", "--dev_path", bench / "dev.pt", "--calibration_batches", 2, *more]


@pytest.fixture
def quick(monkeypatch):
    """Speeds of few calls: the clock is not what is tested."""
    monkeypatch.setattr(sweep, "SECONDS", 0.01)


def test_the_table_says_what_calibrate_makes(quick, bench, tmp_path, capsys):
    call(*options(bench, "--sweep", "2x16 1x32", "1x24x20", "--sweep_path", tmp_path / "new" / "table.jsonl"))
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "new/table.jsonl").read_text().splitlines()]
    assert [row["name"] for row in rows] == ["teacher", "2x16", "1x32", "1x24x20"]
    assert len(re.findall(r"^1 of 2 layers stays, number 0; ", said, re.MULTILINE)) == 1
    assert rows[0]["speed"] == 1  # it is not measured against itself
    pytest.importorskip("matplotlib")
    assert (tmp_path / "new/table.png").read_bytes().startswith(b"\x89PNG")
    for row, shape in ((rows[1], ["--target_dim", 16]), (rows[2], ["--target_layers", 1]),
                       (rows[3], ["--target_layers", 1, "--target_dim", 24, "--target_feedforward_size", 20])):
        call(*options(bench, *shape, "--output_model_path", tmp_path / "one.bin"))
        loss, accuracy = re.search(r"student +\S+ M +(\S+) +(\S+) %", capsys.readouterr().out).groups()
        assert (f"{row['loss']:.3f}", f"{100 * row['accuracy']:.1f}") == (loss, accuracy)
        student = load_model(tmp_path / "one.bin", config=None, vocab_size=len(TOKENS))
        assert row["parameters"] == sum(tensor.numel() for tensor in student.weights.values())
        assert row["heads"] == student.config.heads_num and row["speed"] > 0 and row["texts_per_second"] > 0
    call(*options(bench, "--budget", "0.02M", "--tie_student", "--sweep_path", tmp_path / "budget.jsonl"))
    bought = [json.loads(line) for line in (tmp_path / "budget.jsonl").read_text().splitlines()[1:]]
    assert bought and all(row["parameters"] <= 0.02e6 for row in bought)
    best = max(rows[1:], key=lambda row: row["accuracy"])
    advised = calibrate_parser().parse_args(shlex.split(said.splitlines()[-1])[3:])
    assert vars(advised) == vars(calibrate_parser().parse_args(list(map(str, options(
        bench, "--target_layers", best["layers"], "--target_dim", best["hidden"], "--target_feedforward_size",
        best["feedforward"], "--target_heads", best["heads"], "--output_model_path", f"{best['name']}.bin")[1:]))))


def test_a_command_is_given_again():
    words = ["--corpus_path", "a.jsonl", "b c", "--full_sentences", "true", "--text_field", "content", "--seq_length",
             "64", "--dev_path", "dev.pt", "--do_lower_case", "false", "--pretrained_model_path", "t", "--tie_student"]
    args = calibrate_parser().parse_args([*words, "--budget", "9M"])
    assert sorted(typed_again(calibrate_parser(), args, without=["budget"])) == sorted(words)
    assert typed_again(calibrate_parser(), args, ["tie_student", "keep_layers"]) == ["--tie_student"]


def test_an_encoder_is_judged_by_its_agreement(quick, bench, tmp_path, capsys):
    weights = torch.load(bench / "teacher.bin", weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if "target" not in name}, tmp_path / "encoder.bin")
    (tmp_path / "encoder_config.json").write_text(CONFIG.to_json())
    call(*options(bench, "--sweep", "2x16", "1x32", "--pretrained_model_path", tmp_path / "encoder.bin"))
    said = capsys.readouterr().out
    assert re.search(r"speed +cosine +similarities +nearest 10", said) and "1 - cosine" in said
    assert re.search(r"^2x16 +2 .* 0\.\d{3} ", said, re.MULTILINE)


@pytest.mark.parametrize(("more", "words"), [
    (["--sweep", "2x16", "--target_dim", "16"], "--target_dim: for one student; --sweep and --budget compare"),
    (["--sweep", "2x16", "--allow_missing_head"], "--allow_missing_head: for one student"),
    (["--sweep", "2x16", "--output_model_path", "out.bin"], "--output_model_path: for one student"),
    (["--sweep", "2x16", "--output_format", "huggingface"], "--output_format: for one student"),
    (["--sweep", " "], "--sweep is empty; give a value"),
    (["--sweep", "2x16", "--seq_length", "16"], "--seq_length: how text becomes instances; those of --dataset_path"),
    (["--target_dim", "16", "--text_field", "x"], "--text_field: how text becomes instances"),
    (["--target_dim", "0", "--output_model_path", "x.bin"], "--target_dim 0: must be from 2 to the teacher's"),
    (["--budget", "10MB"], "--budget 10MB: parameters like"), (["--budget", "nan"], "--budget nan: parameters like"),
    (["--budget", "9"], "parameters like 9M, or operations of a text like 0.75GFLOP"),
    (["--budget", "0.0001M"], "--budget 0.0001M: the smallest shape tried, 1x2x2, needs 0.000"),
    (["--sweep", "3x16"], "the teacher is 2x32"), (["--sweep_path", "x.jsonl"], "--sweep_path goes with --sweep or"),
    (["--target_dim", "16"], "--output_model_path is needed")])
def test_wishes_that_do_not_go_together(bench, capsys, monkeypatch, more, words):
    monkeypatch.chdir(bench)
    assert words in refused(capsys, bench, *options(bench, *more))
