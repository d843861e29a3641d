"""`calibrate.py --budget`: the shapes that spend a budget, on a grid of depths, feed-forward widths and widths."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from uer.calibration.reducer import groups_of, shape_of
from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats.shapes import DECODER, expected_shapes, sizes_of
from uer.planning.cost import forward_operations
from uer.sizes import LayerShape, Shape
from uer.squeeze.groups import possible_heads, student_config

FORM = re.compile(r"(\d+(?:\.\d+)?) ?(?:([KMGB])(FLOPS?)?)|(\d{5,})", re.IGNORECASE)
UNITS = {"K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
DEPTHS = (1.0, 5 / 6, 2 / 3, 1 / 2, 1 / 3)  # of the teacher's layers
FEEDFORWARDS = (1.0, 0.5)  # of the teacher's neurons in proportion to the width
WIDTHS = 48  # steps of the grid, up to the teacher's


class Budget:
    """What a student may cost: parameters, or operations of a text.

    Args:
        text: like 9M (9000000) or 0.75GFLOP (750 mflops).
        config: the teacher's.
        tables: rows of its tables (`table_sizes`).
        seq: tokens of a text.
        tied: whether students have one table of words.
    Raises:
        UserError: not of that form.
    """

    def __init__(self, text: str, config: ModelConfig, tables: Mapping[str, int], seq: int, tied: bool):
        found = FORM.fullmatch(text)
        if not found:
            raise UserError(f"--budget {text}: parameters like 9M, or operations of a text like 0.75GFLOP, are needed")
        self.text, self.config, self.tables, self.seq, self.tied = text, config, dict(tables), seq, tied
        number, unit, operations, plain = found.groups()
        self.counts_parameters = not operations
        self.most = float(plain or number) * UNITS.get((unit or "").upper(), 1)

    def cost(self, shape: Shape, layers: Sequence[LayerShape] = ()) -> int:
        """Of a student of this shape, with its own `layers` where they differ."""
        teacher = replace(self.config, layers_num=shape.layers)
        student = student_config(teacher, groups_of(teacher, shape, layers))
        sizes = sizes_of(student, **self.tables)
        if not self.counts_parameters:
            return forward_operations(sizes, self.seq)
        return sum(prod(size) for name, size in expected_shapes(sizes, student).items()
                   if not (self.tied and name == DECODER))

    def shapes(self, strategy: str) -> list[Shape]:
        """The widest of each depth and kind of feed-forward that the budget allows, but for those that another one has
        more of everywhere; `UserError` where it allows none."""
        depths = dict.fromkeys(max(1, round(share * self.config.layers_num)) for share in DEPTHS)
        grids = [self.grid(layers, share, strategy) for layers in depths for share in FEEDFORWARDS]
        found = self._widest(grids)
        return [shape for shape in found
                if not any(other != shape and all(a >= b for a, b in zip(other, shape)) for other in found)]

    def widest(self, layers: int, strategy: str) -> Shape:
        """The widest of a depth with the teacher's feed-forward in proportion that the budget allows.
        `UserError` where it allows none."""
        return self._widest([self.grid(layers, 1.0, strategy)])[0]

    def _widest(self, grids: Sequence[Sequence[Shape]]) -> list[Shape]:
        found = [grid[count - 1] for grid in grids if (count := bisect_right(grid, self.most, key=self.cost))]
        if not found:
            least = min((grid[0] for grid in grids), key=self.cost)
            raise self.too_small(f"the smallest shape tried, {least.name(shape_of(self.config))}, needs",
                                 self.cost(least))
        return found

    def too_small(self, what: str, cost: int) -> UserError:
        """What to raise where the least that could be had costs more."""
        unit, word = (1e6, "M") if self.counts_parameters else (1e9, "GFLOP")
        tables = "; --tie_student or --target_vocab make the tables smaller" if self.counts_parameters else ""
        return UserError(f"--budget {self.text}: {what} {cost / unit:.3g}{word}{tables}", page="shape")

    def grid(self, layers: int, share: float, strategy: str) -> list[Shape]:
        """Shapes of a depth, narrowest first."""
        whole = shape_of(self.config)
        step = max(1, whole.hidden // WIDTHS)
        grid = []
        for hidden in range(max(2, step), whole.hidden + 1, step):
            heads = possible_heads(self.config, hidden)
            neurons = int(share * whole.feedforward * hidden / whole.hidden)
            if heads and neurons:
                grid.append(Shape(layers, hidden, neurons, heads[-1] if strategy == "dim" else heads[0]))
        return grid
