"""Vocabulary projection and cross entropy in one, some logits at a time.

    loss = Σ over rows   log Σ exp(W f + b) − (W f + b)[label]          d loss / d logits = softmax − onehot(label)

The logits are the largest tensor of a step (rows × vocabulary). Here they exist for a slice of the rows at a time, and
the gradients are taken while they are there; the backward pass only scales them.

On a CPU a slice is worked on in blocks of the vocabulary that fit its caches, and in as few passes over them as can
be. With e = exp(logit), but 0 for the label, E = Σ e over the vocabulary and Z = E + exp(logit of the label):

    d f = (Σ e W − E W[label]) / Z              and, with e = −E for the label:  d W = eᵀ (f / Z)    d b = eᵀ (1 / Z)

Σ e W is gathered before Z is known, and no pass divides by it. This needs logits whose exp is a float32: `LARGEST`. For
others, which are rare, the softmax is taken. e is 2 to the power of the logit in bits, which the product yields as well
as in nats: torch's exp2 takes half as long as its exp.

Elsewhere the vocabulary is filled up to a multiple of `TILE` with words whose logits are -inf: the kernels of tensor
cores ask for rows of a multiple of 16 bytes (cuBLAS documentation, Tensor Core restrictions), which 30,522 logits are
not.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from uer.cpu.products import add_mm, mm

SLICE = {"cpu": 1 << 26}  # logits at a time; few slices, as the products read the whole table for each
SLICE_ELSEWHERE = 1 << 28
BLOCK = 1 << 21  # of these worked on at a time, on a CPU
FEW_ROWS = 512  # fewer have no wider blocks: products of another shape are faster
LINE = 16  # numbers; a block is a multiple of it wide, as a row that begins inside a cache line takes longer to write
TILE = 64  # words; off the CPU a table is a multiple of it long
LARGEST = -86.0, 101.0  # bits; where a row's largest logit may lie so that float32 holds all e that count, and sums
BITS = 1 / math.log(2)  # in a nat


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
        blocks = features.device.type == "cpu" and features.dtype != torch.float16  # whose numbers end at exp(11)
        table, offsets = weight.to(features.dtype), bias
        if not blocks and (missing := -len(weight) % TILE):
            table, offsets = F.pad(table, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-torch.inf)
        sums = _Sums(features, table, offsets, labels, training)
        for rows in _parts(len(features), len(weight), SLICE.get(features.device.type, SLICE_ELSEWHERE)):
            if not blocks:
                sums.add(rows)
            elif not sums.add_in_blocks(rows):
                for few in _parts(rows.stop - rows.start, len(weight), BLOCK):
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

    Args:
        table: the weight in the features' dtype, and with it the bias, as long as is fastest; everything else as for
            `vocabulary_loss`.
    """

    def __init__(self, features: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, labels: torch.Tensor,
                 training: bool):
        self.features, self.table, self.bias, self.labels, self.training = features, table, bias, labels, training
        self.full = torch.promote_types(features.dtype, torch.float32)
        self.loss = torch.zeros((), dtype=self.full, device=features.device)
        self.correct = torch.zeros((), dtype=torch.long, device=features.device)
        if training:
            self.d_features, self.d_weight, self.d_bias = (
                torch.zeros_like(tensor, dtype=self.full) for tensor in (features, table, bias))

    def add(self, rows: slice) -> None:
        """All logits of these rows at once."""
        features, label = self.features[rows], self.labels[rows, None]
        logits = self._logits(features, slice(None))
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
        """The same in blocks of the vocabulary, on a CPU; False leaves these rows to `add`."""
        features, label = self.features[rows], self.labels[rows]
        largest = torch.full(label.shape, -torch.inf, dtype=self.full)
        right = torch.zeros(label.shape, dtype=torch.bool)
        wanted = torch.full_like(largest, torch.nan)  # logit of the label; stays that where no column is it
        others = torch.zeros_like(largest)  # E
        room = torch.empty(len(label) * len(self.table), dtype=self.full) if self.training else None
        blocks = []
        for columns in _parts(len(self.table), max(len(label), FEW_ROWS), BLOCK, LINE):
            logits = self._logits(features, columns, BITS)
            inside = ((label >= columns.start) & (label < columns.stop)).nonzero()[:, 0]
            place = label[inside] - columns.start
            wanted[inside] = logits[inside, place]
            here = logits.amax(1)
            right &= here <= largest
            hits = (wanted[inside] == here[inside]).nonzero()[:, 0]  # few, and argmax takes ten times as long as amax
            hit = inside[hits]
            right[hit] = (logits[hit].argmax(1) == place[hits]) & (wanted[hit] > largest[hit])
            torch.maximum(largest, here, out=largest)
            kept = logits if room is None else room[len(label) * columns.start:][:logits.numel()].view_as(logits)
            exponentials = torch.exp2(logits, out=kept)
            exponentials[inside, place] = 0
            others += exponentials.sum(1)
            if self.training:
                add_mm(self.d_features[rows], exponentials.to(self.table.dtype), self.table[columns])
                blocks.append((columns, exponentials, inside, place))
        if not ((largest > LARGEST[0]) & (largest < LARGEST[1])).all():
            return False
        total = others + wanted.exp2()
        self.loss += (total.log2() - wanted).sum() / BITS
        self.correct += right.sum()
        if self.training:
            share = 1 / total
            self.d_features[rows].mul_(share[:, None]).sub_((others * share)[:, None] * self.table[label])
            scaled = (features * share[:, None]).to(self.table.dtype)
            for columns, exponentials, inside, place in blocks:
                exponentials[inside, place] = -others[inside]
                self.d_bias[columns] += exponentials.t() @ share
                add_mm(self.d_weight[columns], exponentials.to(scaled.dtype).t(), scaled)
        return True

    def _logits(self, features: torch.Tensor, columns: slice, unit: float = 1.0) -> torch.Tensor:
        """[rows, columns], in float32 at least, `unit` in a nat."""
        table, bias = self.table[columns], self.bias[columns].to(self.full) * unit
        if features.dtype == self.full:
            return mm(features * unit, table.t(), bias)
        logits = mm(features, table.t()).to(self.full)
        return torch.add(bias, logits, alpha=unit, out=logits)


def _parts(length: int, width: int, room: int, multiple: int = 1) -> list[slice]:
    """`length` in equal parts, as few as `room` for parts × `width` allows, then rounded up to a `multiple`."""
    parts = min(length, -(-length * width // room)) if length else 0
    size = -(-length // max(1, parts) // multiple) * multiple
    return [slice(start, min(start + size, length)) for start in range(0, length, max(1, size))]
