"""Where a process stands among the others, and the few collectives that training needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.distributed as dist


class Place(NamedTuple):
    """Where this process stands: its rank, the number of processes, its device; torchrun's job, of all its attempts."""

    rank: int
    world_size: int
    device: torch.device
    job: str | None = None

    @property
    def leads(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0


class LostPeers(RuntimeError):
    """A collective failed, which is what others see when a process ends: the cause is told elsewhere."""


@contextmanager
def collective(mixed: bool = False) -> Iterator[None]:
    """Around every collective: its failure is a `LostPeers`; `mixed`: other work in between may fail, too. What a GPU
    reports here of work before it is this process's own failure."""
    try:
        yield
    except RuntimeError as error:
        own = (mixed and "gloo" not in str(error)) or "CUDA error" in str(error)
        if own and not isinstance(error, dist.DistError):
            raise
        raise LostPeers(f"the processes lost each other ({str(error).splitlines()[0][:200]})") from error


def sum_over_ranks(tensors: list[torch.Tensor]) -> None:
    """Sum tensors over all processes, in place, in one transfer per dtype."""
    if not dist.is_initialized():
        return
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        alike = [tensor for tensor in tensors if tensor.dtype == dtype]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        with collective():
            dist.all_reduce(flat)
        for tensor, piece in zip(alike, flat.split([tensor.numel() for tensor in alike])):
            tensor.copy_(piece.view_as(tensor))


def take_leaders(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite tensors with those of rank 0, in place: what each process has found may differ in rounding or sign."""
    if not dist.is_initialized():
        return
    on_gpus = dist.get_backend() == "nccl"  # which carries nothing else
    for tensor in tensors:
        carrier = tensor.to(torch.uint8) if tensor.dtype == torch.bool else tensor.contiguous()
        carrier = carrier.cuda() if on_gpus else carrier
        with collective():
            dist.broadcast(carrier, 0)
        tensor.copy_(carrier)


def wait_for_all() -> None:
    """Return once every process is here."""
    if dist.is_initialized():
        with collective():
            dist.barrier()


def differing(named: Sequence[tuple[str, torch.Tensor]]) -> list[tuple[int, str]]:
    """(rank, name) of the tensors that are not, bit for bit, those of rank 0; the same list on every process.

    Compared by two sums over the bit patterns, which any single changed number changes.
    """
    if not dist.is_initialized():
        return []
    sums = torch.stack([_fingerprint(tensor) for _, tensor in named])
    everyone = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    with collective():
        dist.all_gather(everyone, sums)
    table = torch.stack(everyone).cpu()  # [ranks, tensors, 2]
    unlike = (table != table[0]).any(-1).nonzero().tolist()
    return [(rank, named[number][0]) for rank, number in unlike]


def _fingerprint(tensor: torch.Tensor) -> torch.Tensor:
    """int64 [2]: the sum of the numbers' bits as integers, and that of every second one."""
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    bits = tensor.detach().contiguous().view(-1).view(integer)
    return torch.stack([bits.sum(dtype=torch.int64), bits[::2].sum(dtype=torch.int64)])
