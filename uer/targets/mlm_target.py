"""Masked language modelling head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from uer.layers.layer_norm import LayerNorm
from uer.layers.position_ffn import ACTIVATIONS
from uer.models.sizes import BertSizes


class MlmTarget(nn.Module):
    """mlm_linear_2(LN(act(mlm_linear_1(x)))), for the positions to predict only.

    `projection` [width, mlm], when set, is applied before the vocabulary projection: a table of another width then
    serves without being multiplied out.
    """

    def __init__(self, sizes: BertSizes, *, hidden_act: str, layernorm: str, layernorm_eps: float):
        super().__init__()
        self.mlm_linear_1 = nn.Linear(sizes.hidden, sizes.mlm)
        self.layer_norm = LayerNorm(sizes.mlm, layernorm, layernorm_eps)
        self.mlm_linear_2 = nn.Linear(sizes.mlm, sizes.vocab)
        self.projection: nn.Parameter | None
        self.register_parameter("projection", None)
        self.act = ACTIVATIONS[hidden_act]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [n, hidden] -> logits [n, vocab]"""
        features = self.features(hidden)
        if self.projection is not None:
            features = F.linear(features, self.projection)
        return self.mlm_linear_2(features)

    def features(self, hidden: torch.Tensor) -> torch.Tensor:
        """What the vocabulary projection sees: hidden [n, hidden] -> [n, mlm]"""
        return self.layer_norm(self.act(self.mlm_linear_1(hidden)))
