"""calibrate.py, and pretrain.py from a calibrated start, as users run them."""

import json

import pytest
import torch
from commands import TEACHER, call, pretrain_options

from uer.formats import load_model
from uer.models.bert import from_weights


def logits(path) -> torch.Tensor:
    """Of a model file on a fixed batch."""
    loaded = load_model(path, config=None, vocab_size=None)
    src = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        return from_weights(loaded.config, loaded.weights).eval()(src, torch.ones_like(src))


def calibrate_options(files, output, *more):
    return ["--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json", "--dataset_path",
            files / "data.pt", "--vocab_path", files / "vocab.txt", "--target_dim", 32, "--output_model_path", output,
            *more]


@pytest.mark.parametrize(("strategy", "target"), [("dim", 32), ("head", 64)])
def test_calibrate_makes_a_student_and_says_what_it_lost(files, tmp_path, capsys, strategy, target):
    call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
         "--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt", "--target_dim", target,
         "--compactor_mask_strategy", strategy, "--output_model_path", tmp_path / "student.bin",
         "--output_format", "uer", "huggingface")
    said = capsys.readouterr().out
    assert load_model(tmp_path / "student.bin", config=None, vocab_size=None).config.hidden_size == target
    assert load_model(tmp_path / "student", config=None, vocab_size=None).config.hidden_size == target
    for part in ("embedding.layer_norm", "encoder.transformer.1.feed_forward", "target.layer_norm", "student   "):
        assert part in said


def test_a_student_that_nobody_compares_is_the_same(files, tmp_path, capsys):
    call("calibrate.py", *calibrate_options(files, tmp_path / "compared.bin"))
    assert "student   " in capsys.readouterr().out
    call("calibrate.py", *calibrate_options(files, tmp_path / "skipped.bin", "--skip_evaluation", "--output_format",
                                            "uer", "huggingface"))
    said = capsys.readouterr().out
    assert "explained" in said and "student   " not in said
    weights, wanted = (torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("skipped", "compared"))
    assert list(weights) == list(wanted) and all(torch.equal(weights[name], wanted[name]) for name in wanted)
    assert "accuracy" not in (tmp_path / "skipped" / "README.md").read_text()


