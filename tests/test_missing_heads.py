"""Models without the head that their config names are refused; heads are told, and named, as the file calls them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import CONFIG, weights, write_vocab
from safetensors.torch import load_file, save_file
from test_model_folders import CLASSES, ROBERTA, edit, load, rename
from test_taken_for_what_they_are import FOUND, write

from uer.config import load_config
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_huggingface, write_uer
from uer.formats.teacher import config_beside

TAGGER = replace(CONFIG, target="tokens", outputs=3, labels=("O", "B", "I"))
READER = replace(CONFIG, target="tokens", outputs=2, labels=("start", "end"))
KINDS = {"cls": CLASSES, "tagger": TAGGER, "reader": READER, "mlm": CONFIG}
HEADS = ("classifier.", "qa_outputs.", "cls.predictions.")


def told(config):
    """What of a config is on its head."""
    return config.target, config.outputs, config.labels


@pytest.fixture
def saved(tmp_path):
    """A function that writes a model as a folder of Hugging Face."""
    def save(kind: str):
        write_huggingface(tmp_path / kind, KINDS[kind], weights(KINDS[kind]))
        return tmp_path / kind

    return save


def without_head(folder) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith(HEADS)}, path)


@pytest.mark.parametrize(("kind", "named", "head"), [
    ("cls", None, "classifier"), ("tagger", None, "classifier"), ("reader", None, "qa_outputs"),
    ("mlm", None, r"cls\.predictions\.transform\.dense"),
    ("cls", "ElectraForSequenceClassification", r"classifier\.dense"),
    ("cls", "DistilBertForSequenceClassification", "pre_classifier"),
    ("mlm", "BertForPreTraining", r"cls\.predictions\.transform\.dense")])
def test_a_model_without_its_head_is_refused(saved, kind, named, head):
    folder = saved(kind)
    assert told(load(folder).config) == told(KINDS[kind])
    without_head(folder)
    edit(folder, **({"architectures": [named]} if named else {}))
    with pytest.raises(UserError, match=rf'its config names \w+, and it has no {head}\.weight, the head; under .*'
                                        r'"architectures": \["BertModel"\] in config\.json .* the encoder alone'):
        load(folder)
    assert load(folder, "states").config.target == "states"
    made = load_model(folder, config=None, vocab_size=None, target=None, allow_missing_head=True)
    assert made.head_made and made.config.target == "mlm"
    edit(folder, architectures=["BertModel"])
    assert load(folder).config.target == "states"


def test_what_modules_pool_needs_no_head(saved):
    """Sentence encoders that were trained on masked words keep that class's name."""
    folder = saved("mlm")
    without_head(folder)
    write(folder, FOUND)
    assert load(folder).config.target == "states" and load(folder).sentence.pooling == "mean"


@pytest.mark.parametrize(("kind", "called"), [
    ("cls", "classifier.1"), ("tagger", "hidden2tag"), ("tagger", "qa_outputs"), ("reader", "classifier")])
def test_a_head_under_another_name_is_none_and_named(saved, kind, called):
    """qa_outputs is no tagger's, classifier no reader's: stock transformers would not find them there either."""
    folder = saved(kind)
    rename(folder, lambda name: name.replace("qa_outputs.", f"{called}.").replace("classifier.", f"{called}."))
    right = {"qa_outputs": "QuestionAnswering", "classifier": "TokenClassification"}.get(called)
    right = f"BertFor{right}" if right else "BertModel"
    with pytest.raises(UserError, match=rf"the head \(but {called}\.bias, {called}\.weight\).*{right}"):
        load(folder)
    edit(folder, architectures=[right], id2label={"0": "a", "1": "b"})
    if called != "qa_outputs":  # of three outputs
        assert load(folder).config.target == ("tokens" if called == "classifier" else "states")


