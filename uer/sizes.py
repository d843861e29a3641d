"""The sizes of a BERT. Layers may differ: for good in an uneven student, in others while dimensions leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple


def is_size(value: Any) -> bool:
    """Whether a JSON value can be a size: a whole number from 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class LayerSizes(NamedTuple):
    """One encoder layer: heads, dimensions of a head, width of the feed-forward network."""

    heads: int
    head_size: int
    feedforward: int


class LayerShape(NamedTuple):
    """What can be chosen of one encoder layer: heads, each as wide as the model's heads are, and neurons."""

    heads: int
    feedforward: int


@dataclass(frozen=True)
class BertSizes:
    """Every size that shapes a parameter of `uer.models.bert.Bert`.

    `mlm` is the width inside the target, of MLM or a classifier, `outputs` what any other gives for a token or text.
    """

    vocab: int
    positions: int
    segments: int
    hidden: int
    layers: tuple[LayerSizes, ...]
    mlm: int
    outputs: int = 0

    @classmethod
    def uniform(cls, *, vocab: int, hidden: int, layers: int, heads: int, feedforward: int,
                positions: int = 512) -> BertSizes:
        """Sizes of a usual BERT: layers alike, heads together and MLM head as wide as the hidden states."""
        return cls(vocab, positions, 3, hidden, (LayerSizes(heads, hidden // heads, feedforward),) * layers, hidden)


class Shape(NamedTuple):
    """What can be chosen of a uniform BERT."""

    layers: int
    hidden: int
    feedforward: int
    heads: int

    def name(self, teacher: Shape) -> str:
        """LAYERSxHIDDEN, and xFEEDFORWARD where that is not the teacher's in proportion."""
        usual = self.feedforward * teacher.hidden == self.hidden * teacher.feedforward
        return f"{self.layers}x{self.hidden}" + ("" if usual else f"x{self.feedforward}")
