"""Hugging Face models in and out, against transformers itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import CONFIG, VOCAB, trained, weights, write_vocab
from corpora import described
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from sentence_folder import batch

from uer.conversion.imports import import_lines
from uer.conversion.merge import student_model
from uer.conversion.outputs import Source, output_paths, write_outputs
from uer.errors import UserError
from uer.formats import load_model, stock
from uer.formats.export import write_huggingface, write_uer
from uer.formats.model_card import CardFacts
from uer.formats.tokenizer_files import text_beside

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
ACTS = ["gelu", "gelu_new", "relu", "silu"]


def stock_model(kind: str, folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0, **sizes):
    """A stock model with random weights everywhere, saved as it saves itself."""
    torch.manual_seed(seed)
    family = "Roberta" if "Roberta" in kind else "Bert"
    config = getattr(transformers, f"{family}Config")(**{
        "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 48, "max_position_embeddings": 24, **sizes})
    model = getattr(transformers, kind)(config).to(dtype).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.1)
            if "LayerNorm.weight" in name or "layer_norm.weight" in name:
                parameter.add_(1)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def difference(model, loaded, hidden: bool = False) -> float:
    src, seg = batch(VOCAB)
    ids, mask, types = stock.model_inputs(src, seg)
    if model.config.type_vocab_size == 1:
        types, seg = torch.zeros_like(types), seg.clamp(max=1)
    if model.config.model_type == "roberta":
        ids = ids.masked_fill(seg == 0, model.config.pad_token_id)
    theirs = model(ids, attention_mask=mask, token_type_ids=types)
    ours = student_model(loaded.config, loaded.weights)
    if hidden:
        return float((ours.hidden_states(src, seg) - theirs.last_hidden_state)[seg > 0].abs().max())
    logits = theirs.prediction_logits if "prediction_logits" in theirs else theirs.logits
    return float((ours(src, seg).view_as(logits) - logits)[seg > 0].abs().max())


def disguise(folder: Path, *, prefix: bool, old_norms: bool, as_bin: bool, decoder: bool) -> None:
    """Rename and repack what a folder holds, the ways such files come."""
    tensors = load_file(folder / "model.safetensors")
    if decoder and "cls.predictions.decoder.weight" not in tensors:
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["bert.embeddings.position_ids"] = torch.arange(24)[None]
    if not prefix:
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
    if old_norms:
        tensors = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
                   for name, t in tensors.items()}
    (folder / "model.safetensors").unlink()
    if as_bin:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


@settings(max_examples=24, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(heads=st.integers(1, 4), size=st.integers(1, 12), layers=st.integers(1, 3), inner=st.integers(3, 60),
       types=st.integers(1, 3), act=st.sampled_from(ACTS), tied=st.booleans(), nsp=st.booleans(),
       double=st.booleans(), prefix=st.booleans(), old_norms=st.booleans(), as_bin=st.booleans(), decoder=st.booleans(),
       eps=st.sampled_from([1e-12, 1e-5]))
def test_any_bert(tmp_path_factory, heads, size, layers, inner, types, act, tied, nsp, double, prefix, old_norms,
                  as_bin, decoder, eps):
    folder, dtype = tmp_path_factory.mktemp("bert"), torch.float64 if double else torch.float32
    model = stock_model("BertForPreTraining" if nsp else "BertForMaskedLM", folder, dtype, hidden_size=2 * heads * size,
                        num_attention_heads=heads, num_hidden_layers=layers, intermediate_size=inner,
                        type_vocab_size=max(types, 2), hidden_act=act, tie_word_embeddings=tied, layer_norm_eps=eps)
    disguise(folder, prefix=prefix, old_norms=old_norms, as_bin=as_bin, decoder=decoder)
    loaded = load_model(folder, config=None, vocab_size=VOCAB)
    assert difference(model, loaded) < TOLERANCE[dtype]
    assert bool(loaded.extras) == nsp
    # through a UER file and back into a folder, which stock transformers opens
    write_uer(folder / "m.bin", {**loaded.weights, **loaded.extras})
    (folder / "m_config.json").write_text(loaded.config.to_json())
    again = load_model(folder / "m.bin", config=None, vocab_size=VOCAB)
    write_huggingface(folder / "back", again.config, {**again.weights, **again.extras})
    kind = transformers.BertForPreTraining if nsp else transformers.BertForMaskedLM
    back, info = kind.from_pretrained(folder / "back", dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["mismatched_keys"]
    assert back.config.tie_word_embeddings == (tied or False)
    for name, tensor in model.state_dict().items():
        if "predictions.bias" not in name:  # idle in an untied stock model
            torch.testing.assert_close(back.state_dict()[name], tensor, rtol=3e-7 if not double else 1e-15, atol=0)


def test_roberta_is_exact(tmp_path: Path):
    model = stock_model("RobertaForMaskedLM", tmp_path, torch.float64, type_vocab_size=1, pad_token_id=1)
    loaded = load_model(tmp_path, config=None, vocab_size=VOCAB)
    assert loaded.config.max_seq_length == 22
    assert difference(model, loaded) < 1e-10
    # as a UER file, with vocabulary and merges, checked against the folder itself
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefgh", "ab", "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    out = tmp_path / "out" / "r.bin"
    lines = import_lines(load_model(tmp_path, config=None, vocab_size=VOCAB), {}, tmp_path, out, "uer-py",
                         text_beside(tmp_path)[0])
    assert "stock transformers: largest logit difference" in lines[0]
    assert sorted(path.name for path in out.parent.iterdir()) == ["r.bin", "r_config.json", "r_merges.txt",
                                                                 "r_vocab.json"]


@pytest.mark.parametrize("change, message", [
    ({"model_type": "mpnet"}, "model_type .mpnet."), ({"model_type": "albert"}, "albert"),
    ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
    ({"is_decoder": True}, "is_decoder is set"), ({"hidden_act": "mish"}, "hidden_act 'mish'"),
    ({"model_type": "roberta", "pad_token_id": ""}, r"pad_token_id '' \(a number is needed"),
    ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of num_attention_heads 5"),
    ({"num_hidden_layers": 3}, "layers_num is 2 in the file, 3 in the config"),
    ({"intermediate_size": 64}, "feedforward_size is 48 in the file, 64"),
])
def test_other_architectures_are_refused(tmp_path: Path, change: dict, message: str):
    stock_model("BertForMaskedLM", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        load_model(tmp_path, config=None, vocab_size=VOCAB)


def test_missing_tensors_have_the_names_of_the_file(tmp_path: Path):
    stock_model("BertForMaskedLM", tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["bert.encoder.layer.1.output.LayerNorm.weight"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: bert\.encoder\.layer\.1\.output\.LayerNorm\.weight$"):
        load_model(tmp_path, config=None, vocab_size=VOCAB)
    save_file({**tensors, "bert.encoder.layer.0.adapter.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"change what the model computes: bert\.encoder\.layer\.0\.adapter\.weight"):
        load_model(tmp_path, config=None, vocab_size=VOCAB)


def test_encoders_without_a_head(tmp_path: Path):
    """A bare encoder, and a classifier: the head is made only when that is allowed; hidden states are exact."""
    for kind in ("BertModel", "BertForSequenceClassification"):
        model = stock_model(kind, tmp_path / kind, torch.float64)
        with pytest.raises(UserError, match="--allow_missing_head makes one"):
            load_model(tmp_path / kind, config=None, vocab_size=VOCAB)
        loaded = load_model(tmp_path / kind, config=None, vocab_size=VOCAB, allow_missing_head=True)
        assert loaded.head_made
        assert difference(getattr(model, "bert", model), loaded, hidden=True) < 1e-10
    assert any("classifier.weight" in note for note in loaded.notes)


def test_shards_single_files_and_a_given_config(tmp_path: Path):
    model = stock_model("BertForMaskedLM", tmp_path)
    given = replace(CONFIG, hidden_size=32, heads_num=4, feedforward_size=48, max_seq_length=24, dropout=0.3)
    for path in (tmp_path, tmp_path / "model.safetensors"):
        loaded = load_model(path, config=given, vocab_size=VOCAB)
        assert difference(model, loaded) < 1e-5
        assert (loaded.config.dropout, loaded.config.layernorm) == (0.3, "huggingface")
    with pytest.raises(UserError, match="heads_num is 4 there, 8 in the given config"):
        load_model(tmp_path, config=replace(given, heads_num=8), vocab_size=VOCAB)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    assert difference(model, load_model(tmp_path / "shards", config=None, vocab_size=VOCAB)) < 1e-5


# -- out ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """A merged student as a Hugging Face folder."""
    from uer.conversion.merge import master_from_checkpoint, merge
    folder = tmp_path_factory.mktemp("student")
    case = trained(folder, "dim")
    merged = merge(master_from_checkpoint(case.state, case.config, case.groups))
    card = CardFacts("", "stage1.bin", "How.", 1, "command")
    source = Source(merged.config, merged.weights, card, text=described(write_vocab(folder / "v.txt")))
    write_outputs(source, output_paths(folder / "hf", ["huggingface"]))
    return folder / "hf"


def test_the_tokenizer_is_ours(student: Path):
    from uer.tokenizers.bert import BertTokenizer
    from uer.tokenizers.vocab import Vocab
    stock_tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    ours = BertTokenizer(Vocab.load(student / "vocab.txt"))
    text = "The cat SAT, [MASK] élan 7 xyz"
    raw = list(ours.encode(text))
    assert stock_tokenizer(text)["input_ids"] == [2, *raw, 3] and 4 in raw and 1 in raw
    assert stock_tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
    assert stock_tokenizer.model_max_length == 20


def test_a_cased_vocabulary_keeps_its_case(tmp_path: Path):
    vocab = write_vocab(tmp_path / "v.txt")
    vocab.write_text(vocab.read_text().replace("\nz\n", "\nA\n").replace("\nthe\n", "\nThe\n"))
    write_huggingface(tmp_path / "hf", CONFIG, weights(CONFIG), text=described(vocab))
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.tokenize("The A a cat") == ["The", "A", "a", "cat"]
    assert text_beside(tmp_path / "hf")[0].lower_case is False


def test_a_student_fine_tunes_in_stock_transformers(student: Path):
    torch.manual_seed(0)
    model, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        student, num_labels=2, output_loading_info=True)
    assert all(name.startswith(("classifier.", "bert.pooler.")) for name in info["missing_keys"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(student)
    inputs = tokenizer(["the cat", "cat sat", "a b", "b c"] * 4, return_tensors="pt", padding=True)
    labels = torch.tensor([0, 0, 1, 1] * 4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(20):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_sentence_transformers_opens_it(student: Path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    vectors = sentence_transformers.SentenceTransformer(str(student), device="cpu").encode(["the cat", "a"])
    assert vectors.shape == (2, 64)


def test_the_card_has_what_was_measured(student: Path):
    card = (student / "README.md").read_text()
    assert "stock transformers" in card and "`stage1.bin`" in card and "command" in card
