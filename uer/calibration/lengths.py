"""Calibration instances put together by length, so that no time goes into padding.

What is summed over instances is the same, and so is every map. What is found from the first batches alone (the choice
of layers) or from chance, batch by batch (what a layer's parts are worth), sees another sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uer.data.loader import MlmBatch


def by_length(batches: Sequence[MlmBatch]) -> list[MlmBatch]:
    """The instances of these batches in as many others, each of instances of like length, without needless padding.

    They come in pairs, one as far below the middle as the other is above it, first those that are half-way to the ends:
    so the first few tell of all.
    """
    count = len(batches)
    instances = [(batch, row, int(length)) for batch in batches for row, length in enumerate((batch.seg > 0).sum(1))]
    instances.sort(key=lambda instance: instance[2])
    bounds = [number * len(instances) // max(count, 1) for number in range(count + 1)]
    pad = next((batch.src[batch.seg == 0][0].item() for batch in batches if batch.padded), 0)

    def place(number: int) -> tuple[int, int]:
        off = abs(2 * number + 1 - count)  # the middle, in steps of a half
        return abs(2 * off - count), off

    return [_joined(instances[bounds[number]:bounds[number + 1]], pad) for number in sorted(range(count), key=place)]


def _joined(instances: Sequence[tuple[MlmBatch, int, int]], pad: float) -> MlmBatch:
    """Rows of batches, of so many tokens, as one batch."""
    width, like = max(length for *_, length in instances), instances[0][0]
    src, seg = (like.src.new_full((len(instances), width), fill) for fill in (pad, 0))
    positions, labels = [like.positions[:0]], [like.labels[:0]]
    for number, (batch, row, length) in enumerate(instances):
        src[number, :length], seg[number, :length] = batch.src[row, :length], batch.seg[row, :length]
        mine = batch.positions // batch.src.shape[1] == row
        positions.append(batch.positions[mine] - row * batch.src.shape[1] + number * width)
        labels.append(batch.labels[mine])
    return MlmBatch(src, seg, torch.cat(positions), torch.cat(labels), sum(length for *_, length in instances),
                    like.masked)
