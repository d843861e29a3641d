"""A student that is written where another one was is that student and nothing of the other."""

from __future__ import annotations

import errno
import json
import os
from functools import partial
from pathlib import Path

import pytest
from bench import assert_same
from commands import call

from uer.errors import UserError
from uer.formats import load_model
from uer.formats.sentence import read_sentence_facts
from uer.formats.storage import PendingFiles, write_via


def test_a_folder_keeps_what_is_no_part_of_a_model(tmp_path):
    there = tmp_path / "model"
    (there / "1_Pooling").mkdir(parents=True)
    (there / "2_Dense").mkdir()
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "vocab.txt", "model.safetensors.index.json",
                 "pytorch_model-00001-of-00002.bin", "config.json", "notes.txt", "model-192.bin"):
        (there / name).write_text("old")
    with PendingFiles() as pending:
        new = pending.add(there)
        (new / "1_Pooling").mkdir(parents=True)
        (new / "1_Pooling" / "config.json").write_text("new")
        (new / "config.json").write_text("new")
        pending.publish()
    assert {str(file.relative_to(there)): file.read_text() for file in there.rglob("*") if file.is_file()} == {
        "1_Pooling/config.json": "new", "config.json": "new", "notes.txt": "old", "model-192.bin": "old"}
    assert not (there / "2_Dense").exists()


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    """A folder as if it were a disk of its own."""
    there = tmp_path / "mounted"
    there.mkdir()

    def within(path) -> bool:
        return there in Path(os.path.realpath(Path(path).parent), Path(path).name).parents

    def across(source, target, real, **how):
        if within(source) != within(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        return real(source, target, **how)

    for name in ("replace", "rename", "link"):
        monkeypatch.setattr(os, name, partial(across, real=getattr(os, name)))
    return there


@pytest.mark.parametrize("name", ["mounted", "link"])
def test_a_folder_that_is_a_disk_of_its_own(files, tmp_path, mounted, name):
    (tmp_path / "link").symlink_to("mounted")
    (mounted / "pytorch_model.bin").write_text("old")
    call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
         "--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt", "--target_dim", 64,
         "--output_model_path", tmp_path / name, "--output_format", "huggingface")
    assert load_model(mounted, config=None, vocab_size=None, target=None).config.hidden_size == 64
    assert not (mounted / "pytorch_model.bin").exists()
    assert {file.name for file in tmp_path.iterdir()} == {"mounted", "link"}
    assert not [file.name for file in mounted.iterdir() if file.name.startswith(".")]


def test_a_file_behind_a_link_to_another_disk(tmp_path, mounted):
    (tmp_path / "a.bin").symlink_to("mounted/b.bin")
    write_via(tmp_path / "a.bin", lambda path: path.write_text("new"))
    assert (tmp_path / "a.bin").is_symlink() and (mounted / "b.bin").read_text() == "new"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), KeyboardInterrupt()])
@pytest.mark.parametrize(("links", "step"), [*((True, step) for step in range(6)), *(
    (False, step) for step in range(8))])
def test_where_a_name_cannot_be_given_all_is_as_it_was(tmp_path, monkeypatch, step, error, links):
    """With file systems that know second names for a file, and with those that do not."""
    there, real = tmp_path / "model", {name: getattr(os, name) for name in ("replace", "rename", "link")}
    (there / "1_Pooling").mkdir(parents=True)
    for name in ("model/config.json", "model/vocab.txt", "model/1_Pooling/config.json", "model.bin", "model.bin.json"):
        (tmp_path / name).write_text("old")
    before = {file: file.is_file() and file.read_text() for file in tmp_path.rglob("*")}
    taken: list[str] = []

    def failing(source, target, name, **how):
        nonlocal taken
        if name == "link" and not links:
            raise OSError(errno.EPERM, "no links")
        taken += [name] * (name != "link")  # where that fails, there is another way
        if len(taken) == step + 1:
            raise error
        return real[name](source, target, **how)

    with pytest.raises((UserError, KeyboardInterrupt)), PendingFiles() as pending:
        pending.add(tmp_path / "model.bin").write_text("new")
        new = pending.add(there)
        for name in ("config.json", "model.safetensors"):
            new.mkdir(exist_ok=True)
            (new / name).write_text("new")
        pending.drop(tmp_path / "model.bin.json")
        for name in real:
            monkeypatch.setattr(os, name, partial(failing, name=name))
        try:
            pending.publish()
        finally:
            monkeypatch.undo()
    assert {file: file.is_file() and file.read_text() for file in tmp_path.rglob("*")} == before


def test_a_sentence_encoder_twice(files, tmp_path, teacher):
    words = ["--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt", "--calibration_batches", 2,
             "--output_model_path", tmp_path / "small.bin", "--output_format", "uer", "huggingface"]
    call("calibrate.py", *words, "--vocab_path", teacher, "--target_dim", 64, "--keep_embedding_size")
    assert (tmp_path / "small" / "2_Dense").is_dir()
    call("calibrate.py", *words, "--vocab_path", teacher, "--target_dim", 32)
    assert not (tmp_path / "small" / "2_Dense").exists()
    assert read_sentence_facts(tmp_path / "small") == read_sentence_facts(teacher)
    assert load_model(tmp_path / "small", config=None, vocab_size=None, target=None).config.hidden_size == 32


def test_a_model_with_a_head_where_an_encoder_was(files, tmp_path, teacher):
    words = ["--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt", "--calibration_batches", 2,
             "--output_model_path", tmp_path / "small.bin", "--output_format", "uer", "huggingface"]
    mlm = ["--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json"]
    call("calibrate.py", *words, "--pretrained_model_path", teacher, "--target_layers", 1)
    assert json.loads((tmp_path / "small.bin.json").read_text())["sentence"]
    call("calibrate.py", *words, *mlm, "--target_layers", 1)
    found = load_model(tmp_path / "small.bin", config=None, vocab_size=None, target=None)
    assert found.config.target == "mlm" and found.sentence is None
    assert read_sentence_facts(tmp_path / "small") is None
    again = [str(word).replace("small.bin", "alone.bin") for word in words]
    call("calibrate.py", *again, *mlm, "--target_layers", 1)
    assert_same(found.weights, load_model(tmp_path / "alone.bin", config=None, vocab_size=None, target=None).weights)
