"""The file: what stock torch makes of it, and what is refused by name."""

import shutil
import zipfile

import numpy as np
import pytest
import torch
from corpora import TOKENS, build, instances, options, random_corpus, write_vocab

from uer.data import container
from uer.data.builder import build_dataset
from uer.data.container import Record, write_container
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.tokenizers import TextRules, Vocab
from uer.tokenizers.rules import merged


@pytest.fixture
def dataset(tmp_path):
    return build(tmp_path, random_corpus(1, 20), "--dup_factor", "2")


@pytest.mark.parametrize("mmap", [True, False])
def test_stock_torch_reads_the_file(dataset, tmp_path, mmap):
    content = torch.load(tmp_path / "dataset.pt", mmap=mmap, weights_only=True)
    assert content["header"] == dataset.header and content["header"]["vocab_size"] == len(TOKENS)
    assert content["tokens"].dtype == torch.uint16 and content["offsets"].dtype == torch.int64
    assert content["tokens"].tolist() == [t for instance in instances(dataset)[::2] for t in instance]
    assert all(value.data_ptr() % 64 == 0 for key, value in content.items() if key != "header")
    assert content["mask_offsets"][-1] == len(content["mask_positions"]) == dataset.header["masked"]


def test_the_file_is_a_sound_archive(dataset, tmp_path):
    assert zipfile.ZipFile(tmp_path / "dataset.pt").testzip() is None


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<i8", "u1"])
@pytest.mark.parametrize("count", [0, 1, 70_001])
def test_container_keeps_every_number(tmp_path, dtype, count):
    array = (np.arange(count) * 2654435761 % 251).astype(dtype)
    blocks = [array[i : i + 1000].tobytes() for i in range(0, count, 1000)]
    values = {"header": {"n": 2**40, "f": 0.15, "s": "ä", "list": [1, [2]], "yes": True, "none": None}, "x": 3}
    with open(tmp_path / "f", "wb") as file:
        records = [Record("a", array.dtype, count, blocks), Record("b", np.dtype("u1"), 3, [b"abc"])]
        write_container(file, values, records)
    content = torch.load(tmp_path / "f", mmap=True, weights_only=True)
    assert np.array_equal(content["a"].numpy(), array) and content["a"].numpy().dtype == array.dtype
    assert bytes(content["b"].tolist()) == b"abc"
    assert content["header"] == values["header"] and content["x"] == 3


def test_container_refuses_a_wrong_count(tmp_path):
    with open(tmp_path / "f", "wb") as file, pytest.raises(ValueError, match="a: 3 bytes for 2 numbers"):
        write_container(file, {}, [Record("a", np.dtype("<u2"), 2, [b"abc"])])


def test_members_are_aligned_and_have_room_for_any_size(tmp_path):
    """Local headers hold 64-bit sizes, and the data begin at a multiple of 64 bytes."""
    with open(tmp_path / "f", "wb") as file:
        write_container(file, {}, [Record("a", np.dtype("u1"), 3, [b"abc"])])
    raw = (tmp_path / "f").read_bytes()
    for info in zipfile.ZipFile(tmp_path / "f").infolist():
        name = info.header_offset + 30
        data = name + len(info.filename) + int.from_bytes(raw[name - 2 : name], "little")
        assert b"\x01\x00\x10\x00" in raw[name:data]
        assert data % container.ALIGNMENT == 0


def test_large_vocabularies_take_four_bytes(tmp_path):
    tokens = [*TOKENS, *(f"word{i}" for i in range(70_000))]
    write_vocab(tmp_path, tokens)
    (tmp_path / "corpus.txt").write_text("word69999 the\n")
    build_dataset(options(tmp_path, "--dynamic_masking", "--tokenizer", "space"))
    dataset = Dataset.open(tmp_path / "dataset.pt")
    assert instances(dataset) == [[2, len(tokens) - 1, tokens.index("the"), 3]]
    assert torch.load(tmp_path / "dataset.pt", weights_only=True)["tokens"].dtype == torch.int32


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(dataset, tmp_path, keep):
    raw = (tmp_path / "dataset.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(UserError, match=r"cut\.pt: not a dataset of preprocess\.py, or a truncated one"):
        Dataset.open(tmp_path / "cut.pt")


@pytest.mark.parametrize("content", [b"", b"some text\n" * 100, {"weight": torch.zeros(3)}, [1, 2], torch.zeros(2)])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=r"other\.pt: not a dataset"):
        Dataset.open(path)


