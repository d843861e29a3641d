"""A plain BERT with its target, with the parameter names of the published WID code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from uer.config import ModelConfig
from uer.cpu.padding import real_tokens
from uer.embeddings.word_pos_seg import WordPosSegEmbedding
from uer.encoders.transformer_encoder import TransformerEncoder
from uer.sizes import BertSizes
from uer.targets.mlm_target import MlmTarget
from uer.targets.output_target import ClsTarget, OutputTarget
from uer.targets.pooling import pool, position_of

SEGMENTS = 3  # rows of UER's table


class Bert(nn.Module):
    """embedding -> encoder -> target.

    Args:
        sizes: the shapes of the parameters.
        config: everything else: activation, dropout, LayerNorm style, tying, target and pooling.
    """

    def __init__(self, sizes: BertSizes, config: ModelConfig):
        super().__init__()
        self.sizes = sizes
        self.config = config
        norm: dict[str, Any] = {"layernorm": config.layernorm, "layernorm_eps": config.layernorm_eps}
        self.embedding = WordPosSegEmbedding(sizes, dropout=config.dropout, **norm)
        self.encoder = TransformerEncoder(sizes, hidden_act=config.hidden_act, dropout=config.dropout, **norm)
        self.target: MlmTarget | ClsTarget | OutputTarget
        if config.target == "mlm":
            self.target = MlmTarget(sizes, hidden_act=config.hidden_act, **norm)
            if config.tie_weights:
                self.target.mlm_linear_2.weight = self.embedding.word_embedding.weight
        else:
            self.target = ClsTarget(sizes, config.dropout, config.cls_act) if config.target == "cls" else \
                OutputTarget(sizes)

    def forward(self, src: torch.Tensor, seg: torch.Tensor, positions: torch.Tensor | None = None,
                padded: bool = True) -> torch.Tensor:
        """What the target says of the positions to predict; of a text, where it is `cls`.

        Args:
            src: token ids, int [batch, seq].
            seg: segment ids, int [batch, seq]; 0 is padding.
            positions: flat indices (row * seq + column), int [n]; None means every position.
            padded: False promises that `seg` has no 0, which spares the attention mask.
        Returns:
            float [n, vocab], [n, outputs] or (cls) [batch, outputs]
        """
        if self.config.target == "cls":
            return self.target(self.pooled(src, seg, padded))
        return self.target(self.hidden_states(src, seg, padded, positions).flatten(0, -2))

    def loss(self, src: torch.Tensor, seg: torch.Tensor, positions: torch.Tensor, labels: torch.Tensor,
             padded: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
        """`mlm_loss` of these positions without ever holding all their logits; arguments as for `forward`."""
        assert isinstance(self.target, MlmTarget)
        return self.target.loss(self.hidden_states(src, seg, padded, positions), labels)

    def pooled(self, src: torch.Tensor, seg: torch.Tensor, padded: bool = True) -> torch.Tensor:
        """The states pooled as the config says, [batch, hidden]; arguments as for `forward`."""
        positions = position_of(seg, self.config.pooling)
        hidden = self.hidden_states(src, seg, padded, positions)
        return pool(hidden, seg, self.config.pooling) if positions is None else hidden

    def hidden_states(self, src: torch.Tensor, seg: torch.Tensor, padded: bool = True,
                      positions: torch.Tensor | None = None) -> torch.Tensor:
        """The encoder's output, [batch, seq, hidden] or of some positions [n, hidden]; arguments as for `forward`. It
        means nothing where padding is."""
        return self.encode(src, seg, padded, positions)[1]

    def encode(self, src: torch.Tensor, seg: torch.Tensor, padded: bool = True,
               positions: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """What the last layer is given, [batch, seq, hidden], and `hidden_states`; arguments as for `forward`; they
        mean nothing where padding is."""
        mask = (seg > 0)[:, None, None, :] if padded else None  # [batch, 1, 1, seq]
        real = real_tokens(seg, positions) if padded else None
        hidden = self.embedding(src, seg)
        given = self.encoder.below(hidden if real is None else real.pack(hidden), mask, real)
        states = self.encoder.layers()[-1](given, mask, positions, real)
        if real is None:
            return given, states
        return real.unpack(given), states if positions is not None else real.unpack(states)


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


def sizes_of(config: ModelConfig, vocab: int, positions: int | None = None, segments: int = SEGMENTS) -> BertSizes:
    """The sizes of a plain BERT with this config and tables of these many rows (default: the config's positions)."""
    rows = config.max_seq_length if positions is None else positions
    return BertSizes(vocab, rows, segments, config.hidden_size, config.layers, config.mlm_width, config.outputs)


def from_scratch(config: ModelConfig, vocab_size: int, seed: int) -> Bert:
    """A BERT with random weights."""
    model = Bert(sizes_of(config, vocab_size), config)
    initialise(model, torch.Generator().manual_seed(seed))
    return model


def from_weights(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    """A BERT with copies of these weights (published names), in their dtype and on their device; its tables are as long
    as theirs."""
    tables = (len(weights[f"embedding.{table}_embedding.weight"]) for table in ("word", "position", "segment"))
    with torch.device("meta"):
        model = Bert(sizes_of(config, *tables), config)
    model.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()}, assign=True)
    if isinstance(model.target, MlmTarget) and config.tie_weights:
        model.target.mlm_linear_2.weight = model.embedding.word_embedding.weight
    return model
