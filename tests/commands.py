"""The scripts as users call them: in this process, from a shell, with the README's commands."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from corpora import TOKENS, random_corpus, write_vocab

from uer.config import ModelConfig
from uer.errors import run_script
from uer.formats.export import write_uer
from uer.models.bert import from_scratch

ROOT = Path(__file__).resolve().parents[1]
OPTIONS: dict[str, set[str]] = {}
TEACHER = ModelConfig(hidden_size=128, layers_num=2, heads_num=2, feedforward_size=256, max_seq_length=64)
# The README's figures and those of the test; names stay as they are.
SMALLER = [(r"--processes_num 32", "--processes_num 2 --seq_length 32"),
           (r"--total_steps 400000", "--total_steps 20"),
           (r"--save_checkpoint_steps 100000", "--save_checkpoint_steps 10"),
           (r"(--mask_step |stage1\.bin-)400000", r"\g<1>20"), (r"--batch_size 120", "--batch_size 4"),
           (r"--w_step 500", "--w_step 1"), (r"--layers_num 12 --hidden_size 768", "--layers_num 2 --hidden_size 128")]


def write_teacher(path: Path, config: ModelConfig = TEACHER, words: int = len(TOKENS)) -> None:
    write_uer(path, from_scratch(config, words, seed=1).state_dict())


def make_files(folder: Path) -> Path:
    """A folder with corpus, vocabulary, config, teacher and dataset; not to be written to."""
    write_vocab(folder)
    (folder / "corpus.txt").write_text(random_corpus(1, 60), encoding="utf-8")
    (folder / "config.json").write_text(TEACHER.to_json())
    write_teacher(folder / "teacher.bin")
    call("preprocess.py", "--corpus_path", folder / "corpus.txt", "--vocab_path", folder / "vocab.txt",
         "--dataset_path", folder / "data.pt", "--dynamic_masking", "--seq_length", "32")
    return folder


def call(name: str, *options) -> None:
    """Run a script in this process."""
    spec = importlib.util.spec_from_file_location(f"script_{Path(name).stem}", ROOT / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    before, sys.argv = sys.argv, [name, *map(str, options)]
    try:
        run_script(module.main)
    finally:
        sys.argv = before


def start(name: str, *words, **options) -> subprocess.Popen:
    """A script in a process of its own."""
    env = {**os.environ, "PYTHONUNBUFFERED": "1", **options.pop("env", {})}
    return subprocess.Popen([sys.executable, str(ROOT / name), *map(str, words)], env=env, text=True,
                            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options})


def children(pid: int) -> list[int]:
    """Living processes whose parent is `pid`, from the process table."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def pretrain_options(bench: Path, output: Path, *more, **changed) -> list:
    """A command line of pretrain.py with a few things changed or (None) left out."""
    options = {"dataset_path": bench / "data.pt", "vocab_path": bench / "vocab.txt",
               "config_path": bench / "config.json", "pretrained_model_path": bench / "teacher.bin",
               "output_model_path": output, "total_steps": 2, "batch_size": 4, **changed}
    return [word for key, value in options.items() if value is not None for word in (f"--{key}", value)] + list(more)


def refused(capsys, folder: Path, script: str, *options) -> str:
    """Run a script that must refuse; returns its sentence. Nothing may be written."""
    before = everything(folder)
    with pytest.raises(SystemExit) as end:
        call(script, *options)
    stderr = capsys.readouterr().err
    assert end.value.code == 2
    assert stderr.startswith("error: ") and stderr.count("\n") == 1, stderr
    assert everything(folder) == before
    named = set(re.findall(r"(?<!\.py )(?<!\w)--(\w+)", stderr))  # those of other scripts stand behind their names
    assert named <= options_of(script, capsys), stderr
    return stderr


def options_of(script: str, capsys) -> set[str]:
    """The options that a script has: what a message of it may name."""
    if script not in OPTIONS:
        with pytest.raises(SystemExit):
            call(script, "--help")
        OPTIONS[script] = set(re.findall(r"--(\w+)", capsys.readouterr().out))
    return OPTIONS[script]


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def readme_commands() -> list[str]:
    """preprocess.py, pretrain.py and convert.py as the README has them, a line each."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    found = [next(line.strip() for line in text.splitlines() if line.strip().startswith(f"python3 {script} --"))
             for script in ("preprocess.py", "pretrain.py", "convert.py")]
    return [" ".join(line.split()) for line in found]


def readme_folder(folder: Path) -> None:
    """What the commands expect: scripts, a config, a vocabulary, a corpus, a teacher."""
    for name in ("preprocess.py", "pretrain.py", "convert.py"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("bert", "models/google", "mask_path"):
        (folder / name).mkdir(parents=True)
    (folder / "bert/base_config.json").write_text(TEACHER.to_json())
    write_vocab(folder).rename(folder / "models/google_uncased_en_vocab.txt")
    (folder / "bert_corpus.txt").write_text(random_corpus(2, 60), encoding="utf-8")
    write_teacher(folder / "models/google/12-768-model.bin")


def shell(folder: Path, line: str) -> str:
    """Run a line in a shell whose python3 is this one; returns what it printed."""
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin/python3"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    env = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    return done.stdout
