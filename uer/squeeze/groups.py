"""Mask groups: which dimensions leave together, how many at what time, and which.

    group         dimensions                scored by the column norms of      leaves under `dim` / `head`
    hidden        hidden_size               C of layer 0's value projection    as many of each head-sized block /
    attention.i   heads_num * head_size     C of the attention output          whole blocks
    ffn.i         feedforward_size          C of linear_2                      any
    mlm           mlm_size                  C of mlm_linear_2                  any
    cls           mlm_size                  C of output_layer_2                any         (a classifier's, not MLM's)

Score of dimension j: ‖C[:, j]‖₂ in float64; lowest leave first, ties by index. Masks are chosen from scratch every
w_step steps; the number dropped grows linearly in k = step // w_step: over 8 intervals (`dim` blocks), over 16 (free
choice), or one head every second interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from uer.arguments import hint
from uer.config import ModelConfig
from uer.errors import UserError
from uer.layer_sizes import LayerWish, shapes_wished
from uer.sizes import LayerShape
from uer.squeeze.wiring import features_group, target_linears

BLOCK_INTERVALS = 8
FREE_INTERVALS = 16
INTERVALS_PER_HEAD = 2


@dataclass
class MaskGroup:
    """Dimensions that leave together.

    Attributes:
        name: `hidden`, `attention.<layer>`, `ffn.<layer>`, `mlm` or `cls`.
        size: dimensions of the teacher.
        target: dimensions of the student.
        blocks: head-sized blocks (0: free choice).
        whole_blocks: whether whole blocks leave (strategy `head`).
        scored_by: name of the column compactor that scores the dimensions.
        keep: bool [size], None before the first masks.
        there: int64 indices of the dimensions that have not left early, ascending; None: no one has.
        dropped: int64 positions, among those that are there, of the masked dimensions (those under penalty); after the
            squeeze the teacher's.
        squeezed: whether the dropped dimensions have all left for good.
        wanted_blocks: blocks of the student, where the strategy alone does not say it: some leave, others get thinner.
    """

    name: str
    size: int
    target: int
    blocks: int
    whole_blocks: bool
    scored_by: str
    keep: torch.Tensor | None = None
    there: torch.Tensor | None = None
    dropped: torch.Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    squeezed: bool = False
    wanted_blocks: int | None = None
    _kept_index: torch.Tensor | None = None  # found when masks change: finding it waits for the device

    @property
    def width(self) -> int:
        """Dimensions that the student has now."""
        return self.target if self.squeezed else self.size if self.there is None else len(self.there)

    @property
    def kept(self) -> int:
        """Dimensions that are not masked now."""
        return self.target if self.squeezed else self.width - len(self.dropped)

    @property
    def masked(self) -> bool:
        """Whether some dimensions are masked and still there."""
        return not self.squeezed and len(self.dropped) > 0

    @property
    def penalised(self) -> bool:
        """Whether something is done to dropped entries: not to those of calibrated compactors, which never were."""
        return len(self.dropped) > 0 or self.there is not None

    @property
    def last_interval(self) -> int:
        """The value of k at which the schedule is complete."""
        if not self.blocks:
            return FREE_INTERVALS
        if self.whole_blocks:
            return INTERVALS_PER_HEAD * ((self.size - self.target) // self.block_size)
        return BLOCK_INTERVALS

    @property
    def block_size(self) -> int:
        return self.size // self.blocks

    @property
    def target_blocks(self) -> int:
        """Blocks (heads) of the student."""
        return self.wanted_blocks or (self.target // self.block_size if self.whole_blocks else self.blocks)

    @property
    def heads(self) -> int:
        """Blocks (heads) that the student has now."""
        if self.squeezed:
            return self.target_blocks
        return self.width // self.block_size if self.whole_blocks else self.blocks

    def drop_count(self, k: int) -> int:
        """Dimensions to drop in interval k."""
        total = self.size - self.target
        if not self.blocks:
            return total * min(k, FREE_INTERVALS) // FREE_INTERVALS
        if self.whole_blocks:
            return min(k // INTERVALS_PER_HEAD, total // self.block_size) * self.block_size
        return total // self.blocks * min(k, BLOCK_INTERVALS) // BLOCK_INTERVALS * self.blocks

    def choose(self, scores: torch.Tensor, k: int) -> torch.Tensor:
        """The dimensions to keep in interval k: float64 scores [width] -> bool [size]."""
        count = self.drop_count(k)
        if self.there is not None:  # what has left does not come back
            scores = scores.new_full((self.size,), -torch.inf).index_copy_(0, self.there, scores)
        if not self.blocks:
            rows = scores[None]
        elif self.whole_blocks:
            rows, count = scores.view(self.blocks, -1).sum(1)[None], count // self.block_size
        else:
            rows, count = scores.view(self.blocks, -1), count // self.blocks
        lowest = torch.argsort(rows, dim=1, stable=True)[:, :count]
        keep = torch.ones_like(rows, dtype=torch.bool).scatter_(1, lowest, False)
        return keep.flatten().repeat_interleave(self.size // keep.numel())

    def set_keep(self, keep: torch.Tensor) -> bool:
        """Take over new masks (bool [size]); returns whether they differ from those before."""
        changed = self.keep is None or not torch.equal(self.keep, keep)
        if changed:
            self.keep = keep
            self._find_positions()
        return changed

    def keep_there(self) -> torch.Tensor:
        """The masks of the dimensions that are there: bool [width]."""
        assert self.keep is not None
        return self.keep if self.there is None else self.keep[self.there]

    def _find_positions(self) -> None:
        keep = self.keep_there()
        self.dropped, self._kept_index = (~keep).nonzero().flatten(), keep.nonzero().flatten()

    def kept_index(self) -> torch.Tensor:
        """int64 positions, among the dimensions that are there, of the kept ones, ascending."""
        assert self._kept_index is not None
        return self._kept_index

    def staying(self, decayed: torch.Tensor, tile: int = 1) -> torch.Tensor:
        """int64 positions of the dimensions that stay if those leave that have decayed (bool, one of each dropped
        dimension): equally many of every block, or whole blocks; as many that a multiple of `tile` stay of each."""
        gone = torch.zeros(self.width, dtype=torch.bool, device=decayed.device)
        gone[self.dropped[decayed]] = True
        of_block = gone.view(self.heads if self.blocks else 1, -1)
        if self.blocks and self.whole_blocks:
            of_block = of_block & of_block.all(1, keepdim=True)
        else:
            size = of_block.shape[1]
            stay = size - int(of_block.sum(1).min())
            of_block = of_block & (of_block.cumsum(1) <= size - min(size, -(-stay // tile) * tile))
        return (~of_block.flatten()).nonzero().flatten()

    def thin(self, staying: torch.Tensor) -> None:
        """Only the dimensions at these positions are still there."""
        self.there = staying if self.there is None else self.there[staying]
        self._find_positions()

    def squeeze(self) -> None:
        """All masked dimensions have left; positions are the teacher's again."""
        self.squeezed = True
        if self.there is not None:
            self.there = None
            self._find_positions()

    def mask_file_entry(self) -> list[int]:
        """The dropped dimensions as the mask file has them: indices, or block numbers where whole blocks leave."""
        assert self.keep is not None
        keep = self.keep.view(self.blocks, -1)[:, 0] if self.whole_blocks else self.keep
        return (~keep).nonzero().flatten().tolist()

    def keep_from_entry(self, dropped: list[int], where: str) -> torch.Tensor:
        """The inverse of `mask_file_entry`: bool [size]. `where` names the source in messages."""
        count, unit = (self.blocks, "block") if self.whole_blocks else (self.size, "dimension")
        if dropped and (min(dropped) < 0 or max(dropped) >= count):
            raise UserError(f"{where}: {unit} {max(dropped)} of group {self.name} does not exist (it has {count})")
        if len(set(dropped)) != len(dropped):
            raise UserError(f"{where}: a {unit} of group {self.name} is named twice")
        keep = torch.ones(count, dtype=torch.bool)
        keep[dropped] = False
        return keep.repeat_interleave(self.size // count)


def check_teacher(config: ModelConfig) -> None:
    """`UserError` where this model's layers differ in size."""
    if config.uneven_layers:
        raise UserError("the teacher's layers differ in size, and only one whose layers are alike gives a smaller "
                        "student; a plain run of pretrain.py trains it as it is", page="shape")


def check_target(config: ModelConfig, target_dim: int, strategy: str, target_heads: int | None = None) -> None:
    """`UserError` where this teacher has no student of `target_dim` by this strategy, or with so many heads."""
    size, heads, head_size = config.hidden_size, config.heads_num, config.head_size
    step, what = (heads, "the number of heads, so that every head gets equally thinner") if strategy == "dim" else \
        (head_size, "the head size, because whole heads leave")
    if target_dim < 2 or target_dim > size:  # one dimension has no spread for a LayerNorm
        raise UserError(f"--target_dim {target_dim}: must be from {max(step, 2)} to the teacher's hidden_size {size}")
    if target_heads is not None:
        possible = possible_heads(config, target_dim)
        if target_heads not in possible:
            closest = sorted(sorted(possible, key=lambda number: abs(number - target_heads))[:2])
            would = f"{' or '.join(map(str, closest))} would do" if closest else \
                "no number of heads would do, take another --target_dim"
            raise UserError(f"--target_heads {target_heads} with --target_dim {target_dim}: must divide it among at "
                            f"most the teacher's {heads} heads, each at most {head_size} wide; {would}", page="shape")
    elif target_dim % step:
        below, above = target_dim // step * step, -(-target_dim // step) * step
        near = " or ".join(str(x) for x in (below, above) if 0 < x <= size)
        others = possible_heads(config, target_dim)
        would = hint("target_heads", f", or with a calibrated start --target_heads {others[-1]}") if others else ""
        raise UserError(f"--target_dim {target_dim} with --compactor_mask_strategy {strategy}: must be a multiple of "
                        f"{step} ({what}); {near} would do{would}", page="shape")


def possible_heads(config: ModelConfig, target_dim: int) -> list[int]:
    """Numbers of heads that a student of `target_dim` can have: heads of the teacher, none wider than it was."""
    return [number for number in range(1, config.heads_num + 1)
            if target_dim % number == 0 and target_dim // number <= config.head_size]


def feedforward_target(config: ModelConfig, target_dim: int, wanted: int | None) -> int:
    """Neurons that the student's feed-forward layers keep: those wanted, or the teacher's share of `target_dim`."""
    size = config.feedforward_size
    if wanted is None:
        if size * target_dim % config.hidden_size:
            raise UserError(f"--target_dim {target_dim}: feedforward_size {size} × {target_dim} / {config.hidden_size} "
                            f"is not a whole number; say how many with --target_feedforward_size")
        return size * target_dim // config.hidden_size
    if not 1 <= wanted <= size:
        raise UserError(f"--target_feedforward_size {wanted}: must be from 1 to the teacher's feedforward_size {size}")
    return wanted


def build_groups(config: ModelConfig, target_dim: int, strategy: str, mlm_target_dim: int | None = None,
                 target_feedforward_size: int | None = None, target_heads: int | None = None,
                 layers: Sequence[LayerWish] | None = None) -> dict[str, MaskGroup]:
    """All groups of a teacher, by name, none masked yet; `UserError` where the target does not fit.

    Args:
        mlm_target_dim: dimensions that `mlm` (`cls`) is to keep (default: target_dim, as in the published method).
        target_feedforward_size: neurons that each `ffn.i` is to keep (default: as for `feedforward_target`).
        target_heads: heads of the student, which only a calibrated start can leave (default: as `strategy` leaves).
        layers: what each layer is to have, with a calibrated start (default: all as the others say).
    """
    check_teacher(config)
    check_target(config, target_dim, strategy, target_heads)
    whole = strategy == "head"
    size, heads = config.hidden_size, config.heads_num
    usual_heads = target_heads or (target_dim // config.head_size if whole else heads)
    if layers and all(wish.feedforward for wish in layers):
        shapes = shapes_wished(layers, LayerShape(usual_heads, 0), heads, config.feedforward_size, config.layers_num)
    else:
        usual = LayerShape(usual_heads, feedforward_target(config, target_dim, target_feedforward_size))
        shapes = [usual] * config.layers_num if layers is None else \
            shapes_wished(layers, usual, heads, config.feedforward_size, config.layers_num)
    groups = [MaskGroup("hidden", size, target_dim, heads, whole, "encoder.transformer.0.self_attn.left_compactor.2")]
    for i, shape in enumerate(shapes):
        layer = f"encoder.transformer.{i}"
        groups.append(MaskGroup(f"attention.{i}", size, shape.heads * (target_dim // usual_heads), heads, whole,
                                f"{layer}.self_attn.final_linear_left_compactor",
                                wanted_blocks=shape.heads if layers else target_heads))
        groups.append(MaskGroup(f"ffn.{i}", config.feedforward_size, shape.feedforward, 0, False,
                                f"{layer}.feed_forward.linear_2_left_compactor"))
    features = features_group(config.target)
    if features is not None:
        mlm_target = min(target_dim, config.mlm_width) if mlm_target_dim is None else mlm_target_dim
        if not 2 <= mlm_target <= config.mlm_width:
            raise UserError(f"--mlm_target_dim {mlm_target}: must be from 2 to the {config.mlm_width} features of the "
                            f"teacher's head")
        last = target_linears(config.target)[-1]
        groups.append(MaskGroup(features, config.mlm_width, mlm_target, 0, False, last.left))
    return {group.name: group for group in groups}


def student_config(config: ModelConfig, groups: Mapping[str, MaskGroup]) -> ModelConfig:
    """The config of the student that these groups leave of a teacher."""
    hidden, first = groups["hidden"].target, groups["attention.0"]
    student = replace(config.student(hidden, "dim", features_target(config, groups)),
                      heads_num=hidden // (first.target // first.target_blocks))
    return student.with_layers([LayerShape(groups[f"attention.{i}"].target_blocks, groups[f"ffn.{i}"].target)
                                for i in range(config.layers_num)])


def schedule_intervals(groups: Mapping[str, MaskGroup]) -> int:
    """The value of k at which the mask schedule is complete; 0 where nothing leaves."""
    return max((group.last_interval for group in groups.values() if group.target < group.size), default=0)


def shared_w_step(groups: dict[str, MaskGroup], total_steps: int, share: float) -> int:
    """The --w_step that completes the mask schedule after this share of the steps (rounded down, at least 1)."""
    return max(1, int(total_steps * share) // max(1, schedule_intervals(groups)))


def features_target(config: ModelConfig, groups: Mapping[str, MaskGroup]) -> int | None:
    """Features that the student's target is to have inside; None where the teacher's has none of its own."""
    name = features_group(config.target)
    return None if name is None else groups[name].target
