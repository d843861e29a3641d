"""`--task agreement` on a TSV with labels: what is read of it, and the accuracy that it tells."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
from commands import call, refused
from tuning import options, results

from uer.config import ModelConfig
from uer.errors import UserError
from uer.evaluation.texts import read_texts, wanted
from uer.finetuning.infer import lines
from uer.finetuning.tasks import Task


@pytest.mark.parametrize(("content", "texts", "labels"), [
    ("one\n\ntwo\tx\n", [("one", None), ("two\tx", None)], []),
    ("sentence\none\n", [("sentence", None), ("one", None)], []),  # one column: nothing tells a header from a text
    ("sentence\tlabel\none\t 1 \ntwo\t0\n", [("one", None), ("two", None)], [(2, "1"), (3, "0")]),
    ("label\ttext_a\ttext_b\nx\tone\ttwo\n", [("one", "two")], [(2, "x")]),
    ("id\tsentence1\tsentence2\r\n7\tone\ttwo\r\n", [("one", "two")], []),
    ("Quality\t#1 String\t#2 String\n1\tone\ttwo\n", [("one", "two")], [(2, "1")]),
    ("sentence1\tsentence2\tscore\none\ttwo\t2.5\n", [("one", "two")], [(2, "2.5")]),
    ("a label\tb\n", [("a label\tb", None)], [])])
def test_texts_as_people_have_them(tmp_path, content, texts, labels):
    (tmp_path / "t").write_bytes(content.encode())
    found = read_texts(tmp_path / "t")
    assert [(a, b) for a, b, _ in found.examples] == texts and found.labels == labels


def test_a_header_alone_in_its_line_is_one_where_the_name_says_table(tmp_path):
    (tmp_path / "t.tsv").write_text("sentence\none\n\ufefftwo\n")
    assert [example.text_a for example in read_texts(tmp_path / "t.tsv").examples] == ["one", "two"]


@pytest.mark.parametrize(("content", "words"), [
    ("", "no text"), ("\n \n", "no text"), ("label\ttext_a\n1\t \n", "line 2: a text is empty"),
    ('{"text": "one"}\n{"text": "two"}\n', "JSON lines; one text a line"), ("one\rtwo\r", "a CR alone ends"),
    ("label\ttext_a\n1\n", "line 2: column text_a is missing"), ("label\ttext_a\n", "a header and nothing else")])
def test_what_is_no_text_is_refused(tmp_path, content, words):
    (tmp_path / "t").write_text(content)
    with pytest.raises(UserError, match=words):
        read_texts(tmp_path / "t")


def test_a_table_without_known_columns_is_refused(tmp_path):
    """Its numbers and header would be texts."""
    for name, content in (("t.tsv", "id\ttext\n1\tone\n"), ("t.csv", "id,words\n1,one\n")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=r", line 1: no header with one of text_a and text_b, .*, sentence$"):
            read_texts(tmp_path / name)


def test_labels_are_names_or_where_the_names_are_none_numbers():
    rows = [(2, "good"), (3, "bad"), (4, "0")]
    assert wanted("f", rows[:2], ["bad", "good"], 2).tolist() == [1, 0]
    assert wanted("f", rows, ["bad", "good"], 2).tolist() == [1, 0, 0]
    assert wanted("f", [(2, "2"), (3, "1")], ["1", "2"], 2).tolist() == [1, 0]  # names first
    assert wanted("f", [(2, "-0.5")], [], 1).tolist() == [-0.5]
    assert wanted("f", [(2, "1")], ["LABEL_0", "LABEL_1"], 2).tolist() == [1]
    for names in (["1 star", "2 stars"], ["1.0", "2.0"]):  # whose second is not 1
        with pytest.raises(UserError, match="line 2: label '1' is none of the model's"):
            wanted("f", [(2, "1")], names, 2)
    with pytest.raises(UserError, match="line 4: label '0' is none of the model's, which are 1, 2"):
        wanted("f", rows[2:], ["1", "2"], 2)
    with pytest.raises(UserError, match="line 2: label 'good'; the model gives scores"):
        wanted("f", rows[:1], [], 1)


def test_labels_of_teacher_and_model_stand_in_one_order(tuned, tmp_path, capsys):
    """Class by class is how they are compared, and how one teaches the other: MNLI's are in many orders about."""
    from uer.formats.file_target import outputs_apart

    def config(*labels):
        return ModelConfig(16, 1, 2, 32, target="cls", outputs=len(labels), labels=labels)

    assert outputs_apart(config("Good", "BAD"), config("bad", "good")).endswith(
        "the model has its labels in the order bad, good")
    assert "2 outputs" in outputs_apart(config("a", "b"), config("a", "b", "c"))
    for others in (("good", "bad"), ("0", "1"), ("LABEL_0", "LABEL_1")):
        assert outputs_apart(config("Good", "BAD"), config(*others)) == ""
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", "--epochs_num", 1))
    for name, labels in (("d", ["no", "yes"]), ("e", ["1", "0"])):
        shutil.copy(tmp_path / "c.bin", tmp_path / f"{name}.bin")
        card = json.loads((tmp_path / "c.bin.json").read_text())
        (tmp_path / f"{name}.bin.json").write_text(json.dumps({**card, "labels": labels}))
    given = ["--task", "agreement", "--vocab_path", tuned / "vocab.txt", "--test_path", tuned / "dev.tsv",
             "--teacher_path", tmp_path / "c.bin", "--model_path"]
    assert "its labels in the order 0, 1, the model has" in refused(capsys, tmp_path, "evaluate.py", *given,
                                                                     tmp_path / "e.bin")
    assert "--seq_length is 65; a number from 3 to the model's 64 positions" in refused(
        capsys, tmp_path, "evaluate.py", *given, tmp_path / "d.bin", "--seq_length", 65)
    (tmp_path / "plain.txt").write_text("the river\nnew cafe\n")
    given[given.index("--test_path") + 1] = tmp_path / "plain.txt"
    call("evaluate.py", *given, tmp_path / "d.bin")
    assert "note: labels taken for the same: 0 = no, 1 = yes" in capsys.readouterr().out
    (tmp_path / "scored.tsv").write_text("sentence\tscore\nthe river\t2.5\n")
    given[given.index("--test_path") + 1] = tmp_path / "scored.tsv"
    call("evaluate.py", *given, tmp_path / "d.bin")
    assert "line 2: label '2.5' is none of the model's" in capsys.readouterr().out


