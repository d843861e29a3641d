"""Classifiers of DistilBERT (relu) and ELECTRA (gelu), through the squeeze and out as what they are."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from commands import TEACHER, call, pretrain_options, refused
from corpora import TOKENS, described
from safetensors.torch import load_file
from test_calibration import batches
from test_targets import headed, said

from uer.calibration.student import apply_calibration, calibrate
from uer.conversion.merge import merge
from uer.finetuning.heads import load_classifier, read_card
from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.models.bert import from_scratch
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master

ACTS = {"relu": (F.relu, "distilbert"), "gelu": (F.gelu, "electra")}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("width", [24, 12])
def test_the_activation_is_in_the_teacher_the_composition_and_the_student(act, width):
    config, weights = headed("cls", "first", 3)
    config = replace(config, cls_act=act)
    x = batches(1, seed=99)[0]
    state = replace(config, target="states", cls_act="tanh"), {name: tensor for name, tensor in weights.items()
                                                               if not name.startswith("target.")}
    eye = {"target.output_layer.weight": torch.eye(24).double(), "target.output_layer.bias": torch.zeros(24).double()}
    first = said(replace(state[0], outputs=24), state[1] | eye, x.src, x.seg)
    inner = ACTS[act][0](F.linear(first, *(weights[f"target.output_layer_1.{part}"] for part in ("weight", "bias"))))
    wanted = F.linear(inner, *(weights[f"target.output_layer_2.{part}"] for part in ("weight", "bias")))
    torch.testing.assert_close(said(config, weights, x.src, x.seg), wanted, rtol=0, atol=1e-12)
    groups = build_groups(config, width, "dim")
    calibration = calibrate(config, weights, groups, batches(20))
    merged = merge(Master(config, apply_calibration(calibration, weights, groups), groups))  # compares, too
    assert merged.report.agrees and merged.config.cls_act == act
    given = said(merged.config, merged.weights, x.src, x.seg)
    if width == 24:
        torch.testing.assert_close(given, wanted, rtol=0, atol=1e-9)
    else:
        assert (given - wanted).pow(2).mean() < (wanted - wanted.mean(0)).pow(2).mean()


@pytest.mark.parametrize("act", ACTS)
def test_a_folder_of_its_family_and_back(act, tmp_path, files):
    config = replace(TEACHER, target="cls", pooling="first", outputs=2, labels=("bad", "good"), cls_act=act,
                     layernorm="huggingface", layernorm_eps=1e-12)
    weights = {name: tensor.double() for name, tensor in from_scratch(config, len(TOKENS), 3).state_dict().items()}
    write_huggingface(tmp_path / "out", config, weights, text=described(files / "vocab.txt"))
    family, settings = ACTS[act][1], json.loads((tmp_path / "out/config.json").read_text())
    assert settings["model_type"] == family
    assert settings["architectures"][0].lower() == f"{family}forsequenceclassification"
    names = load_file(tmp_path / "out/model.safetensors")
    assert all(name.startswith((f"{family}.", "pre_classifier.", "classifier.")) for name in names)
    inputs = json.loads((tmp_path / "out/tokenizer_config.json").read_text()).get("model_input_names")
    assert inputs == (["input_ids", "attention_mask"] if act == "relu" else None)
    again = load_model(tmp_path / "out", config=None, vocab_size=len(TOKENS), target=None)
    assert (again.config.cls_act, again.config.labels, again.notes) == (act, ("bad", "good"), [])
    x = torch.randint(5, len(TOKENS), (3, 15), generator=torch.Generator().manual_seed(2))
    one = torch.ones_like(x)
    wanted = said(config, weights, x, one)
    torch.testing.assert_close(said(again.config, again.weights, x, one), wanted, rtol=0, atol=1e-6)
    encoder = load_model(tmp_path / "out", config=None, vocab_size=len(TOKENS), target="states")
    assert encoder.config.cls_act == "tanh" and "classifier" in " ".join(encoder.notes)


@pytest.mark.parametrize("act", ACTS)
def test_the_scripts_take_one_and_give_one(act, files, tmp_path, capsys):
    config = replace(TEACHER, target="cls", pooling="first", outputs=2, labels=("bad", "good"), cls_act=act)
    teacher = tmp_path / "teacher"
    write_huggingface(teacher, replace(config, layernorm="huggingface", layernorm_eps=1e-12), dict(from_scratch(
        config, len(TOKENS), 3).state_dict()), text=described(files / "vocab.txt"))
    call("pretrain.py", *pretrain_options(files, tmp_path / "stage1", pretrained_model_path=teacher, config_path=None),
         "--target_dim", 64, "--weight_squeeze", "--compactor_init", "calibrated", "--target", "logits", "--train",
         "compactors")
    call("convert.py", "--load_model_path", tmp_path / "stage1-2", "--vocab_path", files / "vocab.txt",
         "--output_model_path", tmp_path / "student.bin", "--output_format", "uer", "huggingface")
    assert ("a second text is read there as the first" in capsys.readouterr().out) == (act == "relu")
    for student in (tmp_path / "student.bin", tmp_path / "student"):
        loaded = load_model(student, config=None, vocab_size=len(TOKENS), target=None)
        assert loaded.config.cls_act == act and loaded.config.hidden_size == 64
    asked = load_classifier(str(tmp_path / "student.bin"), read_card(str(tmp_path / "student.bin")), None, None, None,
                            len(TOKENS)).eval()
    assert asked.config.cls_act == act and asked.config.pooling == "first"
    (tmp_path / "texts.txt").write_text("the river\nnew cafe\nrunning low\n")
    capsys.readouterr()
    call("evaluate.py", "--task", "agreement", "--model_path", tmp_path / "student", "--teacher_path", teacher,
         "--test_path", tmp_path / "texts.txt")
    assert "equal predictions" in capsys.readouterr().out
    said = refused(capsys, tmp_path, "convert.py", "--load_model_path", tmp_path / "student.bin", "--output_model_path",
                   tmp_path / "other.bin", "--output_format", "uer-py")
    assert f"have tanh between their linears, this one {act}" in said
