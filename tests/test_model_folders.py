"""Model files and folders as people have them: what would compute something else is refused, the rest is read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, VOCAB, assert_close, weights, write_vocab
from corpora import described
from folders import roberta, tokenizer_of
from safetensors.torch import load_file, save_file

from uer.errors import UserError
from uer.formats import load_model, shapes, stock
from uer.formats.export import config_text, write_huggingface, write_uer
from uer.formats.storage import read_tensors
from uer.models.bert import from_weights

CLASSES = replace(CONFIG, target="cls", pooling="first", outputs=3, labels=("bad", "fair", "good"))
ROBERTA = {"cls.predictions.transform.dense": "lm_head.dense", "cls.predictions.transform.LayerNorm":
           "lm_head.layer_norm", "cls.predictions.decoder": "lm_head.decoder", "cls.predictions.": "lm_head.",
           "bert.": "roberta."}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A masked language model."""
    write_huggingface(tmp_path / "m", CONFIG, weights(CONFIG))
    return tmp_path / "m"


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    write_huggingface(tmp_path / "c", CLASSES, weights(CLASSES))
    return tmp_path / "c"


def load(path: Path, target: str | None = None):
    return load_model(path, config=None, vocab_size=None, target=target)


def edit(folder: Path, **changes) -> None:
    """Other values in a config.json; None takes a key away."""
    data = {**json.loads((folder / "config.json").read_text()), **changes}
    kept = {key: value for key, value in data.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def rename(folder: Path, change) -> None:
    path = folder / "model.safetensors"
    save_file({change(name): tensor for name, tensor in load_file(path).items()}, path)


def as_roberta(name: str) -> str:
    for theirs, ours in ROBERTA.items():
        name = name.replace(theirs, ours)
    return name


def test_tables_are_as_long_as_the_files(folder):
    """More kinds of segments than two, more positions than the config lets a text have."""
    tensors = load_file(folder / "model.safetensors")
    types = "bert.embeddings.token_type_embeddings.weight"
    save_file({**tensors, types: tensors[types].repeat(3, 1)}, folder / "model.safetensors")
    edit(folder, type_vocab_size=6, max_position_embeddings=16)
    loaded = load(folder)
    model = from_weights(loaded.config, loaded.weights)
    assert (model.sizes.segments, model.sizes.positions, loaded.config.max_seq_length) == (7, 20, 16)
    assert_close(model.state_dict(), loaded.weights, 0)


@pytest.mark.parametrize("table", ["word", "position", "token_type"])
@pytest.mark.parametrize("shape", [(), (0, 128), (1, 1, 128)])
def test_tables_that_are_none_are_named(folder, table, shape):
    tensors = load_file(folder / "model.safetensors")
    tensors[f"bert.embeddings.{table}_embeddings.weight"] = torch.ones(shape)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"_embedding\.weight is \[.*, a table is needed"):
        load_model(folder, config=None, vocab_size=9, allow_missing_head=True)


def test_what_wrappers_put_into_names(folder):
    wanted = load(folder).weights
    rename(folder, lambda name: name.replace("bert.", "bert._orig_mod.").replace("layer.0.", "layer.0.module."))
    rename(folder, lambda name: name.replace("bert.", "_fsdp_wrapped_module.bert.").replace(
        "layer.1.", "layer.1._checkpoint_wrapped_module."))
    assert_close(load(folder).weights, wanted, 0)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, **{f"module.{name}": tensor + 1 for name, tensor in tensors.items()}},
              folder / "model.safetensors")
    with pytest.raises(UserError, match="holds tensors twice"):
        load(folder)


def test_safetensors_under_any_name(folder):
    """As a hub's cache keeps them under blobs/, and as they are renamed."""
    tensors = read_tensors(folder / "model.safetensors")
    for name in ("0f1e2d", "pytorch_model.bin"):
        (folder / "model.safetensors").rename(folder / name)
        assert_close(read_tensors(folder / name), tensors, 0)
        (folder / name).rename(folder / "model.safetensors")


@pytest.mark.parametrize(("family", "tensors", "refused"), [
    ({"model_type": "bert"}, as_roberta, True), ({"model_type": None, "architectures": None}, as_roberta, True),
    ({"model_type": "roberta", "pad_token_id": 1}, str, True),
    ({"model_type": None, "architectures": ["RobertaForMaskedLM"], "pad_token_id": 1}, as_roberta, False),
    ({"model_type": "roberta", "pad_token_id": 1}, as_roberta, False), ({"model_type": None}, str, False)])
def test_where_positions_begin_is_not_guessed(folder, family, tensors, refused):
    edit(folder, **family)
    rename(folder, tensors)
    if refused:
        with pytest.raises(UserError, match=r"tensors are called \w+\.…, which is not what .* says of model_type"):
            load(folder)
    else:
        first = load_file(folder / "model.safetensors")[tensors("bert.embeddings.position_embeddings.weight")]
        used = first[2 if tensors is as_roberta else 0:]
        assert torch.equal(load(folder).weights[shapes.POSITIONS], used)


