"""run_glue.py as users run it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from commands import call, refused
from tuning import FAST

from uer.finetuning.glue import average


def test_all_tasks_of_a_folder(tuned, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["finetune/run_glue.py", "--data_dir", tuned / "glue", "--pretrained_model_path", tuned / "hf",
             tuned / "uer.bin", "--model_names", "teacher", "student", "--vocab_path", tuned / "vocab.txt", "--tasks",
             "CoLA", "MRPC", "MNLI", "WNLI", *FAST, "--seeds", 1, 2, "--epochs_num", 1, "--output_path",
             tmp_path / "out", "--predict"]
    call(*words)
    out = tmp_path / "out"
    found = json.loads((out / "glue.json").read_text())
    assert list(found["models"]) == ["teacher", "student"]
    for model in found["models"].values():
        assert list(model["tasks"]) == ["CoLA", "MRPC", "MNLI", "WNLI"]
        scores = [model["tasks"][task]["score"]["median"] for task in ("CoLA", "MRPC", "MNLI")]  # WNLI does not count
        assert model["average"]["median"] == pytest.approx(np.mean(scores))
    lines = (out / "glue.md").read_text().splitlines()
    assert lines[0].replace(" ", "") == ("|model|CoLA(Matthews)|MRPC(F1/accuracy)|MNLI(matched/mismatched)|"
                                         "WNLI(accuracy)|average|")
    assert lines[2].startswith("| teacher") and lines[3].startswith("| student") and "without WNLI" in "".join(lines)
    assert (out / "glue.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and (out / "glue.png").stat().st_size > 5000
    assert sorted(path.name for path in (out / "student" / "submission").iterdir()) == [
        "CoLA.tsv", "MNLI-m.tsv", "MNLI-mm.tsv", "MRPC.tsv", "WNLI.tsv"]
    before = (out / "glue.json").read_bytes()
    call(*words, "--resume")
    assert (out / "glue.json").read_bytes() == before
    alone = [word for word in words if word not in ("MRPC", "MNLI", "WNLI", tuned / "uer.bin", "student")]
    table = (out / "glue.md").read_bytes()
    call(*alone, "--resume")  # a task and a model of the table: the others stay
    assert (out / "glue.json").read_bytes() == before and (out / "glue.md").read_bytes() == table


def test_average_needs_a_task():
    assert average({}) is None and average({"WNLI": {"score": {}}}) is None


@pytest.mark.parametrize(("more", "words"), [
    (["--data_dir", "none"], "--data_dir none: no such folder"),
    (["--data_dir", "."], "none of the folders"),
    (["--model_names", "a", "b"], "--model_names has 2 names for 1 models"),
    (["--model_names", "a/b"], "fit as folder names"),
])
def test_mistakes_of_run_glue(tuned, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call("finetune/run_glue.py", "--data_dir", tuned / "glue", "--pretrained_model_path", tuned / "hf",
             "--output_path", tmp_path / "out", *more)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_all_models_are_looked_at_before_the_first_is_trained(tuned, tmp_path, capsys):
    """The second one has no vocabulary beside it, or is none; the first one's runs have not begun."""
    (tmp_path / "broken.bin").write_bytes(b"x")
    for second, words in ((tuned / "uer.bin", "needs --vocab_path"), (tmp_path / "broken.bin", "damaged")):
        shutil.copy(second, tmp_path / "alone.bin")
        shutil.copy(tuned / "uer_config.json", tmp_path / "alone_config.json")
        message = refused(capsys, tmp_path, "finetune/run_glue.py", "--data_dir", tuned / "glue", "--tasks", "CoLA",
                          "--pretrained_model_path", tuned / "hf", tmp_path / "alone.bin", "--output_path",
                          tmp_path / "out", *FAST)
        assert words in message


def test_a_length_that_nobody_gave_fits_the_model(tuned, tmp_path, capsys):
    """The default is 128 tokens, the model has 64 positions."""
    fast = [*FAST[:4], "--learning_rate", 0.01, "--epochs_num", 1, "--vocab_path", tuned / "vocab.txt"]
    models = ["--pretrained_model_path", tuned / "hf"]
    call("finetune/run_glue.py", "--data_dir", tuned / "glue", "--tasks", "CoLA", *models, "--output_path",
         tmp_path / "out", *fast)
    assert json.loads((tmp_path / "out/hf/CoLA.bin.json").read_text())["seq_length"] == 64
    call("finetune/run_squad.py", "--train_path", tuned / "train1.json", "--dev_path", tuned / "dev1.json", *models,
         "--output_model_path", tmp_path / "s.bin", *fast)
    facts = json.loads((tmp_path / "s.bin.results.json").read_text())["facts"]
    assert (facts["seq_length"], facts["max_query_length"]) == (64, 45)
    message = refused(capsys, tmp_path, "finetune/run_squad.py", "--train_path", tuned / "train1.json", "--dev_path",
                      tuned / "dev1.json", *models, "--output_model_path", tmp_path / "t.bin", "--seq_length", 65)
    assert "--seq_length is 65; a number from 8 to the model's 64 positions is needed" in message
