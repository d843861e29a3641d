"""CSV, and tables with tabs that are quoted like it: every reader takes the fields that the csv module wrote."""

import csv
import gzip
import io

import pytest
from corpora import TOKENS, instances, options, write_vocab
from hypothesis import given, settings
from hypothesis import strategies as st

from uer.data import sources
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.evaluation.ranking import read_pairs
from uer.evaluation.texts import read_texts
from uer.finetuning.tasks import read_uer, uer_task
from uer.finetuning.tsv import Table
from uer.tabular import delimiter_of

HARD = ['she said "no"', "low, new", "the\triver", "the\nriver", "low\n\nnew", '"', '""', "a;b|c", " low ", "'x'", "é"]
PAIRS = ("--data_processor", "pairs", "--dynamic_masking", "--text_field", "text_a", "text_b")
ONE = ("--dynamic_masking", "--text_field", "text_a")


def written(rows, delimiter=",", quoting=csv.QUOTE_MINIMAL, ends="\n"):
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter, quoting=quoting, lineterminator=ends).writerows(rows)
    return out.getvalue()


def table(path, text):
    path.write_bytes(text.encode())
    return path


def dataset(folder, corpus, *more):
    """The tokens of each instance."""
    write_vocab(folder)
    build_dataset(options(folder, *more, corpus=corpus))
    return [[TOKENS[i] for i in instance] for instance in instances(Dataset.open(folder / "dataset.pt"))]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.csv", ";"), ("T.CSV", "\t"), ("t.csv", "|"),
                                                 ("t.tsv", "\t")])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_fields_as_they_were_written(tmp_path, quoting, name, delimiter, ends):
    rows = [["label", "text_a"], *([str(i % 2), text] for i, text in enumerate(HARD))]
    path = table(tmp_path / name, "\ufeff" + written(rows, delimiter, quoting, ends))
    assert [row.fields for row in Table(path).rows] == rows[1:]
    assert [example.text_a for example in read_uer(uer_task(path), path)] == HARD
    assert [example.text_a for example in read_texts(path).examples] == HARD


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.text(alphabet='ab ",;\t\n\'é|', max_size=8)] * 3), min_size=1, max_size=8),
       st.sampled_from(",;\t|"), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_any_field(tmp_path_factory, rows, delimiter, quoting):
    head = ["x", "y", "z"]
    path = table(tmp_path_factory.mktemp("t") / "t.csv", written([head, *rows], delimiter, quoting))
    assert [tuple(row.fields) for row in Table(path).rows] == rows


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize(("name", "delimiter"), [("t.csv", ","), ("t.tsv", "\t")])
def test_training_text_is_the_same_in_any_form(tmp_path, monkeypatch, pack, name, delimiter):
    """As of the same fields with tabs alone, in however many pieces and processes."""
    monkeypatch.setattr(sources, "SEGMENT", 100)
    rows = [[f"{i}", text, other] for i in range(7) for text in ("the river", "low", ' "low" new', "low , the")
            for other in ("new", "the 'river'", "lowest, new")]
    head = ["id", "text_a", "text_b"]
    plain = table(tmp_path / "plain.tsv", "".join("\t".join(row) + "\n" for row in [head, *rows]))
    packed = tmp_path / (name if pack is bytes else f"{name}.gz")
    packed.write_bytes(pack(written([head, *rows], delimiter, csv.QUOTE_ALL).encode()))
    for more in (ONE, PAIRS):
        wanted = dataset(tmp_path, plain, *more)
        assert len(wanted) == len(rows)
        for processes in ("1", "3"):
            assert dataset(tmp_path, packed, *more, "--processes_num", processes) == wanted


