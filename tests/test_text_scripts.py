"""All scripts obey what stands beside a model in the same way: case, accents, kind, vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import TEACHER, call, pretrain_options, refused
from corpora import SPECIALS, TOKENS, described, random_corpus, write_vocab
from folders import ROBERTA, roberta, wordpiece
from tuning import write_uer_tsv

from uer.formats.export import write_huggingface
from uer.models.bert import from_scratch
from uer.tokenizers.rules import KEY

FAST = ["--epochs_num", 1, "--batch_size", 8, "--seq_length", 24]
CASED = {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """Teachers in folders (cased/, roberta/), a corpus, TSV files; a dataset of the cased teacher."""
    folder = tmp_path_factory.mktemp("text")
    write_vocab(folder)
    (folder / "corpus.txt").write_text(random_corpus(1, 60) + "The Café and 你好\n" * 20, encoding="utf-8")
    for name, files, words in (("cased", wordpiece(folder / "w", CASED) / "vocab.txt", len(TOKENS)),
                               ("roberta", roberta(folder / "r", {}) / "vocab.json", len(ROBERTA))):
        weights = dict(from_scratch(TEACHER, words, seed=1).state_dict())
        write_huggingface(folder / name, TEACHER, weights, text=described(files))
    write_uer_tsv(folder / "train.tsv", 16, 1)
    call("preprocess.py", "--corpus_path", folder / "corpus.txt", "--vocab_path", folder / "cased/vocab.txt",
         "--dataset_path", folder / "cased.pt", "--dynamic_masking", "--seq_length", 32)
    return folder


def header(path: Path) -> dict:
    return torch.load(path, weights_only=True)["header"]


def tune(bench: Path, output: Path, teacher: str, *more) -> dict:
    call("finetune/run_classifier.py", "--pretrained_model_path", bench / teacher, "--train_path", bench / "train.tsv",
         "--dev_path", bench / "train.tsv", "--output_model_path", output, *FAST, *more)
    return json.loads(Path(f"{output}.json").read_text())


def test_a_roberta_folder_needs_no_options(bench, tmp_path, capsys):
    card = tune(bench, tmp_path / "c.bin", "roberta")
    assert card[KEY]["kind"] == "bpe" and "text: byte-level BPE" in capsys.readouterr().out
    infer = ["--load_model_path", tmp_path / "c.bin", "--test_path", bench / "train.tsv", "--prediction_path",
             tmp_path / "p.tsv", "--vocab_path"]
    call("inference/run_classifier_infer.py", *infer, bench / "roberta/vocab.json")
    assert len((tmp_path / "p.tsv").read_text().splitlines()) == 17
    said = refused(capsys, tmp_path, "inference/run_classifier_infer.py", *infer, bench / "vocab.txt")
    assert f"in --vocab_path {bench}/vocab.txt and in {tmp_path}/c.bin.json: another vocabulary" in said
    said = refused(capsys, tmp_path, "finetune/run_classifier.py", "--pretrained_model_path", bench / "roberta",
                   "--tokenizer", "bert", "--train_path", bench / "train.tsv", "--dev_path", bench / "train.tsv",
                   "--output_model_path", tmp_path / "d.bin", *FAST)
    assert "tokenizer: bert and bpe" in said


def test_calibration_takes_text_by_any_tokenizer(bench, tmp_path, capsys):
    common = ["--corpus_path", bench / "corpus.txt", "--target_dim", 64, "--output_format", "huggingface", "uer"]
    roberta = [*common, "--pretrained_model_path", bench / "roberta"]
    call("calibrate.py", *roberta, "--output_model_path", tmp_path / "a.bin", "--tokenizer", "bpe", "--vocab_path",
         bench / "roberta/vocab.json", "--merges_path", bench / "roberta/merges.txt")
    call("calibrate.py", *roberta, "--output_model_path", tmp_path / "b.bin")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    for name in ("vocab.json", "merges.txt", "tokenizer.json"):
        assert (tmp_path / f"a/{name}").read_bytes() == (bench / f"roberta/{name}").read_bytes()
    capsys.readouterr()
    call("calibrate.py", *common, "--pretrained_model_path", bench / "cased", "--output_model_path", tmp_path / "c.bin",
         "--vocab_path", bench / "cased/vocab.txt")
    assert "case kept, accents stripped, ideographs not split" in capsys.readouterr().out
    exported = json.loads((tmp_path / "c/tokenizer_config.json").read_text())
    assert {key: exported[key] for key in CASED} == CASED
    assert json.loads((tmp_path / "c_config.json").read_text())[KEY]["split_ideographs"] is False
    said = refused(capsys, tmp_path, "calibrate.py", *common, "--pretrained_model_path", bench / "cased",
                   "--output_model_path", tmp_path / "d.bin", "--vocab_path", bench / "roberta/vocab.json")
    assert "another vocabulary" in said


def test_a_cased_folder_is_read_with_its_case(bench, tmp_path, capsys):
    kept = {"lower_case": False, "strip_accents": True, "split_ideographs": False}
    assert kept.items() <= header(bench / "cased.pt")[KEY].items()
    assert header(bench / "cased.pt")["do_lower_case"] is False
    assert kept.items() <= tune(bench, tmp_path / "c.bin", "cased", "--vocab_path", bench / "cased/vocab.txt")[
        KEY].items()
    capsys.readouterr()
    card = tune(bench, tmp_path / "d.bin", "cased", "--do_lower_case")
    assert card[KEY]["lower_case"] is True and "warning: case is folded, as the command line" in capsys.readouterr().out


def test_a_dataset_meets_its_teacher(bench, tmp_path, capsys):
    options = {"pretrained_model_path": bench / "cased", "config_path": None, "vocab_path": None}
    call("pretrain.py", *pretrain_options(bench, tmp_path / "m.bin", dataset_path=bench / "cased.pt", **options))
    card = json.loads((tmp_path / "m.bin-2.json").read_text())
    assert card[KEY] == header(bench / "cased.pt")[KEY]
    call("convert.py", "--load_model_path", tmp_path / "m.bin-2", "--output_model_path", tmp_path / "s.bin")
    assert json.loads((tmp_path / "s_config.json").read_text())[KEY] == card[KEY]
    evaluate = ["--model_path", tmp_path / "s.bin", "--dataset_path"]
    call("evaluate.py", *evaluate, bench / "cased.pt")
    folded, other = tmp_path / "folded.pt", tmp_path / "other.pt"
    turned = write_vocab(tmp_path, [*SPECIALS, *reversed(TOKENS[len(SPECIALS):])])
    for vocab, path in ((bench / "vocab.txt", folded), (turned, other)):
        call("preprocess.py", "--corpus_path", bench / "corpus.txt", "--vocab_path", vocab, "--dataset_path", path,
             "--dynamic_masking", "--seq_length", 32)
    for path, words in ((folded, "case folded: yes and no"), (other, "another vocabulary (vocab.txt of 81 tokens")):
        for line in (["evaluate.py", *evaluate, path], ["evaluate.py", "--model_path", bench / "cased",
                     "--dataset_path", path], ["pretrain.py", *pretrain_options(bench, tmp_path / "n.bin", **{
                         **options, "dataset_path": path})]):
            said = refused(capsys, tmp_path, *line)
            assert f"in --dataset_path {path} and in " in said and words in said


def test_datasets_and_checkpoints_of_earlier_versions(bench, tmp_path):
    content = torch.load(bench / "cased.pt", weights_only=True)
    call("preprocess.py", "--corpus_path", bench / "corpus.txt", "--vocab_path", bench / "vocab.txt",
         "--dataset_path", tmp_path / "new.pt", "--dynamic_masking", "--seq_length", 32)
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    del content["header"][KEY]
    torch.save(content, tmp_path / "old.pt")
    options = {"dataset_path": tmp_path / "old.pt", "config_path": bench / "cased_config.json",
               "pretrained_model_path": None, "vocab_path": bench / "vocab.txt"}
    (bench / "cased_config.json").write_text(TEACHER.to_json())
    call("pretrain.py", *pretrain_options(bench, tmp_path / "m.bin", **options))
    card = json.loads((tmp_path / "m.bin-2.json").read_text())
    assert card[KEY]["lower_case"] is True and card[KEY]["split_ideographs"] is True
    del card[KEY], card["card_sha256"]
    (tmp_path / "m.bin-2.json").write_text(json.dumps(card))
    call("pretrain.py", *pretrain_options(bench, tmp_path / "m.bin", "--resume", **{**options, "total_steps": 3}))
    assert (tmp_path / "m.bin-3").is_file()
