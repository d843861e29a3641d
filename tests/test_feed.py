"""What a run goes on from is what it says: the order of its data, its teacher, its masks, its results."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import call, everything, pretrain_options, refused
from corpora import build, instances, random_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from tuning import options as tuning_options

from uer.data.feed import went_on
from uer.data.loader import MlmLoader
from uer.data.order import BatchOrder
from uer.errors import UserError


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_is_left_of_an_epoch_comes_once(data):
    """After any number of changes every instance has come as often as there were epochs, or is still to come."""
    draw = data.draw
    size = draw(st.integers(5, 700), "size")
    lengths = np.random.default_rng(size).integers(3, 20, size)
    grouped, worlds = draw(st.booleans(), "grouped"), st.integers(1, 5)

    def order(after=None):
        return BatchOrder(size, draw(st.integers(2, 6)), draw(worlds), draw(st.sampled_from([5, 6])),
                          lengths=(lambda i: lengths[i]) if grouped else None, after=after)

    now, seen, filled = order(), np.zeros(size, dtype=int), 0
    for _ in range(draw(st.integers(1, 3), "changes")):
        done = draw(st.integers(0, 2 * now.batches_per_epoch), "batches")
        for epoch, within in map(now.locate, range(done)):
            parts = [now.batch(epoch, within, rank) for rank in range(now.world_size)]
            assert all(len(part) for part in parts)
            np.add.at(seen, np.concatenate(parts), 1)
        rest = now.rest(done)
        left = np.bincount(rest.at(np.arange(rest.size)), minlength=size) if rest.size else np.zeros(size, dtype=int)
        filled += now.world_size  # an end too short for all ranks is filled up
        assert (seen + left).min() == rest.number + 1
        assert (seen + left).sum() <= (rest.number + 1) * size + filled
        now = order(rest)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return build(tmp_path_factory.mktemp("feed"), random_corpus(3, 40), "--dynamic_masking", "--seq_length", "16")


def rows(loader: MlmLoader, numbers: range) -> Counter:
    """The instances of some batches."""
    out: Counter = Counter()
    for index in numbers:
        batch = loader.batch(index)
        src = batch.src.clone().view(-1)
        src[batch.positions] = batch.labels
        out.update(tuple(row[:int(n)].tolist()) for row, n in zip(src.view(batch.src.shape), batch.seg.sum(1)))
    return out


@pytest.mark.parametrize("changed", [{"batch_size": 3}, {"world_size": 2}, {"seed": 8}, {"group_by_length": False}])
def test_a_loader_goes_on_with_what_is_left(dataset, changed):
    first = {"batch_size": 4, "seed": 3, "world_size": 1, "group_by_length": True}
    old, second = MlmLoader(dataset, **first), {**first, **changed}
    ranks = [MlmLoader(dataset, rank=rank, **second) for rank in range(second["world_size"])]
    feeds, line = went_on([vars(old.feed(2))], ranks[0].feed(1), 3, True, "checkpoint m-3")
    assert line.startswith("other data from step 4 on, with the instances that are left of the epoch: ")
    assert [feed.since for feed in feeds] == [0, 3]
    seen = rows(old, range(6))
    left, per_step = len(dataset) - 6 * 4, second["batch_size"] * second["world_size"]
    for loader in ranks:
        loader.follow(feeds)
        seen += rows(loader, range(-(-left // per_step)))
    assert seen == Counter(map(tuple, instances(dataset)))


def test_twice_as_many_processes_with_half_the_batches_are_no_news(dataset):
    now = MlmLoader(dataset, 4, seed=3, world_size=2)
    feeds, line = went_on([vars(MlmLoader(dataset, 8, seed=3).feed(1))], now.feed(1), 3, False, "c")
    assert (len(feeds), line) == (1, "")
    with pytest.raises(UserError, match=r"c is of a run with other data: --world_size \(1 there, 2 here\)\. Give"):
        went_on([vars(MlmLoader(dataset, 4, seed=3).feed(1))], now.feed(1), 3, False, "c")
    one = MlmLoader(dataset, 8, seed=3)
    ranks = [MlmLoader(dataset, 4, seed=3, rank=rank, world_size=2) for rank in (0, 1)]
    for loader in ranks:
        loader.follow(feeds)
    assert rows(one, range(3, 9)) == rows(ranks[0], range(3, 9)) + rows(ranks[1], range(3, 9))


def test_another_dataset_begins_at_its_beginning(dataset, tmp_path):
    other = build(tmp_path, random_corpus(4, 40), "--dynamic_masking", "--seq_length", "16")
    assert other.sha256 != dataset.sha256
    loader = MlmLoader(other, 4, seed=3)
    feeds, line = went_on([vars(MlmLoader(dataset, 4, seed=3).feed(1))], loader.feed(1), 5, True, "c")
    assert "from their beginning: --dataset_path" in line
    loader.follow(feeds)
    assert rows(loader, range(loader.batches_per_epoch)) == Counter(map(tuple, instances(other)))


def test_the_same_data_are_no_news_and_older_checkpoints_are_told(dataset):
    now = MlmLoader(dataset, 4, seed=3).feed(1)
    assert went_on([vars(now)], now, 5, False, "c") == ([now], "")
    assert went_on(None, now, 5, False, "c") == ([now], "c does not say in which order its data came; the options are "
                                                        "taken to be the same")
    for recorded in ([{}], [], 3, [{"x": 1}]):
        with pytest.raises(UserError, match=r"not what pretrain\.py writes"):
            went_on(recorded, now, 5, True, "c")


@pytest.fixture(scope="module")
def begun(files, tmp_path_factory):
    """A WID run of two steps."""
    folder = tmp_path_factory.mktemp("begun")
    call("pretrain.py", *squeeze(files, folder))
    return folder


def squeeze(files: Path, folder: Path, *more, **changed) -> list:
    changed = {"target_dim": 64, "w_step": 1, "mask_path": folder / "masks.txt", **changed}
    return pretrain_options(files, folder / "m.bin", "--weight_squeeze", *more, **changed)


def copied(begun: Path, folder: Path) -> Path:
    for file in everything(begun):
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(("changed", "words"), [
    ({"batch_size": 8}, "--batch_size (4 there, 8 here)"), ({"accumulation_steps": 2}, "--accumulation_steps (1 there"),
    ({"seed": 8}, "--seed (7 there, 8 here)"), ({"mask_prob": 0.2}, "masking: mask_prob (0.15 there, 0.2 here)"),
    ({"dataset_path": "other"}, "--dataset_path (")])
def test_other_data_are_refused_or_gone_on_with(files, begun, tmp_path, capsys, changed, words):
    copied(begun, tmp_path)
    if "dataset_path" in changed:
        build(tmp_path, random_corpus(9, 60), "--dynamic_masking", "--seq_length", "32")
        changed = {"dataset_path": tmp_path / "dataset.pt"}
    words_of_it = squeeze(files, tmp_path, "--resume", total_steps=4, **changed)
    message = refused(capsys, tmp_path, "pretrain.py", *words_of_it)
    assert words in message and "--allow_changed_data" in message and message.startswith("error: --resume: checkpoint")
    call("pretrain.py", *words_of_it, "--allow_changed_data")
    assert "note: other data from step 3 on" in capsys.readouterr().out
    data = json.loads((tmp_path / "m.bin-4.json").read_text())["data"]
    assert [feed["since"] for feed in data] == [0, 2]
    call("pretrain.py", *words_of_it, "--resume", tmp_path / "m.bin-4")  # the same again is no change


def test_another_teacher_other_masks_and_mixed_files_are_refused(files, begun, tmp_path, capsys):
    copied(begun, tmp_path)
    go_on = ["pretrain.py", *squeeze(files, tmp_path, "--resume", total_steps=4)]
    weights = torch.load(files / "teacher.bin", weights_only=True)
    torch.save({**weights, "target.mlm_linear_2.bias": weights["target.mlm_linear_2.bias"] + 1}, tmp_path / "t.bin")
    assert "teacher_sha256" in refused(capsys, tmp_path, *go_on, "--pretrained_model_path", tmp_path / "t.bin")
    masks = (tmp_path / "masks.txt").read_text()
    (tmp_path / "others.txt").write_text(masks.replace("[", "[0, ").replace("2\t", "2\t", 1))
    message = refused(capsys, tmp_path, *go_on, "--mask_path", tmp_path / "others.txt")
    assert "others.txt: of another run: at step 2 it has other masks" in message
    tensors = torch.load(tmp_path / "m.bin-2", weights_only=True)
    torch.save({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "m.bin-2")
    assert "m.bin-2 is not the file that was written with its .json" in refused(capsys, tmp_path, *go_on)


def test_results_of_another_model_are_not_taken_over(tuned, tmp_path, capsys):
    """The file has changed under the same name; a copy under another name is the same model."""
    for name in ("uer.bin", "uer_config.json"):
        shutil.copy(tuned / name, tmp_path / name.replace("uer", "own"))
    words = ["finetune/run_classifier.py", *tuning_options(tuned, tmp_path / "m.bin", "--epochs_num", 1, "--resume",
                                                           "--pretrained_model_path", tmp_path / "own.bin")]
    call(*words)
    call(*words, "--pretrained_model_path", tuned / "uer.bin")
    assert "1 of 1 runs are finished already" in capsys.readouterr().out
    weights = torch.load(tmp_path / "own.bin", weights_only=True)
    torch.save({name: tensor + 0.5 for name, tensor in weights.items()}, tmp_path / "own.bin")
    assert "results.json has other runs: model_sha256 (" in refused(capsys, tmp_path, *words)
    torch.save({name: tensor * 0 for name, tensor in torch.load(tmp_path / "m.bin", weights_only=True).items()},
               tmp_path / "m.bin")
    assert "m.bin with its .json is not the best model" in refused(capsys, tmp_path, *words, "--pretrained_model_path",
                                                                tuned / "uer.bin")
