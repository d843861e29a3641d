"""Calibration instances put together by length: all there, as they were, with little padding, the same students."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_calibration import VOCAB, config_of, random_teacher

from uer.calibration.lengths import by_length
from uer.calibration.student import INSTANCES, calibrate, calibration_batches
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch, MlmLoader
from uer.parallel.collectives import Place
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


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 8])
def test_all_instances_are_there_as_they_were(count, masked):
    given = [replace(batch, masked=masked) for batch in uneven(count)]
    found = by_length(given)
    assert instances(found) == instances(given) and len(found) == count
    for batch in found:
        assert batch.tokens == int((batch.seg > 0).sum()) and batch.masked == masked
        assert (batch.src[batch.seg == 0] == 1).all() and batch.src.shape[1] == (batch.seg > 0).sum(1).max()
    if count > 2:
        padding, before = (sum(batch.seg.numel() - batch.tokens for batch in some) for some in (found, given))
        assert padding < before / 2


def test_batches_of_other_sizes_stay_as_many():
    given = uneven(4)
    given[1:] = [by_rows(batch, 2) for batch in given[1:]]
    found = by_length(given)
    assert len(found) == 4 and instances(found) == instances(given)


def by_rows(batch: MlmBatch, rows: int) -> MlmBatch:
    """The first rows of a batch."""
    mine = batch.positions < rows * batch.src.shape[1]
    return replace(batch, src=batch.src[:rows], seg=batch.seg[:rows], positions=batch.positions[mine],
                   labels=batch.labels[mine], tokens=int((batch.seg[:rows] > 0).sum()))


@pytest.mark.parametrize("count", [3, 4, 6, 12, 13, 18, 24, 64])
def test_the_first_batches_are_as_long_as_all_on_average(count):
    found = by_length(uneven(count))
    wanted = sum(batch.tokens for batch in found) / count
    for most in (2, 4, 8):
        assert sum(batch.tokens for batch in found[:most]) / min(most, count) == pytest.approx(wanted, rel=0.1)


def test_calibration_reads_the_loaders_instances(bench):
    dataset, here = Dataset.open([str(bench / "dynamic.pt")]), Place(0, 1, torch.device("cpu"))
    found = calibration_batches(dataset, 3, 5, here, target="states")
    loader = MlmLoader(dataset, INSTANCES, seed=5, prefetch=0, group_by_length=False, masked=False)
    given = [loader.batch(number) for number in range(3)]
    assert instances(found) == instances(given)
    assert sum(batch.seg.numel() for batch in found) < sum(batch.seg.numel() for batch in given)


def test_the_same_student():
    config = config_of()
    weights, groups = random_teacher(config), build_groups(config, 12, "dim")
    apart, together = (calibrate(config, weights, groups, some) for some in (uneven(6), by_length(uneven(6))))
    assert apart.tensors.keys() == together.tensors.keys()
    for name, tensor in apart.tensors.items():
        torch.testing.assert_close(together.tensors[name], tensor, rtol=1e-7, atol=1e-9)
