"""Calibration instances put together by length: what is found is the same, and no time goes into padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from uer.data.loader import MlmBatch


def by_length(batches: Sequence[MlmBatch]) -> list[MlmBatch]:
    """The instances of these batches in as many others, each of instances of like length, without needless padding.

    They come in an order in which the first few are about as long as all are on average: by the bits of their numbers
    read backwards, from the quarters on.
    """
    instances = [(batch, row) for batch in batches for row in range(len(batch.src))]
    lengths = torch.cat([(batch.seg > 0).sum(1) for batch in batches]).tolist()
    order = sorted(range(len(instances)), key=lengths.__getitem__)
    size, bits = -(-len(order) // len(batches)), max(1, len(batches) - 1).bit_length()
    starts = sorted(range(0, len(order), size), key=lambda start: f"{start // size:0{bits}b}"[::-1])
    return [_joined([(*instances[i], lengths[i]) for i in order[start:start + size]])
            for start in (*starts[2:], *starts[:2])]


def _joined(instances: Sequence[tuple[MlmBatch, int, int]]) -> MlmBatch:
    """Rows of batches, of so many tokens, as one batch."""
    width, like = max(length for *_, length in instances), instances[0][0]
    src, seg = (like.src.new_zeros(len(instances), width) for _ in range(2))
    positions, labels = [like.positions[:0]], [like.labels[:0]]
    for number, (batch, row, length) in enumerate(instances):
        src[number, :length], seg[number, :length] = batch.src[row, :length], batch.seg[row, :length]
        mine = batch.positions // batch.src.shape[1] == row
        positions.append(batch.positions[mine] - row * batch.src.shape[1] + number * width)
        labels.append(batch.labels[mine])
    return MlmBatch(src, seg, torch.cat(positions), torch.cat(labels), sum(length for *_, length in instances),
                    like.masked)
