"""Pairs of texts: the instances that fine-tuning makes of them, however they are brought; nothing lost or mixed."""

import gzip
import json
import random

import numpy as np
import pytest
import torch
from corpora import TOKENS, build, instances, options, write_vocab
from hypothesis import given
from hypothesis import strategies as st

from uer.data import blocks, sources
from uer.data.augment import augmented
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.header import FORMAT_VERSIONS, summary
from uer.data.loader import MlmLoader
from uer.data.options import preprocess_parser
from uer.data.pairs import Joiner, kept_lengths
from uer.errors import UserError
from uer.finetuning.batches import collate, encode
from uer.finetuning.tasks import Example
from uer.finetuning.tsv import Table
from uer.tokenizers import Vocab, build_tokenizer
from uer.tokenizers.bert import BertTokenizer

TOKENIZER = BertTokenizer(Vocab(TOKENS))
CLS, SEP = TOKENIZER.vocab.cls_id, TOKENIZER.vocab.sep_id
PAIRS = ("--data_processor", "pairs", "--dynamic_masking")


def random_pairs(seed, count, words=("the", "unwanted", "lowest", "xyz", "café", "你好世", "low,", '"new"', "[SEP]"),
                 longest=30):
    rng = random.Random(seed)
    return [tuple(" ".join(rng.choices(words, k=rng.randint(1, longest))) for _ in range(2)) for _ in range(count)]


def as_text(pairs):
    return "".join(f"{a}\t{b}\n" for a, b in pairs)


def expected(pairs, seq_length=128):
    return encode([Example(a, b, None) for a, b in pairs], TOKENIZER, seq_length)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 80))
def test_the_longer_text_is_cut_first(first, second, room):
    a, b = first, second
    while a + b > room:  # a token at a time
        if a > b:
            a -= 1
        else:
            b -= 1
    assert kept_lengths(np.array([first]), np.array([second]), room) == ([a], [b])


@pytest.mark.parametrize("separators", [1, 2])
def test_joined(separators):
    tokens = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], dtype="<u2")
    out, sizes, begins = Joiner(7 + separators, 90, 91, separators)(tokens, np.array([2, 3, 0, 1, 1, 5]))
    between = [91] * separators
    assert out.tolist() == [90, 1, 2, *between, 3, 4, 5, 91, 90, 7, *between, 8, 9, 10, 11, 91]
    assert sizes.tolist() == [7 + separators] * 2 and begins.tolist() == [3 + separators, 2 + separators]


@pytest.mark.parametrize("seq_length", [6, 20, 128])
def test_what_fine_tuning_reads(tmp_path, seq_length):
    """Tokens and segments of every pair, batch by batch."""
    pairs = random_pairs(seq_length, 60)
    dataset = build(tmp_path, as_text(pairs), *PAIRS, "--seq_length", str(seq_length))
    wanted = expected(pairs, seq_length)
    assert instances(dataset) == [instance.tokens.tolist() for instance in wanted]
    assert dataset.seconds(np.arange(60)).tolist() == [instance.first for instance in wanted]
    for number, batch in enumerate(MlmLoader(dataset, 8, seed=1, masked=False).sequential()):
        theirs = collate(wanted[8 * number:8 * number + 8], TOKENIZER.vocab.pad_id)
        width = theirs.src.shape[1]
        assert torch.equal(batch.src[:, :width], theirs.src) and torch.equal(batch.seg[:, :width], theirs.seg)
        assert not batch.seg[:, width:].any()
    assert dataset.header["lines"] == dataset.header["instances"] == 60
    assert summary(dataset.header).startswith("pairs 60   instances 60")


