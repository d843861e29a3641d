"""The experiment with GLUE's tasks: every script for real, on texts of a few words."""

from __future__ import annotations

import json

import pytest
from commands import call
from tuning import write_glue, write_models

from experiments import tasks
from uer.data.dataset import Dataset


class Here:
    """`Commands` that run in this process."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self.ended = False

    def run(self, folder, script, *options) -> None:
        self.lines.append([script, *map(str, options)])
        call(script, *options)


@pytest.mark.parametrize(("task", "metrics"), [("STS-B", {"pearson", "spearman"}), ("SST-2", {"accuracy"})])
def test_a_tasks_teacher_and_its_students(tmp_path, monkeypatch, capsys, task, metrics):
    write_models(tmp_path)
    write_glue(tmp_path / "glue" / task, task)
    (tmp_path / "more.txt").write_text("the river\nnew cafe\n")
    commands = Here()
    monkeypatch.setattr(tasks, "ending_commands", lambda: commands)
    words = ["--work_path", tmp_path / "work", "--data_dir", tmp_path / "glue", "--teacher", tmp_path / "hf",
             "--vocab_path", tmp_path / "vocab.txt", "--tasks", task, "--shapes", 8, "--steps", 0, 2, "--epochs", 1,
             "--text", tmp_path / "more.txt", "--batch_size", 4, "--seq_length", 32, "--more", "--layer_weight", 1]
    monkeypatch.setattr("sys.argv", ["tasks.py", *map(str, words)])
    tasks.main()
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "work/rows").glob("*.json")}
    assert {(row.get("width"), row.get("steps")) for row in rows.values()} == {(None, None), (8, 0), (8, 2)}
    for row in rows.values():
        assert metrics < row.keys() and row["score"] == pytest.approx(sum(row[name] for name in metrics) / len(metrics))
    dataset = Dataset.open(tmp_path / "work/teachers" / task / "texts.pt")
    assert dataset.pairs == (task == "STS-B")
    tuned = json.loads((tmp_path / "work/teachers" / task / "glue.json").read_text())
    assert str(rows[f"teacher-{task}"]["score"])[:6] in json.dumps(tuned)
    [trained] = [line for line in commands.lines if line[0] == "pretrain.py"]
    assert trained[-2:] == ["--layer_weight", "1"] and trained[trained.index("--target") + 1] == "logits"
    shown = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(f"| {model} |") for line in shown) for model in ("teacher", 8)] == [1, 2]
    done = len(commands.lines)
    tasks.main()
    assert len(commands.lines) == done
