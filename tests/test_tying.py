"""--tie_student: one table for embedding and decoder, calibrated, written and trained as one."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from bench import CONFIG, options, run
from commands import call, refused
from corpora import TOKENS
from small import normal
from test_calibration import batches, config_of, full_groups, largest_difference, random_teacher
from test_sweep import options as calibrate_options
from workers import processes

from uer.calibration.stream import Stream, double_teacher
from uer.calibration.student import apply_calibration, calibrate, calibrate_on
from uer.calibration.tying import SHARE, _fit, fitted_factors
from uer.config import ModelConfig, parse_with_config
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.formats.shapes import DECODER, WORDS
from uer.models.bert import from_weights
from uer.opts import pretrain_parser
from uer.parallel.collectives import Place
from uer.planning.plan import read_teacher
from uer.squeeze.fold import fold
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master
from uer.training.build_trainer import load_teacher


def tied_teacher(config: ModelConfig) -> dict[str, torch.Tensor]:
    teacher = random_teacher(config)
    return {**teacher, DECODER: teacher[WORDS].clone()}


def tied_student(config: ModelConfig, teacher, groups, data):
    calibration = calibrate(config, teacher, groups, data, tied=True)
    return fold(Master(config, apply_calibration(calibration, teacher, groups), groups), calibration.table)


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_dropped_of_a_tied_teacher_is_the_teacher(tied: bool):
    config = replace(config_of(), tie_weights=tied)
    teacher = tied_teacher(config)
    student, weights = tied_student(config, teacher, full_groups(config), batches())
    assert student.tie_weights and weights[WORDS] is weights[DECODER]
    assert largest_difference(config, teacher, from_weights(student, weights).eval()) < 1e-9


def loss(table, factors, words, decoder, shares, gamma, covariance, share) -> torch.Tensor:
    """The formula of the module's header."""
    def reading(rows):
        return (shares * (rows * gamma).square().sum(1)).sum()

    def predicting(rows):
        return (shares * ((rows @ covariance) * rows).sum(1)).sum()

    return (share * reading(table - words) / reading(words)
            + (1 - share) * predicting(table * factors - decoder) / predicting(decoder))


def test_the_table_is_the_least_of_its_formula():
    """No step away from it, or from its factors, is better."""
    words, decoder = normal(30, 6, seed=1), normal(30, 6, seed=2) + 2 * normal(30, 6, seed=1)
    shares, gamma = torch.rand(30, dtype=torch.float64) + 0.1, normal(6, seed=3).abs() + 0.5
    covariance = normal(40, 6, seed=4).T.cov()
    shares = shares / shares.sum()
    table = _fit(words, decoder, shares, gamma, covariance)
    factors = fitted_factors(table, decoder, shares, covariance, covariance)
    found = loss(table, factors, words, decoder, shares, gamma, covariance, SHARE)
    assert found < 0.5 * loss(words, 1.0, words, decoder, shares, gamma, covariance, SHARE)
    for seed in range(5):
        step = 1e-2 * normal(30, 6, seed=10 + seed)
        assert loss(table + step, factors, words, decoder, shares, gamma, covariance, SHARE) > found
        moved = factors + 1e-2 * normal(6, seed=20 + seed)
        assert loss(table, moved, words, decoder, shares, gamma, covariance, SHARE) > found


def test_a_decoder_that_is_the_embedding_to_factors_costs_nothing():
    """What sets them apart, a factor of each feature, goes into the head's LayerNorm."""
    config = config_of(24, 3, 2, 96)
    teacher = tied_teacher(config)
    teacher[DECODER] = teacher[DECODER] * (1 + 0.3 * normal(24, seed=7))
    student, weights = tied_student(config, teacher, build_groups(config, 24, "dim"), batches(20))
    assert largest_difference(config, teacher, from_weights(student, weights).eval()) < 1e-6
    torch.testing.assert_close(weights[WORDS], teacher[WORDS])


def tie_on_a_share(place: Place, args: argparse.Namespace) -> None:
    config = config_of()
    found = calibrate(config, random_teacher(config), build_groups(config, 12, "dim"), batches(5)[place.rank::2],
                      tied=True)
    torch.save({"table": found.table, **found.tensors}, args.folder / f"{place.rank}.pt")


def test_two_processes_find_what_one_finds(tmp_path):
    processes(tie_on_a_share, 2, folder=tmp_path)
    config = config_of()
    alone = calibrate(config, random_teacher(config), build_groups(config, 12, "dim"), batches(5), tied=True)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found.pop("table"), alone.table, rtol=1e-9, atol=1e-9)
        for name, tensor in alone.tensors.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-8, atol=1e-8, msg=name)


