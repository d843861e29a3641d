"""Batches: every instance once, the same wherever one starts, and what a batch must look like."""

import threading
import time

import numpy as np
import pytest
import torch
from bench import options
from corpora import build, instances, random_corpus
from hypothesis import given, settings
from hypothesis import strategies as st

from uer.config import parse_with_config
from uer.data.augment import augmented
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.data.masking import MaskingOptions
from uer.data.order import BatchOrder, Permutation
from uer.errors import UserError
from uer.opts import pretrain_parser
from uer.parallel.collectives import Place
from uer.report.writer import Reports
from uer.training.open_data import open_data


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """The same text with dynamic and with static masks."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("dynamic", "static")}
    text = random_corpus(11, 60)
    return {
        "dynamic": build(folders["dynamic"], text, "--dynamic_masking", "--seq_length", "30"),
        "static": build(folders["static"], text, "--seq_length", "30", "--dup_factor", "2"),
    }


def restored(batch):
    """Rows of a batch with the labels put back, without padding."""
    src = batch.src.clone().view(-1)
    src[batch.positions] = batch.labels
    rows = src.view(batch.src.shape)
    return [row[: int(n)].tolist() for row, n in zip(rows, batch.seg.sum(1))]


def same(a, b):
    return all(torch.equal(getattr(a, k), getattr(b, k)) for k in ("src", "seg", "positions", "labels"))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**40), st.integers(0, 50))
def test_permutation(size, seed, epoch):
    permuted = Permutation(size, seed, epoch)(np.arange(size))
    assert sorted(permuted.tolist()) == list(range(size))


def test_permutations_are_random():
    """All orders of four things come, about equally often; neighbours do not stay neighbours."""
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(4800):
        order = tuple(Permutation(4, seed)(np.arange(4)).tolist())
        counts[order] = counts.get(order, 0) + 1
    assert len(counts) == 24
    assert sum((count - 200) ** 2 / 200 for count in counts.values()) < 60  # chi-squared, 23 degrees of freedom
    steps = np.abs(np.diff(Permutation(100_000, 1)(np.arange(100_000))))
    assert np.mean(steps) == pytest.approx(100_000 / 3, rel=0.02)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_every_instance_once_per_epoch(data):
    world = data.draw(st.integers(1, 5), "world_size")
    size = data.draw(st.integers(world, 700), "size")
    batch_size = data.draw(st.integers(1, 6), "batch_size")
    lengths = np.random.default_rng(1).integers(3, 20, size)
    grouped = data.draw(st.booleans(), "grouped")
    order = BatchOrder(size, batch_size, world, 5, True, (lambda i: lengths[i]) if grouped else None)
    epoch = data.draw(st.integers(0, 3), "epoch")
    batches = [[order.batch(epoch, i, rank) for rank in range(world)] for i in range(order.batches_per_epoch)]
    sizes = np.array([[len(part) for part in parts] for parts in batches])
    assert sizes.min() >= 1 and sizes.max() <= batch_size
    assert (sizes.max(1) - sizes.min(1) <= 1).all()
    seen = np.bincount(np.concatenate([part for parts in batches for part in parts]), minlength=size)
    twice = 0 if batch_size > 1 else -size % world
    assert seen.min() == 1 and seen.max() <= 2 and seen.sum() == size + twice
    last = BatchOrder(size, batch_size, world, 5, True, (lambda i: lengths[i]) if grouped else None)
    number = order.batches_per_epoch - 1
    assert np.array_equal(last.batch(epoch, number, world - 1), batches[number][world - 1])


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("world", [1, 3])
def test_an_epoch_holds_the_dataset(datasets, kind, world):
    dataset = datasets[kind]
    rows = []
    for rank in range(world):
        loader = MlmLoader(dataset, 7, seed=3, rank=rank, world_size=world)
        for index in range(loader.batches_per_epoch, 2 * loader.batches_per_epoch):
            rows += restored(loader.batch(index))
    assert sorted(rows) == sorted(instances(dataset))


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_form_of_a_batch(datasets, kind):
    loader = MlmLoader(datasets[kind], 8, seed=3)
    widths = set()
    for index in range(loader.batches_per_epoch):
        batch = loader.batch(index)
        lengths = batch.seg.sum(1)
        width = batch.src.shape[1]
        widths.add(width)
        assert width == min(30, -(-int(lengths.max()) // 8) * 8)
        assert torch.equal(batch.seg, (torch.arange(width) < lengths[:, None]).long())
        assert (batch.src[batch.seg == 0] == 0).all()
        assert (batch.src[:, 0] == 2).all() and batch.tokens == int(lengths.sum())
        assert (batch.labels > 4).all() and (batch.positions.diff() > 0).all()
        rows_with_labels = set((batch.positions // width).tolist())
        ordinary = {i for i, row in enumerate(restored(batch)) if max(row) > 4}
        assert rows_with_labels == ordinary
        for tensor in (batch.src, batch.seg, batch.positions, batch.labels):
            assert tensor.dtype == torch.int64
    assert len(widths) > 1


@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_a_batch_is_a_function_of_its_number(datasets, kind):
    first = MlmLoader(datasets[kind], 8, seed=3)
    count = first.batches_per_epoch
    walked = [first.batch(i) for i in range(count + 3)]
    fresh = MlmLoader(datasets[kind], 8, seed=3, prefetch=2)
    assert same(fresh.batch(count + 2), walked[count + 2])
    stream = fresh.stream(count - 2)
    assert all(same(next(stream), walked[i]) for i in range(count - 2, count + 3))
    stream.close()
    assert not same(MlmLoader(datasets[kind], 8, seed=4).batch(0), walked[0])
    assert not same(walked[count], walked[0])


def test_masks_change_with_the_epoch_only_if_dynamic(datasets):
    def masks(kind, epoch):
        loader = MlmLoader(datasets[kind], 8, seed=3, shuffle=False)
        batch = loader.batch(epoch * loader.batches_per_epoch)
        return batch.positions.tolist()

    assert masks("dynamic", 0) != masks("dynamic", 1)
    assert masks("static", 0) == masks("static", 1)


def test_ranks_mask_differently(datasets):
    batches = [MlmLoader(datasets["dynamic"], 8, seed=3, rank=rank, world_size=2).batch(0) for rank in range(2)]
    assert not same(*batches)


def test_grouping_by_length_cuts_padding(datasets):
    def padding(grouped):
        loader = MlmLoader(datasets["dynamic"], 8, seed=3, group_by_length=grouped)
        batches = [loader.batch(i) for i in range(loader.batches_per_epoch)]
        return 1 - sum(b.tokens for b in batches) / sum(b.src.numel() for b in batches)

    assert padding(True) < 0.6 * padding(False)


def test_sequential_is_the_same_every_time(datasets):
    for dataset in datasets.values():
        loader = MlmLoader(dataset, 9, seed=3)
        once, again = list(loader.sequential()), list(loader.sequential())
        assert all(same(a, b) for a, b in zip(once, again)) and len(once) == len(again)
        assert [row for batch in once for row in restored(batch)] == instances(dataset)
        ranks = [list(MlmLoader(dataset, 9, seed=3, rank=r, world_size=2).sequential()) for r in range(2)]
        assert len(ranks[0]) + len(ranks[1]) == len(once)
        assert same(ranks[1][0], once[1])


def test_held_out_masks_hang_on_the_instance_alone(datasets):
    """So that figures of pretrain.py, evaluate.py and any number of processes can be compared."""
    for dataset in datasets.values():
        shown = [[row[:length].tolist() for batch in MlmLoader(dataset, size, seed=seed).sequential()
                  for row, length in zip(batch.src, (batch.seg > 0).sum(1))] for size, seed in ((9, 3), (4, 8), (1, 0))]
        assert shown[0] == shown[1] == shown[2]


def test_masking_of_a_dynamic_dataset_can_be_chosen(datasets):
    loader = MlmLoader(datasets["dynamic"], 50, seed=3, masking=MaskingOptions(mask_prob=0.5))
    batch = loader.batch(0)
    assert len(batch.labels) / int((batch.seg.sum(1) - 2).sum()) > 0.3
    with pytest.raises(UserError, match="masks are static"):
        MlmLoader(datasets["static"], 50, seed=3, masking=MaskingOptions(mask_prob=0.5))


def test_errors_in_the_background_reach_the_caller(datasets, monkeypatch):
    loader = MlmLoader(datasets["dynamic"], 8, seed=3)

    def broken(index):
        if index == 3:
            raise UserError("the disk went away")
        return batch(index)

    batch = loader.batch
    monkeypatch.setattr(loader, "batch", broken)
    stream = loader.stream()
    for _ in range(3):
        next(stream)
    with pytest.raises(UserError, match="the disk went away"):
        next(stream)
    assert not [t for t in threading.enumerate() if t.name == "mlm-loader"]


def test_closing_the_stream_ends_the_thread(datasets):
    stream = MlmLoader(datasets["dynamic"], 8, seed=3, prefetch=1).stream()
    next(stream)
    assert [t for t in threading.enumerate() if t.name == "mlm-loader"]
    start = time.monotonic()
    stream.close()
    assert not [t for t in threading.enumerate() if t.name == "mlm-loader"]
    assert time.monotonic() - start < 2


def test_fewer_instances_than_ranks(datasets, bench):
    """Too few to train on; held-out ones are read in file order, by some of the ranks."""
    found = [list(MlmLoader(datasets["dynamic"], 8, seed=3, rank=rank, world_size=10_000).sequential())
             for rank in (0, 9_999)]
    assert [len(batches) for batches in found] == [1, 0]
    args, _ = parse_with_config(pretrain_parser, options(bench))
    with pytest.raises(UserError, match=r"--dataset_path: \d+ instance\(s\), fewer than there are processes"):
        open_data(args, Place(0, 10_000, torch.device("cpu")), Reports(leads=False))


def test_several_files_as_one(datasets, tmp_path):
    parts = []
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        text = random_corpus(number, 10)
        parts.append(build(tmp_path / str(number), text, "--dynamic_masking", "--seq_length", "30"))
    together = Dataset.open(str(tmp_path / "*" / "dataset.pt"))
    assert instances(together) == [row for part in parts for row in instances(part)]
    assert together.header["documents"] == 30
    loader = MlmLoader(together, 7, seed=1)
    rows = [row for i in range(loader.batches_per_epoch) for row in restored(loader.batch(i))]
    assert sorted(rows) == sorted(instances(together))


def test_static_files_with_other_numbers_of_copies(datasets, tmp_path):
    more = build(tmp_path, random_corpus(5, 10), "--seq_length", "30", "--dup_factor", "3")
    together = Dataset.open([datasets["static"].paths[0], more.paths[0]])
    order = np.random.default_rng(1).permutation(len(together))
    masks = together.masks(order)
    where = np.split(masks.values["mask_positions"], np.cumsum(masks.lengths)[:-1])
    first = len(datasets["static"])
    for index, positions in zip(order.tolist(), where):
        part, own = (datasets["static"], index) if index < first else (more, index - first)
        assert positions.tolist() == part.masks(np.array([own])).values["mask_positions"].tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=1, max_size=6), st.floats(0, 1), st.integers(0, 99))
def test_texts_made_of_texts(lengths, share, seed):
    """Token 1000 * row + column, ends 1 and 2: a beginning of one row, then an end of one, or tokens of any."""
    rows = [[1, *range(1000 * i + 1001, 1000 * i + 999 + length), 2] for i, length in enumerate(lengths)]
    tokens, found = augmented(np.concatenate(rows), np.array(lengths), share, np.random.default_rng(seed), 7)
    assert len(found) == len(rows) and found.sum() == len(tokens)
    words = {token for row in rows for token in row[1:-1]}
    for row, new in zip(rows, np.split(tokens, np.cumsum(found)[:-1])):
        assert new[0] == 1 and new[-1] == 2 and set(new[1:-1].tolist()) <= words
        assert len(new) <= max(7, len(row)) and (len(new) > 2 or len(row) == 2)
        if share == 0:
            assert new.tolist() == row


def test_a_beginning_and_an_end(monkeypatch):
    monkeypatch.setattr("uer.data.augment.REPLACED", 0.0)
    rows = [[1, *range(1000 * i + 1001, 1000 * i + 1009), 2] for i in range(4)]
    jumps = []
    for seed in range(20):
        tokens, lengths = augmented(np.concatenate(rows), np.full(4, 10), 1.0, np.random.default_rng(seed), 30)
        for row, new in zip(rows, np.split(tokens, np.cumsum(lengths)[:-1])):
            inner = new[1:-1]
            places = np.flatnonzero(np.diff(inner) != 1)
            assert len(places) <= 1  # one beginning, then one end, each in its own order
            if len(places):
                start, end = inner[:places[0] + 1], inner[places[0] + 1:]
                assert start.tolist() == row[1:1 + len(start)] and end[-1] % 1000 == 8
            jumps.append(len(places))
    assert sum(jumps) > 40


def test_augmented_batches_are_functions_of_their_numbers_too(datasets):
    dataset = datasets["dynamic"]
    plain, made, again = (MlmLoader(dataset, 8, seed=3, masked=False, augment=share) for share in (0.0, 0.5, 0.5))
    changed = [not torch.equal(plain.batch(i).src, made.batch(i).src) for i in range(4)]
    assert any(changed) and all(same(made.batch(i), again.batch(i)) for i in range(4))
    assert all(same(one, other) for one, other in zip(plain.sequential(), made.sequential()))
    masks = [MlmLoader(dataset, 8, seed=3, augment=share).batch(0) for share in (0.0, 0.5)]
    assert same(*masks)
