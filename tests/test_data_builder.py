"""From corpus to dataset: nothing lost, nothing twice, the same bytes however the work is shared."""

import bz2
import gzip
import io
import lzma
import random
import subprocess
import sys

import numpy as np
import pytest
from corpora import TOKENS, build, instances, options, random_corpus, write_vocab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uer.data import blocks, builder, processes, sources
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.header import summary
from uer.data.worker import Cutter, SegmentWorker
from uer.errors import UserError
from uer.tokenizers import Vocab
from uer.tokenizers.bert import BertTokenizer

CLS, SEP = TOKENS.index("[CLS]"), TOKENS.index("[SEP]")
TOKENIZER = BertTokenizer(Vocab(TOKENS))


def expected_instances(text, seq_length, full_sentences):
    """What the help says that mlm reads, in the plainest words."""
    units, document = [], []
    for line in [*text.split("\n"), ""]:
        if line.strip():
            (document if full_sentences else units).append(TOKENIZER.encode(line))
        else:
            units.append([token for tokens in document for token in tokens])
            document = []
    room = seq_length - 2
    return [[CLS, *unit[i : i + room], SEP] for unit in units for i in range(0, len(unit), room)]


def count_documents(text):
    groups = "\n".join("" if not line.strip() else line for line in text.split("\n")).split("\n\n")
    return sum(bool(group.strip()) for group in groups)


@pytest.mark.parametrize("full", [False, True])
def test_literal_small_corpus(tmp_path, full):
    text = "The river.\nlow\n\n  \nlowest new new"
    dataset = build(tmp_path, text, "--dynamic_masking", "--seq_length", "5", *["--full_sentences"] * full)
    names = [[TOKENS[i] for i in instance[1:-1]] for instance in instances(dataset)]
    joined = [["the", "river", "."], ["low"], ["lowest", "new", "new"]]
    assert names == joined
    assert all(instance[0] == CLS and instance[-1] == SEP for instance in instances(dataset))
    assert {k: dataset.header[k] for k in ("documents", "lines", "words", "tokens", "instances")} == {
        "documents": 2, "lines": 3, "words": 7, "tokens": 13, "instances": 3,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_text_any_sharing(folder, monkeypatch, data):
    """Segments of a few bytes, blocks of a few bytes, handed to any number of workers in any order."""
    words = st.sampled_from(["the", "river", "lowest", "你好", "é", "\u200b", " ", "\t", "[MASK]", "\U0001f600", "\r"])
    line = st.lists(words, max_size=12).map(" ".join)
    text = "\n".join(data.draw(st.lists(line | st.just(""), max_size=14)))
    full = data.draw(st.booleans(), "full_sentences")
    workers = data.draw(st.integers(1, 4), "workers")
    rng = random.Random(data.draw(st.integers(0, 99)))
    monkeypatch.setattr(sources, "SEGMENT", data.draw(st.integers(1, 90), "segment"))
    block = 8 * data.draw(st.integers(2, 8), "block")  # no word is longer; whole numbers of every type fit
    monkeypatch.setattr(sources, "BLOCK", block)
    monkeypatch.setattr(blocks, "BLOCK", block)

    def shared(segments, args, masking, folder, tokenizer):
        crew = [SegmentWorker(args, masking, folder, number, tokenizer) for number in range(workers)]
        results = [rng.choice(crew)(segment) for segment in segments]
        rng.shuffle(results)
        return results

    monkeypatch.setattr(builder, "run_segments", shared)
    seq_length = data.draw(st.integers(3, 20), "seq_length")
    more = ["--dynamic_masking", "--seq_length", str(seq_length), *["--full_sentences"] * full]
    expected = expected_instances(text, seq_length, full)
    if not expected:
        with pytest.raises(UserError, match="no text"):
            build(folder, text, *more)
        return
    dataset = build(folder, text, *more)
    assert instances(dataset) == expected
    assert dataset.header["documents"] == count_documents(text)
    assert dataset.header["lines"] == sum(bool(line.strip()) for line in text.split("\n"))
    assert dataset.header["words"] == sum(map(len, expected)) - 2 * len(expected)
    assert dataset.header["unknown"] == sum(instance.count(1) for instance in expected)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 12), min_size=1, max_size=5), min_size=1, max_size=5),
    st.integers(3, 9),
    st.data(),
)
def test_units_cut_in_any_number_of_calls(blocks, seq_length, data):
    """Units that run on over calls are cut as if they had come at once."""
    goes_on = [data.draw(st.booleans()) for _ in blocks[:-1]] + [False]
    cutter, made, units, joins, number = Cutter(seq_length, -1, -2), [], [], False, 0
    for lengths, still_open in zip(blocks, goes_on):
        tokens = np.arange(number, number + sum(lengths))
        number += sum(lengths)
        parts = [part.tolist() for part in np.split(tokens, np.cumsum(lengths)[:-1])]
        if joins:
            units[-1] += parts.pop(0)
        units += parts
        joins = still_open
        out, sizes = cutter(tokens, np.array(lengths), still_open)
        made += [part.tolist() for part in np.split(out, np.cumsum(sizes)[:-1])] if len(sizes) else []
    room = seq_length - 2
    assert made == [[-1, *unit[i : i + room], -2] for unit in units for i in range(0, len(unit), room)]


