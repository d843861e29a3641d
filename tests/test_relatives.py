"""DistilBERT, ELECTRA and XLM-RoBERTa are BERTs under other names, to rounding; what is none is refused."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call, refused
from corpora import TOKENS, described, write_vocab

from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.formats.tokenizer_files import text_beside
from uer.models.bert import from_weights

transformers = pytest.importorskip("transformers")
VOCAB = len(TOKENS)
SIZES = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 48, "max_position_embeddings": 24}
CONFIGS = {
    "DistilBert": {"vocab_size": VOCAB, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48,
                   "max_position_embeddings": 24},
    "Electra": {**SIZES, "embedding_size": 32},
    "XLMRoberta": {**SIZES, "type_vocab_size": 1, "pad_token_id": 1}}
KINDS = {"ForMaskedLM": "mlm", "Model": "states", "ForTokenClassification": "tokens", "ForQuestionAnswering": "tokens"}


def saved(kind: str, config, folder):
    """A model with random weights everywhere, in float64."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.1)
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.add_(1)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("act", ["gelu", "relu"])
def test_a_relative_is_exact(family, kind, act, tmp_path):
    """The MLM heads of RoBERTa and ELECTRA take gelu, whatever the layers do."""
    name = "activation" if family == "DistilBert" else "hidden_act"
    config = getattr(transformers, f"{family}Config")(**{**CONFIGS[family], name: act})
    model = saved(family + kind, config, tmp_path)
    if kind == "ForMaskedLM" and act == "relu" and family != "DistilBert":
        with pytest.raises(UserError, match="its MLM head takes gelu, its layers relu; here both take the same"):
            load_model(tmp_path, config=None, vocab_size=VOCAB, target=None)
        return
    loaded = load_model(tmp_path, config=None, vocab_size=VOCAB, target=None)
    assert loaded.config.target == KINDS[kind] and loaded.notes == []
    src = torch.randint(5, VOCAB, (3, 15), generator=torch.Generator().manual_seed(2))
    seg = torch.ones_like(src)
    seg[2, 9:] = 0
    ours = from_weights(loaded.config, loaded.weights).eval()
    with torch.no_grad():
        found = model(src.masked_fill(seg == 0, config.pad_token_id), attention_mask=(seg > 0).long())
        given = ours.hidden_states(src, seg) if kind == "Model" else ours(src, seg).unflatten(0, src.shape)
    theirs = found.last_hidden_state if kind == "Model" else found.logits if "logits" in found else torch.stack(
        [found.start_logits, found.end_logits], -1)
    torch.testing.assert_close(given[seg > 0], theirs[seg > 0], rtol=0, atol=1e-10)
    assert theirs.std() > 0.1


@pytest.mark.parametrize(("family", "act"), [("DistilBert", "gelu"), ("Electra", "gelu"), ("Electra", "relu")])
def test_a_classifier_of_theirs_is_exact_and_its_student_is_one(family, act, tmp_path):
    name = "activation" if family == "DistilBert" else "hidden_act"
    config = getattr(transformers, f"{family}Config")(**{**CONFIGS[family], name: act, "num_labels": 3})
    model = saved(f"{family}ForSequenceClassification", config, tmp_path / "theirs")
    vocab = write_vocab(tmp_path)
    loaded = load_model(tmp_path / "theirs", config=None, vocab_size=VOCAB, target=None)
    assert loaded.config.target == "cls" and loaded.notes == []
    write_huggingface(tmp_path / "ours", loaded.config, loaded.weights, text=described(vocab))
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").double().eval()
    assert type(again) is type(model)
    src = torch.randint(5, VOCAB, (3, 15), generator=torch.Generator().manual_seed(2))
    seg = torch.ones_like(src)
    seg[2, 9:] = 0
    with torch.no_grad():
        theirs, back = (one(src, attention_mask=seg).logits for one in (model, again))
        given = from_weights(loaded.config, loaded.weights).eval()(src, seg)
    assert theirs.std() > 0.05
    torch.testing.assert_close(given, theirs, rtol=0, atol=1e-10)
    torch.testing.assert_close(back, theirs, rtol=0, atol=1e-10)
    said = transformers.pipeline("text-classification", str(tmp_path / "ours"))("the river")
    assert said[0]["label"] in model.config.id2label.values()


def test_an_import_is_checked_against_stock_transformers(tmp_path, capsys):
    saved("DistilBertForMaskedLM", transformers.DistilBertConfig(**CONFIGS["DistilBert"]), tmp_path / "theirs")
    write_vocab(tmp_path / "theirs")
    assert text_beside(tmp_path / "theirs")
    call("scripts/convert_bert_from_huggingface_to_uer.py", "--input_model_path", tmp_path / "theirs",
         "--output_model_path", tmp_path / "ours.bin")
    assert "stock transformers: largest" in capsys.readouterr().out


@pytest.mark.parametrize(("change", "words"), [
    ({"model_type": kind}, f"model_type '{kind}'; an encoder of one of these is needed")
    for kind in ("mpnet", "albert", "deberta-v2", "modernbert", "nomic_bert")] + [
    ({"model_type": "electra", "embedding_size": 16}, "embedding_size 16 beside hidden_size 32")])
def test_what_is_no_bert_is_refused_before_its_weights_are_read(change, words, tmp_path, capsys):
    write_vocab(tmp_path)
    (tmp_path / "text.txt").write_text("the river\n")
    saved("BertModel", transformers.BertConfig(**SIZES), tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**settings, **change}))
    assert words in refused(capsys, tmp_path, "calibrate.py", "--pretrained_model_path", tmp_path, "--corpus_path",
                            tmp_path / "text.txt", "--vocab_path", tmp_path / "vocab.txt", "--target_dim", 16,
                            "--output_model_path", tmp_path / "out.bin")
