"""--compile: one graph per kind of batch and per student, whatever changes from step to step."""

import shutil
from dataclasses import replace

import pytest
import torch
from bench import CONFIG, WID, make_bench, options
from corpora import TOKENS
from test_interruption import build

from uer.errors import UserError
from uer.formats.export import write_uer
from uer.models.bert import from_scratch
from uer.training import compilation
from uer.training.compilation import check_compiler


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """As elsewhere, with a teacher of one layer."""
    folder = make_bench(tmp_path_factory.mktemp("bench"))
    config = replace(CONFIG, layers_num=1)
    (folder / "config.json").write_text(config.to_json())
    write_uer(folder / "teacher.bin", from_scratch(config, len(TOKENS), seed=1).state_dict())
    return folder


class Counting:
    """A backend that runs graphs as they are and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


def assert_close(compiled, plain) -> None:
    """The same weights; but the key's bias, whose gradient is 0: there both follow their own rounding."""
    for (name, ours), (_, theirs) in zip(compiled.learner.named_parameters(), plain.learner.named_parameters()):
        if not name.endswith("self_attn.linear_layers.1.bias"):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4, msg=name)


def test_no_graph_is_made_per_step(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = Counting()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    words = options(bench, *WID, "--no_group_by_length", total_steps=30, w_step=3, batch_size=8, dropout=0)
    compiled, _ = build([*words, "--compile"])
    plain, _ = build(words)
    graphs = []
    for trainer in (compiled, plain):
        stream = trainer.batches.stream()
        trainer.learner.student.train()
        for step in range(1, 10):  # masks change at 3, 6 and 9; every batch has padding
            trainer.step(step, stream, 1.0)
            graphs.append(backend.graphs)
        trainer.squeeze([trainer.learner.groups()["mlm"], trainer.learner.groups()["ffn.0"]], 9, next(stream))
        for step in (10, 11):
            trainer.step(step, stream, 1.0)
            graphs.append(backend.graphs)
        stream.close()
    assert graphs == [1] * 3 + [2] * 6 + [3] * 2 + [3] * 11
    assert_close(compiled, plain)


def test_a_compiler_is_needed(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler on CPUs"):
        check_compiler(torch.device("cpu"))


@pytest.mark.long
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no C++ compiler for inductor")
def test_inductor_trains_as_eager_does(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = options(bench, *WID, total_steps=4, w_step=2, dropout=0)
    compiled, plain = (build([*words, *more])[0] for more in (["--compile"], []))
    compiled.train()
    plain.train()
    assert_close(compiled, plain)
