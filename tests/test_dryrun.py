"""--dryrun: every stage, nothing left behind, and the mistakes that a run would make."""

import signal
import time

import pytest
import torch
from bench import CONFIG, WID, options, run
from tuning import pooler

from uer.errors import Stopped, UserError
from uer.formats.export import write_uer
from uer.parallel.collectives import Place
from uer.training.trainer import Trainer

ALWAYS = ["load teacher and data", "step", "comparison of processes", "evaluation", "checkpoint", "resume, step",
          "merge, conversion", "all"]
MASKS = [*ALWAYS[:2], "step with new masks", *ALWAYS[2:]]
SQUEEZE = [*MASKS[:3], "squeeze", "step after the squeeze", *MASKS[3:]]
RUNS = {"wid": ([*WID, "--fp16", "--max_grad_norm", "1"], SQUEEZE), "unsqueezed": ([*WID, "--no_squeeze"], MASKS),
        "head": ([*WID, "--compactor_mask_strategy", "head", "--penalty", "fade"], SQUEEZE),
        "calibrated": ([*WID, "--compactor_init", "calibrated"], ALWAYS),
        "plain": (["--accumulation_steps", "3"], ALWAYS)}


@pytest.mark.parametrize("kind", RUNS)
def test_every_stage_runs_once_and_leaves_nothing(bench, tmp_path, monkeypatch, capsys, kind):
    more, stages = RUNS[kind]
    monkeypatch.chdir(tmp_path)
    begun = time.monotonic()
    run(options(bench, *more, "--dryrun", output_model_path="out/model.bin", tb_path="logs", log_path="run.log",
                dev_path=bench / "dev.pt" if kind == "wid" else None))
    assert time.monotonic() - begun < 60
    lines = capsys.readouterr().out.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split() == ["stage", "seconds"])
    table = [(line[:28].strip(), float(line[28:])) for line in lines[start + 1:-1]]
    assert [name for name, _ in table] == stages
    assert sum(seconds for _, seconds in table[:-1]) == pytest.approx(table[-1][1], abs=0.1)
    assert lines[-1].startswith("the dry run found nothing wrong; ")
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["out"]


@pytest.mark.parametrize("more", [[*WID, "--mlm_target_dim", "32"], [*WID, "--target_dim", "32"], []])
def test_teachers_with_a_pooler_and_groups_that_keep_everything(bench, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    weights = torch.load(bench / "teacher.bin", weights_only=True)
    write_uer("teacher.bin", {**weights, **pooler(CONFIG.hidden_size)})
    run(options(bench, *more, "--dryrun", pretrained_model_path="teacher.bin"))
    assert "the dry run found nothing wrong" in capsys.readouterr().out


def test_a_signal_that_was_noted_ends_a_dry_run(bench, tmp_path, monkeypatch):
    """Several processes note it, as they do in a run: the first step that all agree on is the last."""
    step = Trainer.step

    def asked(trainer: Trainer, number: int, *more) -> None:
        step(trainer, number, *more)
        trainer.judge.stopping = signal.SIGTERM

    monkeypatch.setattr(Trainer, "step", asked)
    with pytest.raises(Stopped):
        run(options(bench, *WID, "--dryrun", output_model_path=tmp_path / "model.bin"))
    assert not list(tmp_path.iterdir())


def test_a_dry_run_says_what_the_run_would(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"absent\.bin: no such file"):
        run(options(bench, *WID, "--dryrun", pretrained_model_path="absent.bin"))
    save = Trainer.save

    def spoilt(trainer: Trainer, step: int) -> None:
        save(trainer, step)
        assert trainer.place == Place(0, 1, trainer.place.device)
        path = next((tmp_path / ".model.bin.dryrun").glob("model.bin-*.resume"))
        path.write_bytes(path.read_bytes()[:-100])

    monkeypatch.setattr(Trainer, "save", spoilt)
    with pytest.raises(UserError, match="damaged, truncated or no file of tensors"):
        run(options(bench, *WID, "--dryrun"))
    assert not list(tmp_path.iterdir())
