"""The command that a script names last, run as it stands: with folders alone, with new words, without a head."""

from __future__ import annotations

import json
import shlex

import pytest
from commands import call
from corpora import TOKENS, write_vocab

from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.formats.sentence import write_sentence_files
from uer.formats.tokenizer_files import text_beside
from uer.report.log import read_run
from uer.report.story import story
from uer.tokenizers.vocab import Vocab

TEXT = "the river low running\nnew cafe un the\nriver running a b c\n"


def following(capsys, **named):
    """The words of the last suggestion, its placeholders filled in."""
    said = capsys.readouterr().out
    words = shlex.split(said[said.rindex("\nnext  ") + len("\nnext  "):])
    return [str(named.get(word, word)) for word in words[words.index("python3") + 1:]]


@pytest.mark.parametrize(("formats", "wish", "script"), [
    (["huggingface"], ["--target_layers", 1], "pretrain.py"), (["uer"], ["--target_layers", 1], "pretrain.py"),
    (["huggingface"], ["--target_vocab", len(TOKENS) - 4], "evaluate.py"),
    (["uer"], ["--target_vocab", len(TOKENS) - 4], "evaluate.py")])
def test_after_calibration_of_an_encoder(files, tmp_path, teacher, capsys, formats, wish, script):
    folder = formats == ["huggingface"]  # which may be called small/
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", teacher, "--dataset_path",
         tmp_path / "data.pt", "--dynamic_masking", "--seq_length", 16)
    call("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt", *wish,
         "--calibration_batches", 2, "--output_model_path", f"{tmp_path}/small" + ("/" if folder else ".bin"),
         "--output_format", *formats)
    name, *options = following(capsys, DATASET=tmp_path / "data.pt", TEXT=text)
    assert name.endswith(script)
    if script == "pretrain.py":
        assert options[options.index("--output_model_path") + 1] == str(tmp_path / "small-trained.bin")
    call(script, *options, *(["--total_steps", 1, "--batch_size", 2] if script == "pretrain.py" else []))
    if "--target_vocab" in wish:  # the teacher has read with its own words, so it cannot teach
        assert "--task sts" in " ".join(following(capsys))


def test_after_a_student_that_is_onnx_alone(files, tmp_path, teacher, capsys):
    pytest.importorskip("onnxruntime")
    call("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt",
         "--target_layers", 1, "--calibration_batches", 2, "--output_model_path", tmp_path / "small", "--output_format",
         "onnx")
    name, *options = following(capsys)
    assert name.endswith("calibrate.py") and options[-2:] == ["--output_format", "uer"]


def test_after_a_folder_that_ends_with_a_map(files, tmp_path, teacher, capsys):
    """A UER file beside it is what is read here, or else the folder itself."""
    call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", teacher, "--dataset_path",
         tmp_path / "data.pt", "--dynamic_masking", "--seq_length", 16)
    call("pretrain.py", "--dataset_path", tmp_path / "data.pt", "--vocab_path", teacher, "--pretrained_model_path",
         teacher, "--weight_squeeze", "--target_dim", 64, "--compactor_init", "calibrated", "--train", "student",
         "--total_steps", 1, "--batch_size", 4, "--output_model_path", tmp_path / "run.bin")
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["--load_model_path", tmp_path / "run.bin-1", "--vocab_path", teacher, "--keep_embedding_size",
             "--output_model_path", tmp_path / "small.bin", "--output_format", "huggingface"]
    for more, read in ((["uer"], "small.bin"), ([], "small")):
        call("convert.py", *words, *more)
        name, *options = following(capsys, TEACHER=teacher, TEXT=tmp_path / "text.txt")
        assert name.endswith("evaluate.py") and str(tmp_path / read) in options
        call("evaluate.py", *options)


@pytest.mark.parametrize("other", [False, True])
def test_a_teacher_reads_with_its_own_words(files, tmp_path, teacher, capsys, other):
    """The whole vocabulary in another order is another tokenizer and the same function."""
    loaded, rules = load_model(teacher, config=None, vocab_size=None, target=None), text_beside(teacher)[0]
    last = range(len(TOKENS) - 8, len(TOKENS))
    order = [*range(len(TOKENS) - 8), *(reversed(last) if other else last)]
    (tmp_path / "turned").mkdir()
    path = write_vocab(tmp_path / "turned", [TOKENS[i] for i in order])
    weights = dict(loaded.weights)
    weights["embedding.word_embedding.weight"] = weights["embedding.word_embedding.weight"][order]
    turned = rules.holding(Vocab.load(path), "vocab.txt")
    write_huggingface(tmp_path / "student", loaded.config, weights, text=turned)
    write_sentence_files(tmp_path / "student", loaded.sentence, 128, 64)
    (tmp_path / "student" / "vocab.txt").unlink()  # so that tokenizer.json tells, as in the newest folders
    (tmp_path / "text.txt").write_text(TEXT)
    call("evaluate.py", "--task", "agreement", "--model_path", tmp_path / "student", "--teacher_path", teacher,
         "--test_path", tmp_path / "text.txt", "--output_path", tmp_path / "out.json")
    assert json.loads((tmp_path / "out.json").read_text())["cosine"] == pytest.approx(1, abs=1e-5)
    said = capsys.readouterr().out
    assert ("the teacher's text:" in said) == other and ("--soft_targets_teacher" in said) == (not other)


@pytest.mark.parametrize(("pooling", "formats"), [("mean", ["uer"]), ("first", ["uer", "huggingface"])])
def test_after_the_training_of_a_classifier(files, tmp_path, teacher, capsys, pooling, formats):
    """Stock classifiers read the first token: of the others a UER file alone is advised, on the page as well."""
    (tmp_path / "train.tsv").write_text("label\ttext_a\n" + "0\tthe river\n1\ta b c\n" * 4)
    call("finetune/run_classifier.py", "--pretrained_model_path", teacher, "--vocab_path", teacher, "--train_path",
         tmp_path / "train.tsv", "--dev_path", tmp_path / "train.tsv", "--epochs_num", 1, "--pooling", pooling,
         "--seq_length", 8, "--output_model_path", tmp_path / "classifier.bin")
    call("preprocess.py", "--corpus_path", files / "corpus.txt", "--vocab_path", teacher, "--dataset_path",
         tmp_path / "data.pt", "--dynamic_masking", "--seq_length", 16)
    call("pretrain.py", "--dataset_path", tmp_path / "data.pt", "--vocab_path", teacher, "--pretrained_model_path",
         tmp_path / "classifier.bin", "--weight_squeeze", "--target_dim", 64, "--compactor_init", "calibrated",
         "--train", "student", "--target", "logits", "--total_steps", 2, "--report_steps", 1, "--batch_size", 4,
         "--tb_path", tmp_path / "log", "--output_model_path", tmp_path / "run.bin")
    name, *options = following(capsys)
    assert name.endswith("convert.py") and options[options.index("--output_format") + 1:-2] == formats
    assert story(read_run(str(tmp_path / "log"), "run"))["Next"].endswith(shlex.join(options))
    call("convert.py", *options)
