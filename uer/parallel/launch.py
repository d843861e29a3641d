"""Starting the processes of a run: one, spawned ones, or those that torchrun or srun has started.

    pretrain.py …                                                        one process
    pretrain.py … --world_size 8 --gpu_ranks 0 1 2 3 4 5 6 7             spawned on this machine
    pretrain.py … --world_size 16 --gpu_ranks 8 … 15 --master_ip tcp://first:29500       the second of two machines
    torchrun --nproc_per_node 8 pretrain.py …                            RANK, WORLD_SIZE, … are in the environment

Every way ends in `_run`: device, rendezvous, process group, work. A process that fails, whatever the way, ends all.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple
from urllib.parse import urlparse

import torch
import torch.distributed as dist

from uer.errors import Stopped, UserError
from uer.parallel.collectives import LostPeers, Place, wait_for_all
from uer.parallel.rendezvous import Meeting, Watch, end_process, job_of, meet, open_store

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # longer than the slowest checkpoint; the watch finds dead processes sooner
LAST_WORDS = 20.0  # seconds that a failed process gets to shut down
Worker = Callable[[Place, argparse.Namespace], None]


class Plan(NamedTuple):
    """The processes of a run.

    Attributes:
        ranks: those on this machine.
        world_size: processes in all.
        local: index of the first of `ranks` among this machine's devices.
        backend: `nccl` or `gloo`.
        meeting: where they meet, None for one process alone.
        started: whether something else has started them (torchrun, srun).
    """

    ranks: list[int]
    world_size: int
    local: int
    backend: str
    meeting: Meeting | None
    started: bool = False


def launch(worker: Worker, args: argparse.Namespace) -> bool:
    """Run `worker(place, args)` in every process that this machine is to have.

    Returns:
        whether rank 0 was among them.
    Raises:
        UserError: options and the visible devices do not fit together, ranks do not come, or what a process raised.
        Stopped: signals ended the run.
    """
    plan = make_plan(args)
    if plan.started or plan.meeting is None:
        try:
            _run(0, plan, worker, args, end_process)
        except LostPeers as error:
            raise UserError(str(error)) from None
    else:
        from uer.parallel.spawn import spawn

        spawn(_run, plan, worker, args)
    return 0 in plan.ranks


# -- what is to run where ----------------------------------------------------------------------------------------------


def make_plan(args: argparse.Namespace) -> Plan:
    """The plan that options and environment describe, checked against the devices that this machine shows.
    `UserError` comes with the words to type."""
    backend = args.backend or ("nccl" if torch.cuda.is_available() else "gloo")
    if backend == "nccl" and not torch.cuda.is_available():
        raise UserError("--backend nccl needs GPUs, and this machine shows none; leave it out, or give --backend gloo")
    if told_rank() is not None:
        return _environment(args, backend)
    world_size, ranks = args.world_size, args.gpu_ranks or list(range(args.world_size))
    if len(set(ranks)) != len(ranks) or max(ranks) >= world_size or min(ranks) < 0:
        raise UserError(f"--gpu_ranks {words(ranks)} does not fit --world_size {world_size}: ranks are numbers below "
                        f"world_size, each once; for one machine: --gpu_ranks {words(range(world_size))}",
                        page="cluster")
    _check_devices(len(ranks), "--gpu_ranks names {} ranks", "--world_size {gpus} --gpu_ranks {ranks}")
    if world_size == 1:
        return Plan(ranks, 1, 0, backend, None)
    if args.master_ip is None and len(ranks) < world_size:
        raise UserError(f"--gpu_ranks {words(ranks)} are {len(ranks)} of {world_size} processes, so others run "
                        f"elsewhere: give --master_ip tcp://<machine of rank 0>:<port> on every machine",
                        page="cluster")
    host, port = _address(args.master_ip) if args.master_ip else ("localhost", _free_port())
    return Plan(ranks, world_size, 0, backend, Meeting(host, port, False, 0, args.rendezvous_timeout))


def told_rank() -> str | None:
    """The rank of this process, where torchrun or a script like it has started it; None: nobody says."""
    return os.environ.get("RANK") if "WORLD_SIZE" in os.environ else None


def _environment(args: argparse.Namespace, backend: str) -> Plan:
    """The plan of torchrun, or of a script that sets the same variables."""
    numbers, told = {}, getattr(args, "local_rank", None)
    local = os.environ["RANK"] if told is None else str(told)
    for name, default in (("RANK", ""), ("WORLD_SIZE", ""), ("LOCAL_RANK", local),
                          ("LOCAL_WORLD_SIZE", "0"), ("MASTER_PORT", ""), ("TORCHELASTIC_RESTART_COUNT", "0")):
        value = os.environ.get(name, default)
        if not value.isdecimal():
            raise UserError(f"{name} is {value!r} in the environment; torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, "
                            f"MASTER_ADDR and MASTER_PORT; unset RANK to start processes with --world_size")
        numbers[name] = int(value)
    world_size, host = numbers["WORLD_SIZE"], os.environ.get("MASTER_ADDR", "localhost")
    if args.world_size not in (1, world_size):
        raise UserError(f"--world_size {args.world_size}, but the environment (torchrun, srun) says {world_size} "
                        f"processes; leave out --world_size and --gpu_ranks there")
    if _one_gpu_each():
        numbers["LOCAL_RANK"] = 0
    else:
        _check_devices(max(numbers["LOCAL_WORLD_SIZE"], numbers["LOCAL_RANK"] + 1), "the environment (torchrun, srun) "
                       "asks for {} processes on this machine", "torchrun --nproc_per_node {gpus}")
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    meeting = Meeting(host, numbers["MASTER_PORT"], hosted, numbers["TORCHELASTIC_RESTART_COUNT"],
                      args.rendezvous_timeout)
    return Plan([numbers["RANK"]], world_size, numbers["LOCAL_RANK"], backend, meeting, started=True)


def _one_gpu_each() -> bool:
    """Whether every process is shown a GPU of its own, as by Slurm's --gpus-per-task=1; torchrun shows all to each."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    apart = "SLURM_PROCID" in os.environ or (shown and "," not in shown)
    return torch.cuda.device_count() == 1 and bool(apart) and "TORCHELASTIC_RUN_ID" not in os.environ


