"""The experiment's rows, table and picture; the scripts that it runs have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.methods import METHODS, UNTRAINED
from experiments.run import Experiment, parser, row_name
from uer.config import load_config, parse_with_config
from uer.opts import pretrain_parser
from uer.planning.cost import Step, plain_cost
from uer.pretraining import _problems

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def experiment(tmp_path):
    words = ["--work_path", tmp_path, "--teacher", "t.bin", "--vocab_path", "v", "--dataset_path", "d",
             "--dev_path", "e", "--target_dim", "192", "96"]
    return Experiment(parser().parse_args([str(word) for word in words]))


def write(experiment, row: str, loss: float, accuracy: float, seconds: float = 120.0) -> None:
    experiment._file(row).write_text(json.dumps(
        {"name": row, "loss": loss, "accuracy": accuracy, "parameters": 1_500_000, "seconds": seconds,
         "operations": 5e12}))


@pytest.mark.parametrize("method", [method for method in METHODS if method is not UNTRAINED], ids=lambda m: m.name)
def test_every_method_is_a_run_that_pretrain_would_take(method):
    teacher = ["--pretrained_model_path", "t.bin", "--target_dim", "192", "--mask_path", "m",
               "--compactor_mask_strategy", method.strategy]
    words = [*method.options(300, "t.bin"), *method.rate_options(method.rates[0]), "--config_path",
             "bert/tiny_config.json", "--dataset_path", "d", "--vocab_path", "v", "--output_model_path", "o",
             *(teacher if method.start == "teacher" else [])]
    assert _problems(*parse_with_config(pretrain_parser, words)) == []


def test_the_table_has_the_better_rate_of_each_row(experiment):
    write(experiment, "teacher", 2.0, 0.4)
    method = METHODS[1]
    for rate, loss, accuracy in zip(method.rates, (3.5, 3.0), (0.2, 0.3)):
        write(experiment, row_name(96, method, rate, 11), loss, accuracy)
    lines = experiment.table().splitlines()
    assert lines[2:] == [
        "| teacher |  | 1.5 M | 2.000 | 40.0 % | 100 % |  |  |",
        f"| 96: {method.name} | {method.rates[1]} | 1.5 M | 3.000 | 30.0 % | 75 % | 5 | 2.0 |"]


def test_seeds_are_summed_up_at_the_rate_that_was_best_under_the_first(experiment):
    write(experiment, "teacher", 2.0, 0.4)
    experiment.args.seeds, method = [11, 12, 13], METHODS[1]
    write(experiment, row_name(96, method, method.rates[0], 11), 3.0, 0.2)
    write(experiment, row_name(96, method, method.rates[1], 11), 3.5, 0.3)
    write(experiment, row_name(96, method, method.rates[0], 12), 3.4, 0.3, seconds=90.0)
    write(experiment, row_name(96, method, method.rates[1], 12), 2.0, 0.4)
    assert experiment.table().splitlines()[-1] == (
        f"| 96: {method.name} | {method.rates[0]} | 1.5 M | 3.200 | 25.0 (20.0 to 30.0) % | 62 % | 5 | 1.8 |")


def test_operations_are_those_of_each_phase(experiment, tmp_path):
    start = {"rows": 2, "seq": 8, "micro_steps": 1, "processes": 1, "bf16": False, "cuda": False, "distinct": None}
    lines = [{"step": 0, "kind": "model", "operations": {"a": 4, "b": 1}, "composition": 5, "start": start},
             {"step": 50, "kind": "train"}, {"step": 100, "kind": "model", "operations": {"a": 2, "b": 0}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert experiment._operations(tmp_path, METHODS[1]) == 100 * 10 + 200 * 2
    experiment.args.vocab_path, experiment.args.teacher = str(tmp_path / "vocab.txt"), str(tmp_path / "t.bin")
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n")
    (tmp_path / "t_config.json").write_text((ROOT / "bert/tiny_config.json").read_text())
    soft = next(method for method in METHODS if method.soft)
    config = load_config(tmp_path / "t_config.json")
    forward = plain_cost(config, {"vocab": 3, "positions": 0, "segments": 0}, Step(2, 8)).all_operations / 3
    assert experiment._operations(tmp_path, soft) == pytest.approx(1400 + 300 * forward)


def test_the_picture(experiment):
    pytest.importorskip("matplotlib")
    write(experiment, "teacher", 2.0, 0.4)
    for method in METHODS[:3]:
        write(experiment, row_name(192, method, method.rates[0], 11), 3.0, 0.2)
    experiment.picture()
    assert (experiment.work / "students.png").read_bytes().startswith(b"\x89PNG")
