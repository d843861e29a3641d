"""run_classifier.py and run_classifier_infer.py as users run them, on tiny models with a simple rule to learn."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from commands import call, refused, start
from corpora import TOKENS
from tuning import CONFIG, FAST, options, results

from uer.config import parse_with_config
from uer.finetuning.heads import build_classifier, load_classifier, load_encoder, read_card
from uer.finetuning.options import classifier_parser, infer_parser
from uer.finetuning.tasks import GLUE
from uer.formats.uer_names import heads_out, to_uer_py


def test_train_from_the_shell_and_infer(tuned, tmp_path):
    model = tmp_path / "out" / "c.bin"
    process = start("finetune/run_classifier.py", *options(
        tuned, model, "--test_path", tuned / "dev.tsv", "--pooling", "mean", "--epochs_num", 6, "--prediction_path",
        tmp_path / "test.tsv"))
    said, complaints = process.communicate()
    assert process.returncode == 0, complaints
    assert "epoch 6/6 | loss" in said and "test: accuracy" in said
    assert re.search("^text: ", said, re.MULTILINE) and "note: text: " not in said
    best = results(model)["runs"][0]
    assert best["figures"]["accuracy"] > 0.9 and len(best["epochs"]) == 6
    assert best["score"] == max((x["accuracy"] + x["macro_f1"]) / 2 for x in best["epochs"])
    call("inference/run_classifier_infer.py", "--load_model_path", model, "--vocab_path", tuned / "vocab.txt",
         "--test_path", tuned / "dev.tsv", "--prediction_path", tmp_path / "p.tsv", "--labels_num", 2, "--pooling",
         "mean", "--output_logits", "--output_prob")
    lines = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    assert lines[0] == ["label", "logits", "prob"] and len(lines) == 25
    given = [line[0] for line in lines[1:]]
    assert given == (tmp_path / "test.tsv").read_text().split()[1:]
    wanted = [line.split("\t")[0] for line in (tuned / "dev.tsv").read_text().splitlines()[1:]]
    assert np.mean([a == b for a, b in zip(given, wanted)]) == pytest.approx(best["figures"]["accuracy"])
    for label, logits, probabilities in lines[1:]:
        assert int(label) == np.argmax([float(x) for x in logits.split()])
        assert sum(map(float, probabilities.split())) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("parser", "words"), [
    (classifier_parser, ["--train_path", "t", "--pretrained_model_path", "m"]),
    (infer_parser, ["--load_model_path", "m", "--test_path", "t", "--prediction_path", "p"])])
def test_a_students_config_says_nothing_of_a_new_head(tmp_path, parser, words):
    path, config = tmp_path / "c.json", replace(CONFIG, target="states", outputs=16, pooling="mean")
    words = [*words, "--config_path", str(path)]
    usual = parser().get_default("pooling")
    for content, pooling in ((config.to_json(), usual), (json.dumps({**CONFIG.to_dict(), "pooling": "max"}), "max")):
        path.write_text(content)
        assert parse_with_config(parser, words)[0].pooling == pooling


def test_fine_tuning_goes_on_from_a_fine_smaller(tuned, tmp_path, capsys):
    """With the file's own config: two heads of 8, which nobody would guess of a hidden size of 16."""
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "first.bin", "--epochs_num", 1, dev="train.tsv"))
    assert "warning: the dev data are the training data" in capsys.readouterr().out
    loaded = load_encoder(str(tmp_path / "first.bin"), None)
    tuned = torch.load(tmp_path / "first.bin", weights_only=True)
    assert replace(loaded.config, target=CONFIG.target) == CONFIG
    assert re.search(r"no part of the encoder: (target\.)?output_layer_1\.weight", "".join(loaded.notes))
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in loaded.weights.items())
    heads = {f"output_layer_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert set(tuned) - set(loaded.weights) == heads


def test_what_scripts_written_for_uer_say(tuned, tmp_path):
    for embedding in (["word_pos_seg"], ["word", "pos", "seg"]):
        call("finetune/run_classifier.py", *options(
            tuned, tmp_path / "c.bin", "--embedding", *embedding, "--encoder", "transformer", "--mask", "fully_visible",
            "--optimizer", "adamw", "--scheduler", "linear", "--fp16_opt_level", "O1", "--epochs_num", 1))
    assert results(tmp_path / "c.bin")["facts"]["scheduler"] == "linear"


def test_a_mistake_is_one_sentence(tuned, tmp_path, capsys):
    (tmp_path / "bad.tsv").write_text("label\ttext_a\n1\tx\n")
    assert "bad.tsv: all lines have the label '1'" in refused(
        capsys, tmp_path, "finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", train=tmp_path / "bad.tsv"))


