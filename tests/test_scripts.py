"""The scripts as users run them: the README's commands, options, and every mistake as one sentence."""

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from commands import (
    ROOT,
    SMALLER,
    TEACHER,
    call,
    free_port,
    pretrain_options,
    readme_commands,
    readme_folder,
    refused,
    shell,
    write_teacher,
)
from corpora import TOKENS, random_corpus, write_vocab
from workers import forking

from uer.config import parse_with_config
from uer.formats import load_model
from uer.models.bert import from_weights
from uer.opts import pretrain_parser
from uer.squeeze.mask_file import read_masks

SCRIPTS = ["preprocess.py", "pretrain.py", "convert.py", "calibrate.py", "evaluate.py", "demo/run.py",
           "demo/harvest.py", "demo/picking.py", "demo/origin.py", "finetune/run_classifier.py", "finetune/run_glue.py",
           "finetune/run_squad.py", "inference/run_classifier_infer.py",
           *sorted(f"scripts/{path.name}" for path in ROOT.glob("scripts/convert*.py"))]


# -- the README's commands ---------------------------------------------------------------------------------------------


def test_the_commands_of_the_readme(tmp_path, monkeypatch, capsys):
    """From a shell, but for the last one, which has torch to import and nothing to start."""
    readme_folder(tmp_path)
    monkeypatch.chdir(tmp_path)
    changes = [*SMALLER, (r"--target_dim 192", "--target_dim 32"),
               (r"--world_size 8 --gpu_ranks [\d ]+\d", f"--world_size 2 --gpu_ranks 0 1 --master_ip "
                                                        f"tcp://localhost:{free_port()}")]
    used = set()
    for line in readme_commands():
        for pattern, smaller in changes:
            line, count = re.subn(pattern, smaller, line)
            used.update([pattern] * bool(count))
        python, script, *words = shlex.split(line)
        if script == "convert.py":
            assert python == "python3"
            call(script, *words)
        else:
            shell(tmp_path, line)
    assert used == {pattern for pattern, _ in changes}

    stage1 = tmp_path / "models/12-192-reduce-dim-stage1.bin"
    names = {path.name.removeprefix(stage1.name) for path in stage1.parent.glob("*stage1*")}
    assert names == {f"-{step}{ending}" for step in (10, 20) for ending in ("", ".json", ".resume")}
    masks = read_masks(tmp_path / "mask_path/12-192-reduce-dim.txt", 20)
    assert len(masks) == 1 + 2 + 2 + 1
    assert (tmp_path / "logs/12-192-reduce-dim.log/metrics.jsonl").is_file()
    printed = capsys.readouterr().out
    assert "merged against the trained model" in printed and "hidden_size 32" in printed

    student = load_model(tmp_path / "models/12-192-reduce-dim-model.bin", config=None, vocab_size=len(TOKENS))
    assert (student.config.hidden_size, student.config.heads_num, student.config.layers_num) == (32, 2, 2)
    model = from_weights(student.config, student.weights)
    assert model(torch.tensor([[2, 6, 7, 3]]), torch.ones(1, 4, dtype=torch.long)).isfinite().all()


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_answers_at_once_without_torch(script, tmp_path):
    line = [sys.executable, "-X", "importtime", str(ROOT / script), "--help"]
    before = os.times()
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    after = os.times()
    assert done.returncode == 0 and done.stdout.startswith("usage: ")
    assert "uer.errors" in done.stderr and not re.search(r"\| +torch\n", done.stderr)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


def test_options_come_from_the_command_line_then_the_config_then_the_defaults(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TEACHER.to_dict(), "batch_size": 5, "learning_rate": 1, "w_step": 3, "fp32": "?"}))
    needed = ["--dataset_path", "d.pt", "--output_model_path=o.bin", f"--config_path={config}"]
    args, given = parse_with_config(pretrain_parser, [*needed, "--batch_size=6", "--w_step", "500"])
    assert (args.batch_size, args.learning_rate, args.w_step, args.report_steps) == (6, 1, 500, 100)
    assert args.output_model_path == "o.bin" and {"batch_size", "w_step", "output_model_path"} <= given
    assert not given & {"learning_rate", "report_steps"}


def test_equal_signs_another_folder_and_no_waiting_for_torchs_compiler(files, tmp_path):
    """torch._dynamo, which torch's own optimizers and DistributedDataParallel import, takes nearly two seconds."""
    options = pretrain_options(files, "out/model.bin", total_steps=1, target_dim=64, mask_path="out/masks.txt",
                               max_grad_norm=1)
    joined = [f"{name}={value}" for name, value in zip(options[::2], options[1::2])]
    done = subprocess.run([sys.executable, "-X", "importtime", str(ROOT / "pretrain.py"), *joined, "--weight_squeeze"],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"model.bin-1", "model.bin-1.json", "model.bin-1.resume", "masks.txt"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert re.search(r"\| +torch\n", done.stderr) and "torch._dynamo\n" not in done.stderr


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("corpus", "message"), [
    (None, "no such file"), (b"", "no text in there"), (b" \n\t\n\n", "no text in there"),
    (b"fine\nbro\xffken\n", "line 2: byte 8 is not UTF-8")])
