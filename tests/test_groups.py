"""Mask groups: how many dimensions leave when, and which."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import THREE_BY_8, teacher

from uer.config import ModelConfig
from uer.errors import UserError
from uer.squeeze.groups import MaskGroup, build_groups, check_target
from uer.squeeze.master import Master

BASE = ModelConfig(hidden_size=768, layers_num=2, heads_num=12, feedforward_size=3072)


def counts(group: MaskGroup, *intervals: int) -> list[int]:
    return [group.drop_count(k) for k in intervals]


def group_of(blocks: int, size: int, target: int, whole: bool = False) -> MaskGroup:
    return MaskGroup("hidden", size, target, blocks, whole, scored_by="")


# -- which groups ------------------------------------------------------------------------------------------------------


def test_groups_of_a_teacher():
    groups = build_groups(BASE, 192, "dim")
    first, second = "encoder.transformer.0", "encoder.transformer.1"
    assert {group.name: (group.size, group.target, group.blocks, group.scored_by) for group in groups.values()} == {
        "hidden": (768, 192, 12, f"{first}.self_attn.left_compactor.2"),
        "attention.0": (768, 192, 12, f"{first}.self_attn.final_linear_left_compactor"),
        "attention.1": (768, 192, 12, f"{second}.self_attn.final_linear_left_compactor"),
        "ffn.0": (3072, 768, 0, f"{first}.feed_forward.linear_2_left_compactor"),
        "ffn.1": (3072, 768, 0, f"{second}.feed_forward.linear_2_left_compactor"),
        "mlm": (768, 192, 0, "target.mlm_linear_2_left_compactor")}
    assert list(groups) == [group.name for group in groups.values()]
    assert not any(group.whole_blocks for group in groups.values())
    whole = {name for name, group in build_groups(BASE, 192, "head").items() if group.whole_blocks}
    assert whole == {"hidden", "attention.0", "attention.1"}


# -- how many ----------------------------------------------------------------------------------------------------------


def test_schedule_from_768_to_192_by_dim():
    groups = build_groups(BASE, 192, "dim")
    for name in ("hidden", "attention.0", "attention.1"):  # 6 of every head per interval
        assert counts(groups[name], *range(11)) == [0, 72, 144, 216, 288, 360, 432, 504, 576, 576, 576]
    assert counts(groups["mlm"], *range(19)) == [36 * min(k, 16) for k in range(19)]
    assert counts(groups["ffn.1"], *range(19)) == [144 * min(k, 16) for k in range(19)]
    assert [groups[name].last_interval for name in ("hidden", "attention.0", "ffn.0", "mlm")] == [8, 8, 16, 16]


def test_schedule_from_768_to_192_by_head():
    groups = build_groups(BASE, 192, "head")
    for name in ("hidden", "attention.1"):  # one head per two intervals, 9 of 12
        assert counts(groups[name], *range(21)) == [64 * min(k // 2, 9) for k in range(21)]
        assert groups[name].last_interval == 18
    assert counts(groups["mlm"], 1, 15, 16, 17) == [36, 540, 576, 576]
    assert counts(groups["ffn.0"], 1, 15, 16, 17) == [144, 2160, 2304, 2304]


def test_schedule_from_768_to_516_where_21_of_a_head_do_not_divide_by_8():
    groups = build_groups(BASE, 516, "dim")
    assert counts(groups["hidden"], *range(1, 10)) == [12 * n for n in (2, 5, 7, 10, 13, 15, 18, 21, 21)]
    assert counts(groups["mlm"], 1, 2, 3, 4, 15, 16, 17) == [15, 31, 47, 63, 236, 252, 252]
    assert counts(groups["ffn.0"], 1, 2, 16, 17) == [63, 126, 1008, 1008]


@given(heads=st.integers(1, 16), head_size=st.integers(1, 80), data=st.data())
def test_dim_meets_its_cap_at_interval_8_in_even_steps(heads: int, head_size: int, data: st.DataObject):
    target = heads * data.draw(st.integers(1, head_size))
    per_head = [n / heads for n in counts(group_of(heads, heads * head_size, target), *range(12))]
    total = head_size - target // heads
    assert per_head[0] == 0 and all(n == total for n in per_head[8:])
    assert all(n == int(n) and abs(n - total * k / 8) < 1 for k, n in enumerate(per_head[:9]))


@given(size=st.integers(1, 4000), data=st.data())
def test_free_groups_meet_their_cap_at_interval_16_in_even_steps(size: int, data: st.DataObject):
    target = data.draw(st.integers(1, size))
    dropped = counts(group_of(0, size, target), *range(20))
    assert dropped[0] == 0 and all(n == size - target for n in dropped[16:])
    assert all(abs(n - (size - target) * k / 16) < 1 for k, n in enumerate(dropped[:17]))


# -- which -------------------------------------------------------------------------------------------------------------


def scores(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def dropped(keep: torch.Tensor) -> list[int]:
    return (~keep).nonzero().flatten().tolist()


def test_dim_takes_the_lowest_of_every_head():
    group = group_of(2, 8, 4)  # 2 heads of 4, 2 of each leave: 1 at interval 4
    values = scores(.9, .1, .5, .4, 7, 5, 6, 8)
    assert dropped(group.choose(values, 3)) == []
    assert dropped(group.choose(values, 4)) == [1, 5]
    assert dropped(group.choose(values, 8)) == [1, 3, 5, 6]


def test_head_takes_the_blocks_of_lowest_sum():
    group = group_of(3, 6, 2, whole=True)
    values = scores(0, 10, 4, 5, 3, 3)
    assert [dropped(group.choose(values, k)) for k in (1, 2, 3, 4)] == [[], [4, 5], [4, 5], [2, 3, 4, 5]]
    assert dropped(group.choose(values, 9)) == [2, 3, 4, 5]


def test_free_takes_the_lowest_of_all():
    group = group_of(0, 4, 2)
    assert [dropped(group.choose(scores(3, 1, 2, 0), k)) for k in (7, 8, 16)] == [[], [3], [1, 3]]


@pytest.mark.parametrize("group", [group_of(4, 32, 16), group_of(0, 32, 16), group_of(4, 32, 16, whole=True)])
def test_ties_go_by_index_and_the_count_stays_exact(group: MaskGroup):
    keep = group.choose(torch.ones(32, dtype=torch.float64), 16)
    if group.blocks and not group.whole_blocks:
        assert dropped(keep) == [j for j in range(32) if j % 8 < 4]
    else:
        assert dropped(keep) == list(range(16))


def test_masks_are_chosen_from_scratch():
    group = group_of(0, 4, 2)
    assert group.set_keep(group.choose(scores(0, 1, 2, 3), 16))
    assert not group.set_keep(group.choose(scores(0, 1, 2, 3), 16))
    assert group.set_keep(group.choose(scores(3, 2, 1, 0), 16))
    assert (group.dropped.tolist(), group.kept_index().tolist(), group.kept) == ([2, 3], [0, 1], 2)


def test_scores_are_column_norms_in_float64():
    """Differences below float32's resolution decide."""
    config = THREE_BY_8.config()
    groups = build_groups(config, 8, "head")
    master = Master(config, {name: tensor.float() for name, tensor in teacher(THREE_BY_8).items()}, groups)
    for group in groups.values():
        compactor = master.parameters[f"{group.scored_by}.weight"]
        with torch.no_grad():
            compactor.fill_(0.0)
            compactor[0] = 1.0
            compactor[1] = 1e-5  # a norm of 1 + 5e-11
            compactor[1, group.size - 1] = 0.0
            compactor[2, 0] = 3.0
        norms = master.scores(group)
        assert norms.dtype == torch.float64
        assert norms[0].item() == pytest.approx((10 + 1e-10) ** 0.5, rel=1e-12)
        assert group.size - 1 in dropped(group.choose(norms, 16))
        assert norms.argsort(stable=True)[0] == group.size - 1