@pytest.mark.parametrize("task", ["CoLA", "MRPC", "STS-B", "MNLI", "RTE"])
def test_glue_tasks_and_their_submissions(tuned, tmp_path, task):
    call("finetune/run_classifier.py", "--task", task, "--data_dir", tuned / "glue" / task, "--pretrained_model_path",
         tuned / "hf", "--pooling", "pooler", "--output_model_path", tmp_path / "m.bin", *FAST, "--prediction_path",
         tmp_path / "submission", "--bf16")
    files = {path.name: path.read_text().splitlines() for path in (tmp_path / "submission").iterdir()}
    assert sorted(files) == (["MNLI-m.tsv", "MNLI-mm.tsv"] if task == "MNLI" else [f"{task}.tsv"])
    for lines in files.values():
        rows = [line.split("\t") for line in lines]
        assert rows[0] == ["index", "prediction"] and [row[0] for row in rows[1:]] == [str(i) for i in range(12)]
        if task == "STS-B":
            assert all(0 <= float(row[1]) <= 5 for row in rows[1:])
        else:
            assert {row[1] for row in rows[1:]} <= set(GLUE[task].labels)
    figures = results(tmp_path / "m.bin")["runs"][0]["figures"]
    assert list(figures) == {"MNLI": ["matched accuracy", "mismatched accuracy"], "CoLA": ["matthews"],
                             "MRPC": ["f1", "accuracy"], "STS-B": ["pearson", "spearman"],
                             "RTE": ["accuracy"]}[task]


def test_inference_of_a_regression_and_predictions_beside_the_data(tuned, tmp_path, capsys):
    data = tmp_path / "STS-B"
    shutil.copytree(tuned / "glue/STS-B", data)
    call("finetune/run_classifier.py", "--task", "STS-B", "--data_dir", data, "--pretrained_model_path", tuned / "hf",
         "--output_model_path", tmp_path / "m.bin", *FAST, "--epochs_num", 1, "--prediction_path", data)
    assert (data / "STS-B.tsv").is_file()
    call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "m.bin", "--vocab_path",
         tuned / "vocab.txt", "--test_path", tuned / "pairs.tsv", "--prediction_path", tmp_path / "p.tsv")
    lines = (tmp_path / "p.tsv").read_text().splitlines()[1:]
    assert len(lines) == 32 and all(float(line) == float(line) for line in lines)
    assert "a score, of which there is no probability" in refused(
        capsys, tmp_path, "inference/run_classifier_infer.py", "--load_model_path", tmp_path / "m.bin", "--vocab_path",
        tuned / "vocab.txt", "--test_path", tuned / "pairs.tsv", "--prediction_path", tmp_path / "q.tsv",
        "--output_prob")


def test_grid_seeds_and_resume(tuned, tmp_path, capsys):
    grid = ["--learning_rate", 0.01, 0.003, "--batch_size", 8, 16, "--seeds", 1, 2, "--pooling", "mean"]
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "whole.bin", *grid))
    said = capsys.readouterr().out
    whole = results(tmp_path / "whole.bin")
    assert len(whole["runs"]) == 8 and len(whole["table"]) == 4
    assert len({run["score"] for run in whole["runs"]}) > 2 and said.count(" to ") >= 2
    assert "| learning rate | batch | seeds |" in said and said.count("epoch 2/2") == 8
    for line in whole["table"]:
        scores = [run["score"] for run in whole["runs"]
                  if (run["learning_rate"], run["batch_size"]) == (line["learning_rate"], line["batch_size"])]
        assert line["score"] == {"median": pytest.approx(np.median(scores)), "lowest": min(scores),
                                 "highest": max(scores)}
    best = max(whole["runs"], key=lambda run: run["score"])
    card = read_card(str(tmp_path / "whole.bin"))
    assert {key: card[key] for key in ("learning_rate", "batch_size", "seed", "score")} == \
        {key: best[key] for key in ("learning_rate", "batch_size", "seed", "score")}
    # interrupted in the fifth run
    import uer.finetuning.grid as module
    before, count = module.tune, [0]

    def breaking(*args, **kwargs):
        count[0] += 1
        if count[0] == 5:
            raise KeyboardInterrupt
        return before(*args, **kwargs)

    module.tune = breaking
    try:
        with pytest.raises(SystemExit) as end:
            call("finetune/run_classifier.py", *options(tuned, tmp_path / "parts.bin", *grid))
    finally:
        module.tune = before
    assert end.value.code == 130 and len(results(tmp_path / "parts.bin")["runs"]) == 4
    capsys.readouterr()
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "parts.bin", *grid, "--resume"))
    said = capsys.readouterr().out
    assert "4 of 8 runs are finished already" in said and said.count("epoch 2/2") == 4
    parts = results(tmp_path / "parts.bin")
    for one, other in zip(whole["runs"], parts["runs"]):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    weights = [torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(tuned, tmp_path / "parts.bin", "--resume", "--pooling", "max"))
    assert "has other runs: pooling (mean there, max here)" in capsys.readouterr().err
    (tmp_path / "parts.bin").unlink()
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(tuned, tmp_path / "parts.bin", *grid, "--resume"))
    assert "the best model of its runs" in capsys.readouterr().err