def test_a_corpus_that_cannot_be_used(files, tmp_path, capsys, corpus, message):
    if corpus is not None:
        (tmp_path / "corpus.txt").write_bytes(corpus)
    for processes in (1, 2):
        said = refused(capsys, tmp_path, "preprocess.py", "--corpus_path", tmp_path / "corpus.txt", "--vocab_path",
                       files / "vocab.txt", "--dataset_path", tmp_path / "d.pt", "--processes_num", processes)
        assert message in said


def test_vocabularies_that_cannot_be_used(files, tmp_path, capsys):
    write_vocab(tmp_path, TOKENS[5:])
    options = ["--corpus_path", files / "corpus.txt", "--dataset_path", tmp_path / "d.pt", "--vocab_path"]
    message = refused(capsys, tmp_path, "preprocess.py", *options, tmp_path / "vocab.txt")
    assert all(token in message for token in ("[CLS]", "[SEP]", "[MASK]"))
    assert "no such file" in refused(capsys, tmp_path, "preprocess.py", *options, tmp_path / "absent.txt")


def test_a_dataset_from_another_vocabulary(files, tmp_path, capsys):
    vocab = write_vocab(tmp_path, [*TOKENS, "more"])
    message = refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "m.bin", vocab_path=vocab))
    assert str(vocab) in message and "vocab.txt of " in message and "another vocabulary" in message
    message = refused(capsys, tmp_path, "evaluate.py", "--model_path", files / "teacher.bin", "--config_path",
                      files / "config.json", "--dataset_path", files / "data.pt", "--vocab_path", vocab)
    assert "another vocabulary" in message


@pytest.mark.parametrize(("changed", "message"), [
    ({"hidden_size": 64, "emb_size": 64}, "hidden_size is 128 in the file, 64 in the config"),
    ({"layers_num": 3}, "layers_num is 2 in the file, 3 in the config"),
    ({"heads_num": 3}, "no multiple of heads_num 3"),
    ({"feedforward_size": 128}, "feedforward_size is 256 in the file, 128 in the config"),
    ({"max_seq_length": 16}, "seq_length is 32, the model has 16 positions"),
    ({"batch_size": "many"}, "batch_size is 'many'"),
    ({"scheduler": "sideways"}, "--scheduler takes linear")])
def test_a_config_that_is_not_the_teachers(files, tmp_path, capsys, changed, message):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**TEACHER.to_dict(), **changed}))
    options = pretrain_options(files, tmp_path / "m.bin", config_path=config,
                               batch_size=None if "batch_size" in changed else 4)
    assert message in refused(capsys, tmp_path, "pretrain.py", *options)


@pytest.mark.parametrize(("more", "changed", "message"), [
    (["--soft_targets_weight", 0.5, "--soft_targets_teacher", "SHORT"], {},
     "--dataset_path {files}/data.pt: its seq_length is 32, --soft_targets_teacher {folder}/t.bin has 16 positions"),
    (["--weight_squeeze", "--target_dim", 64, "--compactor_init", "calibrated", "--train", "student"],
     {"pretrained_model_path": "SHORT", "config_path": None, "dataset_path": "DATA"},
     "--calibration_path {files}/data.pt: its seq_length is 32, the model has 16 positions")])
def test_text_that_is_too_long_for_one_of_the_models(files, tmp_path, capsys, more, changed, message):
    config = replace(TEACHER, max_seq_length=16)
    write_teacher(tmp_path / "t.bin", config)
    (tmp_path / "t_config.json").write_text(config.to_json())
    if changed:
        call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt",
             "--dataset_path", tmp_path / "d.pt", "--dynamic_masking", "--seq_length", 16)
        more = [*more, "--calibration_path", files / "data.pt"]
    paths = {"SHORT": tmp_path / "t.bin", "DATA": tmp_path / "d.pt"}
    options = pretrain_options(files, tmp_path / "m.bin", *(paths.get(word, word) for word in more),
                               **{name: paths.get(value, value) for name, value in changed.items()})
    assert message.format(files=files, folder=tmp_path) in refused(capsys, tmp_path, "pretrain.py", *options)


def test_a_teacher_for_another_vocabulary(files, tmp_path, capsys):
    write_teacher(tmp_path / "teacher.bin", words=20)
    options = pretrain_options(files, tmp_path / "m.bin", pretrained_model_path=tmp_path / "teacher.bin")
    assert f"20 word embeddings, the vocabulary {len(TOKENS)}" in refused(capsys, tmp_path, "pretrain.py", *options)


@pytest.mark.parametrize(("more", "message"), [
    ("--target_dim 33", "--target_dim 33"), ("--target_dim 0", "--target_dim"),
    ("--target_dim 256", "--target_dim 256"),
    ("--target_dim 32 --compactor_mask_strategy head", "--target_dim 32"), ("", "needs --target_dim")])
