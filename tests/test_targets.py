"""Teachers without MLM head, compressed as what they are: encoders, classifiers, taggers, readers."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from commands import TEACHER, call, pretrain_options, refused
from corpora import TOKENS
from safetensors.torch import save_file
from test_calibration import batches, config_of, random_teacher

from uer.calibration.student import apply_calibration, calibrate
from uer.config import ModelConfig
from uer.conversion.merge import merge
from uer.errors import UserError
from uer.evaluation.vectors import own_length
from uer.formats import load_model
from uer.formats.export import write_huggingface, write_uer
from uer.formats.tokenizer_files import text_beside
from uer.models.bert import from_scratch, from_weights
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master

KINDS = [("states", "mean", 24), ("states", "max", 24), ("tokens", "mean", 5), ("cls", "first", 3), ("cls", "mean", 1)]


def headed(target: str, pooling: str, outputs: int, seed: int = 1) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """A random teacher with this target, float64."""
    config = replace(config_of(), target=target, pooling=pooling, outputs=outputs)
    weights = random_teacher(config, seed)
    if target == "states":
        weights |= {"target.output_layer.weight": torch.eye(24, dtype=torch.float64),
                    "target.output_layer.bias": torch.zeros(24, dtype=torch.float64)}
    return config, weights


def said(config, weights, src, seg) -> torch.Tensor:
    """What a model says of a batch; of an encoder, its pooled states in the teacher's space."""
    model = from_weights(config, {name: tensor.double() for name, tensor in weights.items()}).eval()
    with torch.no_grad():
        return model.target(model.pooled(src, seg)) if config.target == "states" else model(src, seg)


@pytest.mark.parametrize(("target", "pooling", "outputs"), KINDS)
@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_nothing_dropped_is_exactly_the_teacher(target, pooling, outputs, strategy):
    config, weights = headed(target, pooling, outputs)
    groups = build_groups(config, 24, strategy)
    calibration = calibrate(config, weights, groups, batches())
    master = Master(config, apply_calibration(calibration, weights, groups), groups)
    fresh = batches(1, seed=99)[0]
    wanted = said(config, weights, fresh.src, fresh.seg)
    given = said(config, merge(master).weights, fresh.src, fresh.seg)
    assert wanted.std() > 0.03
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("target", "pooling", "outputs"), KINDS)
def test_a_smaller_one_is_composed_as_the_compactors_say_and_near_its_teacher(target, pooling, outputs):
    config, weights = headed(target, pooling, outputs)
    groups = build_groups(config, 12, "dim")
    calibration = calibrate(config, weights, groups, batches(40))
    merged = merge(Master(config, apply_calibration(calibration, weights, groups), groups))
    assert merged.report.agrees and merged.config.outputs == outputs and merged.config.hidden_size == 12
    fresh = batches(4, seed=99)
    pairs = [(said(config, weights, x.src, x.seg), said(merged.config, merged.weights, x.src, x.seg)) for x in fresh]
    wanted, given = (torch.cat(side) for side in zip(*pairs))
    error = (given - wanted).pow(2).mean() / (wanted - wanted.mean(0)).pow(2).mean()
    assert error < 1 and given.shape == wanted.shape


def test_a_fading_master_keeps_what_its_masks_leave():
    """The published start: masked entries at zero, then squeezed; what the classifier says stays the same."""
    config, weights = headed("cls", "first", 3)
    groups = build_groups(config, 12, "dim")
    master = Master(config, weights, groups)
    for group in groups.values():
        group.set_keep(group.choose(torch.arange(group.size).double(), 16))
    for tensor in master.compactors:
        master.parameters[tensor.name].data.index_fill_(tensor.dim, groups[tensor.group].dropped, 0.0)
    fresh = batches(1, seed=99)[0]
    student = master.build_student().eval()
    with torch.no_grad():
        wanted = student(fresh.src, fresh.seg)
        merged = merge(copy.deepcopy(master))
        given = said(merged.config, merged.weights, fresh.src, fresh.seg)
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-10)
    assert set(groups) == {"hidden", "attention.0", "ffn.0", "attention.1", "ffn.1", "cls"}


def encoder_file(folder, **changes):
    """An encoder without any head, as a UER file with its config."""
    weights = {name: tensor for name, tensor in from_scratch(TEACHER, len(TOKENS), 1).state_dict().items()
               if not name.startswith("target.")}
    write_uer(folder / "encoder.bin", weights)
    (folder / "encoder_config.json").write_text(replace(TEACHER, **changes).to_json())
    return folder / "encoder.bin", weights


