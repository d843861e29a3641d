"""Any desk: with what Windows and macOS lack taken away, every script imports and does its work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from commands import ROOT, TEACHER, write_teacher
from corpora import random_corpus, write_vocab

from uer import system

BARE = """
import os, signal, select, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for module, names in ((select, ("poll", "epoll")), (os, ("fork", "sched_getaffinity")),
                      (signal, ("SIGPIPE", "SIGHUP", "SIGUSR1", "SIGKILL", "pthread_sigmask"))):
    for name in names:
        if hasattr(module, name):
            delattr(module, name)
import pathlib
read = pathlib.Path.read_text
def absent(path, *more, **named):
    if str(path).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", str(path))
    return read(path, *more, **named)
pathlib.Path.read_text = absent
import ctypes
def no_library(name, *more, **named):
    raise OSError(f"{name}: not found")
ctypes.CDLL = no_library
"""
SCRIPTS = ("preprocess.py", "pretrain.py", "convert.py", "calibrate.py", "evaluate.py", "finetune/run_classifier.py",
           "finetune/run_glue.py", "finetune/run_squad.py", "inference/run_classifier_infer.py",
           "scripts/convert_bert_from_huggingface_to_uer.py", "scripts/convert_bert_from_uer_to_huggingface.py")
RUN = """
import ctypes, runpy, sys
import torch
exec(open({bare!r}).read())
for line in {lines!r}:
    sys.argv = line
    try:
        runpy.run_path(line[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            sys.exit(f"{{line[0]}} ended with {{end.code}}")
for name in ("fcntl", "resource"):
    assert sys.modules[name] is None
"""


def run_bare(folder, lines) -> str:
    """Some command lines, one after the other in a process that has nothing but what every system has."""
    (folder / "bare.py").write_text(BARE)
    lines = [[str(ROOT / line[0]), *map(str, line[1:])] for line in lines]
    code = RUN.format(bare=str(folder / "bare.py"), lines=lines)
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_main_path_without_what_windows_lacks(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "corpus.txt").write_text(random_corpus(1, 40), encoding="utf-8")
    (tmp_path / "config.json").write_text(TEACHER.to_json())
    write_teacher(tmp_path / "teacher.bin")
    said = run_bare(tmp_path, [
        ["preprocess.py", "--corpus_path", "corpus.txt", "--vocab_path", "vocab.txt", "--dataset_path", "data.pt",
         "--dynamic_masking", "--seq_length", 32],
        ["pretrain.py", "--dataset_path", "data.pt", "--vocab_path", "vocab.txt", "--config_path", "config.json",
         "--pretrained_model_path", "teacher.bin", "--output_model_path", "m.bin", "--total_steps", 16,
         "--batch_size", 2, "--weight_squeeze", "--target_dim", 64, "--w_step", 1, "--mask_path", "masks.txt"],
        ["convert.py", "--load_model_path", "m.bin-16", "--mask_path", "masks.txt", "--output_model_path", "s.bin"],
        ["evaluate.py", "--model_path", "s.bin", "--dataset_path", "data.pt"]])
    assert "step 16: wrote m.bin-16" in said and "written: s.bin, s_config.json" in said and "tokens/s" in said


def test_no_module_names_what_some_systems_lack():
    """One file may, and has a fall-back for each."""
    rooms = ("uer/**/*.py", "scripts/*.py", "demo/*.py")
    for path in [*map(ROOT.joinpath, SCRIPTS), *(path for room in rooms for path in ROOT.glob(room))]:
        text = path.read_text(encoding="utf-8")
        if path.name != "system.py":
            assert not [word for word in ("import fcntl", "import resource", "import pwd", "select.poll", "/proc/",
                                          "signal.SIGKILL", "signal.SIGPIPE", "os.fork(") if word in text], path


def test_locks_memory_and_signals(tmp_path, monkeypatch):
    with open(tmp_path / "lock", "w") as one, open(tmp_path / "lock", "w") as two:
        assert system.lock(one) and not system.lock(two)
        monkeypatch.setattr(system, "fcntl", None)
        assert system.lock(two)  # where there are no locks
    assert 1 << 20 < system.peak_memory() < 1 << 40
    monkeypatch.setattr(system, "resource", None)
    assert system.peak_memory() == 0
    assert system.ended_by(-signal.SIGTERM) == "SIGTERM" and system.ended_by(3) is None
    assert system.ended_by(-999) == "signal 999"