@pytest.mark.parametrize("more", [[], ["--full_sentences", "--span_masking"], ["--whole_word_masking", "--cased"]])
def test_same_bytes_for_any_number_of_processes(tmp_path, monkeypatch, more):
    monkeypatch.setattr(sources, "SEGMENT", 3000)
    written = []
    for count in (1, 2, 5):
        build(tmp_path, random_corpus(3, 60), *more, "--processes_num", str(count), "--seq_length", "24")
        written.append((tmp_path / "dataset.pt").read_bytes())
    assert written[0] == written[1] == written[2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt", "vocab.txt"]


def test_all_kinds_of_sources_give_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "SEGMENT", 900)
    text = random_corpus(4, 30).encode("utf-8")
    build(tmp_path, text, "--full_sentences")
    plain = (tmp_path / "dataset.pt").read_bytes()
    for name, packed in {"a.gz": gzip.compress(text), "a.bz2": bz2.compress(text), "a.xz": lzma.compress(text)}.items():
        (tmp_path / name).write_bytes(packed)
        build_dataset(options(tmp_path, "--full_sentences", corpus=tmp_path / name))
        assert (tmp_path / "dataset.pt").read_bytes() == plain, name
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(text))))
    build_dataset(options(tmp_path, "--full_sentences", corpus="-"))
    assert (tmp_path / "dataset.pt").read_bytes() == plain


def test_zstd(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    text = random_corpus(4, 30)
    expected = instances(build(tmp_path, text, "--dynamic_masking"))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(text.encode("utf-8")))
    build_dataset(options(tmp_path, "--dynamic_masking", corpus=tmp_path / "a.zst"))
    assert instances(Dataset.open(tmp_path / "dataset.pt")) == expected