def test_a_dataset_of_before_json_was_read_opens(dataset, tmp_path):
    content = torch.load(tmp_path / "dataset.pt", weights_only=True)
    del content["header"]["without_text"]
    torch.save(content, tmp_path / "older.pt")
    assert Dataset.open([tmp_path / "older.pt"]).header == dataset.header


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 3}, "format version 3; this program reads 1 and 2"),
        ({"format": "else"}, "not a dataset"),
        ({"vocab_sha256": None}, "lacks vocab_sha256"),
    ],
)
def test_other_headers_are_refused(dataset, tmp_path, change, message):
    content = torch.load(tmp_path / "dataset.pt", weights_only=True)
    content["header"] = {k: v for k, v in {**content["header"], **change}.items() if v is not None}
    torch.save(content, tmp_path / "dataset.pt")
    with pytest.raises(UserError, match=message):
        Dataset.open(tmp_path / "dataset.pt")


def test_arrays_that_do_not_fit_are_refused(dataset, tmp_path):
    content = torch.load(tmp_path / "dataset.pt", weights_only=True)
    whole = dict(content)
    content["tokens"] = content["tokens"][:-1].clone()
    torch.save(content, tmp_path / "dataset.pt")
    with pytest.raises(UserError, match="offsets and tokens do not fit"):
        Dataset.open(tmp_path / "dataset.pt")
    del whole["continues"]
    torch.save(whole, tmp_path / "dataset.pt")
    with pytest.raises(UserError, match="it lacks continues"):
        Dataset.open(tmp_path / "dataset.pt")


def test_another_vocabulary_is_refused_naming_both(dataset):
    same, other = (TextRules("mine").holding(Vocab(tokens), "v.txt") for tokens in (TOKENS, [*TOKENS[:-1], "other"]))
    assert merged([same, dataset.rules], []).vocab_sha256 == dataset.header["vocab_sha256"]
    with pytest.raises(UserError, match=rf"in mine and in --dataset_path .*: another vocabulary "
                                        rf"\(v\.txt of {len(TOKENS)} tokens.* and vocab\.txt of {len(TOKENS)} tokens"):
        merged([other, dataset.rules], [])


def test_datasets_that_do_not_belong_together(dataset, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    build(other, "the river\n", "--dynamic_masking")
    with pytest.raises(UserError, match=r"differ in dynamic_masking \(False and True\)"):
        Dataset.open([str(tmp_path / "dataset.pt"), str(other / "dataset.pt")])
    build(tmp_path, "the sea\n", "--dynamic_masking", "--mask_prob", "0.3")
    both = [str(tmp_path / "dataset.pt"), str(other / "dataset.pt")]
    with pytest.raises(UserError, match=r"differ in masking "):
        Dataset.open(both)
    assert len(Dataset.open(both, masked_anew=True)) == 2


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="absent: no such file"):
        Dataset.open(tmp_path / "absent")
    with pytest.raises(UserError, match="no file matches"):
        Dataset.open(str(tmp_path / "*.pt"))


def test_a_dataset_can_be_replaced_while_it_is_read(dataset, tmp_path):
    """The rename leaves the old file to those who have it open."""
    before = instances(dataset)
    shutil.copy(tmp_path / "dataset.pt", tmp_path / "copy.pt")
    build_dataset(options(tmp_path, "--dynamic_masking", "--seq_length", "9"))
    assert instances(dataset) == before == instances(Dataset.open(tmp_path / "copy.pt"))
    assert instances(Dataset.open(tmp_path / "dataset.pt")) != before
