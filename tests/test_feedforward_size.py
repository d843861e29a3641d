"""--target_feedforward_size: a student whose feed-forward layers are not the teacher's in proportion."""

from pathlib import Path

import pytest
from bench import CONFIG, WID, options, reports, run
from commands import call
from corpora import TOKENS
from small import FOUR_BY_32, Product, micro_batches, teacher

from uer.conversion.merge import merge
from uer.errors import UserError
from uer.formats import load_model
from uer.squeeze.groups import build_groups, student_config

NARROW = [*WID, "--target_feedforward_size", "20"]


def test_the_groups_say_it():
    groups = build_groups(CONFIG, 16, "dim", target_feedforward_size=20)
    assert [groups[f"ffn.{i}"].target for i in range(2)] == [20, 20]
    student = student_config(CONFIG, groups)
    assert (student.hidden_size, student.feedforward_size, student.mlm_width) == (16, 20, 16)
    assert student_config(CONFIG, build_groups(CONFIG, 16, "head")) == CONFIG.student(16, "head")


@pytest.mark.parametrize("size", [0, 65])
def test_sizes_that_cannot_be(size: int):
    with pytest.raises(UserError, match=rf"--target_feedforward_size {size}: must be from 1 to the teacher's "
                                        rf"feedforward_size 64"):
        build_groups(CONFIG, 16, "dim", target_feedforward_size=size)


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_merged_is_trained(strategy: str):
    product = Product(FOUR_BY_32, teacher(FOUR_BY_32), target_dim=32, strategy=strategy, w_step=1, l2_lambda=20,
                      learning_rate=1e-4, compactor_learning_rate=1e-3, penalty="fade", squeeze_tolerance=1e-4,
                      target_feedforward_size=50)
    for step in range(1, 30):
        product.step(micro_batches(FOUR_BY_32, step, 1))
        product.learner.squeeze(product.learner.ready_to_leave(step))
    assert {layer.feedforward for layer in product.master.sizes().layers} == {50}
    merged = merge(product.master)
    assert merged.config.feedforward_size == 50 and merged.report.agrees
    assert merged.report.trained_difference < 1e-9


def test_from_training_to_a_file(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = options(bench, *NARROW, penalty="fade", total_steps=60, w_step=2, save_checkpoint_steps=30, tb_path="logs")
    run(words)
    assert reports(Path("logs"), "train")[-1]["kept/ffn.1"] == 20
    with pytest.raises(UserError, match=r"target_feedforward_size .20 there, 24 here"):
        run(["24" if word == "20" else word for word in words] + ["--resume", "model.bin-30"])
    call("convert.py", "--load_model_path", "model.bin-60", "--mask_path", "masks.txt", "--mask_step", 60,
         "--output_model_path", "student.bin", "--output_format", "uer", "huggingface")
    for path in ("student.bin", "student"):
        student = load_model(path, config=None, vocab_size=len(TOKENS))
        assert (student.config.hidden_size, student.config.feedforward_size) == (16, 20)


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_calibrated(bench, tmp_path, monkeypatch, train: str):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *NARROW, "--compactor_init", "calibrated", "--calibration_batches", "2", total_steps=2,
                train=train))
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin")
    assert load_model("student.bin", config=None, vocab_size=len(TOKENS)).config.feedforward_size == 20