def test_calibrating_to_the_teachers_size_gives_the_teacher(files, tmp_path):
    call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
         "--dataset_path", files / "data.pt", "--vocab_path", files / "vocab.txt", "--target_dim", TEACHER.hidden_size,
         "--output_model_path", tmp_path / "same.bin")
    (tmp_path / "teacher_config.json").write_text(TEACHER.to_json())
    (tmp_path / "teacher.bin").write_bytes((files / "teacher.bin").read_bytes())
    torch.testing.assert_close(logits(tmp_path / "same.bin"), logits(tmp_path / "teacher.bin"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_both_kinds_of_training_start_from_the_same_student(files, tmp_path, train):
    """With rates of 0 the first step changes nothing: convert.py gives what calibrate.py gives."""
    masks = ["--mask_path", tmp_path / "masks.txt"] if train == "compactors" else []
    call("pretrain.py", *pretrain_options(files, tmp_path / "run.bin", "--weight_squeeze", "--target_dim", 32,
                                          "--compactor_init", "calibrated", "--train", train, *masks,
                                          total_steps=1, learning_rate=0, compactor_learning_rate=0))
    call("convert.py", "--load_model_path", tmp_path / "run.bin-1", "--output_model_path", tmp_path / "trained.bin",
         "--hidden_size", TEACHER.hidden_size)
    call("calibrate.py", *calibrate_options(files, tmp_path / "calibrated.bin"))
    torch.testing.assert_close(logits(tmp_path / "trained.bin"), logits(tmp_path / "calibrated.bin"), rtol=0, atol=1e-5)
    kind = json.loads((tmp_path / "run.bin-1.json").read_text())["kind"]
    assert kind == ("wid" if train == "compactors" else "plain")


def calibrated_run(files, output, *more, **options):
    """Two steps from calibrated compactors."""
    call("pretrain.py", *pretrain_options(files, output, "--weight_squeeze", *more,
                                          **{"target_dim": 32, "compactor_init": "calibrated", **options}))


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_compactors_of_calibrate_start_the_run_that_calibrates_itself(files, tmp_path, capsys, train):
    found = tmp_path / "new folder" / "compactors.pt"
    call("calibrate.py", *calibrate_options(files, tmp_path / "calibrated.bin", "--compactors_path", found))
    calibrated_run(files, tmp_path / "whole.bin", train=train)
    capsys.readouterr()
    calibrated_run(files, tmp_path / "parts.bin", "--compactors_path", found, train=train, dropout=0.1)  # no other run
    assert f"compactors from {found}" in capsys.readouterr().out
    calibrated_run(files, tmp_path / "parts.bin", "--compactors_path", found, train=train)
    whole, parts = (torch.load(tmp_path / f"{name}.bin-2", weights_only=True) for name in ("whole", "parts"))
    # calibrated twice: products may round by where their numbers lie in memory, which AdamW makes a step of a few
    assert all((whole[name] - parts[name]).abs().mean() < 1e-6 for name in whole)


def test_compactors_of_another_run_are_refused(files, tmp_path, capsys):
    found, other = tmp_path / "compactors.pt", tmp_path / "other.bin"
    call("calibrate.py", *calibrate_options(files, tmp_path / "calibrated.bin", "--compactors_path", found))
    weights = torch.load(files / "teacher.bin", weights_only=True)
    torch.save({**weights, "target.mlm_linear_2.bias": weights["target.mlm_linear_2.bias"] + 1}, other)
    (tmp_path / "cut.pt").write_bytes(found.read_bytes()[:5000])
    whole = torch.load(found, weights_only=True)
    text = whole["made_for"]["text"]
    torch.save({**whole, "made_for": {**whole["made_for"], "text": {**text, "strip_accents": False}}},
               tmp_path / "accents.pt")
    older = {**{key: value for key, value in whole["made_for"].items() if key != "text"}, "vocab_sha256": "abc"}
    torch.save({**whole, "made_for": older}, tmp_path / "older.pt")
    take = ["--compactors_path", found]
    for options, changed, words in (
            (take, {"target_dim": 16}, "not the same: --target_dim (32 there, 16 here)\n"),
            (take, {"mlm_target_dim": 48}, "not the same: --mlm_target_dim (None there, 48 here)\n"),
            (take, {"target_dim": 64, "compactor_mask_strategy": "head"}, "--compactor_mask_strategy (dim there, head"),
            (take, {"pretrained_model_path": other}, "not the same: the teacher's weights"),
            (take, {"calibration_batches": 2}, "--calibration_batches does nothing with --compactors_path"),
            (take, {"compactor_init": "identity", "mask_path": tmp_path / "masks.txt"}, "needs --compactor_init calib"),
            (["--compactors_path", files / "teacher.bin"], {}, "not what calibrate.py --compactors_path writes"),
            (["--compactors_path", tmp_path / "cut.pt"], {}, "cut.pt"),
            (["--compactors_path", tmp_path / "accents.pt"], {}, "accents.pt and in this run: accents stripped: no"),
            (["--compactors_path", tmp_path / "older.pt"], {}, "older.pt and in this run: another vocabulary ("),
            (["--compactors_path", tmp_path], {}, "a folder"),
            (["--compactors_path", tmp_path / "none.pt"], {}, "no such file")):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            calibrated_run(files, tmp_path / "run.bin", *options, **changed)
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and said.count("\n") == 1, said
    assert not list(tmp_path.glob("run.bin*"))
    torch.save({**whole, "made_for": {**older, "vocab_sha256": text["vocab_sha256"]}}, tmp_path / "older.pt")
    calibrated_run(files, tmp_path / "run.bin", "--compactors_path", tmp_path / "older.pt", train="student")


def test_compactors_that_cannot_be_written(files, tmp_path, capsys):
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "file" / "compactors.pt", "folder cannot be made"),
                        (files / "data.pt", "--dataset_path")):
        with pytest.raises(SystemExit) as end:
            call("calibrate.py", *calibrate_options(files, tmp_path / "student.bin", "--compactors_path", path))
        said = capsys.readouterr().err
        assert end.value.code == 2 and words in said and said.count("\n") == 1, said
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_soft_labels_and_resume_of_a_trained_student(files, tmp_path):
    options = ["--weight_squeeze", "--target_dim", 32, "--compactor_init", "calibrated", "--train", "student",
               "--soft_targets_weight", 0.5]
    call("pretrain.py", *pretrain_options(files, tmp_path / "whole.bin", *options, total_steps=4))
    call("pretrain.py", *pretrain_options(files, tmp_path / "parts.bin", *options, total_steps=4,
                                          save_checkpoint_steps=2))
    for suffix in ("", ".json", ".resume"):
        (tmp_path / f"parts.bin-4{suffix}").unlink()
    call("pretrain.py", *pretrain_options(files, tmp_path / "parts.bin", *options, "--resume", total_steps=4))
    whole, parts = (torch.load(tmp_path / f"{name}.bin-4", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize(("options", "word"), [
    ([], "either as --corpus_path or"),
    (["--corpus_path", "nothing.txt"], "nothing.txt"),
    (["--corpus_path", "CORPUS", "--target_dim", "31"], "multiple of 2"),
    (["--corpus_path", "CORPUS", "--calibration_batches", "0"], "at least 1"),
    (["--corpus_path", "CORPUS", "--seq_length", "65"], "--seq_length is 65; a number from 3 to the model's 64 pos"),
    (["--corpus_path", "CORPUS", "--dev_path", "CORPUS", "--skip_evaluation"], "give one of them"),
])
def test_mistakes_are_one_sentence(files, tmp_path, capsys, options, word):
    options = [files / "corpus.txt" if option == "CORPUS" else option for option in options]
    with pytest.raises(SystemExit) as end:
        call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
             "--vocab_path", files / "vocab.txt", *(["--target_dim", 32] if "--target_dim" not in options else []),
             "--output_model_path", tmp_path / "out.bin", *options)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error:") and word in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())