def test_several_files_folders_and_globs(tmp_path):
    parts = [random_corpus(seed, 5) for seed in range(3)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, part in zip(("a.txt", "b.txt", "deep/c.txt"), parts):
        (tmp_path / "in" / name).write_text(part, encoding="utf-8")
    (tmp_path / "in" / ".hidden").write_text("not this\n")
    whole = expected_instances("\n".join(parts), 128, False)
    write_vocab(tmp_path)
    for corpus in (["in"], ["in/*"], ["in/**"], ["in/*.txt", "in/deep/*"], ["in/a.txt", "in/b.txt", "in/deep/c.txt"]):
        args = options(tmp_path, "--dynamic_masking")
        args.corpus_path = [str(tmp_path / path) for path in corpus]
        header = build_dataset(args)
        assert instances(Dataset.open(tmp_path / "dataset.pt")) == whole
        assert header["documents"] == sum(map(count_documents, parts))


def test_text_of_several_kinds_of_files_is_told(tmp_path):
    """A data set's README.md is read as well, where the folder is; the numbers of parts are no kinds."""
    write_vocab(tmp_path)
    (tmp_path / "in").mkdir()
    for names, told in ((("wiki_00", "wiki_01", "part.02"), []), (("README.md",), ["3 without an ending", "1 .md"]),
                        (("a.txt", "b.TXT"), ["2 .txt"])):
        said = []
        for name in names:
            (tmp_path / "in" / name).write_text("the river\n")
        build_dataset(options(tmp_path, corpus=tmp_path / "in"), say=said.append)
        notes = [line for line in said if "several kinds" in line]
        assert len(notes) == bool(told) and all(words in notes[0] for words in told)


def test_windows_text(tmp_path):
    text = "\ufeffthe river\r\nlow\r\n\r\nnew\r\n"
    dataset = build(tmp_path, text, "--dynamic_masking", "--full_sentences")
    names = [[TOKENS[i] for i in instance[1:-1]] for instance in instances(dataset)]
    assert names == [["the", "river", "low"], ["new"]]
    assert dataset.header["documents"] == 2 and dataset.header["unknown"] == 0


def test_static_masks_lie_on_the_instances(tmp_path):
    dataset = build(tmp_path, random_corpus(6, 40), "--dup_factor", "3", "--mask_prob", "0.3")
    plain = instances(dataset)
    assert len(dataset) == 3 * dataset.header["instances"] and plain[0] == plain[1] == plain[2]
    masks = dataset.masks(np.arange(len(dataset)))
    where = np.split(masks.values["mask_positions"], np.cumsum(masks.lengths)[:-1])
    for positions, instance in zip(where, plain):
        ordinary = [i for i, token in enumerate(instance) if token > 4]
        assert set(positions.tolist()) <= set(ordinary) and len(positions) >= bool(ordinary)
    assert sum(not np.array_equal(a, b) for a, b in zip(where[::3], where[1::3])) > len(where) / 4
    assert dataset.header["masked"] == len(masks.values["mask_positions"])


def test_summary_warns_of_unknown_tokens(tmp_path):
    good = build(tmp_path, "the river\n" * 50, "--dynamic_masking").header
    assert "instances 50" in summary(good) and "warning" not in summary(good) and "mask" not in summary(good)
    assert "instances 50, each with 1 mask\n" in summary({**good, "dynamic_masking": False, "dup_factor": 1})
    assert "instances 50, each with 3 masks\n" in summary({**good, "dynamic_masking": False, "dup_factor": 3})
    bad = build(tmp_path, "the ю я\n\u200b\n", "--dynamic_masking").header
    assert "warning: 66.7% of the tokens are unknown" in summary(bad)
    assert "1 line(s)" in summary(bad)


@pytest.mark.parametrize("spooled", [False, True])
def test_a_byte_that_is_not_utf8_is_named(tmp_path, monkeypatch, spooled):
    monkeypatch.setattr(sources, "SEGMENT", 64)
    good = random_corpus(1, 20).encode("utf-8")
    text = good + b"the \xff river\n" + good
    write_vocab(tmp_path)
    path = tmp_path / "bad"
    path.write_bytes(gzip.compress(text) if spooled else text)
    line = len(good.splitlines()) + 1
    with pytest.raises(UserError, match=f"bad: line {line}: byte {len(good) + 4} is not UTF-8"):
        build_dataset(options(tmp_path, "--dynamic_masking", corpus=path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad", "vocab.txt"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--data_processor", "bert"], "--data_processor bert: mlm and pairs are there"),
        (["--seq_length", "2"], "--seq_length is 2"),
        (["--processes_num", "0"], "--processes_num is 0"),
        (["--dup_factor", "0"], "--dup_factor is 0"),
        (["--dup_factor", "5", "--dynamic_masking"], "--dup_factor goes with static"),
        (["--mask_prob", "1.5", "--seed", "-1"], r"--seed is -1.*--mask_prob 1\.5"),
        (["--span_masking", "--whole_word_masking"], "exclude each other"),
        (["--span_max_length", "4"], "--span_max_length goes with --span_masking"),
        (["--word_segmenter", "jieba"], "goes with --whole_word_masking"),
        (["--corpus_path", "absent.txt"], "absent.txt: no such file"),
        (["--corpus_path", "absent/*.txt"], "no file there"),
        (["--vocab_path", "absent.txt"], "absent.txt: no such file"),
        (["--dataset_path", "absent/d.pt"], "there is no folder absent"),
        (["--dataset_path", "."], "is a folder"),
        (["--dataset_path", "/dev/null"], "is no plain file"),  # which would be replaced by one
        (["--corpus_path", ".", "corpus.txt"], r"corpus\.txt is named twice"),
        (["--corpus_path", "-", "-"], r"standard input \(-\) is named twice"),
    ],
)
def test_bad_input_is_refused_before_any_work(tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus.txt").write_text("the river\n")
    (tmp_path / "dataset.pt").write_bytes(b"as it was")
    write_vocab(tmp_path)
    monkeypatch.setattr(builder, "run_segments", None)
    with pytest.raises(UserError, match=message):
        build_dataset(options(tmp_path, *more))
    assert (tmp_path / "dataset.pt").read_bytes() == b"as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt", "vocab.txt"]


