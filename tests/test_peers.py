"""The other ways to distil that the experiments compare with."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call, write_teacher
from corpora import random_corpus, write_vocab

from experiments.peers import (
    DistilBert,
    TinyBert,
    every_second_layer,
    unmasked,
)
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.models.bert import from_scratch, from_weights

WIDE, NARROW = ModelConfig(96, 2, 4, 48, 16, dropout=0.0), ModelConfig(48, 2, 4, 24, 16, dropout=0.0)


def batch(*lengths: int) -> MlmBatch:
    """Instances of these lengths, padded to 10; of each the second token is masked (4)."""
    src = torch.randint(5, 50, (len(lengths), 10), generator=torch.Generator().manual_seed(0))
    seg = (torch.arange(10) < torch.tensor(lengths)[:, None]).long()
    positions = torch.arange(len(lengths)) * 10 + 1
    labels = src.flatten()[positions]
    return MlmBatch((src * seg).flatten().index_fill(0, positions, 4).view_as(src), seg, positions, labels,
                    sum(lengths))


def model(config: ModelConfig, seed: int):
    made = from_scratch(config, 50, seed).double()
    for parameter in made.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)))
    return made


def test_tinybert_vanishes_where_the_maps_give_the_teacher_and_ignores_padding():
    teacher, data = model(WIDE, 1), batch(10, 6)
    assert (unmasked(data)[:, 1] == data.labels).all() and (unmasked(data) != data.src).sum() == 2
    peer = TinyBert(teacher, WIDE)
    for linear in peer.maps.values():
        torch.nn.init.eye_(linear.double().weight)
        torch.nn.init.zeros_(linear.bias)
    twin = from_weights(WIDE, teacher.state_dict())
    assert peer.loss(twin, data).item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        peer.maps["embedding"].bias.fill_(0.5)
    assert peer.loss(twin, data).item() == pytest.approx(0.25)  # of the embeddings; the hidden states have another map
    other = MlmBatch(data.src + 3 * (1 - data.seg), data.seg, data.positions, data.labels, data.tokens)
    torch.testing.assert_close(peer.loss(model(WIDE, 2), other), peer.loss(model(WIDE, 2), data))


def test_distilbert_starts_from_every_second_layer_and_weighs_its_losses():
    teacher, data = model(WIDE, 1), batch(10, 6)
    weights, config = every_second_layer(dict(teacher.state_dict()), WIDE)
    assert config.layers_num == 1
    student = from_weights(config, weights)
    kept = "encoder.transformer.0.feed_forward.linear_1.weight"
    torch.testing.assert_close(student.state_dict()[kept], teacher.state_dict()[kept])
    twin = from_weights(WIDE, teacher.state_dict())
    loss, report = DistilBert(teacher, WIDE)(twin, data)
    assert loss.item() == pytest.approx(2 * report[0].item())  # like the teacher: the MLM loss alone is left
    assert DistilBert(teacher, WIDE)(student, data)[0].item() > 2 * DistilBert(teacher, WIDE)(student, data)[1][0]


def test_a_run_that_went_on_equals_one_that_was_not_interrupted(tmp_path):
    write_vocab(tmp_path)
    (tmp_path / "corpus.txt").write_text(random_corpus(1, 30), encoding="utf-8")
    (tmp_path / "config.json").write_text(NARROW.to_json())
    teacher = ModelConfig(96, 2, 4, 48, 32)
    write_teacher(tmp_path / "teacher.bin", teacher)
    (tmp_path / "teacher_config.json").write_text(teacher.to_json())
    (tmp_path / "config.json").write_text(ModelConfig(48, 2, 4, 24, 32).to_json())
    call("preprocess.py", "--corpus_path", tmp_path / "corpus.txt", "--vocab_path", tmp_path / "vocab.txt",
         "--dataset_path", tmp_path / "data.pt", "--dynamic_masking", "--seq_length", "32")
    students = []
    for name, ends in (("whole", (4,)), ("parts", (2, 4))):
        for number, end in enumerate(ends):
            call("experiments/peers.py", "--objective", "tinybert", "--teacher_path", tmp_path / "teacher.bin",
                 "--config_path", tmp_path / "config.json", "--dataset_path", tmp_path / "data.pt", "--vocab_path",
                 tmp_path / "vocab.txt", "--batch_size", 4, "--learning_rate", 1e-3, "--scheduler", "constant",
                 "--total_steps", end, "--output_model_path", tmp_path / name, "--student_path",
                 tmp_path / f"{name}.bin", *(["--resume"] if number else []))
        students.append(torch.load(tmp_path / f"{name}.bin", weights_only=True))
    assert all(torch.equal(x, students[1][name]) for name, x in students[0].items())
    assert not any(name.startswith("maps.") for name in students[0])
    assert json.loads((tmp_path / "whole_config.json").read_text())["hidden_size"] == 48
    call("experiments/peers.py", "--objective", "tinybert", "--teacher_path", tmp_path / "teacher.bin",
         "--pretrained_model_path", tmp_path / "whole.bin", "--dataset_path", tmp_path / "data.pt", "--vocab_path",
         tmp_path / "vocab.txt", "--batch_size", 4, "--learning_rate", 1e-3, "--total_steps", 1, "--output_model_path",
         tmp_path / "on", "--student_path", tmp_path / "on.bin")  # from weights that are there