def test_masked_words_beside_a_taggers_head_make_no_other_model(saved):
    """The class decides; where its head is absent, that of masked words is no substitute."""
    folder = saved("tagger")
    words = {name: tensor for name, tensor in load_file(saved("mlm") / "model.safetensors").items()
             if name.startswith("cls.")}
    save_file({**load_file(folder / "model.safetensors"), **words}, folder / "model.safetensors")
    loaded = load(folder)
    assert told(loaded.config) == told(TAGGER)
    assert any("a head for masked words, as the config" in note for note in loaded.notes)
    rename(folder, lambda name: name.replace("classifier.", "tags."))
    with pytest.raises(UserError, match=r"names BertForTokenClassification, and it has no classifier\.weight"):
        load(folder)
    assert not load_model(folder, config=None, vocab_size=None, target=None, allow_missing_head=True).head_made


def test_a_file_of_uer_without_the_head_of_its_config_is_refused(tmp_path):
    given = weights(CLASSES)
    write_uer(tmp_path / "m.bin", {name: tensor for name, tensor in given.items() if "output_layer" not in name})
    (tmp_path / "m_config.json").write_text(CLASSES.to_json())
    with pytest.raises(UserError, match=r"config says target cls, and it has no output_layer_1\.weight, the head"):
        load(tmp_path / "m.bin")
    assert load(tmp_path / "m.bin", "states").config.target == "states"


@pytest.mark.parametrize("named", [None, ["BertModel"], ["BertForMyAnswers"]])
def test_a_readers_head_is_told_by_its_name(saved, named):
    folder = saved("reader")
    edit(folder, architectures=named)
    loaded = load(folder)
    assert told(loaded.config) == told(READER) and loaded.config.reader
    assert any("taken for a reader, as its head is called qa_outputs" in note for note in loaded.notes)


def test_a_reader_with_a_classifier_beside_it_is_a_reader(saved):
    folder = saved("reader")
    edit(folder, architectures=None)
    more = {"classifier.weight": torch.ones(3, CONFIG.hidden_size), "classifier.bias": torch.ones(3)}
    save_file({**load_file(folder / "model.safetensors"), **more}, folder / "model.safetensors")
    loaded = load(folder)
    assert loaded.config.reader
    assert any("not taken over" in note and "classifier.bias" in note for note in loaded.notes)


@pytest.mark.parametrize(("kind", "head"), [("cls", "classifier"), ("tagger", "classifier"), ("reader", "qa_outputs")])
def test_a_misshapen_head_is_called_as_in_the_file(saved, kind, head):
    folder = saved(kind)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, f"{head}.weight": tensors[f"{head}.weight"][:, :-1].clone()}, path)
    with pytest.raises(UserError, match=rf"of the wrong shape: {head}\.weight is \["):
        load(folder)
    if kind == "cls":
        save_file({**tensors, "bert.pooler.dense.weight": torch.ones(3, 4)}, path)
        with pytest.raises(UserError, match=r"of the wrong shape: pooler\.dense\.weight is \["):
            load(folder)


@pytest.mark.parametrize(("labels", "words"), [
    ({"0": "a", "1": "b"}, r"2 labels \(a, b\) for 3 outputs; a name for each output is needed, in config\.json"),
    ({"1": "a", "2": "b", "3": "c"}, "id2label has the ids 1, 2, 3; a name for each output is needed, counted from 0"),
    ({"a": 0, "b": 1, "c": 2}, "id2label has the ids a, b, c; "), (["a", "b", "c"], r"id2label has \['a', 'b', 'c'\]")])
def test_labels_that_do_not_name_each_output_are_refused(saved, labels, words):
    for kind in ("cls", "tagger"):
        folder = saved(kind)
        edit(folder, id2label=labels)
        with pytest.raises(UserError, match=words):
            load(folder)
        assert load(folder, "states").config.target == "states"


