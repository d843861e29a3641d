"""A student that is written where another one was is that student and nothing of the other."""

from __future__ import annotations

import json

from bench import assert_same
from commands import call

from uer.formats import load_model
from uer.formats.sentence import read_sentence_facts
from uer.formats.storage import PendingFiles


def test_a_folder_keeps_what_is_no_part_of_a_model(tmp_path):
    there = tmp_path / "model"
    (there / "1_Pooling").mkdir(parents=True)
    (there / "2_Dense").mkdir()
    for name in ("1_Pooling/config.json", "2_Dense/config.json", "vocab.txt", "model.safetensors.index.json",
                 "pytorch_model-00001-of-00002.bin", "config.json", "notes.txt", "model_notes.txt"):
        (there / name).write_text("old")
    with PendingFiles() as pending:
        new = pending.add(there)
        (new / "1_Pooling").mkdir(parents=True)
        (new / "1_Pooling" / "config.json").write_text("new")
        (new / "config.json").write_text("new")
        pending.publish()
    assert {str(file.relative_to(there)): file.read_text() for file in there.rglob("*") if file.is_file()} == {
        "1_Pooling/config.json": "new", "config.json": "new", "notes.txt": "old", "model_notes.txt": "old"}
    assert not (there / "2_Dense").exists()


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