def test_a_model_and_the_record_of_its_run_appear_together(tuned, tmp_path, capsys, monkeypatch):
    model = tmp_path / "c.bin"
    grid = options(tuned, model, "--epochs_num", 6, "--pooling", "mean", "--learning_rate")
    call("finetune/run_classifier.py", *grid, 1e-8)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("uer.finetuning.grid.summary", lambda runs: 1 / 0)  # killed as the run is recorded
    grid += [1e-8, 0.01, "--resume"]
    with pytest.raises(ZeroDivisionError):
        call("finetune/run_classifier.py", *grid)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    monkeypatch.undo()
    call("finetune/run_classifier.py", *grid)
    assert "1 of 2 runs are finished already" in capsys.readouterr().out
    assert read_card(str(model))["learning_rate"] == 0.01
    (tmp_path / "c.bin.json").unlink()
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *grid)
    assert "c.bin with its .json is not the best model" in capsys.readouterr().err


def test_a_model_that_is_written_over_leaves_no_vocabulary_and_links_lead_to_what_stands_beside(tuned, tmp_path):
    model = tmp_path / "c.bin"
    model.write_bytes(b"another one")
    (tmp_path / "c_vocab.txt").write_text("\n".join(TOKENS[:60]) + "\n")
    (tmp_path / "c_vocab.json").write_text('{"words": 60.5}')  # of something else, and no reason to lose a run
    call("finetune/run_classifier.py", *options(tuned, model))
    (tmp_path / "c_vocab.json").unlink()
    (tmp_path / "links").mkdir()
    (tmp_path / "links/latest.bin").symlink_to(model)
    found = []
    for path in (model, tmp_path / "links/latest.bin"):
        call("inference/run_classifier_infer.py", "--load_model_path", path, "--vocab_path", tuned / "vocab.txt",
             "--test_path", tuned / "dev.tsv", "--prediction_path", tmp_path / "p.tsv", "--output_logits")
        found.append((tmp_path / "p.tsv").read_text())
    assert found[0] == found[1] and not (tmp_path / "c_vocab.txt").exists()
    (tmp_path / "d_vocab.txt").write_text("\n".join(TOKENS[:60]) + "\n")  # of no model
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "d.bin"))
    assert (tmp_path / "d_vocab.txt").exists()


def test_results_of_earlier_versions_go_on(tuned, tmp_path, capsys):
    """A setting that is newer than format 1 needs an entry in NEWER: what files of before mean, who do not say it."""
    from uer.finetuning.grid import NEWER

    call("finetune/run_classifier.py", *options(tuned, tmp_path / "old.bin"))
    path = tmp_path / "old.bin.results.json"
    data = json.loads(path.read_text())
    first = {"task", "labels", "pooling", "pretrained_model_path", "model_sha256", "vocab_sha256", "seq_length",
             "dropout", "epochs", "warmup", "scheduler", "weight_decay", "max_grad_norm",
             "bias_correction", "precision", "train", "dev"}
    assert data["facts"].keys() - NEWER.keys() == first
    data["facts"] = {key: value for key, value in data["facts"].items() if key in first}
    path.write_text(json.dumps(data))
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "old.bin", "--resume"))
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(tuned, tmp_path / "old.bin", "--resume", "--group_by_length"))
    assert "group_by_length (False there, True here)" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_half_precisions(tuned, tmp_path, precision):
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", precision, "--epochs_num", 6))
    assert results(tmp_path / "c.bin")["runs"][0]["figures"]["accuracy"] > 0.7
    weights = torch.load(tmp_path / "c.bin", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize(("more", "words"), [
    (["--task", "RTE"], "--task RTE goes with --data_dir"),
    (["--epochs_num", 0, "--batch_size", 8, 0, "--warmup", 2], "--epochs_num is 0, at least 1 is needed; --batch_size"),
    (["--learning_rate", "nan"], "--learning_rate is nan"),
    (["--seq_length", 65], "a number from 8 to the model's 64 positions"),
    (["--pretrained_model_path", "none.bin"], "none.bin: no such file"),
    (["--output_model_path", "."], "cannot be written there"),
    (["--output_model_path", "c.safetensors"], "no .safetensors file but torch's"),
    (["--prediction_path", "p.tsv"], "needs --test_path"),
    (["--output_model_path", "c/"], "c/: a folder's name; give a file's"),
    (["--output_model_path", "c.bin", "--prediction_path", "c.bin.json"], "c.bin.json would be written, but it is"),
    (["--output_model_path", "c.bin", "--log_path", "c.bin.results.json"], "would be written, but it is --log_path"),
    (["--vocab_path", "long.txt"], "81 word embeddings, the vocabulary 82 tokens"),
])
def test_mistakes(tuned, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "long.txt").write_text("\n".join([*TOKENS, "more"]) + "\n")
    with pytest.raises(SystemExit) as end:
        call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", *more))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and words in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["long.txt"]


def test_a_loss_that_is_no_number_ends_the_run(tuned, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", "--learning_rate", 1e30,
                                                    "--max_grad_norm", 0, "--warmup", 0))
    assert "the loss is nan" in capsys.readouterr().err and not (tmp_path / "c.bin").exists()