@pytest.mark.parametrize("text", [b"", b" \n\n\t\n", b"\xef\xbb\xbf", "\u200b\n".encode()])
def test_an_empty_corpus_is_refused(tmp_path, text):
    (tmp_path / "dataset.pt").write_bytes(b"as it was")
    with pytest.raises(UserError, match="no text"):
        build(tmp_path, text)
    assert (tmp_path / "dataset.pt").read_bytes() == b"as it was"


def test_the_output_is_not_read_as_corpus(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "dataset.pt").write_text("the river\n")
    with pytest.raises(UserError, match="also part of --corpus_path"):
        build_dataset(options(tmp_path, corpus=tmp_path))


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_truncated_archives_are_named(tmp_path, pack):
    write_vocab(tmp_path)
    packed = pack(random_corpus(1, 200).encode("utf-8"))
    (tmp_path / "cut").write_bytes(packed[: len(packed) * 2 // 3])
    with pytest.raises(UserError, match="cut: damaged or truncated"):
        build_dataset(options(tmp_path, corpus=tmp_path / "cut"))
    assert not (tmp_path / "dataset.pt").exists()


@pytest.mark.parametrize("processes", [1, 2])
def test_a_failing_worker_ends_all_and_leaves_the_old_dataset(tmp_path, monkeypatch, processes):
    (tmp_path / "dataset.pt").write_bytes(b"as it was")
    text = random_corpus(1, 500).encode("utf-8") + b"\xc3\n"
    monkeypatch.setattr(sources, "SEGMENT", 3000)
    with pytest.raises(UserError, match="is not UTF-8"):
        build(tmp_path, text, "--processes_num", str(processes))
    assert (tmp_path / "dataset.pt").read_bytes() == b"as it was"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "dataset.pt", "vocab.txt"]


def test_a_full_disk_is_reported(tmp_path, monkeypatch):
    def full(self, name, array):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SegmentWorker, "_append", full)
    with pytest.raises(UserError, match=r"dataset\.pt: .*failed \(No space left on device\)"):
        build(tmp_path, "the river\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.txt", "vocab.txt"]


def test_a_killed_worker_is_reported(tmp_path, monkeypatch):
    def killed(self, segments):
        for process in self.processes.values():
            process.kill()
        yield from run(self, segments)

    run = processes._Workers.run
    monkeypatch.setattr(processes._Workers, "run", killed)
    with pytest.raises(UserError, match=r"killed by signal 9.*--processes_num 2"):
        build(tmp_path, random_corpus(1, 5), "--processes_num", "2")
    assert not (tmp_path / "dataset.pt").exists()


def test_a_word_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 1000)
    monkeypatch.setattr(blocks, "LONGEST_WORD", 5000)
    with pytest.raises(UserError, match="without a space from byte 10 on"):
        build(tmp_path, "the river\n" + "x" * 9000)


def test_workers_import_no_torch():
    """What a worker needs stays small: torch alone would take 200 MB in each."""
    code = "import sys, uer.data.processes, uer.data.builder, uer.tokenizers.bert; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
