"""Vocabulary projection and cross entropy in one, some rows at a time.

    loss = Σ over rows   log Σ exp(W f + b) − (W f + b)[label]          d loss / d logits = softmax − onehot(label)

The logits are the largest tensor of a step (rows × vocabulary). Here only a slice of them exists at a time, and the
gradients are taken while it is there; the backward pass only scales them.
"""

from __future__ import annotations

import torch

SLICE = {"cpu": 1 << 25}  # logits at a time: few slices, as the products read the whole table for each, in 268 MB
SLICE_ELSEWHERE = 1 << 28


def vocabulary_loss(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
                    labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy and number of right predictions. Products run in autocast's dtype where that is on.

    Args:
        features: float [n, size]
        weight, bias: float [vocab, size], [vocab]
        labels: int [n]
    Returns:
        loss (nats, summed over n; float32 at least), count of labels that have the largest logit; scalars.
    """
    device = features.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else features.dtype
    with torch.autocast(device, enabled=False):
        return _VocabularyLoss.apply(features.to(dtype), weight, bias, labels, torch.is_grad_enabled())


class _VocabularyLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor,
                training: bool) -> tuple[torch.Tensor, torch.Tensor]:
        table = weight.to(features.dtype)
        full = torch.promote_types(features.dtype, torch.float32)
        loss = torch.zeros((), dtype=full, device=features.device)
        correct = torch.zeros((), dtype=torch.long, device=features.device)
        gradients = _Gradients(features, table, full) if training else None
        slices = -(-len(features) * len(table) // SLICE.get(features.device.type, SLICE_ELSEWHERE))
        rows = -(-len(features) // max(1, slices))  # slices of one size
        room = table.new_empty(rows, len(table))
        probabilities = room.new_empty(room.shape, dtype=full)
        for start in range(0, len(features), max(1, rows)):
            part = slice(start, start + rows)
            label = labels[part, None]
            logits = torch.mm(features[part], table.t(), out=room[: len(label)]).to(full).add_(bias)
            (largest, chosen), wanted = logits.max(1, keepdim=True), logits.gather(1, label)
            p = torch.softmax(logits, 1, out=probabilities[: len(label)])
            correct += (chosen == label).sum()
            loss += (largest - wanted - p.gather(1, chosen).log()).sum()  # log Σ exp = largest − log its probability
            if gradients is not None:
                gradients.add(part, p.scatter_add_(1, label, p.new_full(label.shape, -1.0)))
        if gradients is not None:
            ctx.save_for_backward(gradients.features, gradients.weight.to(weight.dtype), gradients.bias.to(bias.dtype))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, scale: torch.Tensor, _: torch.Tensor):
        features, weight, bias = ctx.saved_tensors  # their gradients
        return features * scale.to(features.dtype), weight.mul_(scale), bias * scale, None, None


class _Gradients:
    """The gradients of features [n, size], weight and bias, gathered from slices of d loss / d logits."""

    def __init__(self, features: torch.Tensor, table: torch.Tensor, full: torch.dtype):
        self.inputs, self.table = features, table
        self.features = torch.empty_like(features)
        self.weight = torch.zeros_like(table, dtype=full)
        self.bias = torch.zeros(len(table), dtype=full, device=table.device)

    def add(self, part: slice, logits: torch.Tensor) -> None:
        """logits: d loss / d logits of the rows `part`, [rows, vocab]."""
        self.bias += logits.sum(0)
        logits = logits.to(self.table.dtype)
        torch.mm(logits, self.table, out=self.features[part])
        if logits.dtype == self.weight.dtype:
            self.weight.addmm_(logits.t(), self.inputs[part])
        else:
            self.weight += logits.t() @ self.inputs[part]
