"""sentence-transformers folders, classifiers, taggers, readers and ONNX, against the packages that load them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from commands import call
from corpora import TOKENS
from sentence_folder import FACTS, TEXTS, batch, edit

from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats import load_model, stock
from uer.formats.file_target import OUTPUT
from uer.formats.sentence import read_sentence_facts
from uer.formats.storage import read_tensors, save_safetensors
from uer.models.bert import from_scratch, from_weights

MAP, ST = f"{OUTPUT}.weight", "sentence_transformers.models"


def calibrated(files, folder, teacher, target, *more):
    call("calibrate.py", "--pretrained_model_path", teacher, "--corpus_path", files / "corpus.txt", "--vocab_path",
         files / "vocab.txt", "--target_dim", target, "--output_model_path", folder / "student.bin",
         "--calibration_batches", 2, "--output_format", "uer", "huggingface", *more)
    return folder / "student"


def test_folders_say_what_they_said(files, tmp_path, teacher):
    assert read_sentence_facts(teacher) == FACTS
    student = calibrated(files, tmp_path, teacher, 64)
    assert read_sentence_facts(student) == FACTS
    beside = load_model(tmp_path / "student.bin", config=None, vocab_size=None, target=None)
    assert beside.sentence == FACTS and beside.config.pooling == "mean"
    settings = json.loads((student / "config.json").read_text())
    assert settings["architectures"] == ["BertModel"] and "fill-mask" not in (student / "README.md").read_text()


def test_sentence_transformers_embeds_as_we_do(files, tmp_path, teacher):
    package = pytest.importorskip("sentence_transformers")
    wanted = package.SentenceTransformer(str(teacher), device="cpu").encode(TEXTS)
    student = calibrated(files, tmp_path, teacher, 128, "--keep_embedding_size")
    assert sorted(path.name for path in student.iterdir() if path.is_dir()) == ["1_Pooling", "2_Dense", "3_Normalize"]
    model = package.SentenceTransformer(str(student), device="cpu")
    assert model.max_seq_length == 24 and model.prompts["query"] == "the "
    assert abs(model.encode(TEXTS) - wanted).max() < 1e-4 and wanted.std(0).mean() > 0.01
    (tmp_path / "half").mkdir()
    half = calibrated(files, tmp_path / "half", teacher, 64)
    assert package.SentenceTransformer(str(half), device="cpu").encode(TEXTS).shape == (len(TEXTS), 64)


def student_of(loaded):
    return from_weights(loaded.config, loaded.weights).eval()


def test_a_folder_in_the_teachers_space_is_read_back(files, tmp_path, teacher, capsys):
    student, (src, seg) = calibrated(files, tmp_path, teacher, 64, "--keep_embedding_size"), batch(len(TOKENS))
    folder, file = (load_model(path, config=None, vocab_size=len(TOKENS), target=None)
                    for path in (student, tmp_path / "student.bin"))
    assert folder.sentence.mapped and not file.sentence.mapped
    with torch.no_grad():
        mapped = [model.target(model.pooled(src, seg)) for model in map(student_of, (folder, file))]
        unmapped = student_of(file).pooled(src, seg)
    assert mapped[0].shape[1] == 128 and unmapped.shape[1] == 64
    torch.testing.assert_close(*mapped, rtol=0, atol=1e-5)
    (tmp_path / "pairs.tsv").write_text("sentence1\tsentence2\tscore\n" + "".join(
        f"{one}\t{other}\t{score}\n" for score, (one, other) in enumerate(pairwise(TEXTS))))
    judged = ["--vocab_path", files / "vocab.txt", "--task", "sts", "--test_path", tmp_path / "pairs.tsv"]
    said = []
    for more in ([student], [tmp_path / "student.bin", "--keep_embedding_size"]):
        capsys.readouterr()
        call("evaluate.py", "--model_path", *more, *judged)
        said.append(re.search("pearson [^,]+, spearman [^,]+", capsys.readouterr().out).group())
    assert said[0] == said[1]
    capsys.readouterr()
    call("evaluate.py", "--model_path", tmp_path / "student.bin", *judged)
    assert said[0] not in capsys.readouterr().out
    weights = student / "2_Dense" / "model.safetensors"
    half = {name: tensor.half() for name, tensor in read_tensors(weights).items()}
    save_safetensors(half, weights)
    assert load_model(student, config=None, vocab_size=None, target=None).weights[MAP].dtype == torch.float32
    dense = student / "2_Dense" / "config.json"
    edit(dense, lambda data: data.update(activation_function="torch.nn.modules.activation.Tanh"))
    with pytest.raises(UserError, match="Tanh; only a map without one"):
        load_model(student, config=None, vocab_size=None, target=None)


def test_a_uer_file_becomes_a_folder_that_says_the_same(files, tmp_path, teacher, capsys):
    calibrated(files, tmp_path, teacher, 64)
    call("scripts/convert_bert_from_uer_to_huggingface.py", "--input_model_path", tmp_path / "student.bin",
         "--output_model_path", tmp_path / "folder", "--vocab_path", files / "vocab.txt")
    assert "--task agreement" in capsys.readouterr().out.splitlines()[-1]
    assert read_sentence_facts(tmp_path / "folder") == FACTS


def test_a_teacher_with_a_map_keeps_it(files, tmp_path, teacher):
    package = pytest.importorskip("sentence_transformers")
    mapped = calibrated(files, tmp_path, teacher, 64, "--keep_embedding_size")
    (tmp_path / "next").mkdir()
    same = calibrated(files, tmp_path / "next", mapped, 64)
    vectors = [package.SentenceTransformer(str(path), device="cpu").encode(TEXTS) for path in (mapped, same)]
    assert vectors[0].shape == (len(TEXTS), 128) and abs(vectors[0] - vectors[1]).max() < 1e-4


@pytest.mark.parametrize("more", [[], ["--keep_embedding_size"]])
def test_onnx_pools_maps_and_normalises(files, tmp_path, teacher, more, capsys):
    pytest.importorskip("onnxruntime")
    from uer.formats.onnx_export import OnnxModel

    calibrated(files, tmp_path, teacher, 64, "onnx", *more)
    assert "onnxruntime: largest" in capsys.readouterr().out
    loaded = load_model(tmp_path / "student.bin", config=None, vocab_size=None, target=None)
    model, (src, seg) = from_weights(loaded.config, loaded.weights).eval(), batch(len(TOKENS))
    with torch.no_grad():
        wanted = model.pooled(src, seg)
        wanted = torch.nn.functional.normalize(model.target(wanted) if more else wanted, dim=1)
    found = OnnxModel(tmp_path / "student.onnx")(src, seg, "sentence_embedding")
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


def test_onnx_of_one_token_takes_any_number_of_texts(tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    from uer.formats.onnx_export import Interface, OnnxModel, write_onnx

    model = from_scratch(ModelConfig(16, 1, 2, 16, 16, target="cls", pooling="first", outputs=3), 30, seed=1).eval()
    src, seg = batch(30)
    write_onnx(tmp_path / "m.onnx", Interface(model), src, seg)
    with torch.no_grad():
        wanted = model(src[:1, :7], seg[:1, :7])
    torch.testing.assert_close(OnnxModel(tmp_path / "m.onnx")(src[:1, :7], seg[:1, :7]), wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["BertForSequenceClassification", "BertForTokenClassification",
                                  "BertForQuestionAnswering", "RobertaForSequenceClassification"])
def test_stock_classifiers_in_and_out(files, tmp_path, kind):
    pytest.importorskip("transformers")
    from test_formats_huggingface import stock_model

    labels = {} if "Question" in kind else {"id2label": {0: "bad", 1: "fair", 2: "good"}}
    model = stock_model(kind, tmp_path / "teacher", vocab_size=len(TOKENS), max_position_embeddings=40, **labels)
    src, seg = batch(len(TOKENS))
    target = "cls" if "Sequence" in kind else "tokens"
    loaded = load_model(tmp_path / "teacher", config=None, vocab_size=None, target=None)
    assert loaded.config.target == target and loaded.config.pooling == ("first" if target == "cls" else "mean")
    assert loaded.config.labels == (("start", "end") if "Question" in kind else ("bad", "fair", "good"))
    if "Roberta" in kind:
        src = src.clamp(min=5).masked_fill(seg == 0, model.config.pad_token_id)
        seg = seg.clamp(max=1)
    with torch.no_grad():
        ours = from_weights(replace(loaded.config, dropout=0.0), loaded.weights).eval()(src, seg)
    theirs = stock.outputs(tmp_path / "teacher", src, seg, target, "Question" in kind)
    real = slice(None) if target == "cls" else (seg > 0).flatten()
    torch.testing.assert_close(ours[real], theirs[real], rtol=0, atol=1e-5)
    call("calibrate.py", "--pretrained_model_path", tmp_path / "teacher", "--corpus_path", files / "corpus.txt",
         "--vocab_path", files / "vocab.txt", "--target_dim", 32, "--seq_length", 30,
         "--output_model_path", tmp_path / "same", "--output_format", "huggingface")
    if "Roberta" not in kind:  # whose students are of BERT's kind, and read other padding
        again = stock.outputs(tmp_path / "same", src, seg, target, "Question" in kind)
        torch.testing.assert_close(again[real], theirs[real], rtol=0, atol=1e-4)
    settings = json.loads((tmp_path / "same" / "config.json").read_text())
    assert settings["architectures"] == [kind.replace("Roberta", "Bert")]
    assert settings["id2label"] == ({"0": "start", "1": "end"} if "Question" in kind
                                    else {"0": "bad", "1": "fair", "2": "good"})


def test_a_map_does_no_more_than_map(files, tmp_path, teacher):
    student = calibrated(files, tmp_path, teacher, 64, "--keep_embedding_size")
    edit(student / "2_Dense/config.json", lambda data: data.update(use_residual=False, module_output_name=None))
    assert read_sentence_facts(student).mapped
    (student / "3_Normalize/config.json").write_text('{"module_input_name": "sentence_embedding"}')
    assert read_sentence_facts(student).normalize
    for module, key, value in (("2_Dense", "use_residual", True), ("3_Normalize", "module_output_name", "other")):
        edit(student / module / "config.json", lambda data, key=key, value=value: data.update({key: value}))
        with pytest.raises(UserError, match=f"{module}/config.json: {key} {value!r} cannot be kept"):
            read_sentence_facts(student)
        edit(student / module / "config.json", lambda data, key=key: data.pop(key))


@pytest.mark.parametrize(("file", "change", "words"), [
    ("modules.json", lambda data: data.append({"type": f"{ST}.LSTM", "path": "3_LSTM"}), "module LSTM cannot be kept"),
    ("modules.json", lambda data: data.append({"type": f"{ST}.Dense", "path": "3"}), "Normalize, Dense; .* order"),
    ("modules.json", lambda data: data[1].update(type="mine.Pooling"), r"module mine\.Pooling cannot be kept"),
    ("modules.json", lambda data: data[0].update(type="mine.Transformer"), r"0 encoders .* among .* mine\.Transformer"),
    ("modules.json", lambda data: data.append({"type": f"{ST}.Transformer", "path": "b"}), "2 encoders"),
    ("modules.json", lambda data: data.pop(1), "0 Pooling modules"),
    ("1_Pooling/config.json", lambda data: data.update(pooling_mode_max_tokens=True), "pooling mean, max is unknown"),
    ("1_Pooling/config.json", lambda data: data.update(pooling_mode="weightedmean"), "pooling weightedmean"),
    ("1_Pooling/config.json", lambda data: data.update(pooling_mode=["cls", "mean"]), "pooling cls, mean"),
    ("config_sentence_transformers.json", lambda data: data.update(default_prompt_name=[]), r"prompt_name \[\], which"),
    ("sentence_bert_config.json", lambda data: data.update(query_length=8, document_length=None), "query_length 8 can"),
    ("sentence_bert_config.json", lambda data: data.update(config_args={"hidden_act": "relu"}),
     "hidden_act 'relu' for the config cannot be kept"),
    ("sentence_bert_config.json", lambda data: data.update(tokenizer_args={"do_lower_case": False}),
     "do_lower_case False for the tokenizer cannot be kept"),
    ("config_sentence_transformers.json", lambda data: data.update(truncate_dim=64), "truncate_dim 64 cannot be kept"),
    ("sentence_bert_config.json", lambda data: data.update(max_seq_length="many"), "max_seq_length 'many'")])
def test_folders_that_cannot_be_kept(teacher, file, change, words):
    edit(teacher / file, change)
    with pytest.raises(UserError, match=words):
        load_model(teacher, config=None, vocab_size=None, target=None)
