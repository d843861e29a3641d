"""A classifier of pairs made smaller by what it says of pairs, without labels."""

import json
import re
import shlex

import pytest
import torch
from commands import call, make_files, pretrain_options, refused
from tuning import FAST, write_uer_tsv


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A classifier of pairs, and its training pairs as a dataset."""
    folder = make_files(tmp_path_factory.mktemp("pairs"))
    write_uer_tsv(folder / "train.tsv", 60, 1, pairs=True)
    call("finetune/run_classifier.py", "--pretrained_model_path", folder / "teacher.bin", "--config_path",
         folder / "config.json", "--vocab_path", folder / "vocab.txt", "--train_path", folder / "train.tsv",
         "--dev_path", folder / "train.tsv", "--pooling", "mean", "--output_model_path", folder / "tuned.bin",
         *FAST[:-1], 0.001)
    call("preprocess.py", "--data_processor", "pairs", "--corpus_path", folder / "train.tsv", "--text_field",
         "text_a", "text_b", "--vocab_path", folder / "vocab.txt", "--dynamic_masking", "--seq_length", 24,
         "--dataset_path", folder / "pairs.pt")
    return folder


@pytest.fixture
def taught(tuned, tmp_path):
    return pretrain_options(tuned, tmp_path / "run", "--weight_squeeze", "--target_dim", 64, "--mlm_target_dim", 64,
                            "--compactor_init", "calibrated", "--target", "logits", "--augment_texts", 0.3,
                            "--data_processor", "pairs", pretrained_model_path=tuned / "tuned.bin",
                            dataset_path=tuned / "pairs.pt", config_path=None, learning_rate=0.001)


def test_a_classifier_of_pairs_with_nothing_dropped_says_the_same(tuned, tmp_path, capsys):
    call("calibrate.py", "--pretrained_model_path", tuned / "tuned.bin", "--vocab_path", tuned / "vocab.txt",
         "--data_processor", "pairs", "--corpus_path", tuned / "train.tsv", "--text_field", "text_a", "text_b",
         "--target_dim", 128, "--seq_length", 24, "--output_model_path", tmp_path / "same.bin")
    assert "warning: the teacher" not in capsys.readouterr().out
    call("evaluate.py", "--task", "agreement", "--model_path", tmp_path / "same.bin", "--teacher_path",
         tuned / "tuned.bin", "--vocab_path", tuned / "vocab.txt", "--test_path", tuned / "train.tsv")
    said = capsys.readouterr().out
    assert "100.0" in said
    words = shlex.split(said[said.rindex("\nnext  ") + len("\nnext  "):])
    for more in (["--layer_weight", "3"], ["--soft_targets_temperature", "3"], ["--augment_texts", "0.3"],
                 ["--target", "logits"], ["--learning_rate", "0.0005"]):  # as docs/classifiers.md has it
        assert words[words.index(more[0]):][:2] == more
    options = [str(tuned / "pairs.pt") if word == "DATASET" else word for word in words[2:]]
    call("pretrain.py", *options, "--total_steps", 1, "--batch_size", 4)


def test_steps_bring_it_nearer_and_go_on(taught, tmp_path, capsys):
    call("pretrain.py", *taught, "--total_steps", 24, "--report_steps", 1)
    said = capsys.readouterr().out
    losses = [float(loss) for loss in re.findall(r"^step \d+/24 \| loss (\S+)", said, re.MULTILINE)]
    assert len(losses) == 24 and sum(losses[-6:]) < 0.8 * sum(losses[:6]) and "warning: the teacher" not in said
    before = torch.load(tmp_path / "run-24", weights_only=True)
    for file in tmp_path.glob("run-24*"):
        file.unlink()
    call("pretrain.py", *taught, "--total_steps", 24, "--save_checkpoint_steps", 12)
    for file in tmp_path.glob("run-24*"):
        file.unlink()
    call("pretrain.py", *taught, "--total_steps", 24, "--resume")
    after = torch.load(tmp_path / "run-24", weights_only=True)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_single_texts_are_told_or_refused(tuned, taught, tmp_path, capsys):
    assert f"{tuned / 'data.pt'}: built with  --data_processor mlm, and --data_processor says pairs" in refused(
        capsys, tmp_path, "pretrain.py", *taught, "--dataset_path", tuned / "data.pt")
    assert f"data.pt: built with  --data_processor mlm, and {tuned / 'pairs.pt'} holds pairs" in refused(
        capsys, tmp_path, "pretrain.py", *taught, "--dev_path", tuned / "data.pt")
    call("pretrain.py", *taught, "--dataset_path", tuned / "data.pt", "--data_processor", "mlm")
    assert "warning: the teacher was fine-tuned on pairs of texts, and " in capsys.readouterr().out


def test_a_models_config_says_nothing_of_the_dataset(tuned, taught, tmp_path, capsys):
    config = {**json.loads((tuned / "config.json").read_text()), "data_processor": "mlm"}
    (tmp_path / "c.json").write_text(json.dumps(config))
    call("pretrain.py", *taught[:-2], "--learning_rate", 0.001, "--config_path", tmp_path / "c.json")
    assert "warning: the teacher" not in capsys.readouterr().out


@pytest.mark.parametrize(("more", "words"), [
    (["--dataset_path", "pairs.pt", "--data_processor", "mlm"], "built with  --data_processor pairs, and --data_proc"),
    (["--dataset_path", "pairs.pt", "--dev_path", "data.pt"], "the text to calibrate on is of pairs"),
    (["--corpus_path", "train.tsv", "--data_processor", "pairs"], "a table; --text_field names"),
    (["--corpus_path", "train.tsv", "--data_processor", "pairs", "--text_field", "text_a", "text_b",
      "--full_sentences"], "--full_sentences joins")])
def test_calibrate_refuses(tuned, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tuned)
    given = ["--pretrained_model_path", tuned / "tuned.bin", "--vocab_path", tuned / "vocab.txt", "--target_dim", 64,
             "--output_model_path", tmp_path / "s.bin"]
    assert words in refused(capsys, tmp_path, "calibrate.py", *given, *more)
    call("calibrate.py", *given, "--dataset_path", "pairs.pt", "--data_processor", "pairs", "--skip_evaluation")
    call("calibrate.py", *given, "--corpus_path", "train.tsv", "--text_field", "text_a", "--skip_evaluation")
    assert "fine-tuned on pairs of texts, and train.tsv is read as single texts" in capsys.readouterr().out
