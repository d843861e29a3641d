"""Processes: one, spawned ones, or those of torchrun; and the few collectives that training needs."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from uer.errors import UserError


class Place(NamedTuple):
    """Where this process stands: its rank, the number of processes, its device."""

    rank: int
    world_size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


def launch(worker: Callable[[Place, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run `worker(place, args)` in every process that this machine is to have.

    Raises:
        UserError: world_size, gpu_ranks and the visible GPUs do not fit together.
    """
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun
        rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        _run(int(os.environ.get("LOCAL_RANK", rank)), [rank], world_size, "env://", worker, args)
        return
    ranks = args.gpu_ranks or list(range(args.world_size))
    gpus = torch.cuda.device_count()
    if len(set(ranks)) != len(ranks) or max(ranks) >= args.world_size or min(ranks) < 0:
        wanted = " ".join(map(str, range(args.world_size)))
        raise UserError(f"--gpu_ranks {' '.join(map(str, ranks))} does not fit --world_size {args.world_size}: ranks "
                        f"are numbers below world_size, each once; for one machine: --gpu_ranks {wanted}")
    if 0 < gpus < len(ranks):
        wanted = " ".join(map(str, range(gpus)))
        raise UserError(f"--gpu_ranks names {len(ranks)} ranks but this machine shows {gpus} GPU(s); for all of them: "
                        f"--world_size {gpus} --gpu_ranks {wanted}")
    if len(ranks) == 1 and args.world_size == 1:
        _run(0, ranks, 1, args.master_ip, worker, args)
        return
    mistakes = mp.get_context("spawn").SimpleQueue()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # one sentence is enough, see below
    try:
        mp.spawn(_run_or_tell, args=(mistakes, ranks, args.world_size, args.master_ip, worker, args), nprocs=len(ranks))
    except mp.ProcessExitedException:
        if mistakes.empty():
            raise
        raise UserError(mistakes.get()) from None


def _run_or_tell(local: int, mistakes: Any, *more: Any) -> None:
    """`_run` in a process of its own, which hands a user's mistake to the one that started it."""
    try:
        _run(local, *more)
    except UserError as error:
        mistakes.put(str(error))
        sys.exit(2)


def _run(local: int, ranks: list[int], world_size: int, url: str, worker: Callable, args: argparse.Namespace) -> None:
    rank = ranks[local] if len(ranks) > local else ranks[0]
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    elif world_size > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // len(ranks)))
    if world_size > 1:
        dist.init_process_group("nccl" if cuda else "gloo", init_method=url, rank=rank, world_size=world_size)
    try:
        worker(Place(rank, world_size, device), args)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def sum_over_ranks(tensors: list[torch.Tensor]) -> None:
    """Sum tensors over all processes, in place, in one transfer per dtype."""
    if not dist.is_initialized():
        return
    for dtype in {tensor.dtype for tensor in tensors}:
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        for tensor, piece in zip(alike, flat.split([tensor.numel() for tensor in alike])):
            tensor.copy_(piece.view_as(tensor))


def wait_for_all() -> None:
    """Return once every process is here."""
    if dist.is_initialized():
        dist.barrier()
