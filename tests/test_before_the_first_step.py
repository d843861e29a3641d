"""What may end or stop a run before it has anything to save."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
from bench import WID, options, run
from commands import start

import uer.training.build_trainer
from uer.errors import Stopped, UserError
from uer.parallel.collectives import LostPeers, collective
from uer.parallel.signals import SIGNALS, StopSignals
from uer.training.checkpoint import checkpoint_steps
from uer.training.lock import locked


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_run_at_once(bench, tmp_path, monkeypatch, capsys, number):
    """While the teacher is calibrated, say: minutes that nobody waits for, and a grace period is 30 seconds."""
    build = uer.training.build_trainer.build_learner

    def hit(*more):
        os.kill(os.getpid(), number)
        return build(*more)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(uer.training.build_trainer, "build_learner", hit)
    with pytest.raises(Stopped) as stopped:
        run(options(bench, total_steps=3))
    assert stopped.value.number == number
    assert f"stopped by {signal.Signals(number).name} before the first step" in capsys.readouterr().out
    assert not list(Path().glob("model.bin*")) and not list(Path().glob(".model*"))


def test_from_the_first_step_on_a_signal_is_noted():
    """With several processes from the start: one that left would leave the others waiting for it."""
    with StopSignals(2) as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        assert StopSignals.agreed(signals.flags()) == signal.SIGTERM
    with StopSignals() as signals:
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not any(signals.flags())
        signals.waiting = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert StopSignals.agreed(signals.flags()) == signal.SIGTERM


def test_a_lock_whose_file_is_gone_is_none(tmp_path, monkeypatch):
    """Its holder has removed it between our opening it and its letting go: another may hold a new one by then."""
    path, opened = tmp_path / ".lock", threading.Event()
    real = uer.training.lock.lock
    path.touch()

    def late(file):
        if not opened.is_set():
            opened.set()
            path.unlink()
        return real(file)

    monkeypatch.setattr(uer.training.lock, "lock", late)
    with locked(path, "held"):
        assert path.exists() and opened.is_set()
        monkeypatch.setattr(uer.training.lock, "lock", real)
        with pytest.raises(UserError, match="held"), locked(path, "held"):
            pass


def test_two_processes_end_after_the_same_step(bench, tmp_path):
    """Calibration sends sums all the time: a process that left there would be waited for."""
    words = [*WID, "--compactor_init", "calibrated", "--target_dim", "64", "--world_size", "2"]
    process = start("pretrain.py", *options(bench, *words, total_steps=100000), cwd=tmp_path, stderr=subprocess.STDOUT)
    first = next(iter(process.stdout.readline, ""))
    process.terminate()
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 143, first + rest
    steps = checkpoint_steps(str(tmp_path / "model.bin"))
    assert all(f"step {step}: SIGTERM ended the run" in rest for step in steps) and len(steps) < 2


def test_what_does_nothing_is_told(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(options(bench, "--mask_path", "masks.txt", "--master_ip", "tcp://nowhere:1", total_steps=1))
    said = capsys.readouterr().out
    assert "note: --mask_path: not used, as masks are of compactors, and there are none" in said
    assert "note: --master_ip: not used, as one process needs no other" in said
    assert not Path("masks.txt").exists()


@pytest.mark.parametrize(("what", "kind"), [("CUDA error: out of memory", RuntimeError), ("reset by peer", LostPeers)])
def test_a_gpus_own_failure_is_not_taken_for_lost_peers(what, kind):
    """It shows in whatever waits for the GPU first, and that is often a collective."""
    with pytest.raises(RuntimeError, match=what) as caught, collective():
        raise RuntimeError(what)
    assert caught.type is kind
