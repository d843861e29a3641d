"""Where scripts write to: nothing that is read, and where the user meant it."""

from __future__ import annotations

import json
import os
import re
import shutil
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from commands import TEACHER, call, refused
from corpora import TOKENS
from safetensors.torch import load_file

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


@pytest.fixture
def folder(files, tmp_path) -> Path:
    """A teacher's folder, its weights as many have them, and folders of text, of GLUE and of BEIR."""
    write_huggingface(tmp_path / "m", TEACHER, from_scratch(TEACHER, len(TOKENS), seed=1).state_dict())
    torch.save(load_file(tmp_path / "m/model.safetensors"), tmp_path / "m/pytorch_model.bin")
    (tmp_path / "m/model.safetensors").unlink()
    shutil.copy(files / "vocab.txt", tmp_path / "m/vocab.txt")
    (tmp_path / "m/1_Pooling").mkdir()
    (tmp_path / "link").symlink_to("m/pytorch_model.bin")
    for name in ("m/1_Pooling/config.json", "m/tokenizer_config.json", "text/in/a.txt", "data/train.tsv",
                 "data/corpus.jsonl", "data/qrels/test.tsv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    return tmp_path


CALIBRATE = ["calibrate.py", "--pretrained_model_path", "m", "--target_dim", 64, "--vocab_path", "m/vocab.txt"]
TUNE = ["finetune/run_classifier.py", "--pretrained_model_path", "m", "--vocab_path", "m"]
EVALUATE = ["evaluate.py", "--model_path", "m", "--dataset_path", "data.pt"]


@pytest.mark.parametrize(("script", "output"), [
    *(([*CALIBRATE, "--corpus_path", "text", "--output_model_path"], name) for name in (
        "m/pytorch_model.bin", "m/config.json", "m/tokenizer_config.json", "m/config", "m/vocab",
        "m/adapter_config.json", "m/1_Pooling/config.json", "link", "text/in/a.txt", "text/in/../in/a.txt")),
    ([*CALIBRATE, "--corpus_path", "text/*/*.txt", "--output_model_path"], "text/in/a.txt"),
    ([*CALIBRATE, "--dataset_path", "data.pt", "--output_model_path", "x", "--compactors_path"], "m/config.json"),
    ([*TUNE, "--train_path", "t", "--dev_path", "t", "--output_model_path"], "m/pytorch_model.bin"),
    ([*TUNE, "--train_path", "t", "--dev_path", "t", "--log_path"], "m/config.json"),
    ([*TUNE, "--task", "SST-2", "--data_dir", "data", "--output_model_path"], "data/train.tsv"),
    (["finetune/run_squad.py", *TUNE[1:], "--train_path", "t", "--dev_path", "t", "--output_model_path"], "m/config"),
    (["scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", "m", "--output_model_path"],
     "m/pytorch_model.bin"),
    (["scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", "m/pytorch_model.bin",
      "--output_model_path"], "m/config"),
    ([*EVALUATE, "--output_path"], "m/config.json"), ([*EVALUATE, "--output_path"], "m/tokenizer.json"),
    ([*EVALUATE, "--vocab_path", "m/vocab.txt", "--output_path"], "m/tokenizer_config.json"),
    (["evaluate.py", "--model_path", "m", "--task", "retrieval", "--test_path", "data", "--output_path"],
     "data/corpus.jsonl"),
    (["preprocess.py", "--corpus_path", "text", "--vocab_path", "m", "--dataset_path"], "m/vocab.txt"),
    (["preprocess.py", "--corpus_path", "text", "--vocab_path", "m", "--dataset_path"], "m/pytorch_model.bin"),
    (["pretrain.py", "--dataset_path", "data.pt", "--pretrained_model_path", "m", "--weight_squeeze", "--target_dim",
      64, "--output_model_path", "x", "--mask_path"], "m/vocab.txt"),
    (["inference/run_classifier_infer.py", "--load_model_path", "m", "--test_path", "t", "--prediction_path"],
     "m/config.json")])
def test_no_file_of_a_folder_that_is_read_is_written(folder, monkeypatch, capsys, script, output):
    """A teacher was lost with its only weights, a config to what is written beside a model."""
    monkeypatch.chdir(folder)
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    message = refused(capsys, folder, *script, output)
    assert re.search("would be written, (but --.* reads a file of that name there|where it is said what)", message)
    assert {file: file.read_bytes() for file in before} == before


def test_what_is_no_part_of_a_folder_that_is_read_may_be_written_there_again(files, folder, monkeypatch):
    """A student beside its teacher's files, figures beside texts."""
    monkeypatch.chdir(folder)
    (folder / "m/tokenizer_config.json").unlink()
    shutil.rmtree(folder / "m/1_Pooling")
    for _ in range(2):
        call(*CALIBRATE, "--dataset_path", files / "data.pt", "--output_model_path", "m/model.bin")
        call("evaluate.py", "--model_path", "m", "--dataset_path", files / "data.pt", "--output_path", "m/found.json")
        call(*CALIBRATE, "--dataset_path", files / "data.pt", "--output_model_path", "m/onnx/small.bin")
    assert all(map(os.path.isfile, ("m/model.bin", "m/found.json", "m/onnx/small.bin", "m/pytorch_model.bin")))


def test_a_teacher_in_the_folder_one_is_in(files, folder, monkeypatch):
    monkeypatch.chdir(folder / "m")
    shutil.rmtree("1_Pooling")
    Path("tokenizer_config.json").unlink()
    call("calibrate.py", "--pretrained_model_path", ".", "--target_dim", 64, "--dataset_path", files / "data.pt",
         "--output_model_path", "small.bin")
    call("evaluate.py", "--model_path", "./", "--dataset_path", files / "data.pt")
    assert Path("small.bin").is_file() and Path("small_config.json").is_file()


@pytest.mark.parametrize("part", ["m/vocab.txt", "m/1_Pooling"])
def test_no_folder_is_written_over_what_is_read_of_it(folder, monkeypatch, capsys, part):
    """One that has no config.json as well."""
    monkeypatch.chdir(folder)
    (folder / "m/config.json").unlink()
    assert "would be written anew, but --vocab_path reads from it" in refused(
        capsys, folder, "calibrate.py", "--pretrained_model_path", "x", "--vocab_path", part, "--target_dim", 64,
        "--corpus_path", "text", "--output_model_path", "m", "--output_format", "huggingface")


@pytest.mark.parametrize(("script", "name", "said"), [
    (script, name, said) for script in (
        [*CALIBRATE, "--corpus_path", "text", "--output_model_path"],
        [*CALIBRATE, "--corpus_path", "text", "--output_model_path", "x", "--compactors_path"],
        ["pretrain.py", "--dataset_path", "data.pt", "--config_path", "m/config.json", "--total_steps",
         1000, "--output_model_path"],
        [*TUNE, "--train_path", "t", "--dev_path", "t", "--output_model_path"], [*EVALUATE, "--output_path"],
        ["inference/run_classifier_infer.py", "--load_model_path", "x", "--test_path", "t", "--prediction_path"],
        ["scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", "x", "--output_model_path"])
    for name, said in (("n" * 248, "the name is too long"), ("/dev/null", "neither a file nor a folder|is a file, but"),
                       ("circle", "leads to itself"))])
def test_what_cannot_be_written_is_found_before_the_work(folder, monkeypatch, capsys, script, name, said):
    """All steps were run, and nothing of them could be saved. Inputs are not even there."""
    monkeypatch.chdir(folder)
    (folder / "circle").symlink_to("circle")
    assert re.search(said, refused(capsys, folder, *script, name))


def test_what_a_link_leads_to_is_written(files, tmp_path, monkeypatch):
    """And what goes beside a model there, where reading the link looks for it."""
    monkeypatch.chdir(tmp_path)
    for link, place in (("s.bin", "disk/s.bin"), ("s", "disk/folder"), ("data.pt", "disk/data.pt"),
                        ("e.json", "disk/e.json")):
        Path(link).symlink_to(place)
    Path("disk").mkdir()
    Path("disk/data.pt").write_text("old")
    call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt", "--dataset_path",
         "data.pt", "--seq_length", 32, "--dynamic_masking")
    for _ in range(2):
        call("calibrate.py", "--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
             "--dataset_path", "data.pt", "--vocab_path", files / "vocab.txt", "--target_dim", 64,
             "--output_model_path", "s.bin", "--output_format", "uer", "huggingface")
    call("evaluate.py", "--model_path", "s.bin", "--dataset_path", "data.pt", "--output_path", "e.json")
    assert all(Path(name).is_symlink() for name in ("s.bin", "s", "data.pt", "e.json"))
    assert {path.name for path in Path("disk").iterdir()} == {"s.bin", "s_config.json", "folder", "data.pt", "e.json"}
    assert {path.name for path in tmp_path.iterdir()} == {"s.bin", "s", "data.pt", "e.json", "disk"}


@pytest.mark.parametrize("name", ["adapter_config.json", "tf_model.h5", "flax_model.msgpack", "onnx",
                                  "0_Transformer"])
def test_a_folder_with_other_weights_is_not_written_to(folder, monkeypatch, capsys, name):
    """They would seem to be the new model's, and may be all that there is of another."""
    monkeypatch.chdir(folder)
    (folder / "old").mkdir()
    (folder / "old" / name).mkdir()
    assert f"the folder old holds {name} of another model" in refused(
        capsys, folder, *CALIBRATE, "--corpus_path", "text", "--output_model_path", "old", "--output_format",
        "huggingface")


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