def test_texts_of_several_lines(tmp_path):
    """A document, as in JSON lines; in a pair a line end is a blank."""
    rows = [["text_a", "text_b"], ["the river\n\nlow", "new"], ["\n", "low"], ["low", "the\r\nriver"]]
    path = table(tmp_path / "t.csv", written(rows))
    assert dataset(tmp_path, path, *ONE) == [["[CLS]", "the", "river", "[SEP]"], ["[CLS]", "low", "[SEP]"],
                                             ["[CLS]", "low", "[SEP]"]]
    assert dataset(tmp_path, path, *PAIRS) == [
        ["[CLS]", "the", "river", "low", "[SEP]", "new", "[SEP]"], ["[CLS]", "low", "[SEP]", "the", "river", "[SEP]"]]
    assert Dataset.open(tmp_path / "dataset.pt").header["without_text"] == 1


def test_what_stands_between_the_fields():
    assert [delimiter_of(head) for head in ("a,b", "a;b", "a\tb", "a|b", '"a,c";b', "a", "", "a,b;c,d")] == [
        ",", ";", "\t", "|", ";", ",", ",", ","]


@pytest.mark.parametrize(("name", "text", "message"), [
    ("t.csv", 'text_a,label\nlow,1\n"new,2\n', r"line 3: no CSV \(unexpected end of data\); fields with ','"),
    ("t.csv", 'text_a,label\n"low" new,1\n', r"line 2: no CSV .*stand in quotes, their own twice"),
    ("t.csv", 'text_a,label\n"low\nriver",1\nnew\n', r"line 4: column label is missing: 1 field\(s\) there, 2 are"),
    ("t.csv", "text_a,label\nlow, new,1\n", r"line 2: 3 field\(s\) there, 2 are needed"),
    ("t.csv", "text_a\nlow, new\n", r"line 2: 2 field\(s\) there, 1 are needed"),
    ("t.csv", "text_a,label\nlow,1\n\nnew,2\n", "line 3: an empty line between rows"),
    ("t.csv", "text_a,label\nlow,1\ntext_a,label\n", "line 3: the header once more"),
    ("t.csv", "text_a,text_a\nlow,1\n", "line 1: more than one column is called 'text_a'"),
    ("t.csv", "text_a,label\n\n\n", "there is a header and nothing else"),
    ("t.csv", "", "the file is empty"),
    ("t.csv", "text_a,label\rlow,1\rnew,2\r", "a CR alone ends its lines"),
    ("t.csv", "text_a,label\nlow,1\nne\0w,2\n", "line 3: holds a NUL"),
    ("t.csv", "text_a,label\nlow,1\nnew,2\n".encode("utf-16"), "UTF-16"),
    ("t.csv", "text_a,label\nlow,1\ncafé,2\n".encode("cp1252"), "line 3: not UTF-8"),
    ("t.tsv", '"text_a"\t"label"\n"low"\t1\n"new\t2\n', r"line 3: no CSV \(unexpected end of data\)"),
])
@pytest.mark.parametrize("read", [lambda path: list(Table(path).select("text_a")),
                                  lambda path: dataset(path.parent, path, *ONE)])
def test_what_is_no_csv_is_named(tmp_path, name, text, message, read):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=rf"{name}.*{message}"):
        read(path)
    assert not (tmp_path / "dataset.pt").exists()


def test_scores_of_pairs(tmp_path):
    path = table(tmp_path / "t.csv", 'score,sentence1,sentence2\n4.5,"low, new","the ""river"""\n1,a,b\n')
    first, second, scores = read_pairs(path)
    assert (first, second, scores.tolist()) == (["low, new", "a"], ['the "river"', "b"], [4.5, 1.0])


def test_columns_without_a_header_are_told_by_all_rows(tmp_path):
    """As CoLA's; no first row says that a column is not quoted."""
    rows = [["gj04", "1", "", f'"{text}"'] for text in ("low", 'new ""river""', "the\triver")]
    path = table(tmp_path / "train.tsv", "".join("\t".join(row) + "\n" for row in rows))
    names = {"label": 1, "sentence": 3}
    assert [fields for _, fields in Table(path, names).select("sentence")] == [["low"], ['new "river"'], ["the\triver"]]
