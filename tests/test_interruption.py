"""Runs that are cut short: by signals, lost losses, spoilt or full disks; and what is watched meanwhile."""

import itertools
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from bench import WID, assert_same, options, reports, run
from commands import ROOT, start

import uer.training.trainer
from uer.config import parse_with_config
from uer.errors import Stopped, UserError
from uer.formats import storage
from uer.opts import pretrain_parser
from uer.parallel.collectives import Place
from uer.parallel.signals import SIGNALS, StopSignals
from uer.report.writer import Reports
from uer.training.build_trainer import build_trainer
from uer.training.checkpoint import checkpoint_steps, load_checkpoint, open_checkpoint, save_checkpoint, sweep
from uer.training.objective import mlm_objective
from uer.training.precision import START, LossScale, Precision

FADE = [*WID, "--penalty", "fade", "--w_step", "1"]


def build(words: list[str], device: str = "cpu"):
    """The trainer that a command line describes, before its first step."""
    args, _ = parse_with_config(pretrain_parser, words)
    return build_trainer(Place(0, 1, torch.device(device)), args, Reports(leads=False), StopSignals())


# -- signals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_and_ends_the_run(bench, tmp_path, monkeypatch, capsys, number):
    words = options(bench, *FADE, total_steps=10, report_steps=2, accumulation_steps=2, tb_path="logs")
    monkeypatch.chdir(tmp_path)
    run([*words, "--output_model_path", "whole"])
    losses = [entry["loss"] for entry in reports(Path("logs"), "train")]
    shutil.rmtree("logs")
    take = uer.training.trainer.mlm_objective
    calls = iter(range(100))

    def hit(*more):
        if next(calls) == 2 * 4 + 1:  # in the second micro-step of the fifth step
            os.kill(os.getpid(), number)
        return take(*more)

    monkeypatch.setattr(uer.training.trainer, "mlm_objective", hit)
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as stopped:
        run(words)
    assert stopped.value.code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGUSR1: 138}[number]
    assert signal.getsignal(number) is before
    assert checkpoint_steps("model.bin") == [6]  # every process has heard of it by the next step
    assert f"step 6: {signal.Signals(number).name} ended the run; the same command with --resume" in \
        capsys.readouterr().out
    with open("logs/metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 8, "kind": "train", "loss": 3}\n{"step": 9, "ki')  # of a run that was killed later
    run([*words, "--resume"])
    assert_same(load_checkpoint(Path("model.bin-10")), load_checkpoint(Path("whole-10")))
    assert [entry["loss"] for entry in reports(Path("logs"), "train")] == losses


def begin(words: list[str], folder: Path) -> subprocess.Popen:
    return start("pretrain.py", *words, cwd=folder, stderr=subprocess.STDOUT)


def test_sigterm_ends_two_processes_after_the_same_step(bench, tmp_path):
    words = options(bench, *FADE, "--world_size", "2", "--shard_master", total_steps=100000, report_steps=1)
    process = begin(words, tmp_path)
    lines = iter(process.stdout.readline, "")
    seen = next(line for line in lines if line.startswith("step 3/"))
    process.terminate()
    rest = "".join(lines)
    assert process.wait(timeout=60) == 143, seen + rest
    [step] = checkpoint_steps(str(tmp_path / "model.bin"))
    assert f"step {step}: SIGTERM ended the run" in rest
    load_checkpoint(tmp_path / f"model.bin-{step}")


# -- checkpoints -------------------------------------------------------------------------------------------------------


def write(folder: Path, step: int, keep: int | None = None) -> Path:
    tensors = {"weight": torch.full((400, 40), float(step))}
    return save_checkpoint(str(folder / "m.bin"), step, tensors, {"kind": "plain"}, {"optimizer": {}}, keep)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    """Of those up to the one just written: later ones are another run's."""
    for step in (3, 7, 100):
        write(tmp_path, step)
    (tmp_path / "m.bin-best").touch()
    (tmp_path / "m.bin-50").mkdir()
    write(tmp_path, 20, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [f"m.bin-{step}{ending}" for step in (7, 20, 100) for ending in ("", ".json", ".resume")]
        + ["m.bin-best", "m.bin-50"])
    assert checkpoint_steps(str(tmp_path / "m.bin")) == [7, 20, 100]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(("ending", "spoil", "said"), [
    ("", truncate, "damaged, truncated"), ("", flip, "damaged, the checksum of"),
    (".resume", truncate, "damaged, truncated"), (".resume", Path.unlink, "m.bin-3.resume is not there"),
    (".json", truncate, "m.bin-3.json: not valid JSON"),
    (".json", lambda path: path.write_text(path.read_text().replace("plain", "wid")), "changed since it was written"),
    ("", lambda path: path.write_bytes(b""), "the file is empty"),
    (".json", lambda path: path.write_text("[]"), "holds a list; a JSON object is needed")])
def test_a_spoilt_checkpoint_is_refused_and_the_one_before_offered(tmp_path, ending, spoil, said):
    paths = [write(tmp_path, step) for step in (1, 2, 3)]
    spoil(Path(f"{paths[2]}{ending}"))
    with pytest.raises(UserError) as refusal:
        open_checkpoint(paths[2])
    message = str(refusal.value)
    assert message.startswith(f"--resume: checkpoint {paths[2]}") and said in message
    assert message.endswith(f"; the one before it can be used: --resume {paths[1]}")
    flip(paths[1])
    flip(Path(f"{paths[0]}.resume"))
    with pytest.raises(UserError, match="there is no earlier one that can be used"):
        open_checkpoint(paths[2])


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    good = write(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # a file of 64,000 bytes is too much
    try:
        with pytest.raises(UserError) as refusal:
            write(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert re.search(r"m.bin-2: cannot be written \(.* MB are free there\); .*m.bin-1 is the last good one", str(
        refusal.value))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert load_checkpoint(good)[1]["step"] == 1


def test_a_disk_that_fails_at_the_last_moment_leaves_the_checkpoint_that_was_there(tmp_path, monkeypatch):
    write(tmp_path, 1)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "sync", full)
    with pytest.raises(UserError, match=r"m.bin-1: cannot be written \(No space left.*m.bin-1 is the last good one"):
        write(tmp_path, 1)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_leftovers_of_killed_runs_are_swept(tmp_path):
    for name in (".m.123.tmp.bin-400", ".m.bin-400.7.tmp.resume", ".other.123.tmp.bin-400", ".m.123.tmp.bin-best",
                 ".masks.99.tmp.txt"):
        (tmp_path / name).touch()
    sweep(str(tmp_path / "m.bin"), str(tmp_path / "masks.txt"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.123.tmp.bin-best", ".other.123.tmp.bin-400"]


def test_nothing_is_loaded_that_could_run_code():
    calls = [(path, call) for path in ROOT.rglob("*.py") if not {".venv", "tests"} & set(path.relative_to(ROOT).parts)
             for call in re.findall(r"torch\.load\([^`]*?\)\n", path.read_text(encoding="utf-8"))]
    assert len(calls) >= 3
    assert [path for path, call in calls if "weights_only=True" not in call] == []


# -- losses that are no numbers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("more", [[], ["--max_grad_norm", "1"]])
def test_a_lost_loss_ends_the_run_before_its_update(bench, tmp_path, monkeypatch, lag, more):
    """With a lag, as on a GPU, the host hears of it a step later, and the device has kept the weights meanwhile."""
    monkeypatch.chdir(tmp_path)
    trainer, _ = build(options(bench, *WID, *more, total_steps=9, w_step=100))
    trainer.judge.delayed.lag = lag
    seen = {}

    def lost(student, batch):
        step = len(seen) + 1
        seen[step] = {name: p.detach().clone() for name, p in trainer.learner.named_parameters()}
        loss, sums = mlm_objective(student, batch)
        return (loss, sums) if step < 4 else (loss * float("nan"), sums * float("nan"))

    trainer.objective = lost
    trainer.replica = trainer._wire()
    with pytest.raises(UserError, match=r"the loss is nan at step 4; .* no weight was updated with it\. Look at .*"
                                        r"learning_rate 7\.41e-04.*--max_grad_norm, then start again"):
        trainer.train()
    assert len(seen) == 4 + lag
    after = {name: p.detach() for name, p in trainer.learner.named_parameters()}
    assert_same(after, seen[4])
    assert any(not torch.equal(seen[4][name], seen[3][name]) for name in after)
    moments = trainer.learner.optimizer.state.values()
    assert all(tensor.isfinite().all() for state in moments for tensor in state.values())


# -- precision ---------------------------------------------------------------------------------------------------------


def test_a_loss_scale_follows_overflows():
    scale = LossScale()
    scale.update(False, 1)
    assert scale.value == START / 2
    for step in range(2000):
        assert scale.value == START / 2
        scale.update(True, step)
    assert scale.value == START
    other = LossScale()
    other.restore(scale.state())
    assert other.state() == scale.state()
    with pytest.raises(UserError, match="--bf16 has the range"):
        for step in range(100):
            scale.update(False, step)


def test_fp16_leaves_overflows_out_and_goes_on_bit_for_bit(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("uer.training.precision.START", 2.0**26)
    monkeypatch.setattr("uer.training.precision.GROWTH_STEPS", 6)
    monkeypatch.chdir(tmp_path)
    words = options(bench, *FADE, "--fp16", total_steps=24, report_steps=1, save_checkpoint_steps=3, tb_path="logs",
                    check_replicas_steps=5)
    run(words)
    train = reports(Path("logs"), "train")
    scales = [entry["loss_scale"] for entry in train]
    assert max(scales) < 2**26 and any(b > a for a, b in itertools.pairwise(scales))
    printed = capsys.readouterr().out
    assert "a gradient overflowed in float16; this update is left out" in printed
    assert [entry["kept/ffn.0"] for entry in train][:16] == [64 - 2 * step for step in range(1, 17)]  # on schedule
    whole = load_checkpoint(Path("model.bin-24"))
    for step in (3, 12):
        folder = tmp_path / f"from{step}"
        folder.mkdir()
        for ending in ("", ".json", ".resume"):
            shutil.copy(f"model.bin-{step}{ending}", folder)
        run([*words, "--output_model_path", f"{folder}/model.bin", "--resume"])
        assert_same(load_checkpoint(folder / "model.bin-24"), whole)


def test_clipping_scales_the_whole_gradient():
    precision = Precision(torch.device("cpu"), max_grad_norm=2.0)
    gradients = [torch.full((3,), 3.0), torch.full((1,), 3.0)]  # norm 6
    precision.clip(gradients, shared=False)
    assert precision.facts() == {"gradient_norm": pytest.approx(6.0)}
    assert torch.cat(gradients).norm().item() == pytest.approx(2.0)
    precision.clip(gradients, shared=False)
    assert torch.cat(gradients).norm().item() == pytest.approx(2.0)


@pytest.mark.parametrize(("more", "inside"), [([], "highest"), (["--compose_dtype", "tf32"], "high")])
def test_composition_has_its_own_precision(bench, tmp_path, monkeypatch, more, inside):
    monkeypatch.chdir(tmp_path)
    trainer, _ = build(options(bench, *WID, *more, total_steps=2))
    seen = []
    for thing, name in ((trainer.learner, "prepare"), (trainer.learner, "finish"), (trainer.replica, "loss")):
        inner = getattr(thing, name)

        def noting(*args, inner=inner, name=name):
            seen.append((name, torch.get_float32_matmul_precision()))
            return inner(*args)

        monkeypatch.setattr(thing, name, noting)
    torch.set_float32_matmul_precision("medium")
    try:
        trainer.step(1, trainer.batches.stream(), 1.0)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert seen == [("prepare", inside), ("loss", "medium"), ("finish", inside)]


@pytest.mark.parametrize(("device", "half", "asked", "compose"), [
    ("cuda", torch.bfloat16, None, "tf32"), ("cuda", torch.bfloat16, "float32", "float32"),
    ("cuda", None, None, "float32"), ("cpu", torch.bfloat16, None, "float32")])
def test_composition_is_no_finer_than_what_a_gpu_makes_of_it(device, half, asked, compose):
    assert Precision(torch.device(device), half, asked).compose == compose


# -- watching ----------------------------------------------------------------------------------------------------------


def test_one_line_tells_what_matters_and_histograms_come_on_demand(bench, tmp_path, monkeypatch, capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, total_steps=4, w_step=100, report_steps=2, tb_path="logs", tb_histograms_steps=3))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("step 2/4"))
    assert re.fullmatch(r"step 2/4 \| loss \d\.\d+ \| accuracy \d+\.\d % \| [\d,]+ tokens/s \| kept hidden 32 ffn 64 "
                        r"mlm 32 \| largest dropped 0\.0e\+00 \| \d\.\d GB \| 0:00:\d\d left", line)
    board = EventAccumulator("logs").Reload()
    name = "weights/encoder.transformer.1.self_attn.right_compactor.2.weight"
    assert name in board.Tags()["histograms"] and [event.step for event in board.Histograms(name)] == [3]


# -- kill it -----------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_twenty_kills_change_nothing(bench, tmp_path):
    """SIGKILL at random moments after a checkpoint, mostly near the next one being written; each time resume."""
    words = options(bench, *FADE, total_steps=600, save_checkpoint_steps=2, report_steps=50, accumulation_steps=2,
                    w_step=20, keep_checkpoints=3)
    (tmp_path / "whole").mkdir()
    assert begin(words, tmp_path / "whole").wait(timeout=300) == 0
    folder, rng, steps = tmp_path / "killed", random.Random(1), []
    folder.mkdir()
    for _ in range(20):
        process = begin([*words, "--resume"] if steps else words, folder)
        first = "".join(line for line, _ in zip(process.stdout, range(3)))
        while checkpoint_steps(str(folder / "model.bin")) == steps and process.poll() is None:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.6))
        assert process.poll() is None, f"too quick to be killed: {first}{process.stdout.read()}"
        process.kill()
        process.wait()
        process.stdout.close()
        steps = checkpoint_steps(str(folder / "model.bin"))
        load_checkpoint(folder / f"model.bin-{steps[-1]}")  # the newest one that is there is whole
    last = begin([*words, "--resume"], folder)
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said
    assert_same(load_checkpoint(folder / "model.bin-600"), load_checkpoint(tmp_path / "whole" / "model.bin-600"))
    assert (folder / "masks.txt").read_text() == (tmp_path / "whole" / "masks.txt").read_text()
    assert not list(folder.glob(".*tmp*"))
