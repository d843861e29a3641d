"""Judging sentence encoders: figures against their definitions, files as people have them, the script."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F
from commands import call
from corpora import TOKENS
from test_calibration import batches
from test_targets import encoder_file, headed

from uer.config import parse_with_config
from uer.errors import UserError
from uer.evaluation.agreement import agreement, pairs
from uer.evaluation.ranking import ndcg, read_pairs, recall, retrieval, sts
from uer.formats import load_model
from uer.models.bert import from_weights
from uer.opts import pretrain_parser
from uer.pretraining import _problems


def letters(texts: list[str]) -> torch.Tensor:
    """An embedding whose cosines can be told by hand: counts of a, b and c."""
    return F.normalize(torch.tensor([[float(text.count(x)) for x in "abc"] for text in texts]) + 1e-9, dim=1)


def test_ndcg_and_recall():
    grades = {"x": 2.0, "y": 1.0, "z": 0.0}
    assert ndcg(["x", "y", "q"], grades) == pytest.approx(1)
    best = 2 + 1 / math.log2(3)
    assert ndcg(["q", "y", "x"], grades) == pytest.approx((1 / math.log2(3) + 2 / 2) / best)
    assert ndcg(["q"], grades) == 0 and recall(["y", "q"], grades) == 0.5


def beir(folder):
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"_id": f"d{i}", "title": "", "text": text}) + "\n"
                                                 for i, text in enumerate(["aaa", "bbb", "ab", "cc"])))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": f"q{i}", "text": text}) + "\n"
                                                  for i, text in enumerate(["a", "b", "c"])))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t1\nq0\td2\t1\nq1\td0\t1\n")
    return folder


def test_retrieval_on_a_small_folder(tmp_path):
    found = retrieval(letters, letters, beir(tmp_path / "set"))
    first, second = 1.0, (1 / math.log2(5)) / 1  # q0: both first; q1: after d1, d2, then d0 and d3 tie at 0
    ties = (1 / math.log2(4)) / 1
    assert any(found["nDCG@10"] == pytest.approx((first + x) / 2, abs=1e-6) for x in (second, ties))
    assert found["recall@100"] == 1


def test_near_documents_are_told_apart_under_autocast(tmp_path):
    """Half a number holds 8 bits: dot products that differ by less would tie."""
    near = {"ab": 1.001, "aaa": 1.0005}
    with torch.autocast("cpu", torch.bfloat16):
        found = retrieval(lambda texts: torch.ones(len(texts), 1),
                          lambda texts: torch.tensor([[near.get(text, 1.0)] for text in texts]),
                          beir(tmp_path / "set"), "dot")
    assert found["nDCG@10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)


def test_a_query_does_not_find_itself(tmp_path):
    """As in BEIR: the queries of ArguAna and Quora are documents too. Of numbered ones the judged answer stays."""
    folder = beir(tmp_path / "set")
    for name in ("corpus.jsonl", "queries.jsonl"):
        (folder / name).write_text((folder / name).read_text().replace('"d', '"q'))
    judged = folder / "qrels" / "test.tsv"
    judged.write_text("query-id\tcorpus-id\tscore\nq0\tq2\t1\nq1\tq2\t1\n")
    assert retrieval(letters, letters, folder) == {"nDCG@10": 1.0, "recall@100": 1.0}
    judged.write_text("query-id\tcorpus-id\tscore\nq0\tq0\t1\nq1\tq1\t1\n")
    assert retrieval(letters, letters, folder)["nDCG@10"] == 1


@pytest.mark.parametrize(("name", "content", "words"), [
    ("corpus.jsonl", '{"_id": "d0", "text": "a\\ud83d"}\n', r"corpus\.jsonl, line 1: half of a character, '\\ud83d'"),
    ("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq0\td0\t1_0\n", "line 2: grade '1_0'"),
    ("qrels/test.tsv", "q0\td0\t1\nq1\td1\t1\n", "line 1: the header lacks")])
def test_retrieval_refuses(tmp_path, name, content, words):
    (beir(tmp_path / "set") / name).write_text(content)
    with pytest.raises(UserError, match=words):
        retrieval(letters, letters, tmp_path / "set")


def test_sts_reads_the_usual_files(tmp_path):
    rows = [("aa", "ab", "4"), ("ab", "ab", "5"), ("a", "c", "0"), ("abc", "a", "2.5")]
    for name, header in (("glue.tsv", "index\tsentence1\tsentence2\tscore"),
                         ("uer.tsv", "index\ttext_a\ttext_b\tlabel")):
        (tmp_path / name).write_text(header + "\n" + "".join(f"0\t{a}\t{b}\t{s}\n" for a, b, s in rows))
        assert sts(letters, tmp_path / name)["spearman"] == pytest.approx(1.0)
        assert len(read_pairs(tmp_path / name)[0]) == 4
    (tmp_path / "bad.tsv").write_text("sentence1\tsentence2\tscore\na\tb\tmuch\n")
    with pytest.raises(UserError, match="line 2: score 'much'"):
        read_pairs(tmp_path / "bad.tsv")
    (tmp_path / "bad.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nb\tc\t1.0\n")
    with pytest.raises(UserError, match="all scores are 1; nothing"):
        read_pairs(tmp_path / "bad.tsv")
    (tmp_path / "bad.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\na\t \t2\n")
    with pytest.raises(UserError, match="line 3: a text is empty"):
        read_pairs(tmp_path / "bad.tsv")


def test_agreement_is_1_with_oneself_and_less_with_others():
    (config, weights), (_, others) = headed("states", "mean", 24), headed("states", "mean", 24, seed=5)
    teacher, other = (from_weights(config, x).float() for x in (weights, others))
    data = batches(4)
    same, found = (agreement(teacher, model, data, torch.device("cpu")) for model in (teacher, other))
    assert all(value == pytest.approx(1, abs=1e-5) for value in same.values())
    assert set(found) == {"cosine", "similarities", "nearest 10"} and all(value < 0.9 for value in found.values())
    flat = from_weights(config, weights).float()
    flat.target.output_layer.weight.data[2:] = 0
    flat.target.output_layer.bias.data[2:] = 0
    own, through = (agreement(teacher, flat, data, torch.device("cpu"), mapped) for mapped in (False, True))
    assert own["similarities"] == pytest.approx(1, abs=1e-5) and through["similarities"] < 0.9
    assert own["cosine"] == through["cosine"]  # always of what the maps give
    (config, weights), (_, others) = headed("cls", "first", 3), headed("cls", "first", 3, seed=5)
    alike = agreement(from_weights(config, weights), from_weights(config, others), data, torch.device("cpu"))
    assert 0 <= alike["equal predictions"] < 1
    config, weights = headed("cls", "mean", 1)
    turned = {name: -tensor if "output_layer_2" in name else tensor for name, tensor in weights.items()}
    scores = agreement(from_weights(config, weights), from_weights(config, turned), data, torch.device("cpu"))
    assert scores == {"correlation": pytest.approx(-1)}


def test_pairs_by_hand():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    found = pairs(rows, rows.flip(0))
    assert found["nearest 2"] == 1 and found["similarities"] == pytest.approx(0.5)  # ranks 3 1 2, 2 1 3


def test_the_script(files, tmp_path, capsys):
    path, _ = encoder_file(tmp_path)
    call("calibrate.py", "--pretrained_model_path", path, "--corpus_path", files / "corpus.txt", "--vocab_path",
         files / "vocab.txt", "--target_dim", 64, "--output_model_path", tmp_path / "student.bin")
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\nthe river\tthe river\t5\nnew cafe\tun un\t1\n"
                                        "running low\trunning\t3\n")
    common = ["--model_path", tmp_path / "student.bin", "--vocab_path", files / "vocab.txt"]
    call("evaluate.py", *common, "--task", "sts", "--test_path", tmp_path / "pairs.tsv", "--output_path",
         tmp_path / "out.json")
    figures = json.loads((tmp_path / "out.json").read_text())
    assert set(figures) >= {"pearson", "spearman", "texts_per_second"} and -1 <= figures["spearman"] <= 1
    call("evaluate.py", *common, "--task", "retrieval", "--test_path", beir(tmp_path / "set"), "--teacher_path", path)
    call("evaluate.py", *common, "--task", "agreement", "--test_path", files / "corpus.txt", "--teacher_path", path)
    said = capsys.readouterr().out
    assert "student's queries, teacher's documents" in said and "similarities" in said
    following = re.findall(r"\nnext  python3 (.*)", said)[1:]  # after calibrate.py's
    assert "--task agreement" in following[0] and following[2].startswith("pretrain.py")
    args, given = parse_with_config(pretrain_parser, following[2].split()[1:])
    assert _problems(args, given) == [] and args.objective == "states"
    assert re.search(r"nearest 10 \d+\.\d %; [\d,]+ against [\d,]+ texts/s", said)
    call("evaluate.py", *common, "--task", "sts", "--test_path", tmp_path / "pairs.tsv", "--output_path",
         tmp_path / "half.json", "--bf16", "--batch_size", 1)
    half = json.loads((tmp_path / "half.json").read_text())
    assert half["pearson"] != figures["pearson"] and half["pearson"] == pytest.approx(figures["pearson"], abs=0.05)
    call("evaluate.py", *common, "--task", "sts", "--test_path", tmp_path / "pairs.tsv", "--teacher_path", path,
         "--output_path", tmp_path / "both.json")
    both = json.loads((tmp_path / "both.json").read_text())
    assert both["spearman"] == figures["spearman"] and -1 <= both["teacher's spearman"] <= 1
    for more, word in ((["--task", "sts"], "--test_path"), (["--task", "agreement", "--test_path", path], "--teacher"),
                       (["--task", "sts", "--test_path", tmp_path / "pairs.tsv", "--batch_size", 0], "at least 1"),
                       (["--task", "sts", "--test_path", tmp_path / "pairs.tsv", "--seq_length", -5], "at least 3"),
                       (["--dataset_path", files / "data.pt", "--test_path", "x"], "--test_path goes with --task sts"),
                       (["--task", "agreement", "--test_path", path, "--teacher_path", path, "--keep_embedding_size"],
                        "--keep_embedding_size goes with --task sts or retrieval")):
        with pytest.raises(SystemExit) as end:
            call("evaluate.py", *common, *more)
        assert end.value.code == 2 and word in capsys.readouterr().err
    assert load_model(tmp_path / "student.bin", config=None, vocab_size=len(TOKENS), target=None).config.outputs == 128


def test_models_of_masked_words_have_no_agreement(files, capsys):
    with pytest.raises(SystemExit) as end:
        call("evaluate.py", "--model_path", files / "teacher.bin", "--teacher_path", files / "teacher.bin",
             "--vocab_path", files / "vocab.txt", "--config_path", files / "config.json", "--task", "agreement",
             "--test_path", files / "corpus.txt")
    assert end.value.code == 2 and "--task mlm judges each of them" in capsys.readouterr().err
