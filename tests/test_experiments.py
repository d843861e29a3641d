"""The experiment's rows, table and picture; the scripts that it runs have tests of their own."""

from __future__ import annotations

import json

import pytest

from experiments.methods import METHODS, UNTRAINED
from experiments.run import Experiment, parser, row_name
from uer.config import parse_with_config
from uer.opts import pretrain_parser
from uer.pretraining import _problems


@pytest.fixture
def experiment(tmp_path):
    words = ["--work_path", tmp_path, "--teacher", "t.bin", "--vocab_path", "v", "--dataset_path", "d",
             "--dev_path", "e", "--target_dim", "192", "96"]
    return Experiment(parser().parse_args([str(word) for word in words]))


def write(experiment, row: str, loss: float, accuracy: float) -> None:
    experiment._file(row).write_text(json.dumps(
        {"name": row, "loss": loss, "accuracy": accuracy, "parameters": 1_500_000, "seconds": 12.0}))


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
        write(experiment, row_name(96, method, rate), loss, accuracy)
    lines = experiment.table().splitlines()
    assert lines[2:] == [
        "| teacher |  | 1.5 M | 2.000 | 40.0 % | 100 % | 12 |",
        f"| 96: {method.name} | {method.rates[1]} | 1.5 M | 3.000 | 30.0 % | 75 % | 12 |"]


def test_the_picture(experiment):
    pytest.importorskip("matplotlib")
    write(experiment, "teacher", 2.0, 0.4)
    for method in METHODS[:3]:
        write(experiment, row_name(192, method, method.rates[0]), 3.0, 0.2)
    experiment.picture()
    assert (experiment.work / "students.png").read_bytes().startswith(b"\x89PNG")