def test_classifiers_of_uers_own(tuned, tmp_path, capsys):
    """No JSON beside the file: config, labels and pooling come from the options, names of either generation."""
    model = build_classifier(load_encoder(str(tuned / "uer.bin"), None), 3, "mean", seed=1).eval()
    torch.save(heads_out(to_uer_py(model.state_dict())), tmp_path / "theirs.bin")
    again = load_classifier(str(tmp_path / "theirs.bin"), {}, str(tuned / "uer_config.json"), 3, "mean", len(TOKENS))
    assert again.config.pooling == "mean" and again.config.outputs == 3
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    for beside in ({"config": model.config.to_dict()}, {"config": model.config.to_dict(), "pooling": "mean"}):
        told = load_classifier(str(tmp_path / "theirs.bin"), beside, None, None, None, len(TOKENS))
        assert told.config.pooling == "mean"
    common = ["--load_model_path", tmp_path / "theirs.bin", "--vocab_path", tuned / "vocab.txt", "--test_path",
              tuned / "unlabelled.tsv", "--prediction_path", tmp_path / "p.tsv"]
    call("inference/run_classifier_infer.py", *common, "--config_path", tuned / "uer_config.json", "--pooling", "mean",
         "--seq_length", 24)
    lines = (tmp_path / "p.tsv").read_text().splitlines()
    assert lines[0] == "label" and len(lines) == 13 and set(lines[1:]) <= {"0", "1", "2"}
    for more, words in (([], "so --config_path is needed"),
                        (["--config_path", tuned / "uer_config.json", "--labels_num", 2],
                         "--labels_num is 2, the model has 3")):
        with pytest.raises(SystemExit):
            call("inference/run_classifier_infer.py", *common, *more)
        assert words in capsys.readouterr().err
    card = {"config": json.loads((tuned / "uer_config.json").read_text()), "pooling": "mean", "seq_length": 24}
    for outputs, labels, right in ((3, [], r"[012]"), (1, ["LABEL_0"], r"-?\d\.\d{4}")):  # of a student of calibrate.py
        smaller = build_classifier(load_encoder(str(tuned / "uer.bin"), None), outputs, "mean", seed=1)
        torch.save(heads_out(smaller.state_dict()), tmp_path / "theirs.bin")
        (tmp_path / "theirs.bin.json").write_text(json.dumps({**card, "labels": labels}))
        call("inference/run_classifier_infer.py", *common)
        given = (tmp_path / "p.tsv").read_text().splitlines()[1:]
        assert len(given) == 12 and all(re.fullmatch(right, label) for label in given)
    (tmp_path / "theirs.bin.json").unlink()
    torch.save(torch.load(tuned / "uer.bin", weights_only=True), tmp_path / "theirs.bin")
    with pytest.raises(SystemExit):
        call("inference/run_classifier_infer.py", *common, "--config_path", tuned / "uer_config.json")
    assert "no classifier" in capsys.readouterr().err


def test_pairs_and_another_vocabulary(tuned, tmp_path, capsys):
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", train="pairs.tsv", dev="pairs.tsv"))
    (tmp_path / "other.txt").write_text("\n".join([*TOKENS[:-1], "other"]) + "\n")
    with pytest.raises(SystemExit):
        call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "c.bin", "--vocab_path",
             tmp_path / "other.txt", "--test_path", tuned / "pairs.tsv", "--prediction_path", tmp_path / "p.tsv")
    assert "another vocabulary" in capsys.readouterr().err and not (tmp_path / "p.tsv").exists()
