"""Calibration instances put together by length: all there, as they were, with little padding, the same students."""

from __future__ import annotations

import pytest
import torch
from test_calibration import VOCAB, config_of, random_teacher

from uer.calibration.lengths import by_length
from uer.calibration.student import calibrate
from uer.data.loader import MlmBatch
from uer.squeeze.groups import build_groups


def uneven(count: int) -> list[MlmBatch]:
    """Batches of 8 random instances of 3 to 20 tokens, every third of them masked, with pad id 1."""
    generator, made = torch.Generator().manual_seed(4), []
    for _ in range(count):
        lengths = torch.randint(3, 21, (8, 1), generator=generator)
        width = int(lengths.max())
        seg = (torch.arange(width) < lengths).long() * torch.randint(1, 3, (8, 1), generator=generator)
        src = torch.randint(5, VOCAB, (8, width), generator=generator).where(seg > 0, 1)
        positions = (seg.flatten() > 0).nonzero().flatten()[::3]
        made.append(MlmBatch(src, seg, positions, src.flatten()[positions] + 1, int((seg > 0).sum())))
    return made


def instances(batches: list[MlmBatch]) -> list[tuple]:
    """Tokens, segments and (place, label) of what is masked, of each."""
    found = []
    for batch in batches:
        for row, seg in enumerate(batch.seg):
            real, width = seg > 0, batch.src.shape[1]
            labels = [(place % width, label) for place, label in zip(batch.positions.tolist(), batch.labels.tolist())
                      if place // width == row]
            found.append((batch.src[row][real].tolist(), seg[real].tolist(), labels))
    return sorted(found)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_all_instances_are_there_as_they_were(count):
    given = uneven(count)
    found = by_length(given)
    assert instances(found) == instances(given) and len(found) == count
    assert all(batch.tokens == int((batch.seg > 0).sum()) and batch.masked for batch in found)
    if count > 2:
        padding, before = (sum(batch.seg.numel() - batch.tokens for batch in some) for some in (found, given))
        assert padding < before / 2


def test_the_first_batches_are_as_long_as_all_on_average():
    found = by_length(uneven(64))
    wanted = sum(batch.tokens for batch in found) / len(found)
    for most in (2, 4, 8, 16):
        assert sum(batch.tokens for batch in found[:most]) / most == pytest.approx(wanted, rel=0.12)


def test_the_same_student():
    config = config_of()
    weights, groups = random_teacher(config), build_groups(config, 12, "dim")
    apart, together = (calibrate(config, weights, groups, some) for some in (uneven(6), by_length(uneven(6))))
    assert apart.tensors.keys() == together.tensors.keys()
    for name, tensor in apart.tensors.items():
        torch.testing.assert_close(together.tensors[name], tensor, rtol=1e-7, atol=1e-9)
