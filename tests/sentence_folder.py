"""A folder of sentence-transformers with a random encoder, as the project itself writes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from corpora import TOKENS, described, write_vocab
from test_targets import encoder_file

from uer.formats import load_model
from uer.formats.export import write_huggingface
from uer.formats.sentence import SentenceFacts, write_sentence_files

TEXTS = ["the river", "new cafe running low", "a b c . the unwanted", "un"]
FACTS = SentenceFacts("mean", True, 24, {"query": "the "}, None, "cosine")


def make_encoder(folder: Path) -> Path:
    """Such a folder, with a vocabulary beside it."""
    vocab, (path, _) = write_vocab(folder), encoder_file(folder, pooling="mean", dropout=0.0)
    loaded = load_model(path, config=None, vocab_size=len(TOKENS), target=None)
    weights = {name: tensor * (6 if tensor.dim() == 2 and "output" not in name else 1)
               for name, tensor in loaded.weights.items()}
    write_huggingface(folder / "teacher", loaded.config, weights, text=described(vocab))
    write_sentence_files(folder / "teacher", FACTS, 128, 64)
    return folder / "teacher"


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def batch(vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and segments, [3, 15]: one text, a pair, and one with padding."""
    src = torch.randint(5, vocab, (3, 15), generator=torch.Generator().manual_seed(2))
    seg = torch.ones_like(src)
    seg[1, 6:] = 2
    seg[2, 9:] = 0
    return src, seg
