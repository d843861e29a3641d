"""How a reader cuts texts and chooses answers stays with it: in its card, its folder, and where it is judged."""

from __future__ import annotations

import json
import shutil

import pytest
from commands import call, refused
from tuning import results

from uer.evaluation import reading
from uer.formats import load_model
from uer.formats.file_model import OF_ANSWERS, reading_of

OWN = {"seq_length": 24, "doc_stride": 6, "max_query_length": 4, "n_best_size": 7, "max_answer_length": 2,
       "null_score_diff_threshold": 1.5}
USUAL = {"doc_stride": 128, "max_query_length": 64, "n_best_size": 20, "max_answer_length": 30}


@pytest.fixture(scope="module")
def reader(tuned, tmp_path_factory):
    """A reader of questions that may have no answer, judged by run_squad.py on questions that all have one."""
    path = tmp_path_factory.mktemp("reader") / "s.bin"
    call("finetune/run_squad.py", "--train_path", tuned / "train.json", "--dev_path", tuned / "dev1.json",
         "--pretrained_model_path", tuned / "hf", "--output_model_path", path, "--batch_size", 8, "--learning_rate",
         0.01, "--epochs_num", 6, *(word for name, value in OWN.items() for word in (f"--{name}", value)))
    return path


@pytest.fixture
def judged(tuned, tmp_path, monkeypatch):
    """A function: the figures of evaluate.py, and the settings it took."""
    seen = []

    def keep(train, dev, tokenizer, args, *more):
        seen.append({name: getattr(args, name) for name in OF_ANSWERS})
        return Reading(train, dev, tokenizer, args, *more)

    def judge(model, *more, data="dev1.json"):
        call("evaluate.py", "--task", "squad", "--model_path", model, "--vocab_path", tuned / "vocab.txt",
             "--test_path", tuned / data, "--output_path", tmp_path / "figures.json", *more)
        return json.loads((tmp_path / "figures.json").read_text()), seen.pop()

    Reading = reading.Reading
    monkeypatch.setattr(reading, "Reading", keep)
    return judge


def test_a_reader_is_judged_by_its_own_settings(reader, judged, capsys):
    figures = results(reader)["runs"][0]["figures"]
    found, settings = judged(reader)
    assert settings == OWN and found == pytest.approx(figures)
    assert "more than 1.50, its own" in capsys.readouterr().out
    more = {"seq_length": 40, "doc_stride": 9, "max_query_length": 8, "max_answer_length": 5}
    assert judged(reader, *(word for name, value in more.items() for word in (f"--{name}", value)))[1] == OWN | more


def test_a_threshold_counts_where_all_questions_have_answers(reader, judged, tmp_path):
    model = shutil.copy(reader, tmp_path / "m.bin")
    card = json.loads((reader.parent / "s.bin.json").read_text())
    for threshold, right in ((-1e6, 0.0), (1e6, None), (10 ** 6, None)):
        (tmp_path / "m.bin.json").write_text(json.dumps({**card, "null_score_diff_threshold": threshold}))
        found = judged(model)[0]["exact match"]
        assert found == right if right is not None else found > 0


def test_a_card_of_earlier_versions_is_read_as_before(reader, judged, tmp_path, capsys):
    model = shutil.copy(reader, tmp_path / "m.bin")
    card = json.loads((reader.parent / "s.bin.json").read_text())
    (tmp_path / "m.bin.json").write_text(json.dumps({name: value for name, value in card.items() if name not in USUAL}))
    assert judged(model)[1] == {**OWN, **USUAL, "max_query_length": 15}
    assert "warning: the windows of 6 question(s) do not overlap: --doc_stride 128" in capsys.readouterr().out


def test_settings_that_are_none_are_not_taken(reader):
    assert reading_of({"doc_stride": 0, "seq_length": True, "max_answer_length": "4", "n_best_size": 3,
                       "null_score_diff_threshold": float("nan")}) == {"n_best_size": 3}


def test_a_folder_keeps_them(reader, tuned, judged, tmp_path):
    wanted = judged(reader)
    call("scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", reader, "--output_model_path",
         tmp_path / "hf", "--vocab_path", tuned / "vocab.txt")
    assert json.loads((tmp_path / "hf/config.json").read_text())["reading"] == OWN
    assert judged(tmp_path / "hf") == wanted
    call("scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", tmp_path / "hf",
         "--output_model_path", tmp_path / "back.bin")
    assert judged(tmp_path / "back.bin") == wanted
    loaded = load_model(tmp_path / "hf", config=None, vocab_size=None, target=None)
    assert loaded.reading == {**OWN, "pairs": True}


def test_a_student_keeps_them(reader, tuned, judged, tmp_path):
    (tmp_path / "pairs.txt").write_text("the what ?\tthe river a b c run low\n" * 30)
    call("calibrate.py", "--pretrained_model_path", reader, "--vocab_path", tuned / "vocab.txt", "--data_processor",
         "pairs", "--corpus_path", tmp_path / "pairs.txt", "--target_dim", 16, "--seq_length", 24,
         "--output_model_path", tmp_path / "same", "--output_format", "uer", "huggingface")
    for name in ("same", "same-huggingface"):
        assert judged(tmp_path / name) == (pytest.approx(judged(reader)[0]), OWN)


def test_windows_that_do_not_overlap_are_told(tuned, tmp_path, capsys):
    call("finetune/run_squad.py", "--train_path", tuned / "train1.json", "--dev_path", tuned / "dev1.json",
         "--pretrained_model_path", tuned / "hf", "--output_model_path", tmp_path / "s.bin", "--batch_size", 8,
         "--seq_length", 24, "--epochs_num", 1)
    assert "question(s) do not overlap: --doc_stride 128 leaves nothing in common" in capsys.readouterr().out


def test_mistakes_of_evaluate(reader, tuned, tmp_path, capsys):
    given = ["evaluate.py", "--model_path", reader, "--vocab_path", tuned / "vocab.txt", "--test_path",
             tuned / "dev1.json", "--task"]
    for more, words in ((["squad", "--doc_stride", 0], "--doc_stride is 0"),
                        (["squad", "--max_query_length", 16], "leaves too little of --seq_length 24"),
                        (["sts", "--max_answer_length", 4], "--max_answer_length goes with --task squad")):
        assert words in refused(capsys, tmp_path, *given, *more)
    data = json.loads((tuned / "dev1.json").read_text())
    paragraph = data["data"][0]["paragraphs"][0]
    paragraph["context"] += "\u200b"
    paragraph["qas"][0]["answers"] = [{"text": "\u200b", "answer_start": len(paragraph["context"]) - 1}]
    (tmp_path / "s.json").write_text(json.dumps(data))
    given[given.index("--test_path") + 1] = tmp_path / "s.json"
    assert "s.json: question q0: the tokenizer leaves nothing of its answer" in refused(capsys, tmp_path, *given,
                                                                                       "squad")
