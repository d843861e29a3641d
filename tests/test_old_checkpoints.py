"""Checkpoints that an earlier run of the same name left are no part of a new one."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench import WID, assert_same, options, run

from uer.errors import UserError
from uer.training.checkpoint import checkpoint_steps, load_checkpoint

PLAIN = ["--learning_rate", "1e-3"]


def test_a_new_run_goes_on_from_its_own(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *PLAIN, total_steps=9, save_checkpoint_steps=3))
    before = load_checkpoint(Path("model.bin-9"))
    other = ["--learning_rate", "2e-3"]
    run(options(bench, *other, total_steps=6, save_checkpoint_steps=3, keep_checkpoints=2))
    said = capsys.readouterr().out
    assert "note: model.bin-3 to model.bin-9, of an earlier run: renamed, to end in .old" in said
    assert checkpoint_steps("model.bin") == [3, 6]
    assert_same(load_checkpoint(Path("model.bin-9.old"))[0], before[0])
    run(options(bench, *other, "--resume", total_steps=7))
    assert "going on from model.bin-6" in capsys.readouterr().out
    run(options(bench, *PLAIN, total_steps=3, save_checkpoint_steps=3))
    assert "model.bin-3 to model.bin-7, of an earlier run: renamed, to end in .old2" in capsys.readouterr().out


def test_a_run_that_goes_back_leaves_the_other_future(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *PLAIN, total_steps=6, save_checkpoint_steps=2))
    run(options(bench, *PLAIN, "--resume", "model.bin-2", total_steps=3))
    assert "note: model.bin-4 to model.bin-6, of an earlier run: renamed" in capsys.readouterr().out
    assert checkpoint_steps("model.bin") == [2, 3]
    run(options(bench, *PLAIN, "--resume", total_steps=4))
    assert "note: model" not in capsys.readouterr().out


def test_a_run_that_is_refused_renames_nothing(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, "--w_step", "1", total_steps=3, save_checkpoint_steps=1))
    wrong = Path("masks.txt").read_text().replace("[", "[15, ", 1)
    Path("masks.txt").write_text(wrong)
    with pytest.raises(UserError, match=r"mask file masks\.txt: of another run: at step 1"):
        run(options(bench, *WID, "--resume", "model.bin-1", total_steps=3))
    assert checkpoint_steps("model.bin") == [1, 2, 3] and Path("masks.txt").read_text() == wrong


def test_what_a_run_starts_from_is_not_renamed(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *PLAIN, total_steps=2))
    words = options(bench, *PLAIN, total_steps=2)
    words[words.index("--pretrained_model_path") + 1] = "model.bin-2"
    with pytest.raises(UserError, match=r"model\.bin-2 would be a checkpoint of this run, and is what it starts from"):
        run(words)
    assert checkpoint_steps("model.bin") == [2]
