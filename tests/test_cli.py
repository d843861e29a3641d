"""`uer-wid` and `python3 -m uer`: every script's main under its name; a wheel that brings them along."""

import importlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
from argparse import Namespace
from pathlib import Path

import pytest
from commands import ROOT, TEACHER, call, write_teacher
from corpora import random_corpus, write_vocab

from uer.cli import BARE, COMMANDS, command_line, same_tokenizer
from uer.data.options import preprocess_parser
from uer.tokenizers.beside import rules_of_vocabulary

SCRIPTS = [path for folder in ("", "finetune", "inference", "scripts") for path in sorted((ROOT / folder).glob("*.py"))
           if path.name != "environment.py"]


def test_every_script_is_a_command_and_has_its_main():
    found = set(BARE)
    for path in SCRIPTS:
        spec = importlib.util.spec_from_file_location(f"script_{path.stem}", path)
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        assert script.main.args == (path.stem,) and callable(importlib.import_module(COMMANDS[path.stem][0]).main)
        found.add(path.stem)
    assert found == set(COMMANDS)


def test_nothing_that_takes_long_is_imported_where_ctrl_c_is_not_heard():
    code = "import runpy, sys; list(map(runpy.run_path, sys.argv[1:])); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, *SCRIPTS], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    found = set(done.stdout.split())
    assert {name for name in found if name.startswith("uer")} == {"uer", "uer.cli", "uer.errors", "uer.system"}
    assert not {"numpy", "torch"} & found


def module(monkeypatch, *words: str) -> None:
    """`python3 -m uer` in this process."""
    monkeypatch.setattr(sys, "argv", ["-m", *words])
    runpy.run_module("uer", run_name="__main__", alter_sys=True)


def test_the_module_lists_the_commands_and_runs_them(tmp_path, monkeypatch):
    listed = subprocess.run([sys.executable, "-m", "uer"], cwd=tmp_path, capture_output=True, text=True,
                            env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert listed.returncode == 0
    assert [line.split()[0] for line in listed.stdout.splitlines() if line.startswith("  ")] == list(COMMANDS)
    write_vocab(tmp_path)
    (tmp_path / "corpus.txt").write_text(random_corpus(1, 30), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    options = ["--corpus_path", "corpus.txt", "--vocab_path", "vocab.txt", "--dataset_path"]
    module(monkeypatch, "preprocess", *options, "a.pt")
    call("preprocess.py", *options, "b.pt")
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


@pytest.mark.parametrize(("words", "message"), [
    (["preproces"], "error: preproces: no such command; there are preprocess, pretrain"),
    (["preprocess", "--corpus_path", "absent", "--vocab_path", "v"], "error: --corpus_path absent: no such file")])
def test_mistakes_are_one_sentence(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as end:
        module(monkeypatch, *words)
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith(message) and said.count("\n") == 1


@pytest.mark.parametrize(("argv", "expected"), [
    (["convert.py", "--mask_path", "a b"], "python3 convert.py --mask_path 'a b'"),
    (["uer-wid convert", "--x"], "uer-wid convert --x"), (["python3 -m uer convert"], "python3 -m uer convert")])
def test_what_was_typed_is_kept(monkeypatch, argv, expected):
    monkeypatch.setattr(sys, "argv", argv)
    assert command_line() == expected


def test_the_next_command_reads_text_as_this_one():
    options = preprocess_parser().parse_args
    plain = options(["--corpus_path", "c", "--vocab_path", "v.txt"])
    assert same_tokenizer(plain) == ["--vocab_path", "v.txt"]
    cased = options(["--corpus_path", "c", "--vocab_path", "v.json", "--merges_path", "m", "--tokenizer", "bpe",
                     "--cased"])
    assert same_tokenizer(cased) == ["--tokenizer", "bpe", "--vocab_path", "v.json", "--merges_path", "m",
                                     "--do_lower_case", "false"]


def test_the_next_command_is_told_of_a_vocabulary_that_was_found(tmp_path):
    for name in ("folder", "elsewhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder/config.json").write_text("{}")
    write_vocab(tmp_path / "folder")
    shutil.copy(tmp_path / "folder/vocab.txt", tmp_path / "own_vocab.txt")
    folder, own, bare = str(tmp_path / "folder"), f"{tmp_path}/own.bin", f"{tmp_path}/elsewhere/bare.bin"
    for words, found in (({"pretrained_model_path": folder}, folder),
                         ({"model_path": own}, f"{tmp_path}/own_vocab.txt"),
                         ({"load_model_path": bare, "teacher_path": folder}, folder)):
        args = Namespace(**{"vocab_path": None, "spm_model_path": None, "do_lower_case": "true", **words})
        assert same_tokenizer(args, bare) == ["--vocab_path", found, "--do_lower_case", "true"]
        assert rules_of_vocabulary(found)[0].vocab is not None
    args = Namespace(vocab_path=None, spm_model_path=None, model_path=bare)
    assert (same_tokenizer(args), same_tokenizer(args, own)) == ([], [])
    assert same_tokenizer(args, bare) == ["--vocab_path", "VOCABULARY"]


# -- a wheel -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_wheel_in_a_fresh_environment_runs_the_small_world(tmp_path):
    """Built from a copy, installed where this repository is not; only what it depends on is lent from here."""
    shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*", "work", "__pycache__", "build"))
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    lent = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (lent / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(tmp_path / "source")],
                           capture_output=True, text=True)
    if "No matching distribution found for setuptools" in built.stderr:
        pytest.skip("no package index to take setuptools from")
    assert built.returncode == 0, built.stderr
    shutil.rmtree(tmp_path / "source")
    subprocess.run([*pip, "install", "--no-deps", *map(str, tmp_path.glob("uer_wid-*.whl"))], check=True)
    work = tmp_path / "work"
    work.mkdir()
    write_vocab(work)
    write_teacher(work / "teacher.bin")
    (work / "config.json").write_text(TEACHER.to_json())
    (work / "corpus.txt").write_text(random_corpus(1, 60), encoding="utf-8")
    for line in (
            "preprocess --corpus_path corpus.txt --vocab_path vocab.txt --dataset_path data.pt --seq_length 32 "
            "--dynamic_masking --processes_num 2",
            "pretrain --dataset_path data.pt --vocab_path vocab.txt --config_path config.json --pretrained_model_path "
            "teacher.bin --output_model_path run.bin --total_steps 4 --batch_size 4 --world_size 2 --weight_squeeze "
            "--target_dim 64 --compactor_init calibrated --tb_path log",
            "convert --load_model_path run.bin-4 --output_model_path student.bin --output_format uer huggingface "
            "--vocab_path vocab.txt",
            "evaluate --model_path student.bin --dataset_path data.pt --vocab_path vocab.txt"):
        done = subprocess.run([tmp_path / "venv/bin/uer-wid", *line.split()], cwd=work, capture_output=True, text=True,
                              env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"})
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    assert "accuracy" in done.stdout
    assert "uer-wid convert --load_model_path run.bin-4" in (work / "student/README.md").read_text(encoding="utf-8")