def test_calibrated_written_and_read_as_one(bench, tmp_path, capsys):
    words = calibrate_options(bench, "--target_dim", 16, "--tie_student", "--output_model_path", tmp_path / "tied.bin",
                              "--output_format", "uer", "uer-py", "huggingface")
    call(*words)
    said = capsys.readouterr().out
    assert "--tie_student" in said.splitlines()[-1]
    assert json.loads((tmp_path / "tied/config.json").read_text())["tie_word_embeddings"] is True
    for path in ("tied.bin", "tied-uer-py.bin", "tied"):
        student = load_model(tmp_path / path, config=None, vocab_size=len(TOKENS))
        assert torch.equal(student.weights[WORDS], student.weights[DECODER])
        assert path == "tied" or student.config.tie_weights
    call(*calibrate_options(bench, "--target_dim", 16, "--output_model_path", tmp_path / "untied.bin"))
    sizes = [float(re.search(r"student +(\S+) M", text)[1]) for text in (said, capsys.readouterr().out)]
    assert sizes[0] <= sizes[1]
    call(*calibrate_options(bench, "--sweep", "2x16", "--tie_student"))
    assert re.search(r"^2x16 .* %$", capsys.readouterr().out, re.MULTILINE)


def test_trained_as_one(bench, tmp_path, monkeypatch):
    """From a run of its own or from the file, resumed bit for bit; convert.py gives a tied student."""
    monkeypatch.chdir(tmp_path)
    words = ["--weight_squeeze", "--target_dim", "16", "--compactor_init", "calibrated", "--calibration_batches", "2",
             "--train", "student", "--tie_student"]
    run(options(bench, *words, total_steps=2, save_checkpoint_steps=1))
    whole = torch.load("model.bin-2", weights_only=True)
    assert torch.equal(whole[WORDS], whole[DECODER])
    first = torch.load("model.bin-1", weights_only=True)
    run(options(bench, *words, "--resume", "model.bin-1", total_steps=2))
    again = torch.load("model.bin-2", weights_only=True)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert not torch.equal(first[WORDS], whole[WORDS])
    with pytest.raises(UserError, match="tie_student"):
        run(options(bench, *words[:-1], "--resume", "model.bin-1", total_steps=2))
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin", "--output_format",
         "uer", "huggingface")
    assert load_model("student.bin", config=None, vocab_size=len(TOKENS)).config.tie_weights
    assert json.loads((tmp_path / "student/config.json").read_text())["tie_word_embeddings"] is True


def test_a_folder_with_one_table_keeps_it(bench, tmp_path, monkeypatch):
    """Trained as the last line advises; compactors take the table apart, as ever."""
    monkeypatch.chdir(tmp_path)
    write_huggingface(Path("tied"), replace(CONFIG, layernorm="huggingface", layernorm_eps=1e-12), tied_teacher(CONFIG))
    words = options(bench, "--learning_rate", "1e-3", pretrained_model_path="tied", config_path=None, total_steps=2)
    run(words)
    after = torch.load("model.bin-2", weights_only=True)
    assert torch.equal(after[WORDS], after[DECODER])
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "on", "--output_format",
         "huggingface")
    assert json.loads((tmp_path / "on/config.json").read_text())["tie_word_embeddings"] is True
    Path("before-1.json").write_text(json.dumps({"teacher": {"tie_weights": False}}))
    for resumed in ("model.bin-2", "before-1"):
        args, _ = parse_with_config(pretrain_parser, [*words, "--resume", resumed])
        assert load_teacher(args, len(TOKENS)).config.tie_weights is (resumed == "model.bin-2")
    for kept in ("with its weights", "as config.json alone"):
        for more in ([], ["--weight_squeeze", "--target_dim", "16"]):
            planned, _ = parse_with_config(pretrain_parser, ["--plan", *words, *more])
            assert read_teacher(planned).config.tie_weights is not bool(more), kept
        (tmp_path / "tied/model.safetensors").unlink(missing_ok=True)


def test_what_cannot_be_tied(bench, tmp_path, capsys, monkeypatch):
    for config, message in ((replace(config_of(), target="states", outputs=24), "which this teacher has not"),
                            (replace(config_of(), mlm_size=12), "a shared table is as wide as the states")):
        with pytest.raises(UserError, match=message):
            teacher = double_teacher(config, from_weights_of(config))
            calibrate_on(Stream(teacher, batches(1)), build_groups(config, 12, "dim"), tied=True)
    monkeypatch.chdir(tmp_path)
    assert "compactors cannot hold the one table" in refused(capsys, tmp_path, *calibrate_options(
        bench, "--target_dim", 16, "--tie_student", "--output_model_path", "x.bin", "--compactors_path", "y.pt"))
    with pytest.raises(UserError, match="--tie_student needs --compactor_init calibrated without --train compactors"):
        run(options(bench, "--weight_squeeze", "--target_dim", "16", "--tie_student", "--mask_path", "m.txt"))


def from_weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    from uer.models.bert import from_scratch

    return dict(from_scratch(config, 90, seed=1).state_dict())