def test_same_bytes_however_they_are_brought(tmp_path, monkeypatch):
    """As lines, JSON lines, tables, Parquet, packed or not, in any number of segments and blocks and processes."""
    pairs = random_pairs(3, 150)
    write_vocab(tmp_path)
    table = "label\ttext_b\tid\ttext_a\r\n" + "".join(f"1\t{b}\t{i}\t{a}\r\n" for i, (a, b) in enumerate(pairs))
    records = "".join(json.dumps({"text_a": a, "n": 1, "text_b": b}) + "\n" for a, b in pairs)
    files = {"a.txt": as_text(pairs), "a.jsonl": records, "a.tsv": table, "a.tsv.gz": table, "b.txt": as_text(pairs)}
    for name, text in files.items():
        data = ("\ufeff" * (name == "a.tsv") + text).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    monkeypatch.setattr(sources, "SEGMENT", 3000)
    monkeypatch.setattr(blocks, "BLOCK", 700)
    written = set()
    for name in files:
        fields = [] if name.endswith(".txt") else ["--text_field", "text_a", "text_b"]
        build_dataset(options(tmp_path, *PAIRS, *fields, "--processes_num", "3" if name == "b.txt" else "1",
                              corpus=tmp_path / name))
        written.add((tmp_path / "dataset.pt").read_bytes())
    assert len(written) == 1
    dataset = Dataset.open(tmp_path / "dataset.pt")
    assert instances(dataset) == [instance.tokens.tolist() for instance in expected(pairs)]


@pytest.mark.parametrize(("rows", "quoted"), [
    (['he said "yes"\t1', *["low\t1"] * 300, '"He said ""no"" to her"\t2'], False),
    (['"low"\t1'] * 300, True), (['"low"\t1', *["low\t1"] * 300, *['"low"\t1'] * 20], False)])
def test_quotes_mean_what_they_do_to_fine_tuning_wherever_the_cuts_fall(tmp_path, monkeypatch, rows, quoted):
    monkeypatch.setattr(sources, "SEGMENT", 300)
    monkeypatch.setattr(blocks, "BLOCK", 100)
    write_vocab(tmp_path)
    (tmp_path / "a.tsv").write_text("\n".join(["a\tb", *rows]))
    for read in (lambda: Table(tmp_path / "a.tsv"), lambda: build_dataset(
            options(tmp_path, "--text_field", "a", "--dynamic_masking", corpus=tmp_path / "a.tsv"))):
        if quoted:
            with pytest.raises(UserError, match=r"a\.tsv, all fields of a column are in quotes; call the file"):
                read()
        else:
            read()


def test_blanks_around_texts_stay(tmp_path):
    """As in fine-tuning; a byte-level BPE has tokens of them."""
    letters = {" ": "Ġ"}
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abc", "Ġ", "Ġa"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nĠ a\n")
    (tmp_path / "a.tsv").write_text("x\ty\n a b\tc \n  a\tabc\n")
    pairs = [(" a b", "c "), ("  a", "abc")]
    for name, more in (("a.tsv", ("--text_field", "x", "y")), ("a.txt", ())):
        (tmp_path / "a.txt").write_text(as_text(pairs))
        given = ["--corpus_path", str(tmp_path / name), "--vocab_path", str(tmp_path), "--dataset_path",
                 str(tmp_path / "o.pt"), *PAIRS, *more]
        build_dataset(preprocess_parser().parse_args(given))
        dataset, tokenizer = Dataset.open(tmp_path / "o.pt"), build_tokenizer(preprocess_parser().parse_args(given))
        wanted = encode([Example(a, b, None) for a, b in pairs], tokenizer, 128)
        assert instances(dataset) == [instance.tokens.tolist() for instance in wanted]
        assert letters[" "] in {tokenizer.vocab.tokens[token] for token in wanted[0].tokens}
        batch = next(iter(MlmLoader(dataset, 2, seed=1, masked=False).sequential()))
        theirs = collate(wanted, tokenizer.vocab.pad_id)
        width = theirs.src.shape[1]
        assert torch.equal(batch.src[:, :width], theirs.src) and torch.equal(batch.seg[:, :width], theirs.seg)
        assert batch.seg.max() == 1 and dataset.header["separators"] == 2


