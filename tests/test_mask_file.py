"""The mask file: what is written is read, whatever happened in between; foreign and broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints import CONFIG

from uer.errors import UserError
from uer.squeeze.groups import build_groups
from uer.squeeze.mask_file import append_masks, cut_masks, read_masks, start_mask_file

HIDDEN = "encoder.transformer.0.self_attn.left_compactor.2"


def masked_groups(strategy: str = "dim", k: int = 100):
    import torch
    groups = build_groups(CONFIG, 64, strategy)
    for number, group in enumerate(groups.values()):
        scores = torch.rand(group.size, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        group.set_keep(group.choose(scores, k))
    return groups


@pytest.mark.parametrize("strategy", ["dim", "head"])
def test_what_is_written_is_read(tmp_path: Path, strategy: str):
    groups, path = masked_groups(strategy), tmp_path / "masks.txt"
    append_masks(path, 10, groups.values())
    append_masks(path, 20, masked_groups(strategy, k=0).values())
    masks = read_masks(path, 10)
    assert masks == {group.scored_by: group.mask_file_entry() for group in groups.values()}
    for group in groups.values():
        assert group.keep_from_entry(masks[group.scored_by], "").equal(group.keep)
    assert set(map(tuple, read_masks(path, 20).values())) == {()}


def test_a_line_is_step_name_list(tmp_path: Path):
    path, group = tmp_path / "masks.txt", masked_groups("head")["hidden"]
    append_masks(path, 500, [group])
    blocks = ", ".join(map(str, group.mask_file_entry()))
    assert path.read_text() == f"500\t{HIDDEN}.weight\t[{blocks}]\n"


def test_a_step_recorded_twice_stands_once(tmp_path: Path):
    path = tmp_path / "masks.txt"
    for _ in range(3):
        append_masks(path, 10, masked_groups().values())
    assert len(path.read_text().splitlines()) == 6


def test_groups_without_masks_write_nothing(tmp_path: Path):
    append_masks(tmp_path / "masks.txt", 10, build_groups(CONFIG, 64, "dim").values())
    assert (tmp_path / "masks.txt").read_text() == ""


def test_a_line_cut_off_by_a_crash_goes(tmp_path: Path):
    path, groups = tmp_path / "masks.txt", masked_groups()
    append_masks(path, 10, groups.values())
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    append_masks(path, 10, groups.values())
    assert path.read_bytes() == whole


def test_a_new_run_loses_no_old_file(tmp_path: Path):
    path = tmp_path / "deep" / "masks.txt"
    start_mask_file(path)
    assert path.read_text() == ""
    for text in ("first", "second"):
        path.write_text(text)
        start_mask_file(path)
    assert [path.with_name(name).read_text() for name in ("masks.txt", "masks.txt.old", "masks.txt.old2")] == \
        ["", "first", "second"]


def test_a_resumed_run_drops_what_came_after(tmp_path: Path):
    path = tmp_path / "masks.txt"
    for step in (10, 20, 30):
        append_masks(path, step, masked_groups(k=step).values())
    before = read_masks(path, 20)
    cut_masks(path, 20)
    assert read_masks(path, 20) == before
    with pytest.raises(UserError, match="step 30; there are 10, 20"):
        read_masks(path, 30)
    assert list(tmp_path.iterdir()) == [path]


def test_a_resumed_run_drops_a_line_cut_off_by_a_crash(tmp_path: Path):
    path = tmp_path / "masks.txt"
    append_masks(path, 10, masked_groups().values())
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:9])
    cut_masks(path, 10)
    assert path.read_bytes() == whole and list(tmp_path.iterdir()) == [path]
    path.write_bytes(b"nonsense\n" + whole)
    with pytest.raises(UserError, match="line 1: malformed"):
        cut_masks(path, 10)
    assert path.read_bytes() == b"nonsense\n" + whole and list(tmp_path.iterdir()) == [path]


def test_files_of_the_published_code(tmp_path: Path):
    path = tmp_path / "masks.txt"
    path.write_text(f"10000\tmodule.{HIDDEN}.weight\t[5, 1, 3]\r\n\n10000\ttarget.mlm_linear_2_left_compactor\t[]\n")
    assert read_masks(path, 10000) == {HIDDEN: [1, 3, 5], "target.mlm_linear_2_left_compactor": []}


@pytest.mark.parametrize("line", [
    f"10 {HIDDEN} [1]", f"ten\t{HIDDEN}\t[1]", "10\tencoder.layer\t[1]", f"10\t{HIDDEN}\t[1, x]",
    f"10\t{HIDDEN}\t[1, 5", f"10\t{HIDDEN}\t[1,,5]", f"10\t{HIDDEN}\t[-1]", f"10\t{HIDDEN}\t[1]\t[2]"])
def test_malformed_lines_are_named(tmp_path: Path, line: str):
    path = tmp_path / "masks.txt"
    path.write_text(f"10\t{HIDDEN}\t[1]\n{line}\n")
    with pytest.raises(UserError, match=r"masks\.txt, line 2: malformed"):
        read_masks(path, 10)


def test_absent_steps_and_files(tmp_path: Path):
    path = tmp_path / "masks.txt"
    path.write_text("".join(f"{step}\t{HIDDEN}\t[1]\n" for step in range(100, 5000, 100)))
    with pytest.raises(UserError, match="49 steps from 100 to 4900, the nearest 900, 1000, 1100, 1200, 1300"):
        read_masks(path, 1099)
    path.write_text("")
    with pytest.raises(UserError, match="the file is empty"):
        read_masks(path, 10)
    path.write_bytes(b"10\t\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        read_masks(path, 10)
    with pytest.raises(UserError, match="No such file"):
        read_masks(tmp_path / "none.txt", 10)


def test_a_byte_order_mark_and_files_that_are_none(tmp_path):
    line = "3\tencoder.transformer.0.self_attn.final_linear_left_compactor.weight\t[0, 2]\n"
    (tmp_path / "m").write_text("\ufeff" + line, encoding="utf-8")
    assert list(read_masks(tmp_path / "m", 3).values()) == [[0, 2]]
    for content, words in ((b"PK\x03\x04", "a zip archive, not text; unpack it"),
                           (b"9" * 5000 + line[1:].encode(), "malformed; step"),
                           (line.replace("0, 2", "9" * 5000).encode(), "malformed list")):
        (tmp_path / "m").write_bytes(content)
        with pytest.raises(UserError, match=f"mask file .*{words}"):
            read_masks(tmp_path / "m", 3)
