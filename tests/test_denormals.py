"""Numbers that are too small to be normal ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import call, pretrain_options
from tuning import options

SMALL = 1e-39
ALL_THREADS = """
import os, torch
from uer.cpu.denormals import flush_denormals
child = os.fork()  # before there are any threads
if child:
    os.waitpid(child, 0)
    flush_denormals()
torch.set_num_threads(4)
products = torch.full((1 << 22,), 1e-39) * 0.5
print((products != 0).sum().item(), flush=True)
"""
pytestmark = pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush denormals")


def left() -> float:
    return (torch.tensor(SMALL) * 0.5).item()


def test_in_all_threads():
    said = subprocess.run([sys.executable, "-c", ALL_THREADS], check=True, capture_output=True, text=True,
                          cwd=Path(__file__).parents[1]).stdout
    assert said.split() == [str(1 << 22), "0"]  # kept, flushed


@pytest.mark.parametrize("script", ["pretrain.py", "finetune/run_classifier.py"])
def test_training_flushes(files, tuned, tmp_path, script):
    assert left()
    given = (pretrain_options(files, tmp_path / "run.bin") if script == "pretrain.py"
             else options(tuned, tmp_path / "c.bin", "--epochs_num", 1))
    call(script, *given)
    assert not left()
