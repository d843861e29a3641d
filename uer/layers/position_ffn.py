"""Position-wise feed-forward network and the activations that configs may name."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from uer.cpu.products import Linear

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu": F.gelu, "gelu_fast": lambda x: F.gelu(x, approximate="tanh"), "relu": F.relu, "silu": F.silu,
    "tanh": torch.tanh}


class PositionwiseFeedForward(nn.Module):
    """linear_2(act(linear_1(x)))"""

    def __init__(self, hidden_size: int, feedforward_size: int, hidden_act: str):
        super().__init__()
        self.linear_1 = Linear(hidden_size, feedforward_size)
        self.linear_2 = Linear(feedforward_size, hidden_size)
        self.act = ACTIVATIONS[hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., hidden] -> [..., hidden]"""
        return self.linear_2(self.act(self.linear_1(x)))
