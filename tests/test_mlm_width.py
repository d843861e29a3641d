"""--mlm_target_dim: an MLM head whose features are wider than the student's hidden states, from training to files."""

import json
from pathlib import Path

import pytest
import torch
from bench import WID, options, reports, run
from commands import call
from corpora import TOKENS
from small import FOUR_BY_32, Product, micro_batches, teacher

from uer.config import ModelConfig, config_from_dict
from uer.conversion.merge import merge
from uer.errors import UserError
from uer.formats import load_model
from uer.models.bert import from_weights
from uer.squeeze.groups import build_groups

CONFIG = ModelConfig(hidden_size=32, layers_num=2, heads_num=2, feedforward_size=64, max_seq_length=32)
WIDER = [*WID, "--mlm_target_dim", "24"]


def test_the_config_says_it():
    student = CONFIG.student(16, "dim", 24)
    assert student.mlm_width == 24 and config_from_dict(student.to_dict(), "here") == student
    assert CONFIG.student(16, "dim", 16) == CONFIG.student(16, "dim") and "mlm_size" not in CONFIG.to_dict()
    for key, value in (("mlm_size", "wide"), ("mlm_size", True), ("tie_weights", "false")):
        with pytest.raises(UserError, match=f"{key} is {value!r}"):
            config_from_dict({**CONFIG.to_dict(), key: value}, "here")
    with pytest.raises(UserError, match="tie_weights cannot be true"):
        config_from_dict({**student.to_dict(), "tie_weights": True}, "here")


@pytest.mark.parametrize("width", [0, 1, 33])
def test_widths_that_the_teacher_does_not_have(width):
    with pytest.raises(UserError, match=rf"--mlm_target_dim {width}: must be from 2 to the 32 features"):
        build_groups(CONFIG, 16, "dim", width)


def test_a_head_that_has_no_features(bench, teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="--mlm_target_dim 6: the teacher's head has no features of its own"):
        run(options(bench, "--weight_squeeze", "--target_dim", "12", "--mlm_target_dim", "6", "--compactor_init",
                    "calibrated", total_steps=1, pretrained_model_path=teacher, config_path=None))


def test_merged_is_trained():
    """A wider head keeps more of the features and is merged exactly; a head of full width loses none."""
    for width in (48, 128):
        product = Product(FOUR_BY_32, teacher(FOUR_BY_32), target_dim=32, strategy="dim", w_step=1, l2_lambda=20,
                          learning_rate=1e-4, compactor_learning_rate=1e-3, penalty="fade", squeeze_tolerance=1e-4,
                          mlm_target_dim=width)
        for step in range(1, 30):
            product.step(micro_batches(FOUR_BY_32, step, 1))
            product.learner.squeeze(product.learner.ready_to_leave(step))
        assert product.master.sizes().mlm == width and product.master.sizes().hidden == 32
        merged = merge(product.master)
        assert merged.config.mlm_width == width and merged.report.agrees
        assert merged.report.trained_difference < 1e-9


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_from_training_to_a_file(bench, tmp_path, monkeypatch, capsys, strategy):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WIDER, penalty="fade", compactor_mask_strategy=strategy, total_steps=60, w_step=2,
                save_checkpoint_steps=60, tb_path="logs"))
    assert reports(Path("logs"), "train")[-1]["kept/mlm"] == 24
    convert = ["--load_model_path", "model.bin-60", "--mask_path", "masks.txt", "--mask_step", 60,
               "--output_model_path", "out/student.bin"]
    for format_name in ("huggingface", "uer-py"):
        with pytest.raises(SystemExit) as end:
            call("convert.py", *convert, "--output_format", "uer", format_name)
        assert end.value.code == 2
        assert f"--output_format {format_name}: heads there are as wide" in capsys.readouterr().err
        assert not list(Path("out").glob("*"))
    call("convert.py", *convert)
    assert "largest logit difference" in capsys.readouterr().out
    student = load_model("out/student.bin", config=None, vocab_size=len(TOKENS))
    assert (student.config.hidden_size, student.config.mlm_size) == (16, 24)
    assert student.weights["target.mlm_linear_2.weight"].shape == (len(TOKENS), 24)
    assert json.loads(Path("out/student_config.json").read_text())["mlm_size"] == 24
    logits = from_weights(student.config, student.weights)(torch.tensor([[2, 6, 7, 3]]), torch.ones(1, 4).long())
    assert logits.isfinite().all()


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_calibrated(bench, tmp_path, monkeypatch, capsys, train):
    """A wider head explains at least as much; students are trained and resumed at its width, and converted."""
    monkeypatch.chdir(tmp_path)
    words = options(bench, *WIDER, "--compactor_init", "calibrated", "--calibration_batches", "2", total_steps=4,
                    save_checkpoint_steps=2, train=train)
    run(words)
    run([*words, "--resume", "model.bin-2"])
    with pytest.raises(UserError, match=r"mlm_target_dim .24 there, 20 here"):
        run(["20" if word == "24" else word for word in words] + ["--resume", "model.bin-2"])
    call("convert.py", "--load_model_path", "model.bin-4", "--output_model_path", "student.bin")
    student = load_model("student.bin", config=None, vocab_size=len(TOKENS))
    assert (student.config.hidden_size, student.config.mlm_size) == (16, 24)


def test_a_student_with_a_wider_head_as_teacher(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WIDER, "--compactor_init", "calibrated", "--train", "student", total_steps=1))
    call("convert.py", "--load_model_path", "model.bin-1", "--output_model_path", "student.bin")
    again = options(bench, "--weight_squeeze", "--target_dim", "8", "--mask_path", "m.txt", "--penalty", "fade",
                    pretrained_model_path="student.bin", config_path=None, total_steps=50, w_step=2,
                    output_model_path="smaller.bin")
    run(again)
    call("convert.py", "--load_model_path", "smaller.bin-50", "--mask_path", "m.txt", "--mask_step", 50,
         "--output_model_path", "out.bin")
    smaller = load_model("out.bin", config=None, vocab_size=len(TOKENS))
    assert (smaller.config.hidden_size, smaller.config.mlm_width) == (8, 8)
