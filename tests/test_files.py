"""Files as users bring them: text and JSON read in one place, and what is something else is named for it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile

import pytest
from commands import TEACHER, refused
from corpora import build, instances

from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.files import foreign, read_json, read_object, read_text
from uer.formats.storage import read_tensors, write_json


def archive(kind: str, content: bytes = b"x" * 2000) -> bytes:
    """An archive with one file in it."""
    out = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(out, "w") as file:
            file.writestr("model.bin", content)
    elif kind == "gz":
        return gzip.compress(content)
    else:
        with tarfile.open(fileobj=out, mode="w:gz" if kind == "tar.gz" else "w") as file:
            member = tarfile.TarInfo("model.bin")
            member.size = len(content)
            file.addfile(member, io.BytesIO(content))
    return out.getvalue()


OTHERS = {
    "zip": (archive("zip"), "a zip archive"), "tar": (archive("tar"), "a tar archive"),
    "tar.gz": (archive("tar.gz"), "gzip data (.gz, .tar.gz)"), "gz": (archive("gz"), "gzip data"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(50), "a 7z archive"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html>\n<html><body>404</body></html>\n", "an HTML page"),
    "parquet": (b"PAR1" + bytes(50), "a Parquet file"),
    "utf16": ("[PAD]\n".encode("utf-16"), "text in UTF-16")}


def test_a_folder_that_is_read_from_is_not_written_anew(tmp_path, capsys):
    (tmp_path / "my-bert").mkdir()
    for name in ("config.json", "vocab.txt", "model.safetensors"):
        (tmp_path / "my-bert" / name).write_text("{}")
    said = refused(capsys, tmp_path, "calibrate.py", "--pretrained_model_path", tmp_path / "my-bert/model.safetensors",
                   "--vocab_path", tmp_path / "my-bert/vocab.txt", "--corpus_path", "x", "--target_dim", 2,
                   "--output_model_path", tmp_path / "my-bert.bin", "--output_format", "huggingface")
    assert "reads from it; choose another name" in said


@pytest.mark.parametrize("kind", OTHERS)
def test_other_files_are_named_for_what_they_are(tmp_path, kind):
    content, name = OTHERS[kind]
    path = tmp_path / "file"
    path.write_bytes(content)
    for read in (read_text, read_json, read_object, read_tensors):
        with pytest.raises(UserError) as refusal:
            read(path)
        assert f"file: {name}" in str(refusal.value) and ", not " in str(refusal.value) and "; " in str(refusal.value)
    path = path.rename(tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"model\.safetensors: .*, not a file of tensors; "):
        read_tensors(path)


def test_text_that_only_looks_like_it_is_text():
    assert foreign(b"version 2 of the text") is None and foreign(b"<html is a word") is not None
    assert foreign(b"PK is a token\n") is None and foreign(b"") is None


def test_text_and_json_with_a_byte_order_mark(tmp_path):
    (tmp_path / "t").write_bytes(b"\xef\xbb\xbfa\r\nb")
    assert read_text(tmp_path / "t") == "a\r\nb"
    (tmp_path / "j").write_bytes(b"\xef\xbb\xbf{\"a\": 1}")
    assert read_object(tmp_path / "j") == {"a": 1}


@pytest.mark.parametrize(("content", "words"), [
    (b'{"a": "\\ud83d"}', r"half of a character .* in '\{\"a\": \"\\ud83d\"\}'"), (b'{"\\udc00": 1}', "half of a"),
    (b"[" * 100_000, "not valid JSON"), (b"{", "not valid JSON"), (b"\xff{}", "line 1: not UTF-8"),
    (b"{}\n\0", "line 2: holds a NUL"), (b"[]", "holds a list; a JSON object is needed"),
    (b"1" * 5000, "not valid JSON|holds a int")])
def test_json_that_is_none(tmp_path, content, words):
    (tmp_path / "j").write_bytes(content)
    with pytest.raises(UserError, match=f"^config .*j[:,] .*(?:{words})|^config .*{words}"):
        read_object(tmp_path / "j")


def test_whole_pairs_of_surrogates_and_files_named_in_no_encoding(tmp_path):
    (tmp_path / "j").write_text('{"a": "\\ud83d\\ude00"}')
    assert read_object(tmp_path / "j") == {"a": "\U0001f600"}
    write_json({"path": "m\udcff.bin"}, tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text()) == {"path": "m\udcff.bin"}


def test_a_config_with_a_byte_order_mark_and_one_that_is_an_archive(files, tmp_path, capsys):
    words = ["evaluate.py", "--model_path", files / "teacher.bin", "--dataset_path", files / "data.pt", "--config_path"]
    (tmp_path / "c.json").write_bytes(archive("tar.gz", TEACHER.to_json().encode()))
    assert "c.json: gzip data (.gz, .tar.gz), not a JSON object; unpack it" in refused(capsys, tmp_path, *words,
                                                                                      tmp_path / "c.json")


def test_half_a_character_in_squad_is_found_when_it_is_read(tuned, tmp_path, capsys):
    """At the end of the training it could not be written."""
    text = (tuned / "train1.json").read_text()
    (tmp_path / "t.json").write_text(text.replace('"id": "q1"', '"id": "q\\ud83d"'))
    message = refused(capsys, tmp_path, "finetune/run_squad.py", "--train_path", tmp_path / "t.json", "--dev_path",
                      tuned / "dev1.json", "--pretrained_model_path", tuned / "hf", "--output_model_path",
                      tmp_path / "s.bin")
    assert "t.json: half of a character" in message and "q\\ud83d" in message


@pytest.mark.parametrize(("name", "content"), [("a.tar.gz", archive("tar.gz")), ("a.zip", archive("zip")),
                                               ("a.gz", archive("gz", archive("tar"))), ("a", OTHERS["lfs"][0]),
                                               ("a", OTHERS["html"][0])])
def test_a_corpus_that_is_none(files, tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    message = refused(capsys, tmp_path, "preprocess.py", "--corpus_path", tmp_path / name, "--vocab_path",
                      files / "vocab.txt", "--dataset_path", tmp_path / "d.pt")
    assert f"{name}: a" in message and ", not text; " in message


def test_a_byte_order_mark_is_no_text(tmp_path):
    """In whatever tokenizer: the dataset is that of the file without."""
    rows = []
    for mark in (b"", b"\xef\xbb\xbf"):
        (tmp_path / f"{len(mark)}").mkdir()
        rows.append(instances(build(tmp_path / f"{len(mark)}", mark + b"the river\n", "--tokenizer", "char")))
    assert rows[0] == rows[1]


@pytest.mark.parametrize("kind", ["tar.gz", "tar", "lfs", "html"])
def test_a_dataset_that_is_none(tmp_path, kind):
    (tmp_path / "d.pt").write_bytes(OTHERS[kind][0])
    with pytest.raises(UserError) as refusal:
        Dataset.open(tmp_path / "d.pt")
    assert f"d.pt: {OTHERS[kind][1]}, not a dataset of preprocess.py; " in str(refusal.value)
