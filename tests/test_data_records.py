"""JSON lines and Parquet: a record is a document, wherever the cuts fall and however the work is shared."""

import gzip
import io
import json
import os
import random
import sys

import pytest
from corpora import build, instances, options, random_corpus, write_vocab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data_builder import expected_instances

from uer.data import blocks, builder, records, sources
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.header import summary
from uer.data.worker import SegmentWorker
from uer.errors import UserError

TEXTS = ["the river", "", "low\n\n \nlowest new\nnew", "  \n the\r\n\r\nriver \n", "un\u2028want 你好\U0001f600"]


def json_lines(texts, field="text"):
    return "".join(json.dumps({"id": i, field: text}, ensure_ascii=i % 2 == 0) + "\n" for i, text in enumerate(texts))


def as_plain(texts):
    """The same documents as plain text."""
    documents = ["\n".join(line for line in text.split("\n") if line.strip()) for text in texts]
    return "\n\n".join(document for document in documents if document)


def build_from(folder, *more):
    header = build_dataset(options(folder, *more))
    return header, Dataset.open(folder / "dataset.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    write_vocab(folder)
    return folder


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_records_any_cuts(folder, monkeypatch, data):
    words = st.sampled_from(["the", "river", "lowest", "你好", "é", " ", "\t", "\n", "\n\n", "\r\n", "\U0001f600"])
    texts = data.draw(st.lists(st.lists(words, max_size=25).map(" ".join), max_size=8))
    full = data.draw(st.booleans())
    crew_size, rng = data.draw(st.integers(1, 3)), random.Random(data.draw(st.integers(0, 99)))
    monkeypatch.setattr(sources, "SEGMENT", data.draw(st.integers(1, 400)))
    block = data.draw(st.integers(12, 80))
    monkeypatch.setattr(sources, "BLOCK", 8 * block)  # whole numbers of every type fit
    monkeypatch.setattr(blocks, "BLOCK", block)

    def shared(segments, args, masking, folder, tokenizer):
        crew = [SegmentWorker(args, masking, folder, number, tokenizer) for number in range(crew_size)]
        results = [rng.choice(crew)(segment) for segment in segments]
        rng.shuffle(results)
        return results

    monkeypatch.setattr(builder, "run_segments", shared)
    (folder / "corpus.jsonl").write_text(json_lines(texts), encoding="utf-8")
    more = ["--corpus_path", str(folder / "corpus.jsonl"), "--dynamic_masking", "--seq_length", "9"]
    expected = expected_instances(as_plain(texts), 9, full)
    if not expected:
        with pytest.raises(UserError, match="no text"):
            build_from(folder, *more)
        return
    header, dataset = build_from(folder, *more, *["--full_sentences"] * full)
    assert instances(dataset) == expected
    assert header["documents"] == sum(bool(text.strip()) for text in texts)
    assert header["without_text"] == len(texts) - header["documents"]


def test_same_bytes_for_any_number_of_processes_packed_or_not(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SEGMENT", 3000)
    write_vocab(tmp_path)
    text = json_lines(random_corpus(3, 200).split("\n\n"), "body").encode()
    (tmp_path / "a.jsonl").write_bytes(text)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(text))
    written = set()
    for name in ("a.jsonl", "a.jsonl.gz", "-"):
        for processes in (1, 3):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text))))
            path = name if name == "-" else tmp_path / name
            build_dataset(options(tmp_path, "--full_sentences", "--text_field", "body", "--processes_num",
                                  str(processes), "--span_masking", corpus=path))
            written.add((tmp_path / "dataset.pt").read_bytes())
    assert len(written) == 1
    assert instances(Dataset.open(tmp_path / "dataset.pt"))


def test_a_record_longer_than_a_block_is_read_in_blocks(tmp_path, monkeypatch):
    """Nothing holds more than a block, but for the record itself; and no word is cut."""
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    text = "lowest river " * 3000 + "x" * 5000 + " low"
    parts = list(blocks._in_blocks(records.JsonLine(("text",)).document(json_lines([text]))))
    assert "".join(part for part, _ in parts) == text + "\n\n"
    assert max(len(part) for part, _ in parts[:-2]) <= 1000 and len(parts) > 39
    assert [ended for _, ended in parts] == [False] * (len(parts) - 1) + [True]
    expected = instances(build(tmp_path, text, "--full_sentences", "--dynamic_masking"))
    (tmp_path / "c.jsonl").write_text(json_lines([text]))
    header, dataset = build_from(tmp_path, "--corpus_path", str(tmp_path / "c.jsonl"), "--full_sentences",
                                 "--dynamic_masking")
    assert instances(dataset) == expected and header["documents"] == header["lines"] == 1


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "low', r"line 9: not valid JSON \(.*one object a line is needed"),
        ("[" * 100000, "line 9: not valid JSON"),
        ('["low"]', "line 9: a list; an object with a field 'text' is needed"),
        ('{"id": 1, "body": "low"}', "line 9: no field 'text'; --text_field names .*, of id, body$"),
        ('{"text": ["low"]}', "line 9: its 'text' is a list; text is needed"),
        ('{"text": "low \\ud83d new"}', r"line 9: its 'text' has '\\ud83d', half of a character"),
        (b'{"text": "low \xff"}', "line 9: byte .* is not UTF-8"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path, monkeypatch, line, message, packed):
    monkeypatch.setattr(sources, "SEGMENT", 64)
    write_vocab(tmp_path)
    good = json_lines(["the river"] * 7).encode() + b"\n"
    text = good + (line if isinstance(line, bytes) else line.encode()) + b"\n" + good
    path = tmp_path / ("bad.jsonl.gz" if packed else "bad.jsonl")
    path.write_bytes(gzip.compress(text) if packed else text)
    with pytest.raises(UserError, match=f"{path.name}: {message}"):
        build_dataset(options(tmp_path, corpus=path))
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "vocab.txt"]


