"""Vocabulary projection and cross entropy in one, some logits at a time.

    loss = Σ over rows   log Σ exp(W f + b) − (W f + b)[label]          d loss / d logits = softmax − onehot(label)

The logits are the largest tensor of a step (rows × vocabulary). Here they exist for a slice of the rows at a time, and
the gradients are taken while they are there; the backward pass only scales them.

The vocabulary is filled up to a multiple of `TILE` with words whose logits are -inf: the kernels of tensor cores ask
for rows of a multiple of 16 bytes (cuBLAS documentation, Tensor Core restrictions), which 30,522 logits are not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uer.cpu.products import add_mm, mm
from uer.cpu.vocabulary import BLOCK, blocks_serve, logits_of, loss_in_blocks, parts

SLICE = {"cpu": 1 << 26}  # logits at a time; few slices, as the products read the whole table for each
SLICE_ELSEWHERE = 1 << 28
TILE = 64  # words


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
        blocks = blocks_serve(features)
        table, offsets = weight.to(features.dtype), bias
        if not blocks and (missing := -len(weight) % TILE):
            table, offsets = F.pad(table, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)
        sums = _Sums(features, table, offsets, labels, training)
        for rows in parts(len(features), len(weight), SLICE.get(features.device.type, SLICE_ELSEWHERE)):
            if not blocks:
                sums.add(rows)
            elif not sums.add_in_blocks(rows):
                for few in parts(rows.stop - rows.start, len(weight), BLOCK):
                    sums.add(slice(rows.start + few.start, rows.start + few.stop))
        if training:
            ctx.save_for_backward(sums.d_features.to(features.dtype), sums.d_weight[: len(weight)].to(weight.dtype),
                                  sums.d_bias[: len(bias)].to(bias.dtype))
        ctx.mark_non_differentiable(sums.correct)
        return sums.loss, sums.correct

    @staticmethod
    def backward(ctx, scale: torch.Tensor, _: torch.Tensor):
        features, weight, bias = ctx.saved_tensors  # their gradients
        return features * scale.to(features.dtype), weight.mul_(scale), bias * scale, None, None


class _Sums:
    """Loss, number of right predictions and, in training, gradients, over the rows added so far.
    `table`: the weight in the features' dtype, and with it the bias, as long as is fastest; everything else as for
    `vocabulary_loss`."""

    def __init__(self, features: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor,
                 training: bool):
        self.features, self.table, self.bias, self.labels, self.training = features, table, bias, labels, training
        full = torch.promote_types(features.dtype, torch.float32)
        self.loss = torch.zeros((), dtype=full, device=features.device)
        self.correct = torch.zeros((), dtype=torch.long, device=features.device)
        if training:
            self.d_features, self.d_weight, self.d_bias = (
                torch.zeros_like(tensor, dtype=full) for tensor in (features, table, bias))

    def add(self, rows: slice) -> None:
        """All logits of these rows at once."""
        features, label = self.features[rows], self.labels[rows, None]
        logits = logits_of(features, self.table, self.bias)
        largest = logits.amax(1, keepdim=True)
        wanted = logits.gather(1, label)
        self.correct += (logits.argmax(1, keepdim=True) == label).sum()
        softmax = torch.softmax(logits, 1)
        del logits
        self.loss += (largest - wanted - softmax.amax(1, keepdim=True).log()).sum()
        if self.training:
            gradient = softmax.scatter_add_(1, label, -torch.ones_like(wanted))
            self.d_bias += gradient.sum(0)
            gradient = gradient.to(self.table.dtype)
            self.d_features[rows] = mm(gradient, self.table)
            add_mm(self.d_weight, gradient.t(), features)

    def add_in_blocks(self, rows: slice) -> bool:
        """The same in blocks of the vocabulary; False leaves these rows to `add`."""
        gradients = (self.d_features[rows], self.d_weight, self.d_bias) if self.training else None
        found = loss_in_blocks(self.features[rows], self.labels[rows], self.table, self.bias, gradients)
        if found is None:
            return False
        self.loss += found[0]
        self.correct += found[1]
        return True
