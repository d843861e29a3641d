"""Model files and configs of this trade as they come: wrapped, with parts that are no BERT's, with others' words."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from commands import call, pretrain_options, refused
from tuning import CONFIG

from uer.config import ModelConfig, config_from_dict, load_config
from uer.errors import UserError
from uer.formats import load_model
from uer.parallel.launch import make_plan

THEIRS = {"model_type": "bert", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
          "intermediate_size": 256, "max_position_embeddings": 64, "layer_norm_eps": "1e-12"}
UER_PY = {"emb_size": 128, "feedforward_size": 256, "hidden_size": 128, "hidden_act": "gelu", "heads_num": 2,
          "layers_num": 2, "max_seq_length": 64, "dropout": 0.1, "data_processor": "bert",
          "embedding": ["word", "pos", "seg"], "encoder": "transformer", "mask": "fully_visible",
          "layernorm_positioning": "post", "layernorm": "normal", "target": ["mlm", "sp"]}


@pytest.fixture(params=["uer", "huggingface"])
def model(request, tuned, tmp_path):
    """A file, and its tensors."""
    if request.param == "uer":
        path = shutil.copy(tuned / "uer.bin", tmp_path / "m.bin")
        shutil.copy(tuned / "uer_config.json", tmp_path / "m_config.json")
        return path, torch.load(path, weights_only=True)
    shutil.copy(tuned / "hf/config.json", tmp_path / "config.json")
    weights = load_model(tuned / "hf", config=None, vocab_size=None)
    from uer.formats.huggingface_names import to_huggingface
    return tmp_path / "m.bin", to_huggingface({**weights.weights, **weights.extras})


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "student.encoder_model.", "_orig_mod.module."])
def test_prefixes_that_all_names_share(model, prefix):
    path, tensors = model
    torch.save(tensors, path)
    wanted = load_model(path, config=None, vocab_size=None).weights
    torch.save({prefix + name: tensor for name, tensor in tensors.items()}, path)
    found = load_model(path, config=None, vocab_size=None).weights
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("name", ["fit_denses.0.weight", "projector.bias", "bert.embeddings.position_ids"])
def test_parts_that_are_no_part_of_the_encoder(tuned, model, name):
    path, tensors = model
    torch.save({**tensors, name: torch.ones(3)}, path)
    loaded = load_model(path, config=None, vocab_size=None, encoder_only=True)
    wanted = load_model(tuned / "uer.bin", config=CONFIG, vocab_size=None, encoder_only=True).weights
    assert loaded.weights.keys() == wanted.keys()
    assert any(name in note for note in loaded.notes) or name.endswith("ids")


@pytest.mark.parametrize("name", ["bert.encoder.layer.0.attention.self.query.lora_A.weight", "adapter.down.weight",
                                  "bert.encoder.layer.0.adapters.x.weight", "bert.embeddings_project.weight",
                                  "bert.encoder.rel_embeddings.weight"])
def test_parts_that_change_what_the_encoder_computes(tuned, tmp_path, name):
    from uer.formats.huggingface_names import to_huggingface
    shutil.copy(tuned / "hf/config.json", tmp_path / "config.json")
    weights = load_model(tuned / "hf", config=None, vocab_size=None).weights
    torch.save({**to_huggingface(weights), name: torch.ones(3)}, tmp_path / "m.bin")
    for encoder_only in (True, False):
        with pytest.raises(UserError, match=f"belong to no BERT, and change what the model computes: {name}"):
            load_model(tmp_path / "m.bin", config=None, vocab_size=None, encoder_only=encoder_only)


def test_an_adapter_alone(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="an adapter alone, not the model that it belongs to"):
        load_model(tmp_path, config=None, vocab_size=None)


# -- configs -----------------------------------------------------------------------------------------------------------


def test_hugging_faces_config_as_config_path(files, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(THEIRS))
    assert load_config(tmp_path / "c.json") == ModelConfig(128, 2, 2, 256, 64, layernorm="huggingface",
                                                           layernorm_eps=1e-12)
    assert load_config(tmp_path / "c.json", {"heads_num": 4}).heads_num == 4
    (tmp_path / "r.json").write_text(json.dumps({**THEIRS, "model_type": "roberta", "pad_token_id": 1}))
    assert load_config(tmp_path / "r.json").max_seq_length == 62
    call("evaluate.py", "--model_path", files / "teacher.bin", "--dataset_path", files / "data.pt", "--config_path",
         tmp_path / "c.json")
    assert "tokens/s" in capsys.readouterr().out
    (tmp_path / "d.json").write_text(json.dumps({**THEIRS, "model_type": "mpnet"}))
    with pytest.raises(UserError, match=r"config .*d\.json: model_type .mpnet.; an encoder of one"):
        load_config(tmp_path / "d.json")


def test_uer_pys_own_config_and_options(files, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps(UER_PY))
    assert load_config(tmp_path / "c.json") == ModelConfig(128, 2, 2, 256, 64)
    words = pretrain_options(files, tmp_path / "m.bin", config_path=tmp_path / "c.json")
    call("pretrain.py", *words)
    assert "note: masked language modelling alone is trained, no sentence prediction" in capsys.readouterr().out
    call("pretrain.py", *words, "--embedding", "word", "pos", "seg", "--encoder", "transformer", "--mask",
         "fully_visible", "--target", "mlm", "--data_processor", "mlm", "--layernorm_positioning", "post")
    assert "note: masked language" not in capsys.readouterr().out


@pytest.mark.parametrize(("key", "value"), [
    ("encoder", "lstm"), ("mask", "causal"), ("layernorm_positioning", "pre"), ("parameter_sharing", True),
    ("factorized_embedding_parameterization", True), ("feed_forward", "gated"), ("target", ["sp"]),
    ("relative_position_embedding", True), ("remove_embedding_layernorm", True),
    ("embedding", ["word", "sinusoidalpos"]), ("target", "lm"), ("layernorm", "t5")])
def test_uer_pys_other_models(tmp_path, key, value):
    (tmp_path / "c.json").write_text(json.dumps({**UER_PY, key: value}))
    with pytest.raises(UserError, match=f"config .*: {key} "):
        load_config(tmp_path / "c.json")


@pytest.mark.parametrize("script", ["preprocess.py", "pretrain.py", "calibrate.py", "evaluate.py", "convert.py",
                                    "finetune/run_classifier.py", "finetune/run_squad.py", "finetune/run_glue.py",
                                    "inference/run_classifier_infer.py",
                                    "scripts/convert_bert_from_huggingface_to_uer.py",
                                    "scripts/convert_bert_from_uer_to_huggingface.py"])
def test_every_script_takes_uers_words(script, capsys):
    words = ["--embedding", "word_pos_seg", "--encoder", "transformer", "--mask", "fully_visible", "--target", "mlm"]
    with pytest.raises(SystemExit) as end:
        call(script, *words, "--help")
    assert end.value.code == 0
    with pytest.raises(SystemExit):
        call(script, *words, "--encoder", "lstm")
    assert "argument --encoder: invalid choice: 'lstm'" in capsys.readouterr().err


# -- launchers ---------------------------------------------------------------------------------------------------------


def plan(monkeypatch, gpus: int, environment: dict[str, str], *words: str):
    from uer.opts import pretrain_parser

    for name in ("SLURM_PROCID", "TORCHELASTIC_RUN_ID", "CUDA_VISIBLE_DEVICES", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    ranks = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_PORT": "29500"}
    for name, value in {**ranks, **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    return make_plan(pretrain_parser().parse_args(list(words)))


@pytest.mark.parametrize("environment", [{"SLURM_PROCID": "3"}, {"CUDA_VISIBLE_DEVICES": "3"}])
def test_one_visible_gpu_for_each_process(monkeypatch, environment):
    local = {"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    found = plan(monkeypatch, 1, {**environment, **local})
    assert (found.ranks, found.local) == ([3], 0)
    assert plan(monkeypatch, 4, {**environment, **local}).local == 3
    with pytest.raises(UserError, match="asks for 4 processes on this machine but this machine shows 1 GPU"):
        plan(monkeypatch, 1, {**environment, **local, "TORCHELASTIC_RUN_ID": "x"})


@pytest.mark.parametrize("word", ["--local_rank=1", "--local-rank=1"])
def test_the_local_rank_of_torch_distributed_launch(monkeypatch, word):
    assert plan(monkeypatch, 4, {}, word).local == 1
    assert plan(monkeypatch, 4, {"LOCAL_RANK": "2"}, word).local == 2
    assert plan(monkeypatch, 4, {}).local == 3


def test_a_message_names_the_config(files, tmp_path, capsys):
    (tmp_path / "c.json").write_text(json.dumps({**UER_PY, "encoder": "lstm"}))
    message = refused(capsys, tmp_path, "pretrain.py", *pretrain_options(files, tmp_path / "m.bin",
                                                                         config_path=tmp_path / "c.json"))
    assert "c.json: encoder is 'lstm'; BERT's is 'transformer'" in message


@pytest.mark.parametrize(("script", "named"), [("evaluate.py", False), ("pretrain.py", True)])
def test_a_hint_names_an_option_only_where_the_script_has_it(files, tmp_path, capsys, script, named):
    weights = torch.load(files / "teacher.bin", weights_only=True)
    torch.save({name: tensor for name, tensor in weights.items() if not name.startswith("target.")}, tmp_path / "t.bin")
    words = {"evaluate.py": ["--model_path", tmp_path / "t.bin", "--config_path", files / "config.json",
                             "--dataset_path", files / "data.pt"],
             "pretrain.py": pretrain_options(files, tmp_path / "m.bin", "--target", "mlm",
                                             pretrained_model_path=tmp_path / "t.bin")}
    message = refused(capsys, tmp_path, script, *words[script])
    assert "It has no MLM head" in message and ("--allow_missing_head" in message) is named


def test_a_damaged_number_of_layers_is_told_at_once():
    sizes = {"hidden_size": 16, "heads_num": 2, "feedforward_size": 32}
    for layers in (2**31, 10**30):
        with pytest.raises(UserError, match=f"here: layers_num is {layers}, at most 10,000 are possible"):
            config_from_dict({**sizes, "layers_num": layers}, "here")
