"""What a script shows while it runs, and its last three lines."""

import os
import pty
import subprocess
import sys

import pytest
from commands import ROOT
from corpora import random_corpus, write_vocab

from uer import progress
from uer.cli import suggestion
from uer.progress import Progress, ending, tracked


@pytest.fixture
def clock(monkeypatch):
    """Seconds that a test sets."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_lines_come_further_and_further_apart(clock, capsys):
    shown = Progress("evaluate", 1000, "batches")
    told = []
    for second in range(1, 101):
        clock[0] = second
        shown.advance(2)
        if capsys.readouterr().err:
            told.append(second)
    assert told == [10, 30, 70]
    assert shown.line() == "evaluate: 200 of 1,000 batches, 2 batches/s, 0:06:40 left"
    clock[0] = 149
    shown.told()
    clock[0] = 150
    shown.advance(1)
    assert capsys.readouterr().err == ""


def test_bytes_and_totals_that_nobody_knows(clock):
    shown = Progress("preprocess", None, "B")
    shown.advance(30_000_000)
    clock[0] = 2.0
    assert shown.line() == "preprocess: 30 MB, 15 MB/s"
    shown.total = 120_000_000
    assert shown.line() == "preprocess: 30 of 120 MB, 15 MB/s, 0:00:06 left"


def test_processes_that_do_not_lead_say_nothing(clock, capsys):
    assert list(tracked(iter("abc"), 3, "x", "steps", shown=False)) == ["a", "b", "c"]
    clock[0] = 1000.0
    shown = Progress("x", 3, "steps", shown=False)
    shown.advance()
    assert capsys.readouterr() == ("", "")


def test_the_last_three_lines(capsys):
    ending("a.bin", "accuracy 3 %", "python3 convert.py")
    assert capsys.readouterr().out == "made  a.bin\ngood  accuracy 3 %\nnext  python3 convert.py\n"


@pytest.mark.parametrize(("typed", "name", "expected"), [
    ("preprocess.py", "pretrain", "python3 pretrain.py"), ("/repo/convert.py", "run_glue",
                                                           "python3 /repo/finetune/run_glue.py"),
    ("finetune/run_glue.py", "run_squad", "python3 finetune/run_squad.py"),
    ("../finetune/run_glue.py", "evaluate", "python3 ../evaluate.py"),
    ("finetune/run_glue.py", "report", "python3 -m uer report"),
    ("uer-wid convert", "evaluate", "uer-wid evaluate"), ("python3 -m uer convert", "report", "python3 -m uer report"),
    ("/usr/bin/pytest", "evaluate", "uer-wid evaluate")])
def test_the_next_command_is_typed_as_this_one_was(monkeypatch, typed, name, expected):
    monkeypatch.setattr(sys, "argv", [typed, "--x"])
    assert suggestion(name, "--a", ["b c", 1], None) == f"{expected} --a 'b c' 1"


def test_a_bar_on_a_terminal(tmp_path):
    """stderr is a terminal, stdout is not: a bar with a share of the whole, then nothing of it; the lines stay."""
    write_vocab(tmp_path)
    (tmp_path / "corpus.txt").write_text(random_corpus(1, 300), encoding="utf-8")
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, str(ROOT / "preprocess.py"), "--corpus_path", "corpus.txt", "--vocab_path",
                           "vocab.txt", "--dynamic_masking"], cwd=tmp_path, stderr=theirs, stdout=subprocess.PIPE,
                          text=True, timeout=60)
    shown = os.read(ours, 1 << 16).decode()
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 0 and "preprocess:" in shown and "0%" in shown and shown.rstrip(" \r\n").count("\n") == 0
    assert [line[:6] for line in done.stdout.splitlines()[-3:]] == ["made  ", "good  ", "next  "]