def test_several_files_of_pairs_are_one_dataset(tmp_path):
    pairs = random_pairs(6, 30)
    for name, part in (("one", pairs[:10]), ("two", pairs[10:])):
        (tmp_path / name).mkdir()
        build(tmp_path / name, as_text(part), *PAIRS, "--seq_length", "20")
    dataset = Dataset.open([str(tmp_path / name / "dataset.pt") for name in ("one", "two")])
    order = np.random.default_rng(1).permutation(30)
    assert dataset.seconds(order).tolist() == [expected(pairs, 20)[i].first for i in order]
    cut = sum(len(TOKENIZER.encode(a)) + len(TOKENIZER.encode(b)) > 17 for a, b in pairs)
    assert dataset.header["cut"] == cut > 5
    assert f"{cut} pair(s) have more than 20 tokens; the longer text was cut" in summary(dataset.header)
    assert dataset.header["words"] == dataset.header["tokens"] - 3 * 30
    unknown = sum((np.array(instance) == TOKENIZER.vocab.unk_id).sum() for instance in instances(dataset))
    assert dataset.header["unknown"] == unknown


def test_parquet_pairs(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pairs = [*random_pairs(4, 20), ("the\nriver", "low\tnew")]
    table = pyarrow.table({"b": [b for _, b in pairs] + [None], "a": [a for a, _ in pairs] + ["low"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    write_vocab(tmp_path)
    header = build_dataset(options(tmp_path, *PAIRS, "--text_field", "a", "b", corpus=tmp_path / "a.parquet"))
    wanted = expected([*pairs[:-1], ("the river", "low new")])
    assert instances(Dataset.open(tmp_path / "dataset.pt")) == [instance.tokens.tolist() for instance in wanted]
    assert header["without_text"] == 1


def test_a_column_of_a_table_as_single_texts(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "a.tsv").write_text('sentence\tlabel\nthe "river"\t1\n \t0\nlow\t0\n', encoding="utf-8")
    header = build_dataset(options(tmp_path, "--dynamic_masking", "--text_field", "sentence",
                                   corpus=tmp_path / "a.tsv"))
    wanted = [[CLS, *TOKENIZER.encode(text), SEP] for text in ('the "river"', "low")]
    assert instances(Dataset.open(tmp_path / "dataset.pt")) == wanted
    assert header["without_text"] == 1 and header["documents"] == 2


def test_static_masks_and_words(tmp_path):
    """Special tokens between the texts are never masked, words stay whole."""
    pairs = random_pairs(5, 40, words=["lower", "wanted", "runs", "the", "river", "[SEP]"])
    dataset = build(tmp_path, as_text(pairs), "--data_processor", "pairs", "--whole_word_masking", "--dup_factor", "2")
    numbers = np.arange(len(dataset))
    rows, masks = dataset.instances(numbers), dataset.masks(numbers)
    starts = np.repeat(np.cumsum(rows.lengths) - rows.lengths, masks.lengths)
    masked = rows.values["tokens"][starts + masks.values["mask_positions"]]
    assert len(masked) > 80 and not np.isin(masked, dataset.header["special_ids"]).any()
    continues, words = dataset.continues[rows.values["tokens"]], 0
    whole = masks.lengths.cumsum() - masks.lengths
    for number, length in enumerate(masks.lengths):
        found = set((starts + masks.values["mask_positions"])[whole[number]:whole[number] + length].tolist())
        first = rows.lengths[:number].sum()
        for place in range(first + 1, first + rows.lengths[number]):
            if continues[place]:
                assert (place in found) == (place - 1 in found)
                words += 1
    assert words > 40
    batch = next(iter(MlmLoader(dataset, 8, seed=1).sequential()))
    assert set(batch.seg.unique().tolist()) == {0, 1, 2} and len(batch.labels)


def test_pairs_left_out_are_told(tmp_path):
    text = "the river\tlow\n\nlow\t \n \tlow\n\u200b\tlow\nlow\tnew\r\n"
    header = build(tmp_path, text, *PAIRS).header
    assert [header[name] for name in ("lines", "instances", "without_text", "empty_lines")] == [3, 2, 2, 1]
    assert "1 pair(s) with a text of characters that the tokenizer removes" in summary(header)
    assert "2 pair(s) of which a text is empty were left out" in summary(header)


@pytest.mark.parametrize(("name", "text", "more", "message"), [
    ("a.txt", "low\tnew\nthe river\n", PAIRS, r"a\.txt: line 2: 0 tab\(s\) in there; two texts with a tab"),
    ("a.txt", "low\tnew\tlow\n", PAIRS, r"a\.txt: line 1: 2 tab\(s\) in there"),
    ("a.txt", "low\tnew\n", (*PAIRS, "--full_sentences"), "--full_sentences joins the lines of a document; pairs stay"),
    ("a.txt", "low\tnew\n", (*PAIRS, "--seq_length", "5"), "--seq_length is 5, for pairs at least 6"),
    ("a.txt", "low\tnew\n", (*PAIRS, "--text_field", "a", "b"), "--text_field a b goes with"),
    ("a.txt", "\t \n", PAIRS, "no text in there"),
    ("a.jsonl", '{"a": "low", "b": "new"}\n', PAIRS, "--text_field names the two fields of a record"),
    ("a.jsonl", '{"a": "low", "b": "new"}\n', (*PAIRS, "--text_field", "a"), "--text_field names the two fields"),
    ("a.jsonl", '{"a": "low", "b": "new"}\n', ("--text_field", "a", "b"), "two are a pair, with  --data_proc"),
    ("a.jsonl", '{"a": "low", "b": 3}\n', (*PAIRS, "--text_field", "a", "b"), r"line 1: its 'b' is a int; text"),
    ("a.csv", "a,b\nlow,new\n", PAIRS, r"a\.csv: a table; --text_field names .* or here the two"),
    ("a.tsv", "a\tb\nlow\tnew\n", PAIRS, r"a\.tsv: a table; --text_field names .* or here the two"),
    ("a.tsv", "a\tb\nlow\tnew\n", (), r"a\.tsv: a table; --text_field names its column with the text"),
    ("a.tsv", "a\tb\nlow\tnew\n", ("--text_field", "c"), r"line 1: no field 'c'; --text_field names .*, of a, b"),
    ("a.tsv", "a\ta\nlow\tnew\n", ("--text_field", "a"), "line 1: more than one column is called 'a'"),
    ("a.tsv", "a\tb\nlow\tnew\nlow\n", ("--text_field", "a"), r"line 3: column b is missing: 1 field\(s\) there, 2"),
    ("a.tsv", "a\tb\nlow\tnew\na\tb\n", ("--text_field", "a"), "line 3: the header once more"),
    ("a.tsv", "a\tb\n", ("--text_field", "a"), "there is a header and nothing else"),
    ("a.tsv", "", ("--text_field", "a"), "the file is empty"),
    ("a.tsv", "a\tb\rlow\tnew\r", ("--text_field", "a"), "a CR alone ends its lines"),
    ("a.tsv", "a\tb\nlow\tnew\n\nlow\tnew\n", ("--text_field", "a"), "line 3: an empty line between rows"),
    ("a.tsv", 'a\tb\nlow "x" y\t1\nlow\tne\0w\n', ("--text_field", "a"), "line 3: holds a NUL"),
    ("a.tsv", "a\tb\n".encode("utf-16-le"), ("--text_field", "a"), r"line 1: holds a NUL; .*is it UTF-16"),
    ("a.tsv", "\t".join(f"a{i}" for i in range(99)) + "\nlow\n", ("--text_field", "b"), "of a0, .*, a19 and 79 more"),
    ("a.tsv", "a\tb\nlow\tnew\n", (*PAIRS, "--text_field", "a", "a"), "--text_field a a: a pair of a text with itself"),
    ("a.tsv", b"a\xff\tb\nlow\tnew\n", ("--text_field", "a"), "line 1: not UTF-8"),
])
def test_what_is_no_pair_is_named(tmp_path, name, text, more, message):
    write_vocab(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        build_dataset(options(tmp_path, *more, corpus=tmp_path / name))
    assert sorted(path.name for path in tmp_path.iterdir()) == [name, "vocab.txt"]


def test_damaged_pairs_are_told(tmp_path):
    dataset = build(tmp_path, "low\tnew\nthe\triver\n", *PAIRS)
    content = torch.load(tmp_path / "dataset.pt", weights_only=True)
    content["second"] = torch.tensor([3, 9], dtype=torch.uint16)
    torch.save(content, tmp_path / "spoilt.pt")
    with pytest.raises(UserError, match="damaged, impossible numbers in second"):
        Dataset.open(tmp_path / "spoilt.pt").seconds(np.arange(2))
    del content["second"]
    torch.save(content, tmp_path / "spoilt.pt")
    with pytest.raises(UserError, match="second and offsets do not fit together"):
        Dataset.open(tmp_path / "spoilt.pt")
    assert dataset.header["format_version"] == FORMAT_VERSIONS["pairs"] != FORMAT_VERSIONS["mlm"]


def test_pairs_and_single_texts_are_not_mixed(tmp_path):
    for name, more in (("single", ("--dynamic_masking",)), ("pairs", PAIRS)):
        (tmp_path / name).mkdir()
        build(tmp_path / name, "low\tnew\nthe\triver\n", *more)
    paths = [str(tmp_path / name / "dataset.pt") for name in ("single", "pairs")]
    with pytest.raises(UserError, match="differ in data_processor"):
        Dataset.open(paths)
    single, pairs = map(Dataset.open, paths)
    assert not single.pairs and pairs.pairs
    single.check_processor("mlm", "")
    single.check_processor(None, "")
    single.check_processor("bert", "")
    with pytest.raises(UserError, match="built with  --data_processor mlm, and the run says pairs"):
        single.check_processor("pairs", "the run says")
    said = []
    pairs.check_reading({}, said.append)
    pairs.check_reading({"pairs": True, "separators": 1}, said.append)
    assert not said
    single.check_reading({"pairs": True, "separators": 1}, said.append)
    pairs.check_reading({"pairs": False, "separators": 1}, said.append)
    assert "fine-tuned on pairs of texts" in said[0] and "fine-tuned on single texts" in said[1]
    with pytest.raises(UserError, match=r"1 separator\(s\) between the texts of a pair, and .* fine-tuned with 2"):
        pairs.check_reading({"pairs": True, "separators": 2}, said.append)


@pytest.mark.parametrize("separators", [1, 2])
def test_augmented_pairs(separators):
    """The first text of one pair with the second of another; other words, special tokens where they were."""
    rng = np.random.default_rng(3)
    joiner = Joiner(12, 1, 2, separators)
    lengths = rng.integers(1, 9, size=40)
    tokens, sizes, seconds = joiner(np.arange(100, 100 + lengths.sum()), lengths)
    rows = np.split(tokens, np.cumsum(sizes)[:-1])
    out, found = augmented(tokens, sizes, 1.0, np.random.default_rng(4), 12, seconds, separators)
    assert found.max() <= 12
    replaced = changed = 0
    for row, made, begin in zip(rows, np.split(out, np.cumsum(found)[:-1]), seconds):
        special = np.flatnonzero(made <= 2)
        assert special.tolist() == [0, *range(begin - separators, begin), len(made) - 1]
        first, same = made[1:begin - separators], row[1:begin - separators]
        replaced += (first != same).sum()
        changed += not np.isin(made[begin:-1], row[begin:-1]).any()
    assert 0 < replaced < 40 and changed > 10


def test_words_of_a_segmenter_in_pairs(tmp_path):
    pytest.importorskip("jieba")
    pairs = [("你好世界", "the 你好"), ("低 你好世", "世你好")] * 20
    dataset = build(tmp_path, as_text(pairs), "--data_processor", "pairs", "--whole_word_masking", "--word_segmenter",
                    "jieba", "--dup_factor", "1")
    rows = dataset.instances(np.arange(40))
    joined = [part.tolist() for part in np.split(rows.values["joined"], np.cumsum(rows.lengths)[:-1])]
    assert instances(dataset) == [instance.tokens.tolist() for instance in expected(pairs)]
    assert joined[0][1:3] == [0, 1] and joined[0][dataset.seconds(np.array([0]))[0]:] == [0, 0, 1, 0]
