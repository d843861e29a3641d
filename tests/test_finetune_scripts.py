"""The fine-tuning scripts as users run them, on tiny models that learn a simple rule in a few steps."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import TOKENS
from test_scripts import ROOT, call
from tuning import CONFIG, write_glue, write_models, write_squad, write_uer_tsv

from uer.errors import UserError
from uer.finetuning.batches import Instance
from uer.finetuning.classify import decisions, predict
from uer.finetuning.glue import average
from uer.finetuning.model import Classifier, build_classifier, load_classifier, load_encoder, pool, read_card
from uer.finetuning.options import POOLINGS
from uer.finetuning.tasks import GLUE
from uer.finetuning.training import Combination, Evaluation, Settings, tune
from uer.optimizers import AdamW, parameter_groups
from uer.reports import Reports

FAST = ["--epochs_num", 2, "--batch_size", 8, "--seq_length", 24, "--learning_rate", 0.01]


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Models, vocabulary and data; not to be written to."""
    folder = tmp_path_factory.mktemp("tuning")
    write_models(folder)
    write_uer_tsv(folder / "train.tsv", 64, 1)
    write_uer_tsv(folder / "dev.tsv", 24, 2)
    write_uer_tsv(folder / "pairs.tsv", 32, 3, pairs=True)
    write_uer_tsv(folder / "unlabelled.tsv", 12, 4, labels=False)
    for task in ("CoLA", "MRPC", "STS-B", "MNLI", "RTE", "WNLI"):
        write_glue(folder / "glue" / task, task)
    write_squad(folder / "train.json", 24, 1, unanswerable=True)
    write_squad(folder / "dev.json", 9, 2, unanswerable=True)
    write_squad(folder / "train1.json", 16, 1)
    write_squad(folder / "dev1.json", 6, 2)
    return folder


def shell(*words) -> subprocess.CompletedProcess:
    """A script from the shell, in the repository's folder."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True)


def options(bench: Path, output: Path, *more, train="train.tsv", dev="dev.tsv") -> list:
    """A command line of run_classifier.py with UER's files."""
    return ["--train_path", bench / train, "--dev_path", bench / dev, "--pretrained_model_path", bench / "uer.bin",
            "--vocab_path", bench / "vocab.txt", "--config_path", bench / "uer_config.json", "--output_model_path",
            output, *FAST, *more]


def results(output: Path) -> dict:
    return json.loads(Path(f"{output}.results.json").read_text())


# -- run_classifier.py and run_classifier_infer.py ---------------------------------------------------------------------


def test_train_and_infer_from_the_shell(bench, tmp_path):
    model = tmp_path / "out" / "c.bin"
    done = shell("finetune/run_classifier.py", *options(bench, model, "--test_path", bench / "dev.tsv", "--pooling",
                                                        "mean", "--epochs_num", 6, "--prediction_path",
                                                        tmp_path / "test.tsv"))
    assert done.returncode == 0, done.stderr
    assert "epoch 6/6 | loss" in done.stdout and "test: accuracy" in done.stdout
    best = results(model)["runs"][0]
    assert best["figures"]["accuracy"] > 0.9 and len(best["epochs"]) == 6
    assert best["score"] == max((x["accuracy"] + x["macro_f1"]) / 2 for x in best["epochs"])
    done = shell("inference/run_classifier_infer.py", "--load_model_path", model, "--vocab_path", bench / "vocab.txt",
                 "--test_path", bench / "dev.tsv", "--prediction_path", tmp_path / "p.tsv", "--labels_num", 2,
                 "--pooling", "mean", "--output_logits", "--output_prob")
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in (tmp_path / "p.tsv").read_text().splitlines()]
    assert lines[0] == ["label", "logits", "prob"] and len(lines) == 25
    given = [line[0] for line in lines[1:]]
    assert given == (tmp_path / "test.tsv").read_text().split()[1:]
    wanted = [line.split("\t")[0] for line in (bench / "dev.tsv").read_text().splitlines()[1:]]
    assert np.mean([a == b for a, b in zip(given, wanted)]) == pytest.approx(best["figures"]["accuracy"])
    for label, logits, probabilities in lines[1:]:
        assert int(label) == np.argmax([float(x) for x in logits.split()])
        assert sum(map(float, probabilities.split())) == pytest.approx(1, abs=1e-5)


