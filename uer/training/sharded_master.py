"""A master whose layers are shared out: every process keeps, composes and updates a part of them.

    parts       the embedding, each encoder layer, the MLM head (tied to the embedding: one part with it)
    prepare     each process composes its parts; the student's weights go from each owner to all others
    finish      the student's gradients are summed on their owner only; penalty and optimizer run there

Student, masks and squeezes are those of a master in one piece: scores and the largest dropped entry of a group are told
to everybody by whoever has them. A tensor that is elsewhere stands as one on the `meta` device, which knows its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import nn

from uer.config import ModelConfig
from uer.errors import UserError
from uer.models.bert import Bert
from uer.parallel.collectives import Place, collective, sum_over_ranks
from uer.squeeze.groups import MaskGroup
from uer.squeeze.master import Master
from uer.squeeze.wiring import EMBEDDING_TABLES, compactor_sizes
from uer.training.learner import State
from uer.training.optimizers import MOMENTS
from uer.training.wid_learner import WidLearner

ALIGNED = 64  # numbers: where the tensors of a transfer begin, so that kernels can read them in whole words


def part_of(name: str, tied: bool) -> str:
    """The part that a tensor belongs to: `embedding`, `0`, `1`, … or `target`."""
    words = name.split(".")
    if words[0] == "encoder":
        return words[2]
    return "embedding" if tied else words[0]


def assign(sizes: Mapping[str, int], world_size: int) -> dict[str, int]:
    """part -> rank: the largest part first, to whoever has least so far.
    `UserError` where there are fewer parts than processes."""
    if len(sizes) < world_size:
        raise UserError(f"--shard_master shares {len(sizes)} parts out (layers, embedding, head), and there are "
                        f"{world_size} processes; {len(sizes)} at most, or leave it out")
    load, owners = [0] * world_size, {}
    for part in sorted(sizes, key=lambda part: -sizes[part]):
        rank = load.index(min(load))
        owners[part] = rank
        load[rank] += sizes[part]
    return owners


class ShardedMaster(Master):
    """`Master`, of which this process has some parts.

    Args:
        config, weights, groups: as for `Master`; the weights are the whole ones, on any device.
        place: this process.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, torch.Tensor], groups: dict[str, MaskGroup],
                 place: Place):
        self.place, self.tied = place, config.tie_weights
        shapes = {**{name: tensor.shape for name, tensor in weights.items()},
                  **{name: torch.Size((size, size)) for name, size in compactor_sizes(config).items()
                     if name not in weights}}
        sizes: dict[str, int] = {}
        for name, shape in shapes.items():
            sizes[part_of(name, self.tied)] = sizes.get(part_of(name, self.tied), 0) + shape.numel()
        self.owners = assign(sizes, place.world_size)
        like = torch.empty(0, dtype=weights[EMBEDDING_TABLES[0]].dtype, device=place.device)
        tensors = {name: self._placed(name, shape, weights.get(name), like) for name, shape in shapes.items()}
        super().__init__(config, tensors, groups)
        self.like = like
        for name, parameter in self.parameters.items():
            parameter.requires_grad_(self.owns(name))
        self.linears = [linear for linear in self.linears if self.owns(linear.name)]
        self.norms = [norm for norm in self.norms if self.owns(norm[0])]
        self.compactors = [compactor for compactor in self.compactors if self.owns(compactor.name)]

    def _placed(self, name: str, shape: torch.Size, tensor: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
        """A tensor that this process owns, on its device; or one that is elsewhere."""
        if not self.owns(name):
            return torch.empty(shape, dtype=like.dtype, device="meta")
        if tensor is None:
            return torch.eye(shape[0], dtype=like.dtype, device=like.device)
        return tensor.to(like.device)

    def owner(self, name: str) -> int:
        """The rank that has a tensor of the master, or composes one of the student."""
        return self.owners[part_of(name, self.tied)]

    def owns(self, name: str) -> bool:
        """Whether this process has it."""
        return self.owner(name) == self.place.rank

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """This process's."""
        return ((name, parameter) for name, parameter in super().named_parameters() if self.owns(name))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """This process's."""
        return {name: tensor for name, tensor in super().state_dict().items() if self.owns(name)}

    # -- composition -----------------------------------------------------------------------------------------------

    def build_student(self) -> Bert:
        with torch.device("meta"):
            student = Bert(self.sizes(), replace(self.config, tie_weights=False))
        student.to(self.like.dtype).to_empty(device=self.like.device)
        self.compose_into(student)
        self.set_norm_masks(student)
        return student

    def compose(self) -> dict[str, torch.Tensor]:
        """This process's part of the student."""
        return {name: tensor for name, tensor in super().compose().items() if self.owns(name)}

    def compose_into(self, student: Bert) -> None:
        """Compose this process's part, and get the others'. Every process must call it."""
        super().compose_into(_Part(student, self.owns))  # type: ignore[arg-type]
        flights = [self._flight(rank, student) for rank in range(self.place.world_size)]
        for rank, (flat, pieces, work) in enumerate(flights):
            with collective():
                work.wait()
            for parameter, start in pieces if rank != self.place.rank else []:
                parameter.data = flat[start:start + parameter.numel()].view_as(parameter)
                parameter.grad = None

    def _flight(self, rank: int, student: Bert) -> tuple[torch.Tensor, list[tuple[nn.Parameter, int]], Any]:
        """Start to send, or to get, what a rank has composed: the flat tensor, (parameter, its place), the transfer."""
        pieces, size = [], 0
        for name, parameter in student.named_parameters():
            if self.owner(name) == rank:
                pieces.append((parameter, size))
                size += -(-parameter.numel() // ALIGNED) * ALIGNED
        flat = self.like.new_empty(size)
        if rank == self.place.rank:
            for parameter, start in pieces:
                flat[start:start + parameter.numel()] = parameter.detach().flatten()
        with collective():
            return flat, pieces, dist.broadcast(flat, rank, async_op=True)

    # -- what all processes must know ------------------------------------------------------------------------------

    def whole(self, name: str) -> torch.Tensor:
        parameter = self.parameters[name].detach()
        told = parameter.clone() if self.owns(name) else self.like.new_zeros(parameter.shape)
        sum_over_ranks([told])
        return told

    @torch.no_grad()
    def scores(self, group: MaskGroup) -> torch.Tensor:
        mine = self.owns(group.scored_by)
        return self.told(group, super().scores(group) if mine else self.like.new_empty(group.width).double())

    def told(self, group: MaskGroup, scores: torch.Tensor) -> torch.Tensor:
        """The scores that the owner of the scoring compactor has found; what others pass in is written over."""
        with collective():
            dist.broadcast(scores, self.owner(group.scored_by))
        return scores

    def largest_of_each(self, group: MaskGroup) -> torch.Tensor:
        largest = super().largest_of_each(group)
        with collective():
            dist.all_reduce(largest, dist.ReduceOp.MAX)
        return largest


class _Part(NamedTuple):
    """Some of a student's parameters."""

    student: Bert
    owns: Callable[[str], bool]

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, parameter) for name, parameter in self.student.named_parameters() if self.owns(name))