@pytest.mark.parametrize("pairs", [False, True])
def test_accuracy_is_the_one_of_fine_tuning(tuned, tmp_path, capsys, pairs):
    data = "pairs.tsv" if pairs else "dev.tsv"
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", "--epochs_num", 1, dev=data,
                                                train=data if pairs else "train.tsv"))
    capsys.readouterr()
    call("evaluate.py", "--task", "agreement", "--model_path", tmp_path / "c.bin", "--teacher_path", tmp_path / "c.bin",
         "--vocab_path", tuned / "vocab.txt", "--test_path", tuned / data, "--output_path", tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    score = results(tmp_path / "c.bin")["runs"][0]["figures"]["accuracy"]
    assert found["equal predictions"] == 1
    assert found["accuracy"] == found["teacher's accuracy"] == pytest.approx(score) and 0 < score < 1
    assert f"accuracy {100 * score:.1f} %" in capsys.readouterr().out
    assert np.isfinite(found["texts_per_second"])


def test_labels_that_hold_together_can_be_told_apart():
    """Commas between them, so a name that has one is quoted, as CSV does it."""
    task = Task("", ("x,y", 'the "c"', "d"), ("text_a",))
    found = lines(task, np.array([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0], [1.0, -1.0, 0.5]]), False, False, several=True)
    written = [next(csv.reader([line]), []) for line in "".join(found).split("\n")[1:-1]]
    assert written == [["x,y", 'the "c"', "d"], [], ["x,y", "d"]]


def test_a_label_that_would_break_the_predictions_is_refused(tuned, tmp_path, capsys):
    call("finetune/run_classifier.py", *options(tuned, tmp_path / "c.bin", "--epochs_num", 1))
    card = tmp_path / "c.bin.json"
    card.write_text(json.dumps({**json.loads(card.read_text()), "labels": ["a", "d\te"]}))
    assert "label 'd\\te' has a tab" in refused(
        capsys, tmp_path, "inference/run_classifier_infer.py", "--load_model_path", tmp_path / "c.bin", "--vocab_path",
        tuned / "vocab.txt", "--test_path", tuned / "dev.tsv", "--prediction_path", tmp_path / "p.tsv")
