"""Half precision on CPUs that have no units for it: it is slow, and every script that can run in it says so."""

from __future__ import annotations

import pytest
import torch
from commands import call, pretrain_options
from tuning import options

from uer.training.precision import slow_products, slowdown

CPU = torch.device("cpu")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU on which other formats than float32 take 60 times as long."""
    monkeypatch.setattr("uer.training.precision._seconds",
                        lambda dtype, training: 0.1 if dtype == torch.float32 else 6.0)


@pytest.mark.usefixtures("slow")
def test_only_what_is_slow_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    assert slow_products(None, CPU) == slow_products(torch.bfloat16, torch.device("cuda")) == []
    for half, option in ((torch.bfloat16, "--bf16"), (torch.float16, "--fp16")):
        assert slow_products(half, CPU) == [f"warning: {option} is slow on this CPU: its products take 60 times as "
                                            f"long as in float32; leave {option} out"]
    for trials in (iter([1.0]), iter([9.0, 9.0, 1.0])):  # another process held a core during the first two
        monkeypatch.setattr("uer.training.precision.slowdown", lambda *_, trials=trials: next(trials))
        assert slow_products(torch.bfloat16, CPU) == []


@pytest.mark.parametrize("training", [False, True])
def test_this_cpu_can_be_tried(training: bool) -> None:
    assert slowdown(torch.bfloat16, CPU, training) > 0


@pytest.mark.usefixtures("slow")
def test_every_script_with_half_precision_says_so(files, tuned, tmp_path, capsys) -> None:
    classifier = tmp_path / "c.bin"
    for command in (
            ["pretrain.py", *pretrain_options(files, tmp_path / "m.bin", total_steps=1)],
            ["evaluate.py", "--model_path", files / "teacher.bin", "--config_path", files / "config.json",
             "--dataset_path", files / "data.pt"],
            ["finetune/run_classifier.py", *options(tuned, classifier, "--epochs_num", 1)],
            ["inference/run_classifier_infer.py", "--load_model_path", classifier, "--vocab_path", tuned / "vocab.txt",
             "--test_path", tuned / "dev.tsv", "--prediction_path", tmp_path / "p.tsv"]):
        for more, times in (([], 0), (["--bf16"], 1)):
            call(*command, *more)
            assert capsys.readouterr().out.count("warning: --bf16 is slow on this CPU") == times, command[0]