def test_calibrate_takes_an_encoder_as_it_is_and_its_student_again(files, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("uer.progress.FIRST", 0.0)
    path, _ = encoder_file(tmp_path)
    (tmp_path / "encoder.bin.json").write_text(json.dumps(  # as beside a checkpoint of pretrain.py
        {"teacher": TEACHER.to_dict(), "objective": "states", "sentence": None}))
    text = ["--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt"]
    call("calibrate.py", "--pretrained_model_path", path, *text, "--target_dim", 64, "--output_model_path",
         tmp_path / "student.bin")
    out, shown = capsys.readouterr()
    assert "pooled states" in out and "cosine" in out and "MLM" not in out
    assert "calibration: 1 of 10 parts" in shown and "calibration: 10 of 10 parts" in shown
    student = load_model(tmp_path / "student.bin", config=None, vocab_size=len(TOKENS), target=None)
    assert (student.config.target, student.config.outputs, student.config.hidden_size) == ("states", 128, 64)
    assert student.weights["target.output_layer.weight"].shape == (128, 64)
    call("calibrate.py", "--pretrained_model_path", tmp_path / "student.bin", *text, "--target_dim", 64,
         "--output_model_path", tmp_path / "same.bin", "--full_sentences", "true", "--seq_length", 24)
    same = load_model(tmp_path / "same.bin", config=None, vocab_size=len(TOKENS), target=None)
    src = torch.arange(5, 25).view(2, 10)
    torch.testing.assert_close(said(same.config, same.weights, src, torch.ones_like(src)),
                               said(student.config, student.weights, src, torch.ones_like(src)), rtol=0, atol=1e-5)


def test_a_head_that_was_made_up_is_not_measured(files, tmp_path, capsys):
    path, _ = encoder_file(tmp_path)
    call("calibrate.py", "--pretrained_model_path", path, "--corpus_path", files / "corpus.txt", "--vocab_path",
         files / "vocab.txt", "--target_dim", 64, "--allow_missing_head", "--output_model_path", tmp_path / "s.bin",
         "--output_format", "huggingface")
    assert "good  unknown, as nothing was compared" in capsys.readouterr().out
    assert "accuracy" not in (tmp_path / "s" / "README.md").read_text()


def test_a_fine_tuned_file_keeps_its_labels_and_can_be_asked(files, tmp_path, capsys, monkeypatch):
    """finetune/run_classifier.py -> calibrate.py -> inference/run_classifier_infer.py"""
    from tuning import FAST, write_uer_tsv

    write_uer_tsv(tmp_path / "train.tsv", 40, 1)
    vocab = ["--vocab_path", files / "vocab.txt"]
    call("finetune/run_classifier.py", "--pretrained_model_path", files / "teacher.bin", "--config_path",
         files / "config.json", *vocab, "--train_path", tmp_path / "train.tsv", "--dev_path", tmp_path / "train.tsv",
         "--pooling", "mean", "--output_model_path", tmp_path / "tuned.bin", *FAST[:-1], 0.001)
    call("calibrate.py", "--pretrained_model_path", tmp_path / "tuned.bin", *vocab, "--corpus_path",
         files / "corpus.txt", "--target_dim", TEACHER.hidden_size, "--output_model_path", tmp_path / "student.bin")
    write_uer_tsv(tmp_path / "test.tsv", 30, 2, labels=False)
    answers = []
    for name in ("tuned", "student"):
        call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / f"{name}.bin", *vocab,
             "--output_logits", "--test_path", tmp_path / "test.tsv", "--prediction_path", tmp_path / f"{name}.tsv")
        answers.append((tmp_path / f"{name}.tsv").read_text())
    assert answers[0].splitlines()[0] == "label\tlogits" and len(set(answers[0].splitlines())) > 25
    given, wanted = (torch.tensor([[float(x) for x in line.split("\t")[1].split()] for line in answer.splitlines()[1:]])
                     for answer in answers)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-4)
    call("pretrain.py", *pretrain_options(
        files, tmp_path / "run", "--weight_squeeze", "--target_dim", 64, "--mlm_target_dim", 96, "--compactor_init",
        "calibrated", pretrained_model_path=tmp_path / "tuned.bin", total_steps=1))
    call("convert.py", "--load_model_path", tmp_path / "run-1", "--output_model_path", tmp_path / "trained.bin")
    call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "trained.bin", *vocab, "--test_path",
         tmp_path / "test.tsv", "--prediction_path", tmp_path / "trained.tsv")
    call("convert.py", "--load_model_path", tmp_path / "tuned.bin", "--output_model_path", tmp_path / "as_is.bin")
    for name in ("student", "trained", "as_is"):  # length and pairs come along, and evaluate.py heeds them as well
        facts = json.loads((tmp_path / f"{name}.bin.json").read_text())
        loaded = load_model(tmp_path / f"{name}.bin", config=None, vocab_size=None, target=None)
        assert facts["seq_length"] == own_length(loaded) == 24 and facts["pairs"] is False
        assert (facts["labels"], facts["pooling"]) == (["0", "1"], "mean")
        assert facts["text"]["vocab_sha256"] and [rules.line() for rules in text_beside(tmp_path / f"{name}.bin")] == [
            rules.line() for rules in text_beside(tmp_path / "tuned.bin")]
    call("convert.py", "--load_model_path", tmp_path / "student.bin", "--output_model_path", tmp_path / "other.bin")
    again = json.loads((tmp_path / "other.bin.json").read_text())
    assert again == json.loads((tmp_path / "student.bin.json").read_text())
    facts = json.loads((tmp_path / "student.bin.json").read_text())  # a file of before, without its text
    (tmp_path / "student.bin.json").write_text(json.dumps({k: v for k, v in facts.items() if k != "text"}))
    assert text_beside(tmp_path / "student.bin")[0].line() == text_beside(tmp_path / "tuned.bin")[0].line()
    call("evaluate.py", "--task", "agreement", "--model_path", tmp_path / "student.bin", "--teacher_path",
         tmp_path / "tuned.bin", *vocab, "--test_path", tmp_path / "train.tsv")
    monkeypatch.setattr("uer.conversion.outputs.check_packages", lambda: None)
    monkeypatch.setattr("uer.calibration.command.build_dataset", None)  # what cannot be is known before
    capsys.readouterr()
    for more, words in ((["--output_format", "uer", "huggingface"], "this one's pooling is mean"),
                        (["--output_format", "onnx", "--keep_embedding_size"], "for sentence encoders"),
                        (["--target_dim", 63], "multiple of 2")):
        assert words in refused(
            capsys, tmp_path, "calibrate.py", "--pretrained_model_path", tmp_path / "tuned.bin", *vocab,
            "--corpus_path", files / "corpus.txt", "--target_dim", 64, "--output_model_path", tmp_path / "new.bin",
            "--compactors_path", tmp_path / "c.pt", *more)


