"""`calibrate.py --budget --uneven`: a budget spent over the layers of one student, where it is worth most."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace

from uer.calibration.depth import layers_to_keep
from uer.calibration.reducer import Reducer, groups_of, shape_of
from uer.calibration.worth import spread, worth_of_layers
from uer.config import ModelConfig
from uer.errors import UserError
from uer.layer_sizes import ALIKE
from uer.planning.budget import Budget
from uer.sizes import LayerShape, Shape
from uer.squeeze.groups import build_groups, student_config

LEAST = LayerShape(1, 1)


class Spending:
    """What there is to spend on a student of the width and depth that the options say.

    Args:
        config: the teacher's; `tables`: rows of its tables.
        seq: tokens of a text.
    Attributes:
        shape: of the student whose layers are alike: of as many neurons as the budget allows.
        head, neuron: what one costs; `left`: what remains once each layer has one of each.
    Raises:
        UserError: the budget does not do, or such a student cannot be.
    """

    def __init__(self, args: argparse.Namespace, config: ModelConfig, tables: Mapping[str, int], seq: int):
        layers = layers_to_keep(config.layers_num, args.target_layers, args.keep_layers)
        self.budget = Budget(args.budget, config, tables, seq, args.tie_student)
        teacher = replace(config, layers_num=layers)
        if args.target_dim is not None or args.target_heads is not None:
            width = config.hidden_size if args.target_dim is None else args.target_dim
            groups = build_groups(teacher, width, args.compactor_mask_strategy, target_feedforward_size=1,
                                  target_heads=args.target_heads)
            shape = shape_of(student_config(teacher, groups))
        else:
            shape = self.budget.widest(layers, args.compactor_mask_strategy)
        least = self._cost(shape, LEAST)
        self.head = (self._cost(shape, LayerShape(2, 1)) - least) // layers if config.heads_num > 1 else 1
        self.neuron = (self._cost(shape, LayerShape(1, 2)) - least) // layers if config.feedforward_size > 1 else 1
        self.left = int(self.budget.most) - least
        if self.left < 0:
            raise self.budget.too_small(f"with --target_dim {shape.hidden}, a head and a neuron in each layer need",
                                        least)
        neurons = 1 + (self.left // layers - (shape.heads - 1) * self.head) // self.neuron
        self.shape = shape._replace(feedforward=min(max(neurons, 1), config.feedforward_size))
        self.student = student_config(teacher, groups_of(teacher, self.shape))

    def _cost(self, shape: Shape, layer: LayerShape) -> int:
        return self.budget.cost(shape, [layer] * shape.layers)

    def check_format(self, name: str) -> None:
        """`UserError` where a format has no place for layers that differ."""
        if name in ALIKE:
            raise UserError(f"--uneven with --output_format {name}: layers there are alike; uer and onnx can hold "
                            f"others, or the nearest in place of --budget and --uneven: --target_dim "
                            f"{self.shape.hidden} --target_heads {self.shape.heads} --target_feedforward_size "
                            f"{self.shape.feedforward}", page="shape")

    def spend(self, reducer: Reducer, keep: list[int] | None) -> ModelConfig:
        """The student's config: its layers as they are worth most."""
        begun, teacher = time.perf_counter(), reducer.shortened(self.shape.layers, keep)
        worths = worth_of_layers(teacher.stream, self.student.head_size)
        found = self.student.with_layers(spread(worths, self.left, self.head, self.neuron))
        print(f"found what the heads and neurons of each layer are worth in {time.perf_counter() - begun:.0f} s")
        return found
