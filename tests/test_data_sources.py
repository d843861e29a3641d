"""Corpora as people have them: links, packed files that were cut off, files that are not what their names say."""

import gzip
import os

import pytest
from corpora import TOKENS, build, instances, options, random_corpus, write_vocab

from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.errors import UserError


def words(folder, corpus):
    """What is read of a corpus, a list an instance."""
    write_vocab(folder)
    build_dataset(options(folder, "--dynamic_masking", corpus=corpus))
    return [[TOKENS[i] for i in instance[1:-1]] for instance in instances(Dataset.open(folder / "dataset.pt"))]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links")
def test_links_are_followed_and_must_lead_somewhere(tmp_path):
    for name, text in (("in/a.txt", "the\n"), ("elsewhere/deep/b.txt", "river\n"), ("c.txt", "low\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "in/c.txt").symlink_to(tmp_path / "c.txt")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/round").symlink_to(tmp_path / "in")
    (tmp_path / "in/same.txt").symlink_to(tmp_path / "in/a.txt")  # as snapshots and blobs in a hub's cache
    assert words(tmp_path, tmp_path / "in") == [["the"], ["low"], ["river"]]
    (tmp_path / "in/d.txt").symlink_to(tmp_path / "absent")
    for corpus in ("in", "in/*.txt"):
        with pytest.raises(UserError, match=r"d\.txt is a link to .*absent, which is not there"):
            words(tmp_path, tmp_path / corpus)


def test_zstd_that_is_whole_or_not(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = random_corpus(4, 30).encode("utf-8")
    wide = zstandard.ZstdCompressor(compression_params=zstandard.ZstdCompressionParameters(window_log=28)).compressobj()
    whole = [text, b"".join(map(zstandard.compress, (text[:999], b"", text[999:]))),
             b"\x50\x2a\x4d\x18\x03\0\0\0pzs" + zstandard.compress(text), wide.compress(text) + wide.flush()]
    found = []
    for packed in whole:
        (tmp_path / "a.zst").write_bytes(packed)
        found.append(words(tmp_path, tmp_path / "a.zst"))
    assert found == found[:1] * len(whole)
    packed = whole[1]
    for damaged in (packed[:-3], packed[:len(packed) // 2], packed + b"junk"):
        (tmp_path / "a.zst").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.zst: damaged or truncated zstd"):
            words(tmp_path, tmp_path / "a.zst")


@pytest.mark.parametrize(("content", "message"), [
    ("the river\rlow\r\rnew\r", "line 1: a CR alone ends its lines"),
    ('\ufeff{"text": "low"}\n\n {"text": "new"}\r\nlow\n', r"line 1: JSON lines, read as plain text; .*\.jsonl"),
    ('{"text": "low"}', "line 1: JSON lines, read as plain text"),
    ("мир и река\nриф\n".encode("utf-16-le"), "line 1: full of NULs, so text in UTF-16")])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_what_only_looks_like_plain_text(tmp_path, content, message, pack):
    data = content if isinstance(content, bytes) else content.encode("utf-8")
    (tmp_path / "c.txt").write_bytes(pack(data))
    with pytest.raises(UserError, match=r"c\.txt: " + message):
        words(tmp_path, tmp_path / "c.txt")


@pytest.mark.parametrize("name", ["reviews.csv", "train.TSV", "in/train.tsv.gz"])
def test_a_table_is_no_text_as_it_stands(tmp_path, name):
    """Identifiers, labels and quotes would be words."""
    (tmp_path / "in").mkdir()
    (tmp_path / name).write_text("label\ttext_a\n1\tthe river\n")
    with pytest.raises(UserError, match=rf"{name}: a table; --text_field names"):
        words(tmp_path, tmp_path / name.partition("/")[0])


@pytest.mark.parametrize("name", ["reviews.csv.txt", "train.tsv.jsonl"])
def test_what_was_taken_out_of_a_table_is_text(tmp_path, name):
    (tmp_path / name).write_text('{"text": "the river"}\n' if name.endswith("l") else "the river\n")
    assert words(tmp_path, tmp_path / name) == [["the", "river"]]


@pytest.mark.parametrize(("name", "one", "two"), [("c.txt", "the river", "low"),
                                                  ("c.jsonl", '{"text": "the river"}', '{"text": "low"}')])
def test_files_with_byte_order_marks_that_were_put_together(tmp_path, name, one, two):
    (tmp_path / name).write_text(f"\ufeff{one}\r\n\ufeff\ufeff{two}\n")
    assert words(tmp_path, tmp_path / name) == [["the", "river"], ["low"]]


@pytest.mark.parametrize("text", ["the river\rlow\nnew\n", '{"text": "low"}\nnew\n', "low {1}\0new\n", "low \r new"])
def test_plain_text_with_a_cr_an_object_or_a_nul_somewhere(tmp_path, text):
    build(tmp_path, text)
