"""Several processes: equal to one with the batches together, sharded or not; failures, missing ranks, launchers."""

import json
import time
from pathlib import Path

import pytest
import torch
from bench import WID, assert_same, make_bench, options, reports
from workers import one_fails, processes, runs_in_float64

from uer.checkpoint import load_checkpoint
from uer.errors import UserError

STEPS = 22
FADE = [*WID, "--penalty", "fade", "--w_step", "1", "--total_steps", str(STEPS), "--report_steps", "2",
        "--save_checkpoint_steps", "12"]  # masks at 1, 2, … 16; squeezes at 10 and 18
PUBLISHED = [*WID, "--w_step", "1", "--total_steps", "8", "--report_steps", "2", "--compactor_mask_strategy", "head"]
KINDS = {1: {"": [("fade", 1), ("fade", 2), ("published", 1)]},  # world size: sharded or not: method, accumulation
         2: {"": [("fade", 1), ("fade", 2)], "sharded": [("fade", 2), ("published", 1)]}, 4: {"sharded": [("fade", 1)]}}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return make_bench(tmp_path_factory.mktemp("bench"))


# -- equal to one process ----------------------------------------------------------------------------------------------


def line(bench: Path, name: str, method: list[str], world_size: int, accumulation: int, *more: str) -> list[str]:
    """A command line whose steps have 8 × accumulation instances, whatever the number of processes."""
    return options(bench, *method, *more, "--mask_path", f"{name}.masks", dataset="static.pt", dropout=0,
                   batch_size=8 // world_size, accumulation_steps=accumulation, output_model_path=name)


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """A folder with runs of 1, 2 and 4 processes in float64."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {"fade": FADE, "published": PUBLISHED}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for world_size in (1, 2, 4):
            processes(runs_in_float64, world_size, runs=[
                line(bench, f"{method}-{accumulation}-{world_size}{kind}", methods[method], world_size, accumulation,
                     *(["--shard_master"] if kind else []))
                for kind, cases in KINDS[world_size].items() for method, accumulation in cases])
    return folder


@pytest.mark.parametrize(("method", "kind"), [
    (f"{method}-{accumulation}", f"{world_size}{kind}") for world_size in (2, 4)
    for kind, cases in KINDS[world_size].items() for method, accumulation in cases])
def test_several_processes_equal_one_with_their_batches_together(results, method, kind):
    one, many = results / f"{method}-1", results / f"{method}-{kind}"
    for what in ("train", "squeeze"):
        ours, theirs = reports(Path(f"{one}.metrics"), what), reports(Path(f"{many}.metrics"), what)
        assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs]
        for a, b in zip(ours, theirs):
            for key in {"loss", "accuracy", "groups", "largest_dropped"} & set(a):
                assert b[key] == pytest.approx(a[key], rel=1e-10, abs=1e-10) if key != "groups" else a[key] == b[key]
    assert bool(reports(Path(f"{one}.metrics"), "squeeze")) == (method != "published-1")
    step = STEPS if method != "published-1" else 8
    tensors, card, resume = load_checkpoint(Path(f"{one}-{step}"))
    others, other_card, other_resume = load_checkpoint(Path(f"{many}-{step}"))
    assert card == other_card and list(tensors) == list(others)
    assert_same(other_resume["keep"], resume["keep"])
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float64 and others[name].shape == tensor.shape
        assert torch.allclose(others[name], tensor, rtol=0, atol=1e-10), name
    assert list(resume["optimizer"]) == list(other_resume["optimizer"])
    for name, moments in resume["optimizer"].items():
        for key, tensor in moments.items():
            assert torch.allclose(other_resume["optimizer"][name][key], tensor, rtol=1e-8, atol=1e-10), (name, key)
    assert Path(f"{one}.masks").read_text() == Path(f"{many}.masks").read_text()
