"""Targets that have `outputs` numbers for a state or a pooled state: tagging, spans, classes; the states themselves."""

from __future__ import annotations

import torch
from torch import nn

from uer.cpu.dropout import Dropout
from uer.cpu.products import Linear
from uer.layers.position_ffn import ACTIVATIONS
from uer.sizes import BertSizes

NOWHERE = -1e30  # logit of padding


class OutputTarget(nn.Module):
    """output_layer(x). Of `states`, it is the map into the teacher's space (of the teacher itself: the identity)."""

    def __init__(self, sizes: BertSizes):
        super().__init__()
        self.output_layer = Linear(sizes.hidden, sizes.outputs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[.., hidden] -> [.., outputs]"""
        return self.output_layer(hidden)


class ClsTarget(nn.Module):
    """output_layer_2(act(output_layer_1(x))) of a pooled state; BERT's act is tanh."""

    def __init__(self, sizes: BertSizes, dropout: float, act: str = "tanh"):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.dropout = Dropout(dropout)
        self.output_layer_1 = Linear(sizes.hidden, sizes.mlm)
        self.output_layer_2 = Linear(sizes.mlm, sizes.outputs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """[batch, hidden] -> [batch, outputs]"""
        return self.output_layer_2(self.dropout(self.act(self.output_layer_1(hidden))))


def one_by_one(logits: torch.Tensor) -> torch.Tensor:
    """Logits of labels that may hold together, each as a choice against 0: [n, labels] -> [n, labels, 2]"""
    return torch.stack([torch.zeros_like(logits), logits], -1)


def span_logits(logits: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """A reader's logits as a text's tokens compete in them, first starts, then ends; those of padding are no choice.

    Args:
        logits: [batch * seq, 2] or [batch, seq, 2]; real: bool [batch, seq].
    Returns:
        [batch, 2, seq]
    """
    return logits.view(*real.shape, 2).masked_fill(~real[..., None], NOWHERE).transpose(1, 2)