def test_a_pipe_called_json_lines_is(tmp_path):
    """Without --text_field as well, whose default is then meant."""
    os.mkfifo(tmp_path / "a.jsonl")
    os.mkfifo(tmp_path / "b")
    found = [records.is_json_lines(tmp_path / name, field) for name in ("a.jsonl", "b") for field in (None, "text")]
    assert found == [True, True, False, True]


def test_a_field_where_nothing_has_fields(tmp_path):
    with pytest.raises(UserError, match=r"--text_field body goes with \.jsonl, \.parquet, \.tsv or \.csv"):
        build(tmp_path, "the river\n", "--text_field", "body")


def test_records_without_text_are_left_out_and_told(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": " \\n "}\n{"text": "low"}\n')
    header, _ = build_from(tmp_path, "--corpus_path", str(tmp_path / "a.jsonl"))
    assert (header["documents"], header["instances"], header["without_text"]) == (1, 1, 2)
    assert "2 record(s) without text were left out" in summary(header)


# -- Parquet -----------------------------------------------------------------------------------------------------------


def write_parquet(path, texts, kind="string", **how):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    types = {"string": pyarrow.string(), "large": pyarrow.large_string(),
             "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string())}
    table = pyarrow.table({"id": list(range(len(texts))), "text": pyarrow.array(texts, types[kind])})
    parquet.write_table(table, path, **how)


@pytest.mark.parametrize("kind", ["string", "large", "dictionary"])
@pytest.mark.parametrize("full", [False, True])
def test_parquet_is_json_lines(tmp_path, monkeypatch, kind, full):
    monkeypatch.setattr(sources, "SEGMENT", 700)
    texts = [*TEXTS, *random_corpus(5, 80).split("\n\n"), *TEXTS]
    write_parquet(tmp_path / "a.parquet", [text or None for text in texts], kind, row_group_size=30)
    (tmp_path / "a.jsonl").write_text(json_lines(texts), encoding="utf-8")
    write_vocab(tmp_path)
    more = ["--dynamic_masking", "--seq_length", "16", *["--full_sentences"] * full]
    header, dataset = build_from(tmp_path, "--corpus_path", str(tmp_path / "a.jsonl"), *more)
    expected = instances(dataset), header
    assert expected[0] == expected_instances(as_plain(texts), 16, full)
    written = set()
    for processes in ("1", "3"):
        header, dataset = build_from(tmp_path, "--corpus_path", str(tmp_path / "a.parquet"), "--processes_num",
                                     processes, *more)
        assert (instances(dataset), header) == expected
        written.add((tmp_path / "dataset.pt").read_bytes())
    assert len(written) == 1


def test_parquet_progress_adds_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SEGMENT", 700)
    write_parquet(tmp_path / "a.parquet", random_corpus(5, 80).split("\n\n"))
    used = sum(cut.progress for cut in sources.segments([tmp_path / "a.parquet"], True, tmp_path))
    assert used == (tmp_path / "a.parquet").stat().st_size


def test_parquet_that_cannot_be_used_is_named(tmp_path):
    write_vocab(tmp_path)
    path = tmp_path / "a.parquet"
    write_parquet(path, ["the river"] * 500)
    pyarrow, twice = pytest.importorskip("pyarrow"), tmp_path / "b.parquet"
    pyarrow.parquet.write_table(pyarrow.table([["low"], ["new"]], names=["text", "text"]), twice)
    with pytest.raises(UserError, match=r"b\.parquet: more than one field is called 'text'"):
        build_dataset(options(tmp_path, corpus=twice))
    twice.unlink()
    for more, message in ((["--text_field", "body"], "a.parquet: no field 'body'; --text_field names .*, of id, text"),
                          (["--text_field", "id"], "a.parquet: its 'id' is int64; text is needed")):
        with pytest.raises(UserError, match=message):
            build_dataset(options(tmp_path, *more, corpus=path))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"a\.parquet: damaged or truncated Parquet"):
        build_dataset(options(tmp_path, corpus=path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.parquet", "vocab.txt"]


@pytest.mark.parametrize("name", ["corpus.pq", "corpus", "corpus.jsonl"])
def test_parquet_under_any_name(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": pyarrow.array(["the river", None], pyarrow.string_view())}),
                        tmp_path / name)
    write_vocab(tmp_path)
    header, dataset = build_from(tmp_path, "--dynamic_masking", "--corpus_path", str(tmp_path / name))
    assert len(instances(dataset)) == 1 and header["without_text"] == 1


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    write_vocab(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package pyarrow"):
        build_dataset(options(tmp_path, corpus=tmp_path / "a.parquet"))
