"""Files of GLUE and UER, every kind of fault in them, and batches."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from corpora import TOKENS, write_vocab
from folders import roberta, tokenizer_of
from tuning import LAYOUTS, glue_lines, write_glue, write_uer_tsv

from uer.errors import UserError
from uer.finetuning.batches import by_length, collate, encode, shuffled
from uer.finetuning.options import TASKS
from uer.finetuning.tasks import GLUE, read_glue, read_uer, uer_task
from uer.formats.file_model import reading_of
from uer.formats.tokenizer_files import write_tokenizer
from uer.tokenizers.bert import BertTokenizer
from uer.tokenizers.vocab import Vocab
from uer.tokenizers.xlmroberta import XlmRobertaTokenizer


@pytest.fixture
def tokenizer(tmp_path):
    return BertTokenizer(Vocab.load(write_vocab(tmp_path)))


# -- GLUE --------------------------------------------------------------------------------------------------------------


def test_all_of_glues_tasks_are_there():
    assert tuple(GLUE) == TASKS == tuple(LAYOUTS) and all(GLUE[name].name == name for name in TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_every_layout_is_read_as_it_stands(tmp_path, name):
    write_glue(tmp_path, name)
    for kind in ("train", "dev", "test"):
        splits = read_glue(GLUE[name], tmp_path, kind)
        assert [split.name for split in splits] == (["matched", "mismatched"] if name == "MNLI" and kind != "train"
                                                    else [""])
        for seed, split in enumerate(splits):
            wanted = glue_lines(name, kind, len(split.examples), seed)[1]
            assert [tuple(example) for example in split.examples] == wanted
            assert len(split.examples) == (24 if kind == "train" else 12)
    if name == "MNLI":
        assert [split.submission for split in splits] == ["MNLI-m", "MNLI-mm"]
        (tmp_path / "diagnostic.tsv").write_text("index\tsentence1\tsentence2\n0\tx\ty\n")
        last = read_glue(GLUE[name], tmp_path, "test")[2]
        assert last.submission == "AX" and last.examples == [("x", "y", None)]
        (tmp_path / "dev_mismatched.tsv").unlink()
        assert [split.name for split in read_glue(GLUE[name], tmp_path, "dev")] == ["matched"]
        (tmp_path / "dev_matched.tsv").unlink()
        with pytest.raises(UserError, match="dev_matched"):
            read_glue(GLUE[name], tmp_path, "dev")
    else:
        assert splits[0].submission == name


def test_windows_line_ends_and_a_byte_order_mark(tmp_path):
    write_glue(tmp_path, "MRPC")
    plain = read_glue(GLUE["MRPC"], tmp_path, "train")
    data = (tmp_path / "train.tsv").read_bytes()
    (tmp_path / "train.tsv").write_bytes(b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert read_glue(GLUE["MRPC"], tmp_path, "train") == plain


def test_quotes_are_characters(tmp_path):
    (tmp_path / "train.tsv").write_text('sentence\tlabel\n"one\t1\ntwo" three\t0\n""\t1\n\'x\t0\n')
    examples = read_glue(GLUE["SST-2"], tmp_path, "train")[0].examples
    (tmp_path / "stars.tsv").write_text("label\ttext_a\n" + "".join(f'{i / 2}\t"x ""y"" {i}\n' for i in range(11)))
    assert len(uer_task(tmp_path / "stars.tsv").labels) == 11
    assert [(example.text_a, example.label) for example in examples] == [('"one', 1), ('two" three', 0), ('""', 1),
                                                                         ("'x", 0)]


@pytest.mark.parametrize(("name", "text", "line", "words"), [
    ("SST-2", "", None, "the file is empty"),
    ("SST-2", "\n\n", None, "the file is empty"),
    ("SST-2", "sentence\tlabel\n", None, "there is a header and nothing else"),
    ("SST-2", "sentence\tlabel\na\t1\nb\n", 3, "column label is missing"),
    ("SST-2", "sentence\tlabel\na\t1\n\nb\t1\n", 3, "column label is missing"),
    ("SST-2", "sentence\tlabel\na\t1\nb\t2\n", 3, "label '2' is unknown; one of 0, 1"),
    ("SST-2", "sentence\tlabel\na\t1\nb\0c\t1\n", 3, "holds a NUL"),
    ("SST-2", "text\tlabel\na\t1\n", 1, "lacks the column(s) sentence"),
    ("CoLA", "x\t1\t*\ta b\nx\t1\t*\n", 2, "column sentence is missing"),
    ("CoLA", "x\tyes\t*\ta b\n", 1, "label 'yes' is unknown"),
    ("RTE", "index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailed\n", 2, "one of entailment, not_entailment"),
    ("STS-B", "index genre filename year old_index source1 source2 sentence1 sentence2 score\n"
     "0 g f y o s t a b 5.5\n".replace(" ", "\t"), 2, "a number from 0 to 5"),
    ("STS-B", "index sentence1 sentence2 score\n0 a b nan\n".replace(" ", "\t"), 2, "a number from 0 to 5"),
])
def test_faults_are_named_by_file_and_line(tmp_path, name, text, line, words):
    (tmp_path / "train.tsv").write_text(text.replace(" ", "\t") if name == "STS-B" else text)
    with pytest.raises(UserError) as caught:
        read_glue(GLUE[name], tmp_path, "train")
    where = f"{tmp_path / 'train.tsv'}" + (f", line {line}: " if line else ": ")
    assert str(caught.value).startswith(where) and words in str(caught.value)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "train.tsv").write_bytes("sentence\tlabel\nä\t1\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"train\.tsv, line 2: not UTF-8"):
        read_glue(GLUE["SST-2"], tmp_path, "train")
    with pytest.raises(UserError, match=r"dev\.tsv: no such file"):
        read_glue(GLUE["SST-2"], tmp_path, "dev")
    with pytest.raises(UserError, match=r"--data_dir .*: no such folder"):
        read_glue(GLUE["SST-2"], tmp_path / "none", "dev")


def test_the_few_broken_lines_of_qqp_are_left_out_and_told(tmp_path):
    lines = glue_lines("QQP", "train", 3000)[0]
    lines[7] = "5\t1\t2\ta question that goes on"
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    split = read_glue(GLUE["QQP"], tmp_path, "train")[0]
    assert len(split.examples) == 2999 and "left out 1 line(s)" in split.note and "line 8" in split.note
    lines[20:30] = ["5\tx"] * 10  # more than the published file has
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"train.tsv, line 8: column question2 is missing"):
        read_glue(GLUE["QQP"], tmp_path, "train")


# -- UER ---------------------------------------------------------------------------------------------------------------


def test_uers_files(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text('text_a\tlabel\tother\nx "y\t10\t.\nz\t2\t.\nx\t0\t.\n')
    task = uer_task(path)
    assert task.labels == ("0", "2", "10") and not task.regression and task.outputs == 3
    assert [tuple(example) for example in read_uer(task, path)] == [('x "y', None, 2), ("z", None, 1), ("x", None, 0)]
    assert [example.label for example in read_uer(task, path, labelled=False)] == [None] * 3
    (tmp_path / "signs.tsv").write_text("text_a\tlabel\nx\t+1\n\ufeffy\t-1\nz\t0.5\nw\t01.5\n")
    assert uer_task(tmp_path / "signs.tsv").labels == ("-1", "0.5", "+1", "01.5")
    (tmp_path / "versions.tsv").write_text("text_a\tlabel\nx\t3.1\ny\t3.10\nz\tmain\nw\t1e5\n")
    assert uer_task(tmp_path / "versions.tsv").labels == ("1e5", "3.1", "3.10", "main")
    assert read_uer(uer_task(tmp_path / "signs.tsv"), tmp_path / "signs.tsv")[1].text_a == "y"
    (tmp_path / "pair.tsv").write_text("label\ttext_a\ttext_b\nyes\tx\ty\nno\tz\tw\n")
    task = uer_task(tmp_path / "pair.tsv")
    assert task.labels == ("no", "yes") and read_uer(task, tmp_path / "pair.tsv")[0] == ("x", "y", 1)
    (tmp_path / "unlabelled.tsv").write_text("text_a\ttext_b\nx\ty\n")
    assert read_uer(task, tmp_path / "unlabelled.tsv", labelled=None) == [("x", "y", None)]


@pytest.mark.parametrize(("text", "words"), [
    ("label\ttext\n1\tx\n", r"line 1: the header lacks the column\(s\) text_a; it has label, text"),
    ("label\ttext_a\n1\tx\n1\ty\n", r"all lines have the label '1'"),
    ("label\ttext_a\n1\tx\n0\n", r"line 3: column text_a is missing"),
    ("label\ttext_a\n1\tx\n0\ty\0\n", r"line 3: holds a NUL"),
    ("label\ttext_a\na\tx\nb\ty\nlabel\ttext_a\nb\tz\n", r"line 4: the header once more"),
    ("label\ttext_a\na\tx\nb\ty\nb\u200b\tz\n", r"line 4: label .* differs from 'b' \(line 3\)"),
    ("label\ttext_a\n" + '"a"\tx\n"b"\ty\n' * 5, "all fields of a column are in quotes"),
    ("label\ttext_a\na\tx\nb\ty\n\ufefflabel\ttext_a\nb\tz\n", r"line 4: the header once more"),
    ("label\ttext_a\n1.0\tx\nnan\ty\n0.0\tz\n", r"line 3: label 'nan' is no number, as others are; one of 0\.0, 1"),
    ("label\ttext_a\n1\tx\n0\ty\n1.0\tz\n", r"line 4: label '1\.0' differs from '1' \(line 2\)"),
    ("label\ttext_a\n" + "".join(f"{i / 7:.3f}\tx\n" for i in range(40)), r"40 labels, numbers like 0\.143: scores"),
    ("label\ttext_a\ra\tx\rb\ty\r", r": a CR alone ends its lines"),
])
def test_faults_in_uers_files(tmp_path, text, words):
    (tmp_path / "t.tsv").write_text(text)
    with pytest.raises(UserError, match=rf"t\.tsv.*{words}"):
        read_uer(uer_task(tmp_path / "t.tsv"), tmp_path / "t.tsv")


def test_texts_of_several_lines_are_not_taken_for_several(tmp_path):
    """In a file of one column nothing else tells; quotes that are not all as CSV's are characters, and so are those of
    a quotation of several rows that are whole."""
    path, task = tmp_path / "t.tsv", uer_task(write_uer_tsv(tmp_path / "train.tsv", 4, 1))
    path.write_text('text_a\none\n"two\n\nthree"\n')
    with pytest.raises(UserError, match=r"t\.tsv, quotes hold several lines together, or are quotations"):
        read_uer(task, path, labelled=False)
    other = path.rename(tmp_path / "t.csv")
    assert [example.text_a for example in read_uer(task, other, labelled=False)] == ["one", "two\n\nthree"]
    for more in ('"four\n', '5" of it\n', '"five" six\n'):
        path.write_text('text_a\none\n"two\n\'three"\n' + more)
        assert len(read_uer(task, path, labelled=False)) == 4
    for ends in ("", "\n", "\n\n"):  # empty lines are no rows
        path.write_text('label\ttext_a\n0\t"I came.\n1\tI saw.\n0\tI won."\n' + ends)
        assert len(read_uer(task, path)) == 3
    path.write_text('label\ttext_a\n0\t"I came.\n1\tI saw.\n0\tI won."\n')
    assert [example.text_a for example in read_uer(task, path)] == ['"I came.', "I saw.", 'I won."']


def test_a_label_that_training_does_not_know(tmp_path):
    (tmp_path / "train.tsv").write_text("label\ttext_a\n1\tx\n0\ty\n")
    (tmp_path / "dev.tsv").write_text("label\ttext_a\n1\tx\n2\ty\n")
    with pytest.raises(UserError, match=r"dev\.tsv, line 3: label '2' is unknown; one of 0, 1"):
        read_uer(uer_task(tmp_path / "train.tsv"), tmp_path / "dev.tsv")


# -- batches -----------------------------------------------------------------------------------------------------------


def test_sequences(tokenizer):
    vocab = tokenizer.vocab
    task = SimpleNamespace(text=lambda ids: " ".join(TOKENS[i] for i in ids))
    single, pair, cut, cut_single = encode(
        [("the river", None, 1), ("the", "new cafe", 0), ("a b c d e f", "x y", 1), ("a b c d e f g h", None, 0)],
        tokenizer, 9)
    assert task.text(single.tokens) == "[CLS] the river [SEP]" and single.first == 4
    assert task.text(pair.tokens) == "[CLS] the [SEP] new cafe [SEP]" and pair.first == 3
    assert task.text(cut.tokens) == "[CLS] a b c d [SEP] x y [SEP]"
    assert task.text(cut_single.tokens) == "[CLS] a b c d e f g [SEP]"
    batch = collate([single, pair], vocab.pad_id)
    assert batch.src.tolist() == [[*single.tokens, vocab.pad_id, vocab.pad_id], [*pair.tokens]]
    assert batch.seg.tolist() == [[1, 1, 1, 1, 0, 0], [1, 1, 1, 2, 2, 2]] and batch.labels.tolist() == [1, 0]
    assert collate([single._replace(label=None)], 0).labels is None
    assert collate([single._replace(label=2.5)], 0).labels.dtype == torch.float32


def test_pairs_of_roberta(tmp_path):
    """As in transformers: two separators, one segment; tokenizer.json of a student says the same."""
    bpe = tokenizer_of(roberta(tmp_path / "r", {}))
    single, pair, cut = encode([("low", None, 1), ("lower", "ri the", 0), ("l l l l", "r r", 0)], bpe, 9)
    words = ["".join(bpe.vocab.tokens[i] for i in instance.tokens) for instance in (single, pair, cut)]
    assert words == ["<s>low</s>", "<s>lower</s></s>ri\u0120the</s>", "<s>l\u0120l</s></s>r\u0120</s>"]
    assert collate([pair], 1).seg.tolist() == [[1] * len(pair.tokens)]
    assert XlmRobertaTokenizer.separators == 2
    [before] = encode([("lower", "ri the", 0)], bpe, 9, reading_of({"kind": "classifier"})["separators"])
    assert len(before.tokens) == len(pair.tokens) - 1 and before.first < len(before.tokens)
    write_tokenizer(tmp_path, bpe.rules, max_length=9)
    written = json.loads((tmp_path / "tokenizer.json").read_text())["post_processor"]["pair"]
    parts = [next(iter(part.values())) for part in written]
    assert [part["id"] for part in parts] == ["<s>", "A", "</s>", "</s>", "B", "</s>"]
    assert not any(part["type_id"] for part in parts)


def test_batches_of_like_length_need_less_padding():
    lengths = np.random.default_rng(3).integers(1, 60, size=1003)
    plain, grouped = (shuffled(lengths, 10, 1, 0, grouped) for grouped in (False, True))
    assert sorted(np.concatenate(grouped)) == list(range(1003))
    assert sorted(map(len, grouped)) == sorted(map(len, plain)) == [3] + [10] * 100
    assert sum(lengths[batch].max() * len(batch) for batch in grouped) < 1.1 * lengths.sum()
    assert [len(set(lengths[batch])) for batch in grouped] != sorted(len(set(lengths[batch])) for batch in grouped)
    again, other = (shuffled(lengths, 10, 1, epoch, True) for epoch in (0, 1))
    assert all(map(np.array_equal, grouped, again)) and not all(map(np.array_equal, grouped, other))


def test_an_epoch_has_everything_once_in_an_order_of_its_own(tokenizer):
    orders = [[i for batch in shuffled([1] * 103, 10, seed, epoch) for i in batch]
              for seed, epoch in ((1, 0), (1, 1), (2, 0))]
    assert all(sorted(order) == list(range(103)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0] != list(range(103))
    assert orders[0] == [i for batch in shuffled([1] * 103, 10, 1, 0) for i in batch]
    assert [len(batch) for batch in shuffled([1] * 103, 10, 1, 0)] == [10] * 10 + [3]
    instances = encode([("a " * (i % 7), None, 0) for i in range(30)], tokenizer, 32)
    batches = list(by_length(instances, 8))
    assert sorted(i for batch in batches for i in batch) == list(range(30))
    lengths = [len(instances[i].tokens) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
