"""calibrate.py --student_path: a trained student's map into its teacher's space, fitted anew to some text."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from commands import call, refused
from corpora import TOKENS, random_corpus
from safetensors.torch import load_file, save_file
from sentence_folder import edit

from uer.calibration.refit import BIAS, WEIGHT, by_direction
from uer.evaluation.vectors import Embedder
from uer.formats import load_model
from uer.formats.sentence import SentenceFacts, read_sentence_facts
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import build


@pytest.fixture
def student(files, teacher, tmp_path):
    """A calibrated student of half the teacher's width, and its folder, which has no map."""
    path = tmp_path / "student.bin"
    call("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt", "--target_dim", 64,
         "--skip_evaluation", "--output_model_path", path, "--output_format", "uer", "huggingface")
    return path


@pytest.fixture
def text(tmp_path):
    """Texts that are as short as the teacher reads them."""
    words = random_corpus(3, 200, 6).split("\n")
    (tmp_path / "text.txt").write_text("\n".join(line for line in words if len(line.split()) > 1))
    return tmp_path / "text.txt"


def refit(text, teacher, student, output, *more):
    call("calibrate.py", "--pretrained_model_path", teacher, "--student_path", student, "--corpus_path", text,
         "--output_model_path", output, *more)
    return load(output)


def load(path):
    return load_model(path, config=None, vocab_size=len(TOKENS), target="states")


def vectors(path, texts, tokenizer):
    model = load(path)
    found = Embedder(model, tokenizer, torch.device("cpu"), mapped=True)
    return found.model.target(found.pooled(found.instances(texts))).detach().double().numpy()


def test_only_the_map_changes_and_it_is_least_squares(text, teacher, student, tmp_path, capsys):
    before, after = load(student), refit(text, teacher, student, tmp_path / "fitted.bin", "--skip_evaluation")
    for name, tensor in before.weights.items():
        assert torch.equal(after.weights[name], tensor) == (name not in (WEIGHT, BIAS)), name
    assert after.config == before.config and after.sentence == before.sentence
    texts = text.read_text().splitlines()
    tokenizer = build(text_beside(teacher)[0])
    wanted = vectors(teacher, texts, tokenizer)
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    errors = {name: ((vectors(path, texts, tokenizer) - wanted) ** 2).sum()
              for name, path in (("before", student), ("after", tmp_path / "fitted.bin"))}
    own = Embedder(load(student), tokenizer, torch.device("cpu"))
    states = own.pooled(own.instances(texts)).double().numpy()
    ones = np.column_stack([states, np.ones(len(states))])
    best = ((ones @ np.linalg.lstsq(ones, wanted, rcond=None)[0] - wanted) ** 2).sum()
    assert best < errors["after"] < 1.5 * best < errors["before"]  # a ridge keeps it from the very least
    assert f"map fitted to {len(texts):,} texts" in capsys.readouterr().out


def test_a_folder_without_a_map_gets_one(text, teacher, student, tmp_path, capsys):
    folder = student.with_suffix("")
    assert load(folder).config.outputs == 64
    refit(text, teacher, folder, tmp_path / "fitted", "--output_format", "huggingface")
    found = load(tmp_path / "fitted")
    assert found.mapped and found.config.outputs == 128
    assert read_sentence_facts(tmp_path / "fitted").max_seq_length == 24
    said = capsys.readouterr().out
    cosines = {when: float(said.split(f", {when}: cosine ")[1].split(",")[0]) for when in ("before", "after")}
    assert cosines["before"] == 0 and cosines["after"] > 0.5
    assert said.count(", before: cosine ") == said.count(", after: cosine ") == 1
    assert "after: cosine" in said.split("\ngood  ")[1]
    for name, tensor in load(folder).weights.items():
        assert name in (WEIGHT, BIAS) or torch.equal(found.weights[name], tensor), name


def test_a_student_that_says_nothing_of_sentences_pools_as_it_was_fitted(text, teacher, student, tmp_path):
    """Its teacher may take the first token's state."""
    folder, first = student.with_suffix(""), tmp_path / "first"
    for name in ("modules.json", "1_Pooling/config.json", "config_sentence_transformers.json"):
        (folder / name).unlink()
    shutil.copytree(teacher, first)
    edit(first / "1_Pooling/config.json",
         lambda data: data.update(pooling_mode_mean_tokens=False, pooling_mode_cls_token=True))
    found = refit(text, first, folder, tmp_path / "fitted", "--output_format", "uer", "huggingface")
    assert found.config.pooling == found.sentence.pooling == "mean"
    assert read_sentence_facts(tmp_path / "fitted-huggingface").pooling == "mean"


def test_vectors_count_by_their_direction_unless_their_lengths_do(teacher):
    loaded = load(teacher)
    assert by_direction(loaded)
    loaded.sentence = SentenceFacts(similarity="dot")
    assert not by_direction(loaded)
    loaded.sentence = SentenceFacts(similarity="dot", normalize=True)
    assert by_direction(loaded)


def test_students_of_another_number_format_or_length(files, text, teacher, student, tmp_path, capsys):
    weights = load_file(student.with_suffix("") / "model.safetensors")
    save_file({name: tensor.double() for name, tensor in weights.items()},
              student.with_suffix("") / "model.safetensors", {"format": "pt"})
    found = refit(text, teacher, student.with_suffix(""), tmp_path / "double.bin")
    assert {tensor.dtype for tensor in found.weights.values()} == {torch.float64} and found.weights[WEIGHT].any()
    tensors = torch.load(student, weights_only=True)
    tensors["embedding.position_embedding.weight"] = tensors["embedding.position_embedding.weight"][:24]
    torch.save(tensors, student)
    for path in (student.with_name("student.bin.json"), student.with_name("student_config.json")):
        edit(path, lambda data: data.get("config", data).update(max_seq_length=24))
    call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt", "--dataset_path",
         tmp_path / "long.pt", "--dynamic_masking", "--seq_length", 40, "--full_sentences")
    assert "24 positions, and texts have up to 40 tokens" in refused(
        capsys, tmp_path, "calibrate.py", "--pretrained_model_path", teacher, "--student_path", student,
        "--corpus_path", text, "--dev_path", tmp_path / "long.pt", "--output_model_path", tmp_path / "short.bin")


def test_what_would_do_nothing_is_refused(files, teacher, student, tmp_path, capsys):
    common = ["--pretrained_model_path", teacher, "--student_path", student, "--corpus_path", files / "corpus.txt"]
    output = ["--output_model_path", tmp_path / "fitted.bin"]
    for more, words in (([*output, "--target_dim", 32], "leave --target_dim out"),
                        ([*output, "--target_dim", 0, "--tie_student", "--compactor_mask_strategy", "head"],
                         "leave --target_dim, --tie_student, --compactor_mask_strategy out"),
                        ([*output, "--dev_path", files / "data.pt", "--skip_evaluation"], "give one of them"),
                        (["--output_model_path", tmp_path / "student.bin.json"], "what the model --student_path"),
                        ([*output, "--sweep", "2x64"], "leave --sweep out"),
                        ([*output, "--compactors_path", tmp_path / "c"], "leave --compactors_path out"),
                        ([], "--output_model_path is needed"),
                        (["--output_model_path", student], "it is --student_path as well")):
        assert words in refused(capsys, tmp_path, "calibrate.py", *common, *more)
    common[1] = files / "teacher.bin"
    assert "is no sentence encoder" in refused(capsys, tmp_path, "calibrate.py", *common, *output, "--vocab_path",
                                               files / "vocab.txt")
    assert not list(tmp_path.glob("fitted*"))
