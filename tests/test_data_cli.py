"""preprocess.py and the inspector as a user runs them."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import call, children, refused
from corpora import TOKENS, random_corpus, write_vocab

from uer.data import inspect
from uer.data.dataset import Dataset
from uer.errors import UserError

ROOT = Path(__file__).parents[1]


def command(*more):
    return [sys.executable, str(ROOT / "preprocess.py"), *map(str, more)]


def run(folder, *more, script=None, **keywords):
    line = script or command(*more)
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False, timeout=60, **keywords)


@pytest.fixture
def folder(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "corpus.txt").write_text(random_corpus(1, 30), encoding="utf-8")
    return tmp_path


def test_both_spellings_of_options_any_folder_and_no_waiting_for_torch(folder):
    python, *line = command(
        "--corpus_path=corpus.txt", "--vocab_path", "vocab.txt", "--dataset_path=out.pt", "--processes_num=2",
        "--dynamic_masking", "--data_processor", "mlm", "--seq_length=20", "--do_lower_case=false",
    )  # fmt: skip
    done = run(folder, script=[python, "-X", "importtime", *line])
    assert done.returncode == 0, done.stderr
    assert "uer.data.builder\n" in done.stderr and not re.search(r"\| +torch\n", done.stderr)
    header = Dataset.open(folder / "out.pt").header
    assert f"documents {header['documents']}" in done.stdout
    assert header["seq_length"] == 20 and header["do_lower_case"] is False and header["dynamic_masking"] is True


def test_standard_input(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with open("corpus.txt") as text:
        done = run(folder, "--corpus_path", "-", "--vocab_path", "vocab.txt", "--dataset_path", "a.pt", stdin=text)
    assert done.returncode == 0, done.stderr
    call("preprocess.py", "--corpus_path", "corpus.txt", "--vocab_path", "vocab.txt", "--dataset_path", "b.pt")
    assert Path("a.pt").read_bytes() == Path("b.pt").read_bytes()


def test_a_pipe_is_read_like_standard_input(folder):
    """`<(zcat corpus.gz)` in a shell."""
    reader, writer = os.pipe()
    os.write(writer, b'{"words": "the river"}\n{"words": "low"}\n')
    os.close(writer)
    done = run(folder, "--corpus_path", f"/dev/fd/{reader}", "--text_field", "words", "--vocab_path", "vocab.txt",
               pass_fds=[reader])
    os.close(reader)
    assert done.returncode == 0 and "2 instances of 2 documents" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--corpus_path", "absent"], "error: --corpus_path absent: no such file"),
        (["--corpus_path", "vocab.txt", "--data_processor", "bert"], "--data_processor bert: mlm and pairs are there"),
        (["--corpus_path", "vocab.txt", "--dataset_path", "corpus.txt/x.pt"], "there is no folder corpus.txt"),
    ],
)
def test_mistakes_are_one_sentence(folder, monkeypatch, capsys, more, message):
    monkeypatch.chdir(folder)
    assert message in refused(capsys, folder, "preprocess.py", "--vocab_path", "vocab.txt", *more)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads the process table")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_signals_end_all_and_leave_the_old_dataset(folder, number, code):
    """The run reads from a pipe that stays open, so that it is under way when the signal comes."""
    (folder / "dataset.pt").write_bytes(b"as it was")
    line = command("--corpus_path", "-", "--vocab_path", "vocab.txt", "--processes_num", "2")
    process = subprocess.Popen(
        line, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    process.stdin.write(random_corpus(2, 200).encode("utf-8") * 40)
    process.stdin.flush()
    deadline = time.monotonic() + 30
    while len(workers := children(process.pid)) < 2 or not list(folder.glob(".dataset.pt.*.tmp/text-*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal sends it: to the workers too
    else:
        process.send_signal(number)
    process.wait(20)
    stderr = process.stderr.read().decode()
    process.stdin.close()
    process.stdout.close()
    process.stderr.close()
    assert process.returncode == code
    assert "Traceback" not in stderr
    while any(map(alive, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (folder / "dataset.pt").read_bytes() == b"as it was"
    if number != signal.SIGKILL:
        assert sorted(p.name for p in folder.iterdir()) == ["corpus.txt", "dataset.pt", "vocab.txt"]


def test_a_folder_with_a_config_alone_is_no_teacher_to_go_on_with(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    words = ["--corpus_path", "corpus.txt", "--vocab_path", "vocab.txt", "--dataset_path", "out.pt"]
    for name in ("config.json", "model.safetensors"):
        call("preprocess.py", *words)
        assert "--model_path TEACHER" in capsys.readouterr().out
        (folder / name).write_text("{}")
    call("preprocess.py", *words)
    assert "--model_path ." in capsys.readouterr().out


def test_inspector(folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    call("preprocess.py", "--corpus_path", "corpus.txt", "--vocab_path", "vocab.txt", "--dup_factor", "2")
    monkeypatch.setattr(sys, "argv", ["inspect", "dataset.pt", "--vocab_path", "vocab.txt", "--instances", "3"])
    inspect.main()
    said = capsys.readouterr().out
    assert '"mlm"' in said and "documents 30" in said
    assert said.count(": [CLS] ") == said.count("      masked: ") == 3
    bins = said.split("length (tokens)  instances\n")[1].split("\n\n")[0].split("\n")
    assert len(bins) == 16
    assert sum(int(line[14:].split()[0]) for line in bins) == len(Dataset.open(folder / "dataset.pt"))
    write_vocab(folder, [*TOKENS, "more"])
    with pytest.raises(UserError, match="another vocabulary"):
        inspect.main()
