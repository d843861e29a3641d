"""Models that look like another kind: what their files say decides, and what cannot be told apart is refused."""

import json
from dataclasses import replace

import pytest
import torch
from checkpoints import CONFIG, weights
from safetensors.torch import load_file, save_file
from test_model_folders import CLASSES, edit, load, rename

from uer.errors import UserError
from uer.formats.export import write_huggingface
from uer.models.bert import from_weights
from uer.tokenizers import Vocab
from uer.tokenizers.bpe import BpeTokenizer
from uer.tokenizers.vocab import AddedToken

MODULE = "sentence_transformers.models."
FOUND = {"modules.json": [{"idx": 0, "name": "0", "path": "", "type": f"{MODULE}Transformer"},
                          {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{MODULE}Pooling"},
                          {"idx": 2, "name": "2", "path": "2_Dropout", "type": f"{MODULE}Dropout"}],
         "1_Pooling/config.json": {"pooling_mode_mean_tokens": True}, "2_Dropout/config.json": {"dropout": 0.2}}
SCORER = {"modules.json": FOUND["modules.json"][:1],
          "sentence_bert_config.json": {"transformer_task": "sequence-classification", "module_output_name": "scores",
                                        "max_seq_length": 10}}
TAGS = replace(CONFIG, target="tokens", outputs=2, labels=("start", "end"))


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize("config", [CONFIG, CLASSES])
def test_what_modules_pool_is_an_encoder_whatever_head_is_in_its_file(tmp_path, config):
    """A model that went on with masked words and whose head was saved along; Dropout does nothing in use."""
    given = weights(config)
    write_huggingface(tmp_path / "m", config, given)
    write(tmp_path / "m", FOUND)
    loaded = load(tmp_path / "m")
    assert loaded.config.target == "states" and loaded.sentence.pooling == loaded.config.pooling == "mean"
    assert any("not taken over" in note for note in loaded.notes)
    assert set(loaded.weights) - set(given) <= {"target.output_layer.weight", "target.output_layer.bias"}
    assert not any(name.startswith(("target.mlm_", "target.output_layer_")) for name in loaded.weights)
    if config is CONFIG:
        assert load(tmp_path / "m", "mlm").config.target == "mlm"


def test_a_cross_encoders_length_comes_along_and_what_cannot_is_refused(tmp_path):
    write_huggingface(tmp_path / "c", CLASSES, weights(CLASSES))
    write(tmp_path / "c", SCORER)
    loaded = load(tmp_path / "c")
    assert (loaded.config.target, loaded.reading["seq_length"]) == ("cls", 10)
    for file, content, message in (
            ("config_sentence_transformers.json", {"prompts": {"q": "river: "}, "default_prompt_name": "q"},
             "default_prompt_name 'q' puts 'river: ' before"),
            ("sentence_bert_config.json", {**SCORER["sentence_bert_config.json"], "processor_kwargs": {
                "do_lower_case": False}}, "do_lower_case False for the tokenizer cannot be kept")):
        write(tmp_path / "c", SCORER)
        write(tmp_path / "c", {file: content})
        with pytest.raises(UserError, match=message):
            load(tmp_path / "c")
    write(tmp_path / "c", {**SCORER, "config_sentence_transformers.json": {"prompts": {"q": "x"}}})
    assert load(tmp_path / "c").config.target == "cls"


def test_labels_called_start_and_end_make_no_reader(tmp_path):
    """Of a classifier they are classes; a tagger's could not be told from a reader's."""
    config = replace(CLASSES, outputs=2, labels=("start", "end"))
    write_huggingface(tmp_path / "c", config, weights(config))
    loaded = load(tmp_path / "c")
    assert loaded.config.target == "cls" and not loaded.config.reader
    write_huggingface(tmp_path / "t", TAGS, weights(TAGS))  # a reader
    assert load(tmp_path / "t").config.reader
    edit(tmp_path / "t", architectures=["BertForTokenClassification"])
    rename(tmp_path / "t", lambda name: name.replace("qa_outputs", "classifier"))
    with pytest.raises(UserError, match="a tagger whose labels are start and end, as a reader's are called here"):
        load(tmp_path / "t")


@pytest.mark.parametrize("config", [CLASSES, replace(TAGS, labels=("a", "b")), TAGS])
def test_a_head_without_its_bias_is_told_by_its_name(tmp_path, config):
    write_huggingface(tmp_path / "c", config, weights(config))
    path = tmp_path / "c" / "model.safetensors"
    tensors = load_file(path)
    name = "qa_outputs.bias" if config is TAGS else "classifier.bias"
    del tensors[name]
    save_file(tensors, path)
    with pytest.raises(UserError, match=rf"c: missing: {name}$"):
        load(tmp_path / "c")


def test_an_electra_is_one_without_its_prefix(tmp_path):
    """gelu stands between the linears of its classifier; the tensors of both are called alike."""
    given = weights(CLASSES)
    config = replace(CLASSES, cls_act="gelu")
    write_huggingface(tmp_path / "e", config, given)
    before, path = load(tmp_path / "e"), tmp_path / "e" / "model.safetensors"
    assert before.config.cls_act == "gelu"
    tensors = load_file(path)
    assert any(name.startswith("electra.") for name in tensors)
    save_file({name.removeprefix("electra."): tensor for name, tensor in tensors.items()}, path)
    after = load(tmp_path / "e")
    assert after.config == before.config
    src = torch.randint(0, 20, (2, 6))
    first, second = (from_weights(loaded.config, loaded.weights).eval()(src, torch.ones_like(src))
                     for loaded in (before, after))
    assert torch.equal(first, second)


def test_added_tokens_of_bpe_are_found():
    """`add_tokens([...])` of transformers: looked for in normalised text, which RoBERTa leaves as it is."""
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *"abnewtok", "Ġ", "newtok"]
    added = [AddedToken("newtok", len(tokens) - 1, normalized=True)]
    vocab = Vocab(tokens, "v", added=added)
    found = [tokens[i] for i in BpeTokenizer(vocab, []).encode("a newtok b<mask>newtoknew")]
    assert found == ["a", "Ġ", "newtok", "Ġ", "b", "<mask>", "newtok", "n", "e", "w"]
    spaced = [tokens[i] for i in BpeTokenizer(vocab, [], prefix_space=True).encode("a newtokb")]
    assert spaced == ["Ġ", "a", "Ġ", "newtok", "Ġ", "b"]


def test_added_tokens_as_transformers_finds_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    from folders import roberta, tokenizer_of

    theirs = transformers.AutoTokenizer.from_pretrained(roberta(tmp_path / "r", {}))
    theirs.add_tokens(["newtok", "low river"])
    theirs.save_pretrained(tmp_path / "r")
    for text in ("a newtok b", "newtoknewtok", "the low river, low  river NEWTOK"):
        assert tokenizer_of(tmp_path / "r").encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