def test_fine_tuning_goes_on_from_a_fine_tuned_model(bench, tmp_path, capsys):
    """With the file's own config: two heads of 8, which nobody would guess of a hidden size of 16."""
    call("finetune/run_classifier.py", *options(bench, tmp_path / "first.bin", "--epochs_num", 1))
    loaded = load_encoder(str(tmp_path / "first.bin"), None)
    tuned = torch.load(tmp_path / "first.bin", weights_only=True)
    assert loaded.config == CONFIG and "a fine-tuned head: output_layer_1.weight" in "".join(loaded.notes)
    assert all(torch.equal(tensor, tuned[name]) for name, tensor in loaded.weights.items())
    heads = {f"output_layer_{i}.{part}" for i in (1, 2) for part in ("weight", "bias")}
    assert set(tuned) - set(loaded.weights) == heads


def test_what_scripts_written_for_uer_say(bench, tmp_path):
    for embedding in (["word_pos_seg"], ["word", "pos", "seg"]):
        call("finetune/run_classifier.py", *options(
            bench, tmp_path / "c.bin", "--embedding", *embedding, "--encoder", "transformer", "--mask", "fully_visible",
            "--optimizer", "adamw", "--scheduler", "linear", "--fp16_opt_level", "O1", "--epochs_num", 1))
    assert results(tmp_path / "c.bin")["facts"]["scheduler"] == "linear"


def test_mistakes_from_the_shell_are_one_sentence(bench, tmp_path):
    (tmp_path / "bad.tsv").write_text("label\ttext_a\n1\tx\n")
    done = shell("finetune/run_classifier.py", *options(bench, tmp_path / "c.bin", train=tmp_path / "bad.tsv"))
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "bad.tsv: all lines have the label '1'" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.tsv"]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_uer_file_and_hugging_face_folder_are_the_same_model(bench, pooling):
    src = torch.randint(5, len(TOKENS), (3, 12), generator=torch.Generator().manual_seed(1))
    seg = torch.tensor([[1] * 12, [1] * 5 + [2] * 4 + [0] * 3, [1] + [0] * 11])
    logits = []
    for name in ("uer.bin", "hf"):
        model = build_classifier(load_encoder(str(bench / name), None), 3, pooling, seed=5).eval()
        with torch.no_grad():
            logits.append(model(src, seg))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert logits[0].std() > 1e-3


