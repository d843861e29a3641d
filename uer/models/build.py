"""A plain BERT from a config, with or without weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uer.config import ModelConfig
from uer.models.bert import Bert, initialise
from uer.sizes import BertSizes


def sizes_of(config: ModelConfig, vocab_size: int) -> BertSizes:
    """The sizes of a plain BERT with this config."""
    return BertSizes.uniform(vocab=vocab_size, hidden=config.hidden_size, layers=config.layers_num,
                             heads=config.heads_num, feedforward=config.feedforward_size,
                             positions=config.max_seq_length, mlm=config.mlm_size)


def from_scratch(config: ModelConfig, vocab_size: int, seed: int) -> Bert:
    """A BERT with random weights."""
    model = Bert(sizes_of(config, vocab_size), config)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def from_weights(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    """A BERT with copies of these weights (published names), in their dtype and on their device."""
    with torch.device("meta"):
        model = Bert(sizes_of(config, weights["embedding.word_embedding.weight"].shape[0]), config)
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()}, assign=True)
    if config.tie_weights:
        model.target.mlm_linear_2.weight = model.embedding.word_embedding.weight
    return model
