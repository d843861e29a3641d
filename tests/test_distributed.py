"""Several processes: equal to one with the batches together, sharded or not; failures, missing ranks, launchers."""

import argparse
import gc
import importlib
import json
import os
import queue
import signal
import subprocess
import time
import weakref
from concurrent.futures import ThreadPoolExecutor, TimeoutError
from pathlib import Path

import pytest
import torch
from bench import WID, assert_same, options, reports
from commands import free_port, start
from workers import one_fails, processes, runs_in_float64

from uer.errors import UserError
from uer.parallel import rendezvous, spawn
from uer.parallel.collectives import Place
from uer.parallel.launch import make_plan
from uer.parallel.rendezvous import Meeting, Watch, job_of, meet, open_store
from uer.parallel.replica import Replica, check_comm_hook
from uer.training.build_trainer import resume_wish
from uer.training.checkpoint import load_checkpoint
from uer.training.sharded_master import assign

STEPS = 22
# masks at 1, 2, … 16; squeezes at 10 and 18
FADE = [*WID, "--penalty", "fade", "--mask_scores", "taylor", "--w_step", "1", "--max_grad_norm", "0.5",
        "--total_steps", str(STEPS), "--report_steps", "2", "--save_checkpoint_steps", "12"]
PUBLISHED = [*WID, "--w_step", "1", "--total_steps", "8", "--report_steps", "2", "--compactor_mask_strategy", "head"]
FOLD = [*FADE, "--after_squeeze", "student"]  # at 19
# world size: sharded or not: method, accumulation
KINDS = {1: {"": [("fade", 1), ("fade", 2), ("fold", 1), ("published", 1)]},
         2: {"": [("fade", 2), ("published", 1)], "sharded": [("fade", 2), ("fold", 1), ("published", 1)]},
         4: {"sharded": [("fade", 1)]}}


@pytest.fixture
def group():
    """A process group of this process alone, entered as `launch` does."""
    importlib.import_module("torch._dynamo")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_a_student_that_was_replaced_is_freed(group):
    """At once, without the garbage collector's help: on a GPU it would hold memory until that comes by."""
    gc.collect()
    gc.disable()
    try:
        student = torch.nn.Linear(4, 4)
        replica = Replica(student, lambda model, x: model(x).sum(), Place(0, 1, torch.device("cpu")))
        assert replica.active
        with replica.micro_step(last=True):
            replica.loss(torch.ones(2, 4)).backward()
        gone = weakref.ref(student.weight)
        del student, replica
        assert gone() is None
    finally:
        gc.enable()


def test_gradients_travel_in_bfloat16_between_gpus_alone(group):
    check_comm_hook("none")
    with pytest.raises(UserError, match="--ddp_comm_hook bf16 needs several processes on GPUs"):
        check_comm_hook("bf16")


# -- equal to one process ----------------------------------------------------------------------------------------------


