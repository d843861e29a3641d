"""--target_heads: some heads leave, the others get thinner."""

from __future__ import annotations

import pytest
import torch
from bench import CONFIG, options, run
from commands import call
from corpora import TOKENS
from test_calibration import batches, config_of, largest_difference, random_teacher, student_of

from uer.errors import UserError
from uer.formats import load_model
from uer.squeeze.groups import build_groups, possible_heads, student_config

FOUR_HEADS = config_of(32, 4, 2, 64)


def test_the_groups_say_it():
    groups = build_groups(FOUR_HEADS, 12, "dim", target_heads=3)
    assert student_config(FOUR_HEADS, groups).heads_num == 3
    assert possible_heads(FOUR_HEADS, 12) == [2, 3, 4] and possible_heads(FOUR_HEADS, 31) == []
    for strategy in ("dim", "head"):
        assert build_groups(FOUR_HEADS, 16, strategy)["attention.0"].target_blocks == (4 if strategy == "dim" else 2)


@pytest.mark.parametrize(("dim", "heads", "words"), [(12, 5, "3 or 4 would do"), (12, 1, "2 or 3 would do"),
                                                     (24, 2, "3 or 4 would do"), (31, 1, "take another --target_dim")])
def test_heads_that_cannot_be(dim: int, heads: int, words: str):
    with pytest.raises(UserError, match=words):
        build_groups(FOUR_HEADS, dim, "dim", target_heads=heads)


def test_nothing_dropped_is_the_teacher():
    teacher = random_teacher(FOUR_HEADS)
    student, _ = student_of(FOUR_HEADS, teacher, build_groups(FOUR_HEADS, 32, "dim", target_heads=4), batches())
    assert largest_difference(FOUR_HEADS, teacher, student) < 1e-9


def test_what_a_strategy_leaves_is_the_same_said_in_heads():
    """16 dimensions in 2 heads are what `head` leaves, in 4 heads what `dim` leaves."""
    teacher, data = random_teacher(FOUR_HEADS), batches()
    for strategy, heads in (("head", 2), ("dim", 4)):
        wanted, _ = student_of(FOUR_HEADS, teacher, build_groups(FOUR_HEADS, 16, strategy), data)
        given, _ = student_of(FOUR_HEADS, teacher, build_groups(FOUR_HEADS, 16, "dim", target_heads=heads), data)
        assert all(torch.equal(a, b) for a, b in zip(wanted.parameters(), given.parameters(), strict=True))


def test_heads_of_which_half_say_nothing_and_the_others_are_half_as_wide():
    """Two of four heads add nothing, and the values and keys of the other two have four dimensions: all of it stays."""
    teacher = random_teacher(FOUR_HEADS)
    for i in range(2):
        attention = f"encoder.transformer.{i}.self_attn"
        for j in range(3):
            for part in ("weight", "bias"):
                rows = teacher[f"{attention}.linear_layers.{j}.{part}"].view(4, 8, -1)
                rows[:, 4:] = 0
        teacher[f"{attention}.final_linear.weight"].view(32, 4, 8)[:, [0, 3]] = 0
    groups = build_groups(FOUR_HEADS, 32, "dim")
    for i in range(2):
        groups[f"attention.{i}"].wanted_blocks, groups[f"attention.{i}"].target = 2, 8
    student, calibration = student_of(FOUR_HEADS, teacher, groups, batches())
    assert largest_difference(FOUR_HEADS, teacher, student) < 1e-6
    assert calibration.keep["attention.0"].nonzero().flatten().tolist() == [8, 9, 10, 11, 16, 17, 18, 19]


@pytest.mark.parametrize("train", ["compactors", "student"])
def test_from_training_to_a_file(bench, tmp_path, monkeypatch, train: str):
    monkeypatch.chdir(tmp_path)
    words = ["--weight_squeeze", "--target_dim", "8", "--target_heads", "1", "--compactor_init", "calibrated",
             "--calibration_batches", "1", "--train", train]
    run(options(bench, *words, total_steps=2, save_checkpoint_steps=1))
    run(options(bench, *words, "--resume", "model.bin-1", total_steps=2))
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin", "--output_format",
         "uer", "huggingface")
    for path in ("student.bin", "student"):
        config = load_model(path, config=None, vocab_size=len(TOKENS)).config
        assert (config.hidden_size, config.heads_num) == (8, 1) and CONFIG.heads_num == 2
    with pytest.raises(UserError, match="--target_heads needs --compactor_init calibrated"):
        run(options(bench, *[word for word in words if word not in ("--compactor_init", "calibrated")],
                    "--mask_path", "masks.txt"))


def test_fewer_layers_in_training(bench, tmp_path, monkeypatch, capsys):
    """The teacher loses them before anything else; --plan and checkpoints know; resume bit for bit."""
    monkeypatch.chdir(tmp_path)
    words = ["--weight_squeeze", "--target_dim", "16", "--target_layers", "1", "--compactor_init", "calibrated",
             "--calibration_batches", "1", "--train", "student"]
    run(options(bench, *words, "--plan"))
    assert "2 layers x 32 to 1 x 16 (dim)" in capsys.readouterr().out
    run(options(bench, *words, total_steps=2, save_checkpoint_steps=1))
    assert "1 of 2 layers stays, number 0" in capsys.readouterr().out
    whole = torch.load("model.bin-2", weights_only=True)
    run(options(bench, *words, "--resume", "model.bin-1", total_steps=2))
    assert "stay" not in capsys.readouterr().out
    again = torch.load("model.bin-2", weights_only=True)
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin")
    config = load_model("student.bin", config=None, vocab_size=len(TOKENS)).config
    assert (config.layers_num, config.hidden_size) == (1, 16)
