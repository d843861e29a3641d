"""A plain BERT for masked language modelling, with the parameter names of the published WID code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from uer.config import ModelConfig
from uer.embeddings.word_pos_seg import WordPosSegEmbedding
from uer.encoders.transformer_encoder import TransformerEncoder
from uer.layers.layer_norm import LayerNorm
from uer.sizes import BertSizes
from uer.targets.mlm_target import MlmTarget


class Bert(nn.Module):
    """embedding -> encoder -> target.

    Args:
        sizes: the shapes of the parameters.
        config: everything else: activation, dropout, LayerNorm style, tying.
    """

    def __init__(self, sizes: BertSizes, config: ModelConfig):
        super().__init__()
        self.sizes = sizes
        self.config = config
        norm: dict[str, Any] = {"layernorm": config.layernorm, "layernorm_eps": config.layernorm_eps}
        self.embedding = WordPosSegEmbedding(sizes, dropout=config.dropout, **norm)
        self.encoder = TransformerEncoder(sizes, hidden_act=config.hidden_act, dropout=config.dropout, **norm)
        self.target = MlmTarget(sizes, hidden_act=config.hidden_act, **norm)
        if config.tie_weights:
            self.target.mlm_linear_2.weight = self.embedding.word_embedding.weight

    def forward(self, src: torch.Tensor, seg: torch.Tensor, positions: torch.Tensor | None = None,
                padded: bool = True) -> torch.Tensor:
        """Logits of the positions to predict.

        Args:
            src: token ids, int [batch, seq].
            seg: segment ids, int [batch, seq]; 0 is padding.
            positions: flat indices (row * seq + column), int [n]; None means every position.
            padded: False promises that `seg` has no 0, which spares the attention mask.
        Returns:
            float [n, vocab]
        """
        return self.target(self.hidden_states(src, seg, padded, positions).flatten(0, -2))

    def loss(self, src: torch.Tensor, seg: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor,
             padded: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """`mlm_loss` of these positions without ever holding all their logits; arguments as for `forward`."""
        return self.target.loss(self.hidden_states(src, seg, padded, positions), labels)

    def hidden_states(self, src: torch.Tensor, seg: torch.Tensor, padded: bool = True,
                      positions: torch.Tensor | None = None) -> torch.Tensor:
        """The encoder's output, [batch, seq, hidden] or of some positions [n, hidden]; arguments as for `forward`."""
        mask = (seg > 0)[:, None, None, :] if padded else None  # [batch, 1, 1, seq]
        return self.encoder(self.embedding(src, seg), mask, positions)

    def layer_norms(self, hidden: bool) -> list[LayerNorm]:
        """The LayerNorms of the residual stream (`hidden`), or that of the MLM head."""
        if not hidden:
            return [self.target.layer_norm]
        layers = self.encoder.layers()
        return [self.embedding.layer_norm, *(norm for x in layers for norm in (x.layer_norm_1, x.layer_norm_2))]


def mlm_loss(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy and number of right predictions.

    Args:
        logits: float [n, vocab]
        labels: int [n]
    Returns:
        loss (nats, summed over n; float32 at least), count of labels that have the largest logit; scalars.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, labels, reduction="sum"), (logits.detach().argmax(-1) == labels).sum()


def initialise(model: nn.Module, generator: torch.Generator) -> None:
    """A start from scratch as BERT's: weights from N(0, 0.02²), biases and beta 0, gamma 1."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(1.0)
            elif name.endswith(("beta", "bias")):
                parameter.zero_()
            else:
                parameter.normal_(0.0, 0.02, generator=generator)


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