# -- what does not fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "strategy", "words"), [
    (100, "dim", ["--target_dim 100", "multiple of 12", "96 or 108", "head"]),
    (100, "head", ["--target_dim 100", "multiple of 64", "the head size", "64 or 128"]),
    (32, "head", ["--target_dim 32", "64 would do"]),
    (0, "dim", ["--target_dim 0", "from 12", "768"]),
    (-12, "dim", ["--target_dim -12"]),
    (780, "dim", ["--target_dim 780", "768"]),
    (832, "head", ["--target_dim 832", "from 64", "768"]),
])
def test_a_target_that_does_not_fit_is_refused(target: int, strategy: str, words: list[str]):
    with pytest.raises(UserError) as caught:
        check_target(BASE, target, strategy)
    assert all(word in str(caught.value) for word in words), caught.value
    with pytest.raises(UserError):
        build_groups(BASE, target, strategy)


def test_a_feedforward_that_does_not_scale_is_refused():
    with pytest.raises(UserError, match="feedforward_size 100 × 12 / 768"):
        build_groups(ModelConfig(768, 2, 12, 100), 12, "dim")


@pytest.mark.parametrize(("target", "strategy"), [(12, "dim"), (516, "dim"), (768, "dim"), (64, "head"), (768, "head")])
def test_targets_that_fit(target: int, strategy: str):
    check_target(BASE, target, strategy)


# -- the mask file's entries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_mask_file_entries_come_back_as_masks(strategy: str):
    generator = torch.Generator().manual_seed(5)
    for group in build_groups(BASE, 192, strategy).values():
        for k in (1, 5, 18):
            keep = group.choose(torch.rand(group.size, generator=generator, dtype=torch.float64), k)
            group.set_keep(keep)
            entry = group.mask_file_entry()
            assert torch.equal(group.keep_from_entry(entry, "here"), keep)
            assert len(entry) == group.drop_count(k) // (64 if group.whole_blocks else 1)


def test_entries_of_head_are_block_numbers():
    group = group_of(3, 6, 2, whole=True)
    group.set_keep(torch.tensor([False, False, True, True, False, False]))
    assert group.mask_file_entry() == [0, 2]
    assert group.keep_from_entry([1], "here").tolist() == [True, True, False, False, True, True]


@pytest.mark.parametrize(("entry", "words"), [([6], "mask.txt, line 3: dimension 6 .* hidden .* 6"), ([-1], "-1"),
                                              ([1, 1], "twice")])
def test_entries_that_cannot_be_are_refused(entry: list[int], words: str):
    with pytest.raises(UserError, match=words):
        group_of(0, 6, 2).keep_from_entry(entry, "mask.txt, line 3")
