"""A BERT encoder with a head: a classifier as UER files hold it, or one that finds spans of text.

    pooled = mean | max | first | last of the hidden states      pooler: first, and output_layer_1 is the model's own
    logits = output_layer_2(tanh(output_layer_1(pooled)))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from uer.config import ModelConfig, config_from_dict, load_config
from uer.cpu.dropout import Dropout
from uer.cpu.products import Linear
from uer.embeddings.word_pos_seg import WordPosSegEmbedding
from uer.encoders.transformer_encoder import TransformerEncoder
from uer.errors import UserError
from uer.files import read_object
from uer.finetuning.options import POOLINGS
from uer.formats import LoadedModel, load_model, shapes
from uer.formats.storage import PendingFiles, read_tensors, save_state_dict, shortened, write_json
from uer.formats.uer_names import to_published
from uer.sizes import BertSizes
from uer.targets.pooling import pool, position_of

INIT_STD = 0.02
HEADS = ("output_layer_1.", "output_layer_2.", "output_layer.")
FORMAT = 1


class Encoder(nn.Module):
    """embedding -> encoder, without a head for masked language modelling."""

    def __init__(self, sizes: BertSizes, config: ModelConfig):
        super().__init__()
        norm: dict[str, Any] = {"layernorm": config.layernorm, "layernorm_eps": config.layernorm_eps}
        self.embedding = WordPosSegEmbedding(sizes, dropout=config.dropout, **norm)
        self.encoder = TransformerEncoder(sizes, hidden_act=config.hidden_act, dropout=config.dropout, **norm)

    def hidden_states(self, src: torch.Tensor, seg: torch.Tensor,
                      positions: torch.Tensor | None = None) -> torch.Tensor:
        """src, seg int [batch, seq], seg 0 is padding -> [batch, seq, hidden], or [n, hidden] of flat positions [n]"""
        return self.encoder(self.embedding(src, seg), (seg > 0)[:, None, None, :], positions)


class Classifier(Encoder):
    """A class (or a score) for every instance.

    Args:
        outputs: numbers per instance.
        pooling: one of `POOLINGS`.
    """

    def __init__(self, sizes: BertSizes, config: ModelConfig, outputs: int, pooling: str):
        super().__init__(sizes, config)
        assert pooling in POOLINGS
        self.pooling = pooling
        self.dropout = Dropout(config.dropout)
        self.output_layer_1 = Linear(sizes.hidden, sizes.mlm)
        self.output_layer_2 = Linear(sizes.mlm, outputs)

    def forward(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """src, seg int [batch, seq] -> [batch, outputs]"""
        positions = position_of(seg, self.pooling)
        hidden = self.hidden_states(src, seg, positions)
        pooled = pool(hidden, seg, self.pooling) if positions is None else hidden
        return self.output_layer_2(self.dropout(torch.tanh(self.output_layer_1(pooled))))


class SpanFinder(Encoder):
    """A start and an end logit for every token."""

    def __init__(self, sizes: BertSizes, config: ModelConfig):
        super().__init__(sizes, config)
        self.output_layer = Linear(sizes.hidden, 2)

    def forward(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """src, seg int [batch, seq] -> [batch, seq, 2]"""
        return self.output_layer(self.hidden_states(src, seg))


# -- from a pretrained model -------------------------------------------------------------------------------------------


def load_encoder(path: str, config_path: str | None, vocab_size: int | None = None,
                 dropout: float | None = None) -> LoadedModel:
    """A BERT of any format, with or without MLM head, for fine-tuning; raises `UserError` like `load_model`."""
    loaded = load_model(path, config=load_config(config_path) if config_path else None, vocab_size=vocab_size,
                        encoder_only=True)
    if dropout is not None:
        loaded.config = replace(loaded.config, dropout=float(dropout))
    return loaded


def check_words(loaded: LoadedModel, path: str, vocab_size: int) -> None:
    """`UserError` where a vocabulary is larger than the model's table; a note where it is smaller."""
    wrong = shapes.disagreements(loaded.config, loaded.weights, vocab_size)
    if wrong:
        raise UserError(f"model {path}: " + "; ".join(wrong))
    loaded.notes += shapes.spare_words(loaded.weights, vocab_size)


def _sizes(weights: Mapping[str, torch.Tensor], config: ModelConfig) -> BertSizes:
    return shapes.sizes_of(config, **shapes.table_sizes(weights))


