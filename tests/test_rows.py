"""A row in is a row out: tables of GLUE and UER, right or refused by file and line."""

from __future__ import annotations

import json

import pytest
from commands import call, refused
from hypothesis import given
from hypothesis import strategies as st
from tuning import FAST, glue_lines, options, write_glue, write_uer_tsv

from uer.errors import UserError
from uer.evaluation.texts import read_texts
from uer.finetuning.options import TASKS
from uer.finetuning.squad_data import read_squad
from uer.finetuning.tasks import GLUE, Task, read_glue, read_uer, texts_of, uer_task

LABELS = ["0", "1", " 1", "1 ", "01", "1.0", "", "good", "Good", "１", "-1", "\ufeff1"]
FIELDS = st.one_of(st.sampled_from([*LABELS, "a text", '"', " ", "\u2028", "a\rb", "\x0bx\x85y"]), st.text(max_size=4))
TABLES = st.lists(st.lists(FIELDS, min_size=1, max_size=4), min_size=1, max_size=8)
HEADS = st.sampled_from([head.replace(" ", "\t") for head in (
    "label text_a", "label text_a text_b", "text_a", "text_a label", "text_a text_a", "label")])


def write(path, head: str, rows: list[list[str]], end: str = "\n"):
    path.write_bytes(end.join([head, *("\t".join(row) for row in rows), ""]).encode("utf-8"))
    return path


def alone(text: str) -> bool:
    """Whether a text is one field of one line."""
    return not {"\t", "\n"} & set(text) and not text.endswith("\r")


@given(head=HEADS, rows=TABLES, labelled=st.booleans(), end=st.sampled_from(["\n", "\r\n"]))
def test_rows_out_are_rows_in_or_refused_by_file_and_line(tmp_path_factory, head, rows, labelled, end):
    rows = [[field for field in row if alone(field) and "\0" not in field] or ["x"] for row in rows]
    path = write(tmp_path_factory.mktemp("t") / "t.tsv", head, rows, end)
    names = head.split("\t")
    try:
        task = uer_task(path) if labelled else Task("", ("0", "1"), texts_of(path, None))
        examples = read_uer(task, path, labelled)
    except UserError as error:
        assert str(error).startswith(str(path))
        return
    while len(names) > 1 and rows[-1] == [""]:  # empty lines at the end are no rows of several fields
        rows.pop()
    assert len(examples) == len(rows) and all(len(row) == len(names) for row in rows)
    for row, example in zip(rows, examples):
        fields = dict(zip(names, row))
        assert (example.text_a, example.text_b) == (fields["text_a"], fields.get("text_b"))
        assert example.text_a.strip() and (example.text_b is None or example.text_b.strip())
        assert example.label is None if not labelled else task.labels[example.label] == fields["label"].strip()
    assert not labelled or set(task.labels) == {row[names.index("label")].strip() for row in rows}


@given(name=st.sampled_from(TASKS), at=st.integers(1, 11), change=st.sampled_from(["cut", "add", "blank", "join"]))
def test_glues_test_files_lose_no_rows(tmp_path_factory, name, at, change):
    """Of a file with one fault every row is there, in its place, or none is."""
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder, name)
    file = folder / ("test_matched.tsv" if name == "MNLI" else "test.tsv")
    lines = file.read_text(encoding="utf-8").split("\n")
    lines[at] = {"cut": lines[at].rsplit("\t", 1)[0], "add": f"{lines[at]}\tx", "blank": "",
                 "join": lines[at].replace("\t", " ")}[change]
    file.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(UserError, match=rf"line {at + 1}: .* are needed"):
        read_glue(GLUE[name], folder, "test")


def test_one_short_row_of_qqps_test_file(tmp_path):
    """Left out, it would renumber every later one."""
    lines = glue_lines("QQP", "test", 1500)[0]
    lines[700] = lines[700].rsplit("\t", 1)[0]
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"test\.tsv, line 701: column question2 is missing: 2 field\(s\) there, 3"):
        read_glue(GLUE["QQP"], tmp_path, "test")