@pytest.mark.parametrize("absent", ["lm_head.decoder.weight", "roberta.embeddings.word_embeddings.weight"])
def test_one_of_two_tied_tables_is_enough(folder, absent):
    """safetensors.torch.save_model keeps the one that comes first in the alphabet."""
    edit(folder, model_type="roberta", pad_token_id=1, tie_word_embeddings=True)
    rename(folder, as_roberta)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.decoder.weight"] = tensors["roberta.embeddings.word_embeddings.weight"].clone()
    save_file({name: tensor for name, tensor in tensors.items() if name != absent}, folder / "model.safetensors")
    found = load(folder)
    assert found.tied and torch.equal(found.weights[shapes.WORDS], tensors["lm_head.decoder.weight"])


@pytest.mark.parametrize("named", [None, ["BertForMyLabels"]])
def test_a_head_that_no_class_tells_of_is_noted(classifier, named):
    edit(classifier, architectures=named)
    assert any("which does not tell what its head reads; taken for a BertForSequenceClassification" in note
               for note in load(classifier).notes)


def test_an_adapter_beside_a_model_is_not_passed_over(folder):
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter beside the model, which is another one with it; merge it"):
        load(folder)


def test_a_classifier_without_its_pooler_is_none(classifier):
    tensors = load_file(classifier / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "pooler" not in name},
              classifier / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: pooler\.dense, which the classifier of a BertForSequenceClass"):
        load(classifier)
    assert load(classifier, "states").config.target == "states"


def test_a_cross_encoder_is_a_classifier(tmp_path, classifier):
    """As sentence-transformers 6 writes it; how it reads and what becomes of its logits come along."""
    (classifier / "modules.json").write_text(json.dumps([
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]))
    (classifier / "sentence_bert_config.json").write_text('{"transformer_task": "sequence-classification"}')
    (classifier / "config_sentence_transformers.json").write_text('{"activation_fn": "torch.nn.Tanh"}')
    (classifier / "tokenizer_config.json").write_text('{"model_max_length": 12}')
    loaded = load(classifier)
    assert (loaded.config.target, loaded.sentence) == ("cls", None)
    assert loaded.reading == {"seq_length": 12, "of_logits": {"sentence_transformers": {
        "activation_fn": "torch.nn.Tanh"}}}
    write_huggingface(tmp_path / "again", loaded.config, loaded.weights, reading=loaded.reading,
                      text=described(write_vocab(tmp_path / "vocab.txt")))
    again = load(tmp_path / "again")
    assert again.reading == loaded.reading and again.config == loaded.config


def test_pairs_stay_as_the_classifier_was_trained_on_them(tmp_path):
    """Byte-level BPE of a model of earlier versions, which had one separator and a segment for the second text."""
    write_huggingface(tmp_path / "c", CLASSES, weights(CLASSES), reading={"separators": 1},
                      text=tokenizer_of(roberta(tmp_path / "r", {})).rules)
    assert tokenizer_of(tmp_path / "c").separators == 1
    if stock.available():
        import transformers

        pair = transformers.AutoTokenizer.from_pretrained(tmp_path / "c")("low", "the")
        assert pair["input_ids"].count(2) == 2 and pair["token_type_ids"][:4] == [0, 0, 0, 1]


def test_several_scores_are_refused(classifier):
    edit(classifier, problem_type="regression")
    with pytest.raises(UserError, match="problem_type regression with 3 labels; one score"):
        load(classifier)


@pytest.mark.parametrize("generation", ["published", "uer-py"])
def test_a_uer_classifier_alone_reads_the_first_token(tmp_path, generation):
    """UER-py's own files have no JSON beside them, and its pooling is `first` where nobody says another."""
    given, path = weights(CLASSES), tmp_path / "m.bin"
    write_uer(path, given, generation)
    (tmp_path / "m_config.json").write_text(config_text(CONFIG, given, "uer-py"))
    assert (load(path).config.target, load(path).config.pooling) == ("cls", "first")
    for other in ("mean", "last"):  # as a config written here says it
        (tmp_path / "m_config.json").write_text(config_text(replace(CLASSES, pooling=other), given, generation))
        assert load(path).config.pooling == other


def test_a_head_of_another_kind_is_noted(tmp_path):
    given = {name.replace("output_layer_", "cls.linear_"): tensor for name, tensor in weights(CLASSES).items()}
    write_uer(tmp_path / "m.bin", given)
    loaded = load(tmp_path / "m.bin")
    assert loaded.config.target == "states" and any("target.cls.linear_1.weight" in note for note in loaded.notes)


def test_a_folder_that_stock_transformers_does_not_open_is_imported(tmp_path, folder, capsys):
    from commands import call

    pytest.importorskip("transformers")
    edit(folder, model_type=None)
    call("scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", folder, "--output_model_path",
         tmp_path / "ours.bin")
    assert "read back: largest" in (said := capsys.readouterr().out)
    assert "stock transformers does not open the folder itself" in said
    with pytest.raises(stock.NotRead, match="cannot open the folder"):
        stock.outputs(folder, torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
    assert len(load(tmp_path / "ours.bin").weights[shapes.WORDS]) == VOCAB