def test_training_steps_are_those_of_stock_transformers(bench):
    """Same head, same batches, no dropout, float64: the losses of ten steps, AdamW and cut gradients included.

    LayerNorm's gammas stay: ours are √(n / (n − 1)) times theirs, so that Adam's steps on them are not the same.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(bench / "hf"), num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
    ours = build_classifier(load_encoder(str(bench / "hf"), None, dropout=0.0), 3, "pooler", 1).double().train()
    ours.output_layer_2.load_state_dict(theirs.classifier.state_dict())
    for name, parameter in (*ours.named_parameters(), *theirs.named_parameters()):
        parameter.requires_grad_(not name.endswith(("gamma", "LayerNorm.weight")))
    mine = AdamW(parameter_groups(ours.named_parameters(), 3e-3), bias_correction=True)
    named = [(name.endswith("bias"), parameter) for name, parameter in theirs.named_parameters()]
    other = torch.optim.AdamW([{"params": [p for bias, p in named if not bias], "weight_decay": 0.01},
                               {"params": [p for bias, p in named if bias], "weight_decay": 0.0}], lr=3e-3, eps=1e-6)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(10):
        src = torch.randint(5, len(TOKENS), (6, 12), generator=generator)
        seg, labels = torch.ones_like(src), torch.arange(6) % 3
        seg[:, 6:], seg[2, 8:] = 2, 0
        first = torch.nn.functional.cross_entropy(ours(src, seg), labels)
        second = theirs(src, attention_mask=(seg > 0).long(), token_type_ids=(seg - 1).clamp(min=0), labels=labels).loss
        losses.append((first.item(), second.item()))
        for model, optimizer, loss in ((ours, mine, first), (theirs, other, second)):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    table = np.array(losses)
    assert table[:, 0].std() > 0.01
    np.testing.assert_allclose(table[:, 0], table[:, 1], atol=2e-6)


def test_poolings():
    hidden = torch.tensor([[[1.0, 9.0], [3.0, 4.0], [5.0, -2.0]], [[1.0, 2.0], [7.0, 0.0], [100.0, 100.0]]])
    seg = torch.tensor([[1, 1, 2], [1, 1, 0]])
    wanted = {"first": [[1, 9], [1, 2]], "pooler": [[1, 9], [1, 2]], "last": [[5, -2], [7, 0]],
              "max": [[5, 9], [7, 2]], "mean": [[3, 11 / 3], [4, 1]]}
    for name in POOLINGS:
        torch.testing.assert_close(pool(hidden, seg, name), torch.tensor(wanted[name], dtype=torch.float32))


def test_a_model_without_mlm_head_or_pooler(bench, tmp_path):
    weights = {name: tensor for name, tensor in torch.load(bench / "uer.bin", weights_only=True).items()
               if not name.startswith("target.")}
    torch.save(weights, tmp_path / "bare.bin")
    (tmp_path / "bare_config.json").write_text(CONFIG.to_json())
    loaded = load_encoder(str(tmp_path / "bare.bin"), None)
    assert not loaded.extras and build_classifier(loaded, 2, "first", 1)
    with pytest.raises(UserError, match=r"--pooling pooler: the model has no pooler; take first"):
        build_classifier(loaded, 2, "pooler", 1)
    del weights["embedding.word_embedding.weight"]
    torch.save(weights, tmp_path / "bare.bin")
    with pytest.raises(UserError, match=r"missing: embedding\.word_embedding\.weight$"):
        load_encoder(str(tmp_path / "bare.bin"), None)


def test_padding_and_order_change_nothing(bench):
    model = build_classifier(load_encoder(str(bench / "hf"), None), 2, "pooler", 1).eval()
    rng = np.random.default_rng(1)
    instances = [Instance(rng.integers(5, len(TOKENS), n).astype(np.int32), n // 2 + 1, None) for n in (3, 20, 9, 14)]
    together = predict(model, instances, 0, torch.device("cpu"), batch_size=3)
    alone = np.concatenate([predict(model, [instance], 0, torch.device("cpu")) for instance in instances])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("task", ["CoLA", "MRPC", "STS-B", "MNLI", "RTE"])
def test_glue_tasks_and_their_submissions(bench, tmp_path, task):
    call("finetune/run_classifier.py", "--task", task, "--data_dir", bench / "glue" / task, "--pretrained_model_path",
         bench / "hf", "--pooling", "pooler", "--output_model_path", tmp_path / "m.bin", *FAST, "--prediction_path",
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


def test_grid_seeds_and_resume(bench, tmp_path, capsys):
    grid = ["--learning_rate", 0.01, 0.003, "--batch_size", 8, 16, "--seeds", 1, 2, "--pooling", "mean"]
    call("finetune/run_classifier.py", *options(bench, tmp_path / "whole.bin", *grid))
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
            call("finetune/run_classifier.py", *options(bench, tmp_path / "parts.bin", *grid))
    finally:
        module.tune = before
    assert end.value.code == 130 and len(results(tmp_path / "parts.bin")["runs"]) == 4
    capsys.readouterr()
    call("finetune/run_classifier.py", *options(bench, tmp_path / "parts.bin", *grid, "--resume"))
    said = capsys.readouterr().out
    assert "4 of 8 runs are finished already" in said and said.count("epoch 2/2") == 4
    parts = results(tmp_path / "parts.bin")
    for one, other in zip(whole["runs"], parts["runs"]):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    weights = [torch.load(tmp_path / f"{name}.bin", weights_only=True) for name in ("whole", "parts")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(bench, tmp_path / "parts.bin", "--resume", "--pooling", "max"))
    assert "has other runs: pooling is 'mean' there, 'max' here" in capsys.readouterr().err
    (tmp_path / "parts.bin").unlink()
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(bench, tmp_path / "parts.bin", *grid, "--resume"))
    assert "the best model of its runs" in capsys.readouterr().err


def test_the_best_epoch_is_kept():
    """Scores of a made-up problem rise and fall; the weights kept are those of the highest."""
    class MadeUp:
        scores = iter([0.3, 0.9, 0.9, 0.1])

        def batches(self, batch_size, seed, epoch):
            return [epoch, epoch]

        def loss(self, model, batch):
            return (model.weight - 10 * batch).square().sum()

        def evaluate(self, model):
            seen.append(model.weight.item())
            return Evaluation(next(self.scores), {"x": 0.5})

    seen: list[float] = []
    model = torch.nn.Linear(1, 1, bias=False)
    found = tune(model, MadeUp(), Combination(0.1, 1, 1), Settings(epochs=4), torch.device("cpu"), Reports(False))
    assert found.best_epoch == 2 and found.score == 0.9 and len(found.epochs) == 4
    assert found.weights["weight"].item() == seen[1] != seen[3]


@pytest.mark.parametrize("precision", ["--bf16", "--fp16"])
def test_half_precisions(bench, tmp_path, precision):
    call("finetune/run_classifier.py", *options(bench, tmp_path / "c.bin", precision, "--epochs_num", 4))
    assert results(tmp_path / "c.bin")["runs"][0]["figures"]["accuracy"] > 0.7
    weights = torch.load(tmp_path / "c.bin", weights_only=True)
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_with_and_without_bias_correction(corrected):
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradients = [torch.tensor([0.1, 3.0]), torch.tensor([1.0, 0.0])]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = AdamW(parameter_groups([("x.weight", parameter)], 0.1), bias_correction=corrected)
    m = v = torch.zeros(2, dtype=torch.float64)
    p = start.clone()
    for t, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.double()
        optimizer.set_factor(0.5)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * parameter.grad, 0.999 * v + 0.001 * parameter.grad**2
        first, second = (1 - 0.9**t, 1 - 0.999**t) if corrected else (1, 1)
        p = p - 0.05 * (m / first) / ((v / second).sqrt() + 1e-6)
        p = p - 0.05 * 0.01 * p
    torch.testing.assert_close(parameter.detach(), p, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("more", "words"), [
    (["--task", "RTE"], "--task RTE goes with --data_dir"),
    (["--epochs_num", 0, "--batch_size", 8, 0, "--warmup", 2], "--epochs_num is 0, at least 1 is needed; --batch_size"),
    (["--learning_rate", "nan"], "--learning_rate is nan"),
    (["--seq_length", 65], "a number from 8 to the model's 64 positions"),
    (["--pretrained_model_path", "none.bin"], "none.bin: no such file"),
    (["--output_model_path", "."], "cannot be written there"),
    (["--prediction_path", "p.tsv"], "needs --test_path"),
    (["--vocab_path", "short.txt"], "word embeddings, the vocabulary"),
])
def test_mistakes(bench, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("\n".join(TOKENS[:20]) + "\n")
    with pytest.raises(SystemExit) as end:
        call("finetune/run_classifier.py", *options(bench, tmp_path / "c.bin", *more))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and words in said and said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["short.txt"]


def test_a_loss_that_is_no_number_ends_the_run(bench, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call("finetune/run_classifier.py", *options(bench, tmp_path / "c.bin", "--learning_rate", 1e30,
                                                    "--max_grad_norm", 0, "--warmup", 0))
    assert "the loss is nan" in capsys.readouterr().err and not (tmp_path / "c.bin").exists()


def test_classifiers_of_uers_own(bench, tmp_path, capsys):
    """No JSON beside the file: config, labels and pooling come from the options, names of either generation."""
    model = build_classifier(load_encoder(str(bench / "uer.bin"), None), 3, "mean", seed=1).eval()
    from uer.formats.uer_names import to_uer_py
    torch.save(to_uer_py(model.state_dict()), tmp_path / "theirs.bin")
    again = load_classifier(str(tmp_path / "theirs.bin"), {}, str(bench / "uer_config.json"), 3, "mean", len(TOKENS))
    assert isinstance(again, Classifier) and again.pooling == "mean"
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values()))
    common = ["--load_model_path", tmp_path / "theirs.bin", "--vocab_path", bench / "vocab.txt", "--test_path",
              bench / "unlabelled.tsv", "--prediction_path", tmp_path / "p.tsv"]
    call("inference/run_classifier_infer.py", *common, "--config_path", bench / "uer_config.json", "--pooling", "mean",
         "--seq_length", 24)
    lines = (tmp_path / "p.tsv").read_text().splitlines()
    assert lines[0] == "label" and len(lines) == 13 and set(lines[1:]) <= {"0", "1", "2"}
    for more, words in (([], "so --config_path is needed"),
                        (["--config_path", bench / "uer_config.json", "--labels_num", 2],
                         "--labels_num is 2, the model has 3")):
        with pytest.raises(SystemExit):
            call("inference/run_classifier_infer.py", *common, *more)
        assert words in capsys.readouterr().err
    torch.save(torch.load(bench / "uer.bin", weights_only=True), tmp_path / "theirs.bin")
    with pytest.raises(SystemExit):
        call("inference/run_classifier_infer.py", *common, "--config_path", bench / "uer_config.json")
    assert "no classifier" in capsys.readouterr().err


def test_pairs_and_another_vocabulary(bench, tmp_path, capsys):
    call("finetune/run_classifier.py", *options(bench, tmp_path / "c.bin", train="pairs.tsv", dev="pairs.tsv"))
    (tmp_path / "other.txt").write_text("\n".join([*TOKENS[:-1], "other"]) + "\n")
    with pytest.raises(SystemExit):
        call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "c.bin", "--vocab_path",
             tmp_path / "other.txt", "--test_path", bench / "pairs.tsv", "--prediction_path", tmp_path / "p.tsv")
    assert "not the vocabulary" in capsys.readouterr().err and not (tmp_path / "p.tsv").exists()


def test_regression_decides_by_its_number():
    assert decisions(GLUE["STS-B"], np.array([[1.5], [2.5]])).tolist() == [1.5, 2.5]
    assert decisions(GLUE["MNLI"], np.array([[1, 3, 2.0]])).tolist() == [1]


# -- run_glue.py -------------------------------------------------------------------------------------------------------


def test_all_tasks_of_a_folder_from_the_shell(bench, tmp_path):
    pytest.importorskip("matplotlib")
    words = ["finetune/run_glue.py", "--data_dir", bench / "glue", "--pretrained_model_path", bench / "hf",
             bench / "uer.bin", "--model_names", "teacher", "student", "--vocab_path", bench / "vocab.txt", "--tasks",
             "CoLA", "MRPC", "MNLI", "WNLI", *FAST, "--seeds", 1, 2, "--epochs_num", 1, "--output_path",
             tmp_path / "out", "--predict"]
    done = shell(*words)
    assert done.returncode == 0, done.stderr
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


def test_average_needs_a_task():
    assert average({}) is None and average({"WNLI": {"score": {}}}) is None


@pytest.mark.parametrize(("more", "words"), [
    (["--data_dir", "none"], "--data_dir none: no such folder"),
    (["--data_dir", "."], "none of the folders"),
    (["--model_names", "a", "b"], "--model_names has 2 names for 1 models"),
    (["--model_names", "a/b"], "fit as folder names"),
])
def test_mistakes_of_run_glue(bench, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call("finetune/run_glue.py", "--data_dir", bench / "glue", "--pretrained_model_path", bench / "hf",
             "--output_path", tmp_path / "out", *more)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


# -- run_squad.py ------------------------------------------------------------------------------------------------------


SQUAD = ["--batch_size", 8, "--seq_length", 40, "--doc_stride", 16, "--max_query_length", 8, "--learning_rate", 0.01,
         "--seed", 1]


def test_questions_with_and_without_answers_from_the_shell(bench, tmp_path):
    model = tmp_path / "out" / "s.bin"
    done = shell("finetune/run_squad.py", "--train_path", bench / "train.json", "--dev_path", bench / "dev.json",
                 "--pretrained_model_path", bench / "hf", "--output_model_path", model, *SQUAD, "--epochs_num", 3)
    assert done.returncode == 0, done.stderr
    assert "some have no answer" in done.stdout and "unanswerable F1" in done.stdout
    predictions, nbest, odds = (json.loads(Path(f"{model}.{kind}.json").read_text())
                                for kind in ("predictions", "nbest", "null_odds"))
    data = json.loads((bench / "dev.json").read_text())["data"][0]["paragraphs"]
    threshold = read_card(str(model))["null_score_diff_threshold"]
    for paragraph in data:
        key = paragraph["qas"][0]["id"]
        assert predictions[key] in paragraph["context"]
        assert (predictions[key] == "") == (odds[key] > threshold)
        assert sum(entry["probability"] for entry in nbest[key]) == pytest.approx(1)
    best = results(model)["runs"][0]
    assert best["figures"]["F1"] == max(epoch["F1"] for epoch in best["epochs"])


def test_squad_1_1_always_answers_and_learns(bench, tmp_path, capsys):
    call("finetune/run_squad.py", "--train_path", bench / "train1.json", "--dev_path", bench / "train1.json",
         "--pretrained_model_path", bench / "hf", "--output_model_path", tmp_path / "s.bin", *SQUAD, "--epochs_num", 12,
         "--dropout", 0)
    assert results(tmp_path / "s.bin")["runs"][0]["score"] > 0.6
    assert all(json.loads((tmp_path / "s.bin.predictions.json").read_text()).values())
    assert not (tmp_path / "s.bin.null_odds.json").exists() and "all have answers" in capsys.readouterr().out


@pytest.mark.parametrize(("more", "words"), [
    (["--max_query_length", 38], "leaves too little of --seq_length"),
    (["--doc_stride", 0], "--doc_stride is 0"),
    (["--tokenizer", "char", "--vocab_path", "VOCAB"], "only bert can tell"),
])
def test_mistakes_of_run_squad(bench, tmp_path, capsys, more, words):
    more = [bench / "vocab.txt" if word == "VOCAB" else word for word in more]
    with pytest.raises(SystemExit):
        call("finetune/run_squad.py", "--train_path", bench / "train1.json", "--dev_path", bench / "dev1.json",
             "--pretrained_model_path", bench / "hf", "--output_model_path", tmp_path / "s.bin", *SQUAD, *more)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_dropout_of_the_options_goes_before_the_configs(bench):
    assert load_encoder(str(bench / "hf"), None, dropout=0.3).config == replace(CONFIG, dropout=0.3,
                                                                               layernorm="huggingface",
                                                                               layernorm_eps=1e-12)