def build_classifier(loaded: LoadedModel, outputs: int, pooling: str, seed: int) -> Classifier:
    """A classifier on a pretrained encoder; the head is new, but for the model's own pooler under pooling `pooler`.

    Raises:
        UserError: `pooler`, and the model has none.
    """
    model = Classifier(_sizes(loaded.weights, loaded.config), loaded.config, outputs, pooling)
    weights = dict(loaded.weights)
    if pooling == "pooler":
        check_pooler(loaded)
        for part, name in zip(("weight", "bias"), shapes.POOLER):
            weights[f"output_layer_1.{part}"] = loaded.extras[name]
    _fill(model, weights, seed)
    return model


def check_pooler(loaded: LoadedModel) -> None:
    """`UserError` where a model has no pooler, or none that fits it."""
    if not all(name in loaded.extras for name in shapes.POOLER):
        raise UserError("--pooling pooler: the model has no pooler; take first (with a new layer), mean, max or last")
    size = loaded.config.hidden_size
    found = [list(loaded.extras[name].shape) for name in shapes.POOLER]
    if found != [[size, size], [size]]:
        raise UserError(f"--pooling pooler: the model's pooler is {found[0]} instead of {[size, size]}")


def build_span_finder(loaded: LoadedModel, seed: int) -> SpanFinder:
    """A span finder with a new head on a pretrained encoder."""
    model = SpanFinder(_sizes(loaded.weights, loaded.config), loaded.config)
    _fill(model, loaded.weights, seed)
    return model


def _fill(model: nn.Module, weights: Mapping[str, torch.Tensor], seed: int) -> None:
    """Take over `weights`; everything else is the head, which starts as BERT's: N(0, 0.02²), biases 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
                continue
            assert name.startswith(HEADS), name
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, INIT_STD, generator=generator)


# -- files -------------------------------------------------------------------------------------------------------------


def save_tuned(path: str, weights: Mapping[str, torch.Tensor], card: dict[str, Any]) -> None:
    """Write a fine-tuned model and, as `<path>.json`, what it is; both or neither.

    Args:
        weights: names as in the modules above.
        card: with the keys of `ModelConfig.to_dict()` under `config`.
    """
    with PendingFiles() as pending:
        write_json({"format": FORMAT, **card}, pending.add(f"{path}.json"))
        save_state_dict(weights, pending.add(path))
        pending.publish()


def read_card(path: str) -> dict[str, Any]:
    """What is beside a fine-tuned model ({} for a file of UER's own)."""
    beside = Path(f"{path}.json")
    card = read_object(beside) if beside.is_file() else {}
    right = {"config": lambda value: isinstance(value, dict), "seq_length": lambda value: isinstance(value, int),
             "pairs": lambda value: isinstance(value, bool),
             "pooling": lambda value: value in list(POOLINGS),
             "labels": lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value)}
    wrong = [f"{key} {card[key]!r}" for key, check in right.items() if key in card and not check(card[key])]
    if wrong:
        raise UserError(f"{beside}: not what is beside a fine-tuned model: {'; '.join(wrong)}")
    return card


def load_classifier(path: str, card: dict[str, Any], config_path: str | None, outputs: int | None,
                    pooling: str | None, vocab_size: int) -> Classifier:
    """A classifier of run_classifier.py or of UER's.

    Args:
        card: from `read_card`.
        outputs, pooling: as given by the user; None: taken from the card.
    Raises:
        UserError: a file that is no classifier, or options that contradict it.
    """
    weights = to_published(read_tensors(path))
    if "config" in card:
        config = config_from_dict(card["config"], f"config {path}.json")
    elif config_path:
        config = load_config(config_path)
    else:
        raise UserError(f"model {path}: there is no {Path(path).name}.json beside it, so --config_path is needed")
    if "output_layer_2.weight" not in weights:
        raise UserError(f"model {path}: no classifier (output_layer_2 is not in it); run_classifier.py makes one of a "
                        f"pretrained model")
    weights = {name: tensor.float() for name, tensor in weights.items() if not name.startswith("target.")}
    found = {"--labels_num": (outputs, len(weights["output_layer_2.weight"])),
             "--pooling": (pooling, card.get("pooling", pooling or "first"))}
    problems = [f"{name} is {given}, the model has {there}" for name, (given, there) in found.items()
                if given not in (None, there)]
    problems += shapes.disagreements(config, weights, vocab_size)
    if problems:
        raise UserError(f"model {path}: " + "; ".join(problems))
    absent = [name for name in (shapes.WORDS, shapes.POSITIONS, shapes.SEGMENTS) if name not in weights]
    if absent:
        raise UserError(f"model {path}: missing: {shortened(absent)}")
    config = replace(config, mlm_size=len(weights.get("output_layer_1.bias", ())) or None)  # the width inside its head
    model = Classifier(_sizes(weights, config), config, found["--labels_num"][1], found["--pooling"][1])
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise UserError(f"model {path}: no classifier of this config ({error})") from None
    return model
