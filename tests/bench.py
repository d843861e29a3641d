"""A folder to train in, pretrain.py's options for it, and what its runs leave behind."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from corpora import TOKENS, random_corpus, write_vocab

from uer.config import ModelConfig, parse_with_config
from uer.data.builder import build_dataset
from uer.data.options import preprocess_parser
from uer.formats.export import write_uer
from uer.models.bert import from_scratch
from uer.opts import pretrain_parser
from uer.pretraining import pretrain

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ModelConfig(hidden_size=32, layers_num=2, heads_num=2, feedforward_size=64, max_seq_length=32)
CALIBRATED = ["--weight_squeeze", "--target_dim", "16", "--compactor_init", "calibrated"]
WID = ["--weight_squeeze", "--target_dim", "16", "--mask_path", "masks.txt", "--learning_rate", "1e-3",
       "--compactor_learning_rate", "1e-3"]


def make_bench(folder: Path) -> Path:
    """A folder with vocabulary, config, teacher, a dynamic and a static dataset; not to be written to."""
    write_vocab(folder)
    (folder / "config.json").write_text(CONFIG.to_json())
    write_uer(folder / "teacher.bin", from_scratch(CONFIG, len(TOKENS), seed=1).state_dict())
    for seed, name, masking in ((1, "dynamic.pt", ["--dynamic_masking"]), (1, "static.pt", ["--dup_factor", "1"]),
                                (2, "dev.pt", ["--dup_factor", "1"])):
        (folder / "corpus.txt").write_text(random_corpus(seed, 60), encoding="utf-8")
        build_dataset(preprocess_parser().parse_args(
            ["--corpus_path", f"{folder}/corpus.txt", "--vocab_path", f"{folder}/vocab.txt", "--dataset_path",
             f"{folder}/{name}", "--seq_length", "32", *masking]))
    return folder


def options(bench: Path, *more, dataset: str = "dynamic.pt", teacher: bool = True, **changed) -> list[str]:
    """A command line of pretrain.py that writes to the current folder."""
    values = {"dataset_path": bench / dataset, "vocab_path": bench / "vocab.txt", "config_path": bench / "config.json",
              "pretrained_model_path": bench / "teacher.bin" if teacher else None, "output_model_path": "model.bin",
              "batch_size": 4, **changed}
    return [str(word) for key, value in values.items() if value is not None for word in (f"--{key}", value)] + [*more]


def run(words: list[str]) -> None:
    pretrain(*parse_with_config(pretrain_parser, words))


def reports(path: Path, kind: str) -> list[dict]:
    """The entries of a kind in a JSON-lines file, or in metrics.jsonl of a folder."""
    lines = (path / "metrics.jsonl" if path.is_dir() else path).read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["kind"] == kind]


def assert_same(left, right) -> None:
    """Equal bit for bit, whatever is nested in there."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, tuple):
        for a, b in zip(left, right, strict=True):
            assert_same(a, b)
    else:
        assert left == right
