"""pretrain.py --plan: the README's command before anything of it is there, what is read where it is, mistakes."""

import json
import re
from dataclasses import replace

import pytest
import torch
from commands import SMALLER, TEACHER, call, pretrain_options, readme_commands, refused

from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.models.bert import from_scratch
from uer.planning.cost import Step, plain_cost
from uer.planning.wid_cost import wid_cost
from uer.squeeze.groups import build_groups


def planned(capsys, *options) -> str:
    call("pretrain.py", "--plan", *options)
    return capsys.readouterr().out


def cells(text: str, label: str) -> list[str]:
    """The cells of the line that begins with this label."""
    line = next(line for line in text.splitlines() if line.strip().startswith(label))
    return re.split(r"  +", line.strip().removeprefix(label).strip())


def test_the_readmes_command_before_anything_is_there(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert/base_config.json").write_text(TEACHER.to_json())
    line = readme_commands()[1]
    for pattern, smaller in SMALLER[1:-1]:
        line = line if "batch_size" in pattern else re.sub(pattern, smaller, line)
    words = line.replace("--target_dim 192", "--target_dim 32").split()[2:]
    text = planned(capsys, *words)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["base_config.json"]
    assert text.count("is not there") == 2 and "8 x 1 x 120 instances of 64 tokens" in text
    assert "20 steps, squeezed at step" in text or "20 steps, never squeezed" in text
    groups, tables = build_groups(TEACHER, 32, "dim"), {"vocab": 30522, "positions": 64, "segments": 3}
    step = Step(rows=120, seq=64, processes=8, cuda=True)
    costs = [wid_cost(TEACHER, tables, groups, step)]
    for group in groups.values():
        group.squeezed = True
    costs += [wid_cost(TEACHER, tables, groups, step), plain_cost(TEACHER.student(32, "dim"), tables, step)]
    assert cells(text, "parameters that run")[1:] == [f"{sum(c.student.values()) / 1e6:.2f} M" for c in costs]
    operations = [float(cell) for cell in cells(text, "operations a step (GFLOP)")[1:]]
    assert operations == pytest.approx([c.all_operations / 1e9 for c in costs], rel=1e-2)
    times = [float(cell.rstrip("x")) for cell in cells(text, "times cheaper")]
    assert times[0] == 1 < times[1] < times[2] < times[3]


def test_what_is_there_is_read(files, tmp_path, capsys):
    text = planned(capsys, *pretrain_options(files, tmp_path / "m.bin"))
    vocab = len((files / "vocab.txt").read_text().splitlines())
    assert "note" not in text and f"vocabulary {vocab}; a step: 1 x 1 x 4 instances of 32 tokens" in text
    parameters = sum(tensor.numel() for tensor in torch.load(files / "teacher.bin", weights_only=True).values())
    assert cells(text, "parameters trained") == [f"{parameters / 1e6:.2f} M"]
    assert not list(tmp_path.iterdir())


def test_the_teacher_tells_its_sizes(files, tmp_path, capsys):
    model = load_model(files / "teacher.bin", config=TEACHER, vocab_size=None)
    write_huggingface(tmp_path / "folder", model.config, model.weights)
    (tmp_path / "folder/model.safetensors").unlink()
    squeeze = ["--weight_squeeze", "--target_dim", 32, "--compactor_init", "calibrated", "--train", "student"]
    texts = [planned(capsys, "--pretrained_model_path", path, "--seq_length", 64, *squeeze)
             for path in (tmp_path / "folder", files / "teacher.bin")]
    assert texts[0].partition("\n\n")[2] == texts[1].partition("\n\n")[2]
    assert "before squeeze" not in texts[0] and "student's size from the first step, folded at step 0:" in texts[0]
    assert json.loads((tmp_path / "folder/config.json").read_text())["vocab_size"] == len(model.weights[
        "embedding.word_embedding.weight"])


@pytest.mark.parametrize("target", [{"target": "states"}, {"target": "cls", "pooling": "first"}, {"target": "tokens"}])
def test_what_stands_on_the_encoder(tmp_path, capsys, target):
    """As the run has it, from the weights or from config.json alone."""
    config = replace(TEACHER, outputs=TEACHER.hidden_size if target["target"] == "states" else 2, **target)
    weights = from_scratch(config, 30522, 1).state_dict()
    write_huggingface(tmp_path / "folder", config, weights)
    words = ["--pretrained_model_path", tmp_path / "folder", "--seq_length", 64, "--weight_squeeze", "--target_dim", 32,
             "--compactor_init", "calibrated", "--train", "student"]
    texts = [planned(capsys, *words)]
    (tmp_path / "folder/model.safetensors").unlink()
    texts += [planned(capsys, *words), planned(capsys, *words, "--target", "states")]
    assert texts[0] == texts[1] and "the teacher that runs along" in texts[0] and "MLM" not in "".join(texts)
    assert (texts[1] == texts[2]) == (config.target == "states")
    student = config.student(32, "dim", 32 if config.target == "cls" else None)
    cost = plain_cost(student, {"vocab": 30522, "positions": 64, "segments": 3}, Step(rows=32, seq=64))
    assert cells(texts[0], "parameters that run")[-1] == f"{sum(cost.student.values()) / 1e6:.2f} M"
    write_huggingface(tmp_path / "folder", config, weights)
    assert "MLM head" in planned(capsys, *words, "--allow_missing_head")


def test_a_fold_makes_the_rest_of_the_run_as_cheap_as_its_student(files, capsys):
    squeeze = ["--config_path", files / "config.json", "--weight_squeeze", "--target_dim", 32, "--total_steps", 4000,
               "--w_step", 100, "--penalty", "fade", "--squeeze_tolerance", "1e-4"]
    texts = [planned(capsys, *squeeze, *more) for more in ([], ["--after_squeeze", "student"])]
    assert texts[0].splitlines()[:-2] == texts[1].splitlines()[:-2]
    costs = [float(cell) for cell in cells(texts[1], "operations a step (GFLOP)")]
    line = texts[1].splitlines()[-2]
    assert line.startswith("4,000 steps, squeezed at step 1,800, folded at step 1,900: ")  # 1e-6 after two intervals
    costs[1] = float(cells(texts[1], "mean as dimensions leave")[1])
    shares = (0, 0.45, 0.025, 0.525)
    folded = sum(cost * share for cost, share in zip(costs, shares))
    kept = costs[1] * 0.45 + costs[2] * 0.55
    times = [float(number) for number in re.findall(r"([\d.]+) times as many", line)]
    assert times == pytest.approx([kept / folded, costs[0] / folded], rel=5e-2) and "not folded" in line
    assert "not folded" not in texts[0]


@pytest.mark.parametrize(("more", "message"), [
    (["--plan"], "--config_path is needed"),
    (["--plan", "--config_path", "absent.json"], "absent.json: no such file"),
    (["--plan", "--config_path", "CONFIG", "--weight_squeeze"], "--weight_squeeze needs --target_dim"),
    (["--plan", "--config_path", "CONFIG", "--weight_squeeze", "--target_dim", "33"], "--target_dim 33"),
    (["--plan", "--config_path", "CONFIG", "--seq_length", "0"], "--seq_length is 0"),
    (["--plan", "--config_path", "CONFIG", "--seq_length", "65"], "--seq_length is 65, the model has 64 positions"),
    (["--config_path", "CONFIG", "--seq_length", "64"], "--seq_length goes with --plan"),
    (["--config_path", "CONFIG"], "--dataset_path is needed; --output_model_path is needed")])
def test_mistakes(files, tmp_path, capsys, more, message):
    words = [str(files / "config.json") if word == "CONFIG" else word for word in more]
    assert message in refused(capsys, tmp_path, "pretrain.py", *words)
