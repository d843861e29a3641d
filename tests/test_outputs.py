"""Where scripts write to: nothing that is read, and where the user meant it."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
from commands import TEACHER, call, refused
from corpora import TOKENS

from uer.arguments import checked
from uer.errors import UserError
from uer.formats.export import write_huggingface, write_uer
from uer.formats.storage import PendingFiles
from uer.models.bert import from_scratch


@pytest.mark.parametrize(("script", "output", "other"), [
    ("preprocess.py", "dataset_path", "vocab_path"), ("evaluate.py", "output_path", "model_path"),
    ("calibrate.py", "output_model_path", "pretrained_model_path"),
    ("calibrate.py", "output_model_path", "dataset_path"), ("calibrate.py", "output_model_path", "config_path"),
    ("pretrain.py", "mask_path", "vocab_path"),
    ("pretrain.py", "log_path", "dataset_path"), ("pretrain.py", "log_path", "mask_path"),
    ("convert.py", "output_model_path", "load_model_path")])
def test_nothing_that_is_read_is_written(files, tmp_path, capsys, script, output, other):
    """Not even under another name; the config that is written beside a model counts."""
    given = {"preprocess.py": ["corpus_path", "vocab_path", "dataset_path"],
             "evaluate.py": ["model_path", "dataset_path", "output_path"],
             "calibrate.py": ["pretrained_model_path", "config_path", "dataset_path", "vocab_path",
                              "output_model_path"],
             "pretrain.py": ["dataset_path", "vocab_path", "pretrained_model_path", "config_path", "mask_path",
                             "log_path", "output_model_path"],
             "convert.py": ["load_model_path", "output_model_path"]}[script]
    paths = {"vocab_path": "vocab.txt", "config_path": "config.json", "dataset_path": "data.pt",
             "corpus_path": "corpus.txt", "pretrained_model_path": "teacher.bin", "load_model_path": "teacher.bin",
             "model_path": "teacher.bin"}
    values = {name: files / paths[name] if name in paths and name != output else tmp_path / f"{name}.x"
              for name in given}
    if (output, other) == ("output_model_path", "config_path"):
        (tmp_path / "s_config.json").write_text(TEACHER.to_json())
        values |= {"config_path": tmp_path / "s_config.json", "output_model_path": tmp_path / "s.bin"}
    elif other in paths:
        (tmp_path / "link").symlink_to(values[other])
        values[output] = tmp_path / "link"
    else:
        values[output] = values[other]
    more = {"calibrate.py": ["--target_dim", 64], "pretrain.py": ["--weight_squeeze", "--target_dim", 64]}
    words = [word for name, value in values.items() for word in (f"--{name}", value)]
    before = values[other].read_bytes() if values[other].exists() else b""
    message = refused(capsys, tmp_path, script, *words, *more.get(script, []))
    assert f"would be written, but it is --{other} as well" in message or \
        f"would be written, but it is --{output} as well" in message
    assert not before or values[other].read_bytes() == before


@pytest.mark.parametrize("name", ["t.bin.json", "t_config.json", "t_vocab.txt", "t.bin.resume"])
def test_what_says_what_a_model_is_is_not_written_over(files, tmp_path, capsys, name):
    """A name for figures that many would choose."""
    write_uer(tmp_path / "t.bin", from_scratch(TEACHER, len(TOKENS), seed=1).state_dict())
    given = ["--model_path", tmp_path / "t.bin", "--dataset_path", files / "data.pt", "--vocab_path",
             files / "vocab.txt", "--output_path"]
    message = refused(capsys, tmp_path, "evaluate.py", *given, tmp_path / name)
    assert f"{name} would be written, where it is said what the model --model_path" in message
    call("evaluate.py", *given, tmp_path / "t.json")


def test_a_checkpoint_has_its_config_in_its_own_json(files, tmp_path):
    """The one of a student that is called like it takes nothing from it, however often it is written."""
    shutil.copy(files / "teacher.bin", tmp_path / "run.bin-4")
    (tmp_path / "run.bin-4.json").write_text(json.dumps({"teacher": TEACHER.to_dict()}))
    for _ in range(2):
        call("convert.py", "--load_model_path", tmp_path / "run.bin-4", "--output_model_path",
             tmp_path / "run.bin-4.bin")


def test_a_student_may_be_called_as_its_teachers_folder(files, tmp_path):
    write_huggingface(tmp_path / "m", TEACHER, from_scratch(TEACHER, len(TOKENS), seed=1).state_dict())
    call("calibrate.py", "--pretrained_model_path", tmp_path / "m", "--dataset_path", files / "data.pt",
         "--vocab_path", files / "vocab.txt", "--target_dim", 64, "--output_model_path", tmp_path / "m.bin")
    assert (tmp_path / "m_config.json").exists()


def test_paths_in_the_home_folder(files, tmp_path, monkeypatch):
    """Where no shell has put it in place of ~, as in --option=~/file."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copy(files / "teacher.bin", tmp_path / "t.bin")
    call("evaluate.py", "--model_path=~/t.bin", "--dataset_path", files / "data.pt", "--vocab_path",
         files / "vocab.txt", "--output_path=~/found/t.json")
    assert (tmp_path / "found/t.json").exists()
    found = checked(Namespace(target_vocab="~/words.txt", layer_sizes="~/layers.json", task="~/x"))
    assert found == Namespace(target_vocab=str(tmp_path / "words.txt"), layer_sizes=str(tmp_path / "layers.json"),
                              task="~/x")


@pytest.mark.parametrize("name", ["huggingface", "dim", "uer"])
def test_words_are_no_files(files, tmp_path, monkeypatch, name):
    """An output may be called as one of the choices of an option."""
    monkeypatch.chdir(tmp_path)
    call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
         "--dataset_path", files / "data.pt", "--vocab_path", files / "vocab.txt", "--target_dim", 64,
         "--output_model_path", name, "--output_format", "huggingface" if name == "huggingface" else "uer")
    assert Path(name).exists()


def test_what_is_neither_file_nor_folder_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with PendingFiles() as pending, pytest.raises(UserError, match="neither a file nor a folder"):
        pending.add(tmp_path / "pipe")


@pytest.mark.parametrize(("script", "option"), [
    ("preprocess.py", "dataset_path"), ("evaluate.py", "output_path"), ("convert.py", "output_model_path"),
    ("pretrain.py", "output_model_path")])
def test_a_folders_name_is_no_files(files, tmp_path, capsys, script, option):
    """A folder is what who writes out/ means, and it was made a file."""
    given = {"preprocess.py": ["--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt"],
             "evaluate.py": ["--model_path", files / "teacher.bin", "--dataset_path", files / "data.pt"],
             "convert.py": ["--load_model_path", files / "teacher.bin", "--config_path", files / "config.json"],
             "pretrain.py": ["--dataset_path", files / "data.pt", "--vocab_path", files / "vocab.txt",
                             "--config_path", files / "config.json", "--total_steps", 1]}[script]
    assert re.search("is a folder; (a file name|name a file)|a folder's name; give a file's",
                     refused(capsys, tmp_path, script, *given, f"--{option}", f"{tmp_path}/out/"))
    if script == "convert.py":
        call(script, *given, f"--{option}", f"{tmp_path}/out/", "--output_format", "huggingface")
        assert (tmp_path / "out/config.json").exists()