@pytest.mark.parametrize("start", ["identity", "calibrated"])
def test_targets_that_no_strategy_reaches(files, tmp_path, capsys, more, message, start):
    options = pretrain_options(files, tmp_path / "m.bin", "--weight_squeeze", *more.split(), "--compactor_init", start,
                               mask_path=tmp_path / "masks.txt")
    assert message in refused(capsys, tmp_path, "pretrain.py", *options)


@pytest.mark.parametrize(("changed", "message"), [
    ({"dataset_path": "absent.pt"}, "absent.pt: no such file"),
    ({"dev_path": "absent.pt"}, "absent.pt: no such file"),
    ({"pretrained_model_path": "absent.bin"}, "absent.bin: no such file"),
    ({"config_path": "absent.json"}, "absent.json: no such file"),
    ({"pretrained_model_path": None, "config_path": None}, "--config_path is needed"),
    ({"total_steps": 0}, "--total_steps is 0"),
    ({"learning_rate": "nan"}, "--learning_rate is nan"),
    ({"target_dim": 32}, "--target_dim does nothing without --weight_squeeze"),
    ({"calibration_batches": 4}, "--calibration_batches does nothing without --weight_squeeze"),
    ({"soft_targets_weight": 0.5}, "--soft_targets_weight needs --soft_targets_teacher"),
    ({"soft_targets_weight": 1.5}, "--soft_targets_weight is 1.5"),
    ({"soft_targets_teacher": "t.bin"}, "--soft_targets_teacher does nothing without --soft_targets_weight"),
    ({"eval_steps": 5}, "--eval_steps needs --dev_path"),
    ({"resume": "newest"}, "no checkpoint"),
    ({"world_size": 2, "gpu_ranks": 3}, "--gpu_ranks 3 does not fit --world_size 2")])
def test_options_that_cannot_be_meant(files, tmp_path, capsys, changed, message):
    assert message in refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "m.bin", **changed))


@pytest.mark.parametrize("script", ["preprocess.py", "pretrain.py", "convert.py", "calibrate.py", "demo/harvest.py"])
def test_an_output_folder_that_cannot_be_written(files, tmp_path, capsys, script):
    (tmp_path / "file").write_text("in the way")
    bad = tmp_path / "file" / "x.bin"
    options = {
        "preprocess.py": ["--corpus_path", files / "corpus.txt", "--vocab_path", files / "vocab.txt",
                          "--dataset_path", bad],
        "pretrain.py": pretrain_options(files, bad),
        "convert.py": ["--load_model_path", files / "teacher.bin", "--config_path", files / "config.json",
                       "--output_model_path", bad],
        "calibrate.py": ["--pretrained_model_path", files / "teacher.bin", "--config_path", files / "config.json",
                         "--vocab_path", files / "vocab.txt", "--dataset_path", files / "data.pt", "--target_dim", 32,
                         "--output_model_path", bad],
        "demo/harvest.py": ["--corpus_path", bad, "--dev_path", tmp_path / "dev.txt", "--packages", "numpy"]}[script]
    assert str(tmp_path / "file") in refused(capsys, tmp_path, script, *options)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(files, tmp_path, capsys):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "closed" in refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "closed/m.bin"))


def test_several_processes_say_it_once(files, tmp_path, capfd):
    options = pretrain_options(files, tmp_path / "m.bin", "--gpu_ranks", 0, 1, pretrained_model_path="absent.bin",
                               world_size=2, master_ip=f"tcp://localhost:{free_port()}")
    with forking():
        assert refused(capfd, tmp_path, "pretrain.py", *options) == "error: model absent.bin: no such file\n"


def test_evaluate_says_what_pretrain_says(files, tmp_path, capsys):
    corpus = tmp_path / "dev.txt"
    corpus.write_text(random_corpus(5, 30), encoding="utf-8")
    dev, logs = tmp_path / "dev.pt", tmp_path / "logs"
    call("preprocess.py", "--corpus_path", corpus, "--vocab_path", files / "vocab.txt", "--dataset_path", dev,
         "--dup_factor", 1, "--seq_length", 32)
    call("pretrain.py", *pretrain_options(files, tmp_path / "m.bin", dev_path=dev, tb_path=logs))
    call("evaluate.py", "--model_path", tmp_path / "m.bin-2", "--dataset_path", dev, "--output_path",
         tmp_path / "figures.json")
    figures = json.loads((tmp_path / "figures.json").read_text())
    logged = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    held_out = next(entry for entry in logged if entry["kind"] == "dev")
    assert figures["loss"] == pytest.approx(held_out["loss"], rel=1e-5)
    assert figures["accuracy"] == held_out["accuracy"]
    assert f"loss {figures['loss']:.4f}" in capsys.readouterr().out and figures["tokens_per_second"] > 0
