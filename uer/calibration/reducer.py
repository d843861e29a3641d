"""Students of one teacher in closed form, of any shape: layers leave first, then dimensions."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from uer.calibration.calibrate import Calibration
from uer.calibration.depth import Depths
from uer.calibration.pooler import last_gamma, shift_pooler, squeeze_pooler, take_pooler
from uer.calibration.stream import Stream, double_teacher
from uer.calibration.student import apply_calibration, calibrate_on, calibration_progress, say_calibrated
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.layer_sizes import LayerWish
from uer.sizes import LayerShape, Shape
from uer.squeeze.fold import fold
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.master import Master
from uer.squeeze.wiring import state_columns


@dataclass
class Teacher:
    """A model that gets narrower: its config, its tensors (published names), its stream once that has been run."""

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    batches: Sequence[MlmBatch]
    _stream: Stream | None = None

    @property
    def stream(self) -> Stream:
        """Its residual stream over the batches: found once."""
        self._stream = self._stream or Stream(double_teacher(self.config, self.weights), self.batches)
        return self._stream

    @property
    def shape(self) -> Shape:
        return shape_of(self.config)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


@dataclass
class Student:
    """A student and how it came about.

    Attributes:
        weights: under published names.
        extras: pooler, and next-sentence head where no dimension left.
        calibration: None where no dimension left.
        teacher: the model that dimensions left, whose layers are the student's.
    """

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    extras: dict[str, torch.Tensor]
    calibration: Calibration | None
    teacher: Teacher


def shape_of(config: ModelConfig) -> Shape:
    return Shape(config.layers_num, config.hidden_size, config.feedforward_size, config.heads_num)


class Reducer:
    """What all students of a teacher share is found once, and that of the last depth for students of other widths.

    Args:
        weights: the teacher's, published names, on the device where the work is to be done.
        extras: its pooler and next-sentence head.
        batches: to calibrate on.
        tied: whether students are to have one table of words.
        say: takes a line on what has been found.
    """

    def __init__(self, config: ModelConfig, weights: dict[str, torch.Tensor], extras: Mapping[str, torch.Tensor],
                 batches: Sequence[MlmBatch], tied: bool = False, say: Callable[[str], object] = print):
        self.whole = Teacher(config, weights, batches)
        self.extras, self.tied, self.say = dict(extras), tied, say
        self._last, self._kept = self.whole, list[int]()
        self._depths: Depths | None = None

    def student(self, shape: Shape, keep: Sequence[int] | None = None, layers: Sequence[LayerShape] = ()) -> Student:
        """A student of this shape, of the layers `keep` where they are given, its own `layers` where they differ."""
        teacher = self.shortened(shape.layers, keep)
        if shape == teacher.shape and not layers and (teacher.config.tie_weights or not self.tied):
            return Student(teacher.config, teacher.weights, dict(self.extras), None, teacher)
        groups = groups_of(teacher.config, shape, layers)
        begun = time.perf_counter()
        with calibration_progress(teacher.config) as progress:
            calibration = calibrate_on(teacher.stream, groups, progress, self.tied)
        say_calibrated(calibration, teacher.config, f" in {time.perf_counter() - begun:.0f} s", self.say)
        calibrated = apply_calibration(calibration, teacher.weights, groups)
        config, weights = fold(Master(teacher.config, calibrated, groups), calibration.table)
        pooler = shift_pooler(take_pooler(dict(self.extras)), calibration.offset)
        pooler = squeeze_pooler(pooler, calibrated[state_columns(config.target)],
                                weights[last_gamma(config.layers_num)])
        return Student(config, weights, pooler, calibration, teacher)

    def shortened(self, layers: int, keep: Sequence[int] | None) -> Teacher:
        """The teacher with so many of its layers, or with the layers `keep`: found once where `keep` is not given."""
        if layers == self.whole.config.layers_num:
            return self.whole
        if self._last.config.layers_num != layers or (keep and list(keep) != self._kept):
            self._kept = list(keep or [])
            self._depths = self._depths or Depths(self.whole.stream)
            shorter = self._depths.shorter(layers, keep)
            self.say(shorter.line(self.whole.config))
            if self._last is not self.whole:
                self._last.close()
            self._last = Teacher(replace(self.whole.config, layers_num=layers), shorter.weights(self.whole.weights),
                                 self.whole.batches)
        return self._last

    def close(self) -> None:
        self.whole.close()
        self._last.close()


def groups_of(config: ModelConfig, shape: Shape, layers: Sequence[LayerShape] = ()) -> dict[str, MaskGroup]:
    """The mask groups that leave a student of this shape of a teacher with as many layers, which may differ."""
    return build_groups(config, shape.hidden, "dim", target_feedforward_size=shape.feedforward,
                        target_heads=shape.heads, layers=[LayerWish(*layer) for layer in layers] or None)