class ShardedLearner(WidLearner):
    """`WidLearner` on a sharded master: its checkpoints are whole."""

    master: ShardedMaster

    @property
    def owner(self) -> Callable[[str], int]:  # type: ignore[override]
        return self.master.owner

    @property
    def owns(self) -> Callable[[str], bool]:  # type: ignore[override]
        return self.master.owns

    def checkpoint(self) -> State:
        moments = self._moments()
        flat = {f"{key} {name}": tensor for name, pair in moments.items() for key, tensor in pair.items()}
        tensors = gather(self.master.state_dict(), self.master.like.device)
        flat = gather(flat, self.master.like.device)
        whole: dict[str, Any] = {}
        for name in self.master.parameters:
            pair = {key: flat[f"{key} {name}"] for key in MOMENTS if f"{key} {name}" in flat}
            if pair:
                whole[name] = pair
        return {name: tensors[name] for name in self.master.parameters if name in tensors}, {"optimizer": whole,
                                                                                             **self._gathered()}

    def replicated(self) -> list[tuple[str, torch.Tensor]]:
        """The student's weights, composed anew, and the masks: the master is nowhere twice."""
        self.prepare()
        masks = [(f"mask of {name}", group.keep) for name, group in self.groups().items() if group.keep is not None]
        return [(name, parameter.detach()) for name, parameter in self.student.named_parameters()] + \
            [(name, keep.to(torch.uint8)) for name, keep in masks]


def gather(tensors: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """All processes' tensors by name, on the CPU of the leading one; elsewhere this process's own.

    They travel between these devices, or where gloo carries them, which knows no other, between CPUs.
    """
    if dist.get_backend() == "gloo":
        device = torch.device("cpu")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    told: list[Any] = [None] * world_size
    with collective():
        dist.all_gather_object(told, [(name, tensor.shape, tensor.dtype) for name, tensor in tensors.items()])
        if rank:
            for tensor in tensors.values():
                dist.send(tensor.to(device).contiguous(), 0)
            return tensors
        out = {name: tensor.cpu() for name, tensor in tensors.items()}
        for other in range(1, world_size):
            for name, shape, dtype in told[other]:
                buffer = torch.empty(shape, dtype=dtype, device=device)
                dist.recv(buffer, other)
                out[name] = buffer.cpu()
    return out