def _check_devices(wanted: int, who: str, instead: str) -> None:
    gpus = torch.cuda.device_count()
    if 0 < gpus < wanted:
        raise UserError(f"{who.format(wanted)} but this machine shows {gpus} GPU(s); for all of them: "
                        f"{instead.format(gpus=gpus, ranks=words(range(gpus)))}", page="cluster")


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlparse(url)
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            return parts.hostname, parts.port
    except ValueError:
        pass
    raise UserError(f"--master_ip {url}: tcp://<host>:<port> is needed, tcp://localhost:29500 for instance")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def words(ranks: Any) -> str:
    """Ranks as they are typed."""
    return " ".join(map(str, ranks))


# -- one process -------------------------------------------------------------------------------------------------------


def _run(index: int, plan: Plan, worker: Worker, args: argparse.Namespace, end: Callable[[str], None]) -> None:
    """The process of `plan.ranks[index]`; `end` ends it from another thread."""
    rank, local = plan.ranks[index], plan.local + index
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif len(plan.ranks) > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(plan.ranks)))
    place = Place(rank, plan.world_size, device)
    if plan.meeting is None:
        worker(place, args)
        return
    importlib.import_module("torch._dynamo")  # DistributedDataParallel would, and its frames keep the first student
    store = open_store(plan.meeting, rank)
    meet(store, plan.meeting, rank, plan.world_size)
    if plan.meeting.hosted:
        place = place._replace(job=job_of(store))
    watch = Watch(plan.meeting, rank, plan.world_size, end)
    watch.start()
    stopped = None
    try:
        dist.init_process_group(plan.backend, store=dist.PrefixStore("group", store), rank=rank,
                                world_size=plan.world_size, timeout=COLLECTIVE_TIMEOUT,
                                device_id=device if plan.backend == "nccl" else None)
        try:
            worker(place, args)
        except Stopped as signal:
            stopped = signal
        wait_for_all()
    except BaseException as error:
        _fail(error, watch)
        raise
    finally:
        watch.stop()
    dist.destroy_process_group()
    if stopped is not None:
        raise stopped


def _fail(error: BaseException, watch: Watch) -> None:
    """Tell the others, once; raises what this process is to say."""
    timer = threading.Timer(LAST_WORDS, os._exit, (1,))  # shutting down can wait for a lost peer
    timer.daemon = True
    timer.start()
    if isinstance(error, LostPeers):
        raise LostPeers(watch.cause() or str(error)) from None
    first = watch.tell(str(error) or type(error).__name__)
    if isinstance(error, UserError) and not first:  # all processes found the same mistake: one says it
        sys.exit(2)
