"""--target_vocab: which words stay, and that the model is the same for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from bench import CONFIG, make_bench
from commands import call, refused
from corpora import LETTERS, SPECIALS, TOKENS, described
from safetensors.torch import load_file, save_file

from uer.conversion.merge import student_model
from uer.conversion.vocabulary import pieces, words_to_keep
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import Vocab

WORDS = Vocab([*SPECIALS, "low", "lowest", "lower", "##est", "##er", *"lowestr", *(f"##{c}" for c in "owestr")])


def counted(**counts: int) -> np.ndarray:
    return np.array([counts.get(token, 0) for token in WORDS.tokens], dtype=np.int64)


def test_a_word_is_spelt_with_the_longest_pieces_that_stay():
    assert pieces("lowest", {"low", "l", "##est", "##e"}) == ["low", "##est"]
    assert pieces("##est", {"##e", "##s", "##t"}) == ["##e", "##s", "##t"]
    assert pieces("lowest", {"low"}) == []


def test_words_that_leave_pass_their_counts_on():
    """`lower` leaves first and makes `low`, of which the text has fewer, worth more than `lowest`."""
    letters = 5 + 13
    for counts, expected in ((counted(lowest=4, low=2, lower=1), {"lowest"}),
                             (counted(lowest=4, low=3, lower=2), {"low"})):
        kept = {WORDS.tokens[i] for i in words_to_keep(WORDS, counts, letters + 1)}
        assert kept & {"low", "lower", "lowest", "##er", "##est"} == expected
    assert words_to_keep(WORDS, counts, len(WORDS)) == list(range(len(WORDS)))
    twice = Vocab([*WORDS.tokens, "low", ""], "")  # the last of two is what text becomes
    found = words_to_keep(twice, np.array([*counts, 0, 0]) + 3 * (np.arange(25) == 23), letters + 1)
    assert len(found) == letters + 1 and 23 in found and WORDS.ids["low"] not in found


def test_characters_that_occur_always_stay():
    kept = [WORDS.tokens[i] for i in words_to_keep(WORDS, counted(low=5), 5 + 3 + 2)]
    assert kept == [*SPECIALS, *"low", "##o", "##w"]
    with pytest.raises(UserError, match="special tokens and the characters of this text alone are 10"):
        words_to_keep(WORDS, counted(low=5), 9)
    with pytest.raises(UserError, match="the model has 23 words"):
        words_to_keep(WORDS, counted(low=5), 24)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    return make_bench(tmp_path_factory.mktemp("vocabulary"))


def options(bench: Path, *more: object) -> list:
    return ["calibrate.py", "--pretrained_model_path", bench / "teacher.bin", "--config_path",
            bench / "config.json", "--vocab_path", bench / "vocab.txt", "--output_model_path", bench / "small.bin",
            *more]


def test_the_model_is_the_same_for_the_words_that_stay(bench: Path, capsys):
    call(*options(bench, "--target_vocab", len(TOKENS) - 9, "--dataset_path", bench / "dynamic.pt"))
    assert f"{len(TOKENS) - 9} of {len(TOKENS)} words" in capsys.readouterr().out
    words = (bench / "small_vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(words) == len(TOKENS) - 9 and {*SPECIALS, "the", "river"} <= {*words}
    old, new = (load_model(bench / name, config=CONFIG, vocab_size=None) for name in ("teacher.bin", "small.bin"))
    ids = torch.tensor([TOKENS.index(word) for word in words])
    src = torch.randint(len(words), (2, 9), generator=torch.Generator().manual_seed(1))
    seg = torch.ones_like(src)
    with torch.no_grad():
        expected = student_model(CONFIG, old.weights)(ids[src], seg)[:, ids]
        torch.testing.assert_close(student_model(CONFIG, new.weights)(src, seg), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("output, formats", [("few.pt", ["uer", "onnx"]), ("few", ["onnx"])])
def test_the_words_stand_beside_every_file_and_go_with_them(bench: Path, tmp_path: Path, capsys, output: str,
                                                            formats: list[str], monkeypatch):
    for name, stand_in in (("check_packages", lambda: None), ("write_onnx", lambda path, *_: path.touch()),
                           ("OnnxModel", str), ("Check.onnx", lambda *_: "")):
        monkeypatch.setattr(f"uer.conversion.outputs.{name}", stand_in)
    to = ["--output_model_path", tmp_path / output, "--output_format", *formats]
    (tmp_path / "few_vocab.txt").write_text("a vocabulary that is no part of any model here")
    few = ["--target_vocab", len(TOKENS) - 9, "--dataset_path", bench / "dynamic.pt", *to]
    call(*options(bench, *few))
    said = capsys.readouterr().out
    assert len((tmp_path / "few_vocab.txt").read_text("utf-8").split("\n")) == len(TOKENS) - 8
    assert said.count(f"written: {tmp_path / 'few_vocab.txt'}\n") == 1
    assert "uer" not in formats or f"--vocab_path {tmp_path / 'few_vocab.txt'}" in said.splitlines()[-1]
    assert "--vocab_path as well" in refused(capsys, tmp_path, *options(bench, *few, "--vocab_path",
                                                                        tmp_path / "few_vocab.txt"))
    call("calibrate.py", "--pretrained_model_path", bench / "teacher.bin", "--config_path", bench / "config.json",
         "--dataset_path", bench / "dynamic.pt", "--target_dim", 16, "--skip_evaluation", *to)
    if "uer" in formats:  # written over, with all its words
        assert [rules.vocab_size for rules in text_beside(tmp_path / "few.pt")] == [len(TOKENS)]


def test_all_words_in_a_file_are_the_model_itself(bench: Path):
    call(*options(bench, "--target_vocab", bench / "vocab.txt", "--dataset_path", bench / "dynamic.pt"))
    old, new = (torch.load(bench / name, weights_only=True) for name in ("teacher.bin", "small.bin"))
    assert all(torch.equal(tensor, new[name]) for name, tensor in old.items())


def test_words_and_dimensions_in_one_go(bench: Path, tmp_path: Path, capsys):
    """Text is read anew with the words that stay, and that is what both models are compared on."""
    call(*options(bench, "--target_vocab", len(TOKENS) - 9, "--corpus_path", bench / "corpus.txt", "--target_dim", 16,
                  "--seq_length", 32, "--calibration_batches", 1, "--output_model_path", tmp_path / "both.bin",
                  "--output_format", "uer", "huggingface"))
    said = capsys.readouterr().out
    assert "of the text's tokens stay" in said and "student" in said
    assert f"--vocab_path {tmp_path / 'both_vocab.txt'}" in said.splitlines()[-1]
    words = (tmp_path / "both_vocab.txt").read_text("utf-8").split("\n")[:-1]
    for path in (tmp_path / "both.bin", tmp_path / "both"):
        student = load_model(path, config=None, vocab_size=len(TOKENS) - 9)
        assert student.config.hidden_size == 16
        assert [rules.vocab.tokens for rules in text_beside(path) if rules.vocab] == [words]


@pytest.mark.parametrize("more, message", [
    (["--target_vocab", "40"], "give the text either as --corpus_path or"),
    (["--target_vocab", "40", "--dataset_path", "dynamic.pt", "--target_dim", "16"], "give it as --corpus_path, or"),
    (["--target_vocab", "40", "--corpus_path", "corpus.txt", "--dev_path", "dev.pt"], "--dev_path has words that may"),
    (["--target_vocab", "40", "--corpus_path", "-"], "--target_vocab 40: text is read twice"),
    (["--target_vocab", "²", "--dataset_path", "dynamic.pt"], "--target_vocab ²: no such file, and no whole number"),
    (["--target_vocab", "strange.txt", "--dataset_path", "dynamic.pt"], "1 of its words are not in the model's voc"),
    (["--target_vocab", "900", "--dataset_path", "dynamic.pt"], f"the model has {len(TOKENS)} words")])
def test_what_cannot_be_is_refused(bench: Path, capsys, more: list[str], message: str):
    (bench / "strange.txt").write_text("\n".join([*SPECIALS, *LETTERS, "zebra"]), encoding="utf-8")
    more = [bench / word if word.endswith((".txt", ".pt")) else word for word in more]
    assert message in refused(capsys, bench, *options(bench, *more))


def test_added_tokens_cannot_be_kept(bench: Path, tmp_path: Path, capsys):
    folder = tmp_path / "hub"
    weights = torch.load(bench / "teacher.bin", weights_only=True)
    write_huggingface(folder, CONFIG, weights, text=described(bench / "vocab.txt"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    (folder / "added_tokens.json").write_text(json.dumps({"cafe-river": len(TOKENS)}))
    weights = load_file(folder / "model.safetensors")
    words = "bert.embeddings.word_embeddings.weight"
    rows = {name: torch.cat([tensor, tensor[:1]]) if len(tensor) == len(TOKENS) else tensor
            for name, tensor in weights.items() if tensor.dim()}
    assert len(rows[words]) == len(TOKENS) + 1
    save_file({name: tensor.contiguous() for name, tensor in rows.items()}, folder / "model.safetensors")
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "vocab_size": len(TOKENS) + 1}))
    said = refused(capsys, tmp_path, "calibrate.py", "--pretrained_model_path", folder, "--corpus_path",
                   bench / "corpus.txt", "--target_vocab", 60, "--output_model_path", tmp_path / "few.bin")
    assert "added tokens" in said