def test_what_transformers_fills_in_names_no_label(saved):
    """Its early versions wrote two such names whatever the outputs; a mask language model's labels are nobody's."""
    folder = saved("cls")
    edit(folder, id2label={"0": "LABEL_0", "1": "LABEL_1"})
    assert told(load(folder).config) == ("cls", 3, ())
    folder = saved("mlm")
    edit(folder, id2label={"1": "a"})
    assert load(folder).config.target == "mlm"


def test_a_readers_outputs_are_two(saved):
    folder = saved("reader")
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "qa_outputs.weight": torch.ones(3, CONFIG.hidden_size), "qa_outputs.bias": torch.ones(3)},
              path)
    with pytest.raises(UserError, match=r"2 labels \(start, end\) for 3 outputs"):
        load(folder)


def test_a_roberta_without_its_head(saved):
    folder = saved("mlm")

    def roberta(name: str) -> str:
        for theirs, ours in ROBERTA.items():
            name = name.replace(theirs, ours)
        return name

    rename(folder, roberta)
    edit(folder, model_type="roberta", pad_token_id=1, architectures=["RobertaForMaskedLM"])
    path = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if not name.startswith("lm_head")}, path)
    with pytest.raises(UserError, match=r"has no lm_head\.dense\.weight, the head"):
        load(folder)


def test_calibrate_says_so(saved, tmp_path, capsys):
    from commands import refused

    folder = saved("tagger")
    without_head(folder)
    (tmp_path / "c.txt").write_text("the river\n" * 20)
    words = write_vocab(tmp_path / "v.txt")
    assert json.loads((folder / "config.json").read_text())["architectures"] == ["BertForTokenClassification"]
    assert "it has no classifier.weight, the head" in refused(
        capsys, tmp_path, "calibrate.py", "--pretrained_model_path", folder, "--vocab_path", words,
        "--corpus_path", tmp_path / "c.txt", "--target_dim", 8, "--output_model_path", tmp_path / "s.bin")


@pytest.mark.parametrize(("family", "keys"), [
    ("bert", {"num_attention_heads": None, "num_hidden_layers": 0, "intermediate_size": "64", "hidden_size": 16,
              "hidden_dropout_prob": 2, "max_position_embeddings": 0, "layer_norm_eps": 5.0}),
    ("distilbert", {"n_heads": None, "n_layers": 0, "hidden_dim": "64", "dim": -1, "dropout": 2})])
def test_a_configs_sizes_are_called_as_in_it(tmp_path, family, keys):
    """heads_num is nowhere in a file that calls it num_attention_heads, or n_heads."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **keys}))
    for read in (load_config, lambda path: config_beside(path.parent, None)):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "config.json")
        said = str(caught.value)
        assert [key for key in keys if f"{key} is {keys[key]!r}" not in said] in ([], ["hidden_size"]), said
        assert not any(ours in said.split() for ours in ("heads_num", "layers_num", "feedforward_size"))
    act = {"bert": "hidden_act", "distilbert": "activation"}[family]
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, act: "x"}))
    with pytest.raises(UserError, match=f"has: {act} 'x'"):
        load_config(tmp_path / "config.json")


def test_inference_of_a_folder_says_what_makes_the_file(saved, tmp_path, capsys):
    from commands import call, refused

    (tmp_path / "t.tsv").write_text("text_a\nthe river\n")
    common = ["--vocab_path", write_vocab(tmp_path / "v.txt"), "--test_path", tmp_path / "t.tsv", "--prediction_path",
              tmp_path / "p.tsv", "--load_model_path"]
    folder = saved("cls")
    script = "scripts/convert_bert_from_huggingface_to_uer.py"
    message = refused(capsys, tmp_path, "inference/run_classifier_infer.py", *common, folder)
    assert f"cls: a folder; a UER file is needed, which {script} makes of it" in message
    call(script, "--input_model_path", folder, "--output_model_path", tmp_path / "c.bin")
    call("inference/run_classifier_infer.py", *common, tmp_path / "c.bin")
    assert (tmp_path / "p.tsv").read_text().splitlines()[1] in CLASSES.labels
