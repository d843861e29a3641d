"""CoNLL's files, which taggers are trained on, are read as their sentences."""

from __future__ import annotations

import gzip

import pytest
from corpora import build, instances, options, write_vocab

from uer.data.builder import build_dataset
from uer.data.conll import is_conll, sentences
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.evaluation.texts import read_texts

FILE = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
call NN I-NP O

-DOCSTART- -X- -X- O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""
SENTENCES = ["EU rejects call", "Peter Blackburn"]


@pytest.mark.parametrize("text", [FILE, FILE.replace(" ", "\t"), FILE.replace("\n", "\r\n"), FILE.rstrip("\n"),
                                  FILE.replace("\n", " \n"), "\n\n" + FILE])
def test_sentences_of_what_people_have(text):
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    assert is_conll(lines) and list(sentences(enumerate(lines, 1))) == SENTENCES


@pytest.mark.parametrize("text", [
    "", "a line\nB-side of it\n", "vitamin B-12\nof group O negative\n", "group O\nblood O\n",
    "vitamin B-12\nvitamin B-6\n", "label\ttext_a\n1\tgood B-ORG\n0\tO\n", "B-1\nB-2\n", '{"a": "B-1"}\n'])
def test_other_text_is_none(text):
    assert not is_conll(text.split("\n"))


@pytest.mark.parametrize("name", ["train.txt", "train.conll", "train.tsv", "train.bio.gz"])
def test_a_corpus_of_sentences(tmp_path, name):
    """As if the sentences stood in a file by themselves, in whatever file the tokens are."""
    tokens = FILE.replace("EU", "the").replace("rejects", "river").replace("Peter", "low")
    plain = "\n\n".join(SENTENCES).replace("EU", "the").replace("rejects", "river").replace("Peter", "low")
    expected = instances(build(tmp_path, plain, "--dynamic_masking", "--seq_length", "16"))
    (tmp_path / name).write_bytes((gzip.compress if name.endswith(".gz") else bytes)(tokens.encode()))
    build_dataset(options(tmp_path, "--dynamic_masking", "--seq_length", "16", corpus=tmp_path / name))
    assert instances(Dataset.open(tmp_path / "dataset.pt")) == expected and len(expected) == 2


def test_sentences_to_compare_models_on(tmp_path):
    (tmp_path / "test.conll").write_text(FILE)
    found = read_texts(tmp_path / "test.conll")
    assert [example.text_a for example in found.examples] == SENTENCES and not found.labels


def test_what_is_wrong_is_told(tmp_path):
    (tmp_path / "a.conll").write_text(FILE * 300 + "one B-X\n")
    wrong = rf"a\.conll, line {300 * FILE.count(chr(10)) + 1}: 2 columns, the first token has 4"
    with pytest.raises(UserError, match=wrong):
        read_texts(tmp_path / "a.conll")
    write_vocab(tmp_path)
    with pytest.raises(UserError, match=wrong):
        build_dataset(options(tmp_path, "--dynamic_masking", corpus=tmp_path / "a.conll"))
    with pytest.raises(UserError, match="sentences are no pairs"):
        build_dataset(options(tmp_path, "--dynamic_masking", "--data_processor", "pairs", corpus=tmp_path / "a.conll"))
    assert not (tmp_path / "dataset.pt").exists()
