"""run_squad.py as users run it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from commands import call, refused
from tuning import results

from uer.evaluation.vectors import own_length
from uer.finetuning.heads import read_card
from uer.formats import load_model

SQUAD = ["--batch_size", 8, "--seq_length", 40, "--doc_stride", 16, "--max_query_length", 8, "--learning_rate", 0.01,
         "--seed", 1]


def test_questions_with_and_without_answers(tuned, tmp_path, capsys):
    model = tmp_path / "out" / "s.bin"
    call("finetune/run_squad.py", "--train_path", tuned / "train.json", "--dev_path", tuned / "dev.json",
         "--pretrained_model_path", tuned / "hf", "--output_model_path", model, *SQUAD, "--epochs_num", 3)
    said = capsys.readouterr().out
    assert "some have no answer" in said and "unanswerable F1" in said
    predictions, nbest, odds = (json.loads(Path(f"{model}.{kind}.json").read_text())
                                for kind in ("predictions", "nbest", "null_odds"))
    data = json.loads((tuned / "dev.json").read_text())["data"][0]["paragraphs"]
    assert read_card(str(model))["labels"] == ["start", "end"]
    reader = load_model(model, config=None, vocab_size=None, target=None)
    assert reader.config.labels == ("start", "end") and own_length(reader) == reader.facts["seq_length"]
    threshold = read_card(str(model))["null_score_diff_threshold"]
    for paragraph in data:
        key = paragraph["qas"][0]["id"]
        assert predictions[key] in paragraph["context"]
        assert (predictions[key] == "") == (odds[key] > threshold)
        assert sum(entry["probability"] for entry in nbest[key]) == pytest.approx(1)
    best = results(model)["runs"][0]
    assert best["figures"]["F1"] == max(epoch["F1"] for epoch in best["epochs"])


def test_squad_1_1_always_answers_and_learns(tuned, tmp_path, capsys):
    (tmp_path / "s.bin.null_odds.json").write_text("{}")  # of a run that was there before
    call("finetune/run_squad.py", "--train_path", tuned / "train1.json", "--dev_path", tuned / "train1.json",
         "--pretrained_model_path", tuned / "hf", "--output_model_path", tmp_path / "s.bin", *SQUAD, "--epochs_num", 12,
         "--dropout", 0)
    assert results(tmp_path / "s.bin")["runs"][0]["score"] > 0.6
    assert all(json.loads((tmp_path / "s.bin.predictions.json").read_text()).values())
    said = capsys.readouterr().out
    assert not (tmp_path / "s.bin.null_odds.json").exists() and "all have answers" in said
    assert "warning: the dev data are the training data" in said


@pytest.mark.parametrize(("more", "words"), [
    (["--max_query_length", 38], "leaves too little of --seq_length"),
    (["--doc_stride", 0], "--doc_stride is 0"),
    (["--tokenizer", "char", "--vocab_path", "VOCAB", "--pretrained_model_path", "UER"], "only bert can tell"),
    (["--tokenizer", "char"], "tokenizer: char and bert"),
])
def test_mistakes_of_run_squad(tuned, tmp_path, capsys, more, words):
    more = [{"VOCAB": tuned / "vocab.txt", "UER": tuned / "uer.bin"}.get(word, word) for word in more]
    with pytest.raises(SystemExit):
        call("finetune/run_squad.py", "--train_path", tuned / "train1.json", "--dev_path", tuned / "dev1.json",
             "--pretrained_model_path", tuned / "hf", "--output_model_path", tmp_path / "s.bin", *SQUAD, *more)
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_reader_made_smaller_is_judged_by_its_answers(tuned, tmp_path, capsys):
    """run_squad.py -> calibrate.py on questions and paragraphs -> evaluate.py --task squad"""
    for name, data in (("one", "dev1.json"), ("two", "dev.json")):  # all have answers; some have none
        call("finetune/run_squad.py", "--train_path", tuned / data.replace("dev", "train"), "--dev_path", tuned / data,
             "--pretrained_model_path", tuned / "hf", "--output_model_path", tmp_path / f"{name}.bin", *SQUAD[:4],
             "--learning_rate", 0.01, "--epochs_num", 4)
        figures = results(tmp_path / f"{name}.bin")["runs"][0]["figures"]
        paragraphs = [paragraph for article in json.loads((tuned / data).read_text())["data"]
                      for paragraph in article["paragraphs"]]
        (tmp_path / "pairs.txt").write_text("".join(f"{question['question']}\t{paragraph['context']}\n"
                                                    for paragraph in paragraphs for question in paragraph["qas"]))
        capsys.readouterr()
        call("calibrate.py", "--pretrained_model_path", tmp_path / f"{name}.bin", "--vocab_path", tuned / "vocab.txt",
             "--data_processor", "pairs", "--corpus_path", tmp_path / "pairs.txt", "--target_dim", 16, "--seq_length",
             40, "--output_model_path", tmp_path / "same.bin")
        assert "warning: the teacher" not in capsys.readouterr().out
        call("evaluate.py", "--task", "squad", "--model_path", tmp_path / "same.bin", "--teacher_path",
             tmp_path / f"{name}.bin", "--vocab_path", tuned / "vocab.txt", "--test_path", tuned / data,
             "--output_path", tmp_path / "figures.json")
        found = json.loads((tmp_path / "figures.json").read_text())
        assert found == pytest.approx({**figures, **{f"teacher's {name}": value for name, value in figures.items()}})
        assert "good  exact match" in capsys.readouterr().out
    given = ["--task", "squad", "--vocab_path", tuned / "vocab.txt", "--test_path"]
    for path, model, words in ((tuned / data, tuned / "hf", "hf is no reader; finetune/run_squad.py makes one"),
                               (tuned / "vocab.txt", tmp_path / "one.bin", "vocab.txt")):
        assert words in refused(capsys, tmp_path, "evaluate.py", *given, path, "--model_path", model)
