"""The experiment with GLUE's tasks: every script for real, on texts of a few words."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from commands import call, refused
from test_targets import headed
from tuning import write_glue, write_models

from demo.picking import pick
from experiments import tasks
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_uer
from uer.models.bert import from_weights


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
    monkeypatch.setattr("sys.argv", ["tasks.py", *map(str, [*words[:-3], "--start", "norm"])])
    tasks.main()
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "work/rows").glob("*.json")}
    assert {(row.get("start"), row.get("width"), row.get("steps"), row.get("text")) for row in rows.values()} == {
        (None, None, None, None), *((way, 8, steps, "more" * (task == "SST-2")) for way in ("calibrated", "norm")
                                    for steps in (0, 2))}
    for row in rows.values():
        assert metrics < row.keys() and row["score"] == pytest.approx(sum(row[name] for name in metrics) / len(metrics))
    [dataset] = (tmp_path / "work/teachers" / task).glob("texts*.pt")
    dataset = Dataset.open(dataset)
    assert dataset.pairs == (task == "STS-B")
    tuned = json.loads((tmp_path / "work/teachers" / task / "glue.json").read_text())
    assert str(rows[f"teacher-{task}"]["score"])[:6] in json.dumps(tuned)
    trained = next(line for line in commands.lines if line[0] == "pretrain.py")
    assert trained[-2:] == ["--layer_weight", "1"] and trained[trained.index("--target") + 1] == "logits"
    shown = capsys.readouterr().out.splitlines()
    assert [sum(line.startswith(f"| {model} |") for line in shown) for model in ("teacher", 8)] == [2, 6]
    done = len(commands.lines)
    tasks.main()
    assert len(commands.lines) == done


def test_whole_heads_are_picked_and_a_classifier_with_them():
    config, weights = headed("cls", "mean", 3)
    loud = config.head_size * (config.heads_num - 1)  # where the rows of the last head begin
    for part in range(3):
        weights[f"encoder.transformer.0.self_attn.linear_layers.{part}.weight"][loud:] *= 9
    picked, student = pick(weights, config, config.head_size, seed=3, by="norm", strategy="head")
    assert (student.heads_num, student.head_size) == (1, config.head_size)
    from_weights(student, picked)
    hidden = weights["embedding.word_embedding.weight"].norm(dim=0).topk(config.head_size).indices.sort().values
    name = "encoder.transformer.0.self_attn.linear_layers.1"
    assert torch.equal(picked[f"{name}.weight"], weights[f"{name}.weight"][loud:, hidden])
    before, after = (f"target.output_layer_{number}" for number in (1, 2))
    inner = weights[f"{after}.weight"].norm(dim=0).topk(config.head_size).indices.sort().values
    assert torch.equal(picked[f"{after}.weight"], weights[f"{after}.weight"][:, inner])
    assert torch.equal(picked[f"{before}.weight"], weights[f"{before}.weight"][inner][:, hidden])
    assert torch.equal(picked[f"{after}.bias"], weights[f"{after}.bias"])
    with pytest.raises(UserError, match=f"multiple of the teacher's {config.head_size} dimensions a head"):
        pick(weights, config, config.head_size + 1, seed=3, strategy="head")


def test_other_starts_have_heads_of_the_teachers_or_their_number(tmp_path, capsys):
    config, weights = headed("cls", "mean", 3)
    write_uer(tmp_path / "t.bin", weights)
    (tmp_path / "t_config.json").write_text(config.to_json())
    student = tmp_path / "s.bin"
    words = ["--pretrained_model_path", tmp_path / "t.bin", "--target_dim", 12, "--output_model_path", student]
    for way in ("norm", "random"):
        call("experiments/starts.py", *words, "--way", way, "--keep_head")
        assert load_model(student, config=None, vocab_size=None, target=None).config == config.student(12, "dim")
    refuse = partial(refused, capsys, tmp_path, "experiments/starts.py", *words)
    assert "--target_heads 2" in refuse("--way", "norm", "--keep_head", "--target_heads", 2)
    assert "--keep_head is for" in refuse("--way", "layers", "--keep_head")
    assert "--dataset_path" in refuse("--way", "norm")