def line(bench: Path, name: str, method: list[str], world_size: int, accumulation: int, *more: str) -> list[str]:
    """A command line whose steps have 8 × accumulation instances, whatever the number of processes."""
    return options(bench, *method, *more, "--mask_path", f"{name}.masks", dataset="static.pt", dropout=0,
                   batch_size=8 // world_size, accumulation_steps=accumulation, output_model_path=name)


@pytest.fixture(scope="module")
def results(bench, tmp_path_factory):
    """A folder with runs of 1, 2 and 4 processes in float64."""
    folder = tmp_path_factory.mktemp("runs")
    methods = {"fade": FADE, "fold": FOLD, "published": PUBLISHED}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for world_size in (1, 2, 4):
            processes(runs_in_float64, world_size, runs=[
                line(bench, f"{method}-{accumulation}-{world_size}{kind}", methods[method], world_size, accumulation,
                     *(["--shard_master"] if kind else []))
                for kind, cases in KINDS[world_size].items() for method, accumulation in cases] + (
                    more(bench) if world_size == 2 else []))
        processes(runs_in_float64, 1, runs=[line(bench, "to-one", FADE, 1, 2, "--resume", "fade-2-2sharded-12")])
    return folder


def more(bench: Path) -> list[list[str]]:
    """Runs of two processes that go on from a checkpoint: of one process, of their own with everything random."""
    random = [*options(bench, *FADE, "--shard_master", accumulation_steps=2, output_model_path="random")]
    return [line(bench, "to-two", FADE, 2, 2, "--shard_master", "--resume", "fade-2-1-12"), random,
            [*random, "--output_model_path", "again", "--resume", "random-12"]]


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
    assert_close(one, many, STEPS if method != "published-1" else 8)
    assert Path(f"{one}.masks").read_text() == Path(f"{many}.masks").read_text()


def assert_close(one: Path, many: Path, step: int) -> None:
    """Two runs' checkpoints of a step are the same files, their numbers equal to rounding."""
    tensors, card, resume = load_checkpoint(Path(f"{one}-{step}"))
    others, other_card, other_resume = load_checkpoint(Path(f"{many}-{step}"))
    own = ("data", "tensors", "resume", "card_sha256")  # the order of data, and digests of the files
    assert {**card, **dict.fromkeys(own)} == {**other_card, **dict.fromkeys(own)} and list(tensors) == list(others)
    assert_same(other_resume.get("keep"), resume.get("keep"))
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.float64 and others[name].shape == tensor.shape
        assert torch.allclose(others[name], tensor, rtol=0, atol=1e-10), name
    assert list(resume["optimizer"]) == list(other_resume["optimizer"])
    for name, moments in resume["optimizer"].items():
        for key, tensor in moments.items():
            assert torch.allclose(other_resume["optimizer"][name][key], tensor, rtol=1e-8, atol=1e-10), (name, key)


@pytest.mark.parametrize("name", ["to-one", "to-two"])
def test_checkpoints_move_between_numbers_of_processes(results, name):
    assert_close(results / "fade-2-1", results / name, STEPS)


def test_two_processes_go_on_bit_for_bit(results):
    """Dynamic masks, dropout, accumulation, shards; from inside the mask schedule, after the first squeeze."""
    squeezed = {entry["step"]: entry["groups"] for entry in reports(results / "random.metrics", "squeeze")}
    assert min(squeezed) < 12 < max(squeezed)
    assert_same(load_checkpoint(results / f"random-{STEPS}"), load_checkpoint(results / f"again-{STEPS}"))


def facts(results: Path, name: str) -> dict:
    return json.loads((results / f"{name}.facts").read_text())


def test_what_is_sent_are_the_students_gradients(results):
    whole, parts = facts(results, "published-1-2"), facts(results, "published-1-2sharded")
    flags = (6 + 3) * 8  # predictions, tokens, texts, 3 signals; loss and accuracy to report, loss to train on
    assert whole["gradients"] == whole["student"] == parts["student"]
    assert whole["sent"] == {"all_reduce": 8 * flags}  # and what DistributedDataParallel sends
    [entry] = reports(results / "published-1-2.metrics", "exchange")
    assert entry["gradient_bytes"] == whole["student"]


def test_shards_divide_the_memory(results):
    whole = facts(results, "fade-1-1")["held"][0]
    for name, most in (("fade-2-2sharded", 0.65), ("fade-1-4sharded", 0.4)):
        held = facts(results, name)["held"]
        assert sum(held) == whole and max(held) < most * whole
    assert facts(results, "fade-2-2")["held"] == [whole, whole]


# -- what two processes tell each other --------------------------------------------------------------------------------


@pytest.mark.parametrize(("how", "waiting", "said"), [
    ("error", "backward", "KeyError: 'no such thing'"), ("kill", "nothing", "rank 1 was ended by SIGKILL")])
def test_a_process_that_fails_ends_all_with_its_own_message(monkeypatch, capsys, how, waiting, said):
    """Before that, they tell each other all sorts of things."""
    monkeypatch.setattr(spawn, "GRACE", 1.0)
    begun = time.monotonic()
    with pytest.raises((UserError, SystemExit)) as end:
        processes(one_fails, 2, how=how, waiting=waiting)
    assert time.monotonic() - begun < 60
    told = capsys.readouterr().err + str(end.value)
    assert said in told and told.count("Traceback") == (how == "error") and "lost each other" not in told


# -- meeting -----------------------------------------------------------------------------------------------------------


def meeting(timeout: float) -> Meeting:
    return Meeting("localhost", free_port(), False, 0, timeout)


def test_those_who_came_hear_who_is_missing():
    place = meeting(1.0)

    def come(rank: int) -> str:
        try:
            meet(open_store(place, rank), place, rank, 4)
        except UserError as error:
            return str(error)
        return "met"

    with ThreadPoolExecutor() as pool:
        said = list(pool.map(come, [0, 2]))
    assert said[0] == said[1] and f"did not come to {place.url} in 1 s: 1 3; start their machine with" in said[0]
    assert "--world_size 4 --gpu_ranks 1 3" in said[0] and "--rendezvous_timeout" in said[0]


def test_nobody_there_and_a_rank_there_twice():
    with pytest.raises(UserError, match=r"rank 1 found nobody at tcp://localhost:\d+ in 1 s: rank 0 has to run there"):
        open_store(meeting(1.0), 1)
    place = meeting(5.0)
    store = open_store(place, 0)
    meet(store, place, 0, 1)
    with pytest.raises(UserError, match="rank 0 is there already"):
        meet(store, place, 0, 1)
    with pytest.raises(UserError, match=r"cannot listen there .*a port that is free"):
        open_store(place, 0)


def test_a_process_that_falls_silent_is_found(monkeypatch):
    monkeypatch.setattr(rendezvous, "BEAT", 0.02)
    place, heard = meeting(5.0), queue.Queue()
    store = open_store(place, 0)
    watches = [Watch(place, rank, 3, heard.put) for rank in (0, 1)]  # rank 2 never gives a sign of life
    for watch in watches:
        watch.start()
    said = [heard.get(timeout=10) for _ in watches]
    assert said[0] == said[1] == store.get("failed").decode() and said[0].startswith("rank 2: no sign of life")


def test_who_keeps_the_store_stays_until_all_have_heard():
    place = meeting(5.0)
    _store, watches = open_store(place, 0), [Watch(place, rank, 2, print) for rank in (0, 1)]
    with ThreadPoolExecutor() as pool:
        first = pool.submit(watches[0].tell, "no such file")
        with pytest.raises(TimeoutError):
            first.result(0.2)
        assert not watches[1].tell("no such file, either") and first.result(5)


@pytest.mark.long
def test_two_machines_run_as_one(bench, tmp_path):
    """Started by two commands, each with its rank, as on two machines; one is killed, and the other ends."""
    url = meeting(0).url

    def begin(rank: int, *more: str) -> subprocess.Popen:
        words = options(bench, *WID, *more, "--world_size", "2", "--gpu_ranks", str(rank), "--master_ip", url,
                        mask_path=tmp_path / "masks.txt", output_model_path=tmp_path / "model.bin")
        return start("pretrain.py", *words, cwd=tmp_path, stderr=subprocess.STDOUT, start_new_session=True)

    pair = [begin(rank, "--total_steps", "5") for rank in (1, 0)]
    printed = [process.communicate(timeout=120)[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], printed
    assert "step 5: wrote" in printed[1] and not printed[0]
    pair = [begin(rank, "--total_steps", "100000", "--report_steps", "1") for rank in (1, 0)]
    next(line for line in pair[1].stdout if line.startswith("step 3/"))
    os.killpg(pair[0].pid, signal.SIGKILL)
    begun = time.monotonic()
    said = pair[1].communicate(timeout=120)[0]
    assert time.monotonic() - begun < 60 and pair[1].returncode == 2
    assert "error: the processes lost each other" in said.splitlines()[-1] or "no sign of life" in said
    pair[0].wait()


@pytest.mark.long
@pytest.mark.parametrize(("option", "values"), [("dataset_path", ("dynamic.pt", "static.pt")),
                                                ("accumulation_steps", (1, 2)), ("learning_rate", (1e-3, 1e-4))])
def test_machines_that_would_not_do_the_same_are_told(bench, tmp_path, option, values):
    """They went on, each with its own data and its own rates."""
    words = options(bench, "--world_size", "2", "--master_ip", meeting(0).url, total_steps=2)
    given = [bench / value if option == "dataset_path" else value for value in values]
    pair = [start("pretrain.py", *words, "--gpu_ranks", str(rank), f"--{option}", str(given[rank]), cwd=tmp_path,
                  stderr=subprocess.STDOUT) for rank in (1, 0)]
    said = "".join(process.communicate(timeout=120)[0] for process in pair)
    assert [process.returncode for process in pair] == [2, 2], said
    assert said.count(f"error: --{option}: rank 1 has another than rank 0; start all processes") == 1
    assert not list(tmp_path.glob("model.bin*"))


# -- plans -------------------------------------------------------------------------------------------------------------


def plan(**changed):
    values = {"world_size": 1, "gpu_ranks": [], "master_ip": None, "backend": None, "rendezvous_timeout": 5.0}
    return make_plan(argparse.Namespace(**{**values, **changed}))


def test_plans(monkeypatch):
    assert plan().meeting is None and plan().backend == ("nccl" if torch.cuda.is_available() else "gloo")
    two = plan(world_size=2, backend="gloo")
    assert two.ranks == [0, 1] and two.meeting.host == "localhost" and two.meeting.port > 0
    second = plan(world_size=4, gpu_ranks=[2, 3], master_ip="tcp://first:29500", backend="gloo")
    assert second.ranks == [2, 3] and second.meeting[:2] == ("first", 29500)
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "first",
                        "MASTER_PORT": "29500", "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    started = plan(backend="gloo")
    assert (started.ranks, started.world_size, started.local, started.started) == ([3], 4, 1, True)
    assert started.meeting == Meeting("first", 29500, False, 2, 5.0)


@pytest.mark.parametrize(("changed", "gpus", "environment", "said"), [
    ({"world_size": 4, "gpu_ranks": [0, 1]}, 0, {},
     "0 1 are 2 of 4 processes, so others run elsewhere: give --master_ip"),
    ({"world_size": 4}, 2, {}, "names 4 ranks but this machine shows 2 GPU(s); for all of them: --world_size 2 "
                               "--gpu_ranks 0 1"),
    ({"world_size": 2, "master_ip": "first:29500"}, 0, {}, "tcp://<host>:<port> is needed"),
    ({"backend": "nccl"}, 0, {}, "--backend nccl needs GPUs, and this machine shows none"),
    ({"world_size": 8}, 0, {"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1"}, "leave out --world_size"),
    ({}, 0, {"RANK": "0", "WORLD_SIZE": "4"}, "MASTER_PORT is ''"),
    ({}, 2, {"RANK": "0", "WORLD_SIZE": "4", "MASTER_PORT": "1", "LOCAL_WORLD_SIZE": "4"},
     "asks for 4 processes on this machine but this machine shows 2 GPU(s); for all of them: torchrun --nproc_per_node "
     "2")])
def test_plans_that_cannot_be(monkeypatch, changed, gpus, environment, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as refusal:
        plan(**changed)
    assert said in str(refusal.value)


def test_a_restart_by_torchrun_goes_on_from_the_newest_checkpoint(tmp_path):
    """If its own job has written it: an older run's is none of its business, whichever attempt it is."""
    places = [meeting(5.0), meeting(5.0)]
    _agents = [open_store(place, 0) for place in places]
    first, again, other = (job_of(open_store(place._replace(hosted=True, attempt=attempt), 0))
                           for place, attempt in ((places[0], 0), (places[0], 1), (places[1], 1)))
    assert first == again != other
    args = argparse.Namespace(output_model_path=str(tmp_path / "m.bin"), resume=None)
    assert resume_wish(args, again) is None
    (tmp_path / "m.bin-5").touch()
    assert resume_wish(args, again) is None
    (tmp_path / "m.bin-5.json").write_text(json.dumps({"job": first}))
    assert [resume_wish(args, job) for job in (again, other, None)] == ["newest", None, None]


def test_parts_are_shared_out_evenly():
    assert assign({"embedding": 30, "0": 20, "1": 20, "target": 25}, 2) == {"embedding": 0, "target": 1, "0": 1, "1": 0}
    with pytest.raises(UserError, match=r"2 parts .* 3 processes"):
        assign({"0": 1, "1": 1}, 3)
