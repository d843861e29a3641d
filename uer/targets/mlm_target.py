"""Masked language modelling head."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.products import Linear, linear
from uer.layers.layer_norm import LayerNorm
from uer.layers.position_ffn import ACTIVATIONS
from uer.sizes import BertSizes
from uer.targets.vocabulary_loss import vocabulary_loss


class MlmTarget(nn.Module):
    """mlm_linear_2(LN(act(mlm_linear_1(x)))), for the positions to predict only.

    `projection` [width, mlm], when set, is applied before the vocabulary projection: a table of another width then
    serves without being multiplied out.
    """

    def __init__(self, sizes: BertSizes, *, hidden_act: str, layernorm: str, layernorm_eps: float):
        super().__init__()
        self.mlm_linear_1 = Linear(sizes.hidden, sizes.mlm)
        self.layer_norm = LayerNorm(sizes.mlm, layernorm, layernorm_eps)
        self.mlm_linear_2 = Linear(sizes.mlm, sizes.vocab)
        self.projection: nn.Parameter | None
        self.register_parameter("projection", None)
        self.act = ACTIVATIONS[hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] -> logits [n, vocab]"""
        return self.mlm_linear_2(self._projected(self.features(hidden)))

    def loss(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """hidden [n, hidden], labels int [n] -> summed cross entropy, number of right predictions"""
        decoder = self.mlm_linear_2
        return vocabulary_loss(self._projected(self.features(hidden)), decoder.weight, decoder.bias, labels)

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """The LayerNorm's output: hidden [n, hidden] -> [n, mlm]"""
        return self.layer_norm(self.act(self.mlm_linear_1(hidden)))

    def _projected(self, features: torch.Tensor) -> torch.Tensor:
        return features if self.projection is None else linear(features, self.projection)