def test_what_is_done_with_logits_comes_along(files, tmp_path):
    config, weights = headed("cls", "first", 3)
    write_huggingface(tmp_path / "teacher", config, weights)
    of_logits = {"problem_type": "multi_label_classification",
                 "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    settings = json.loads((tmp_path / "teacher" / "config.json").read_text())
    (tmp_path / "teacher" / "config.json").write_text(json.dumps({**settings, **of_logits}))
    call("calibrate.py", "--pretrained_model_path", tmp_path / "teacher", "--corpus_path", files / "corpus.txt",
         "--vocab_path", files / "vocab.txt", "--target_dim", 12, "--calibration_batches", 1, "--seq_length", 24,
         "--output_model_path", tmp_path / "s.bin", "--output_format", "uer", "huggingface")
    call("convert.py", "--load_model_path", tmp_path / "s.bin", "--output_model_path", tmp_path / "again",
         "--output_format", "huggingface")
    call("scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", tmp_path / "s.bin",
         "--output_model_path", tmp_path / "third")
    for name in ("s", "again", "third"):
        assert of_logits.items() <= json.loads((tmp_path / name / "config.json").read_text()).items()
    assert load_model(tmp_path / "s.bin", config=None, vocab_size=None, target=None).config.multi_label
    (tmp_path / "texts.tsv").write_text("text_a\n" + "the a\nof in\n" * 4)
    call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "s.bin", "--vocab_path",
         files / "vocab.txt", "--test_path", tmp_path / "texts.tsv", "--prediction_path", tmp_path / "p.tsv",
         "--output_logits", "--output_prob")
    for line in (tmp_path / "p.tsv").read_text().splitlines()[1:]:
        label, *numbers = line.split("\t")
        logits, shares = (torch.tensor([float(number) for number in part.split()]) for part in numbers)
        torch.testing.assert_close(shares, logits.sigmoid(), rtol=0, atol=1e-5)
        assert label == ",".join(str(number) for number in range(3) if logits[number] >= 0)


def test_heads_that_are_none_of_these(tmp_path):
    _, weights = encoder_file(tmp_path)
    write_uer(tmp_path / "half.bin", {**weights, "target.output_layer_2.weight": torch.zeros(2, 128)})
    (tmp_path / "half_config.json").write_text(TEACHER.to_json())
    with pytest.raises(UserError, match=r"missing: .*output_layer_1"):
        load_model(tmp_path / "half.bin", config=None, vocab_size=None, target=None)
    folder = tmp_path / "choice"
    folder.mkdir()
    save_file({"bert.embeddings.word_embeddings.weight": torch.zeros(8, 4)}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        '{"architectures": ["BertForMultipleChoice"], "hidden_size": 4, "num_hidden_layers": 1, '
        '"num_attention_heads": 1, "intermediate_size": 8}')
    with pytest.raises(UserError, match="ForMultipleChoice"):
        load_model(folder, config=None, vocab_size=None, target=None)