def test_empty_questions_of_qqp_are_questions(tmp_path):
    """The published files have some; of other tasks an empty text is a slip."""
    lines = glue_lines("QQP", "test", 20)[0]
    lines[5] = "4\t\tthe river"
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    [split] = read_glue(GLUE["QQP"], tmp_path, "test")
    assert len(split.examples) == 20 and split.examples[4] == ("", "the river", None)
    assert split.note.endswith("an empty text in 1 line(s), the first is line 6")
    lines = glue_lines("RTE", "test", 20)[0]
    lines[5] = "4\tthe river\t "
    (tmp_path / "test.tsv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"line 6: sentence2 is empty; a text is needed"):
        read_glue(GLUE["RTE"], tmp_path, "test")


@pytest.mark.parametrize(("labels", "words"), [
    (["0", "1", "1 ", " 0"], None), (["-1", "0", "1"], None), (["no", "yes"], None), (["1.0", "0.0"], None),
    (["0", "9" * 5000], "line 3: label .* is no number"), (["0", "1e" + "9" * 20], "line 3: label .* is no number"),
    (["0", "1", ""], r"line 4: label '' is empty"), (["0", "1", "01"], r"line 4: label '01' differs from '1' .line 3."),
    (["0", "1", "1.0"], r"line 4: label '1\.0' differs from '1' .line 3.* in nothing but case or form; one of 0, 1 is"),
    (["0", "1", "１"], "line 4: label '１' is no number"), (["no", "yes", "-", "Yes"],
                                                          "line 5: label 'Yes' differs from 'yes' .line 3."),
    (["no", "yes", ""], r"line 4: label '' is empty"), (["caf\u00e9", "cafe\u0301"], "line 3: label .* differs from")])
def test_no_class_is_invented(tmp_path, labels, words):
    path = write(tmp_path / "t.tsv", "label\ttext_a", [[label, "x"] for label in labels])
    if words is None:
        task = uer_task(path)
        assert set(task.labels) == {label.strip() for label in labels}
        assert [task.labels[example.label] for example in read_uer(task, path)] == [label.strip() for label in labels]
        return
    with pytest.raises(UserError, match=rf"t\.tsv, {words}"):
        uer_task(path)


@pytest.mark.parametrize("score", ["4_0", "４", "nan", "1e1", "--1", "0x1", ""])
def test_scores_are_plain_numbers(score):
    assert [GLUE["STS-B"].label_of(text, "here") for text in (" 2.5", "5", ".5", "5e-1")] == [2.5, 5, 0.5, 0.5]
    with pytest.raises(UserError, match=r"here: score .* a number from 0 to 5 is needed"):
        GLUE["STS-B"].label_of(score, "here")


def test_models_of_pairs_and_files_of_singles(tuned, tmp_path, capsys):
    """And the other way, in training and in inference."""
    single, pairs = tuned / "train.tsv", write_uer_tsv(tmp_path / "pairs.tsv", 16, 5, pairs=True)
    words = options(tuned, tmp_path / "m.bin", "--epochs_num", 1)
    for train, dev in ((single, pairs), (pairs, single)):
        message = refused(capsys, tmp_path, "finetune/run_classifier.py", *words, "--train_path", train, "--dev_path",
                          dev)
        assert f"{dev}, line 1: " in message and "the model's training data have" in message
    call("finetune/run_classifier.py", *words, "--train_path", pairs, "--dev_path", pairs)
    assert json.loads((tmp_path / "m.bin.json").read_text())["pairs"] is True
    capsys.readouterr()
    infer = ["inference/run_classifier_infer.py", "--load_model_path", tmp_path / "m.bin", "--vocab_path",
             tuned / "vocab.txt", "--prediction_path", tmp_path / "p.tsv", "--test_path"]
    assert "single texts (text_a alone), but the model's training data have pairs" in refused(
        capsys, tmp_path, *infer, tuned / "unlabelled.tsv")
    call(*infer, pairs)
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 1 + 16
    write_glue(tmp_path / "CoLA", "CoLA")
    assert "single texts (sentence alone), but the model's training data have pairs (text_a and text_b)" in refused(
        capsys, tmp_path, *infer, tmp_path / "CoLA/test.tsv")


@pytest.mark.parametrize("name", TASKS)
def test_a_glue_tasks_texts_are_read_by_their_names_there(tmp_path, name):
    """A model of the task knows whether it reads pairs, not which columns they stand in; evaluate.py reads the same."""
    write_glue(tmp_path, name)
    path, found = tmp_path / GLUE[name].test[0][1], glue_lines(name, "test", 12)[1]
    for pairs in (None, found[0][1] is not None):
        task = Task("", ("0", "1"), texts_of(path, pairs))
        assert [(example.text_a, example.text_b, example.label) for example in read_uer(task, path, False)] == found
    assert [(example.text_a, example.text_b, None) for example in read_texts(path).examples] == found


def test_a_model_of_a_glue_task_reads_the_tasks_own_test_file(tuned, tmp_path):
    for name in ("CoLA", "MRPC"):
        folder = tuned / "glue" / name
        call("finetune/run_classifier.py", "--task", name, "--data_dir", folder, *FAST, "--pretrained_model_path",
             tuned / "hf", "--output_model_path", tmp_path / "m.bin", "--prediction_path", tmp_path / "predicted")
        call("inference/run_classifier_infer.py", "--load_model_path", tmp_path / "m.bin", "--vocab_path",
             tuned / "vocab.txt", "--test_path", folder / "test.tsv", "--prediction_path", tmp_path / "p.tsv")
        said = [line.split("\t")[1] for line in (tmp_path / f"predicted/{name}.tsv").read_text().splitlines()]
        assert (tmp_path / "p.tsv").read_text().splitlines()[1:] == said[1:] and len(said) == 1 + 12


def test_ones_own_names_go_before_glues(tmp_path):
    path = write(tmp_path / "t.tsv", "sentence1\tsentence2\ttext_a", [["x", "y", "z"]])
    assert [example.text_a for example in read_texts(path).examples] == ["z"]
    assert read_uer(Task("", ("0", "1"), ("text_a",)), path, False)[0].text_a == "z"


@pytest.mark.parametrize(("change", "words"), [
    ({"is_impossible": "false"}, "question q1: is_impossible is 'false'; true or false is needed"),
    ({"question": " "}, "question q1: its question is empty"), ({"id": "q0"}, "question q0: more than one has this id"),
    ({"answers": [{"text": "a", "answer_start": -3}]}, "question q1: the answer 'a' is not at character -3"),
    ({"answers": [{"text": "", "answer_start": 0}]}, "question q1: the answer '' is not at character 0"),
    ({"answers": [{"text": "a", "answer_start": "14"}]}, "answer_start of 'a' is \"14\"; a whole number is needed"),
    ({"answers": [{"text": "a", "answer_start": 14.0}]}, r"answer_start of 'a' is 14\.0; a whole number is needed"),
    ({"answers": [{"text": "a", "answer_start": True}]}, "answer_start of 'a' is true; a whole number is needed"),
    ({"id": None}, r"question 'the what \?': its id is null; a text or a whole number is needed"),
    ({"id": True}, "its id is true; a text"), ({"id": ["q"]}, r"its id is \[\"q\"\]; a text"),
    ({"answers": [], "is_impossible": False}, "question q1: is_impossible is false, and there is no answer; one is")])
def test_questions_of_squad_are_exact_as_well(tuned, tmp_path, change, words):
    data = json.loads((tuned / "train1.json").read_text())
    data["data"][0]["paragraphs"][1]["qas"][0] |= change
    (tmp_path / "s.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=words):
        read_squad(tmp_path / "s.json")


def test_what_of_squad_may_be_otherwise(tuned, tmp_path):
    """Numbers as ids, and questions without answers in files that say nothing of is_impossible."""
    data = json.loads((tuned / "train1.json").read_text())
    data["data"][0]["paragraphs"][1]["qas"][0] |= {"id": 7, "answers": []}
    (tmp_path / "s.json").write_text(json.dumps(data))
    found = read_squad(tmp_path / "s.json")[1]
    assert (found.id, found.answers) == ("7", ())


def test_json_lines_are_not_squads(tuned, tmp_path):
    line = json.dumps({"id": "a", "context": "the river", "question": "what ?", "answers": []})
    (tmp_path / "s.json").write_text(f"{line}\n{line}\n")
    with pytest.raises(UserError, match=r"s\.json: JSON lines, an object a line; one value is needed, SQuAD's JSON "
                                        r"\(data → paragraphs"):
        read_squad(tmp_path / "s.json")


def test_an_answer_without_a_token_is_refused(tuned, tmp_path, capsys):
    """It would be trained as no answer, and could not be given."""
    data = json.loads((tuned / "train1.json").read_text())
    paragraph = data["data"][0]["paragraphs"][1]
    paragraph["context"] += " \u200b"
    paragraph["qas"][0]["answers"] = [{"text": "\u200b", "answer_start": len(paragraph["context"]) - 1}]
    (tmp_path / "s.json").write_text(json.dumps(data))
    common = ["--pretrained_model_path", tuned / "hf", "--output_model_path", tmp_path / "m.bin", "--seq_length", 24]
    for train, dev in (("s.json", "dev1.json"), ("dev1.json", "s.json")):
        files = [tmp_path / name if name == "s.json" else tuned / name for name in (train, dev)]
        message = refused(capsys, tmp_path, "finetune/run_squad.py", "--train_path", files[0], "--dev_path", files[1],
                          *common)
        assert "s.json: question q1: the tokenizer leaves nothing of its answer '\\u200b'; a piece" in message
