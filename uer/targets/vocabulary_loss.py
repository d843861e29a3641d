"""Vocabulary projection and cross entropy in one, some logits at a time.

    loss = Σ over rows   log Σ exp(W f + b) − (W f + b)[label]          d loss / d logits = softmax − onehot(label)

The logits are the largest tensor of a step (rows × vocabulary). Here they exist for a slice of the rows at a time, and
the gradients are taken while they are there; the backward pass only scales them. On a CPU a slice is worked on in
blocks of the vocabulary that fit its caches: each block's own softmax first, and once all are known

    softmax = softmax of the block · exp(log Σ exp of the block − log Σ exp of the row)
"""

from __future__ import annotations

import torch

from uer.products import mm

SLICE = {"cpu": 1 << 26}  # logits at a time; few slices, as the products read the whole table for each
SLICE_ELSEWHERE = 1 << 28
BLOCK = {"cpu": 1 << 21}  # of these worked on at a time; elsewhere all
FEW_ROWS = 512  # fewer have no wider blocks: products of another shape are faster


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
        for rows in _parts(len(features), len(table), SLICE.get(features.device.type, SLICE_ELSEWHERE)):
            label = labels[rows, None]
            columns = _parts(len(table), max(len(label), FEW_ROWS), BLOCK.get(features.device.type, SLICE_ELSEWHERE))
            # probabilities lie side by side; without gradients, a block's may overwrite those of the one before
            starts = [len(label) * part.start if training else 0 for part in columns]
            room = table.new_empty(starts[-1] + len(label) * columns[0].stop, dtype=full)
            blocks = [_Block(features[rows], table, bias, label, part, room[start:])
                      for part, start in zip(columns, starts)]
            largest, best = torch.stack([block.largest for block in blocks]).max(0)
            shares = torch.stack([block.log_sum - largest for block in blocks])
            log_sum = shares.logsumexp(0)
            loss += (largest - sum(block.wanted for block in blocks) + log_sum).sum()
            for i, (block, share) in enumerate(zip(blocks, shares)):
                correct += (block.right & (best == i)).sum()
                if gradients is not None:
                    gradients.add(rows, block, share - log_sum)
        if gradients is not None:
            ctx.save_for_backward(gradients.features, gradients.weight.to(weight.dtype), gradients.bias.to(bias.dtype))
        ctx.mark_non_differentiable(correct)
        return loss, correct

    @staticmethod
    def backward(ctx, scale: torch.Tensor, _: torch.Tensor):
        features, weight, bias = ctx.saved_tensors  # their gradients
        return features * scale.to(features.dtype), weight.mul_(scale), bias * scale, None, None


class _Block:
    """Some columns of the logits of some rows.

    Args:
        room: flat; the probabilities are left at its beginning.
    Attributes:
        columns: which ones.
        probabilities: softmax among them, [rows, columns].
        log_sum: log Σ exp, [rows, 1].
        largest: the largest logit, [rows, 1].
        inside, place: whether a row's label is one of the columns, and where; [rows, 1].
        wanted: the label's logit, 0 where it is not inside; [rows, 1].
        right: whether the label is the first column that has the largest logit, [rows, 1].
    """

    def __init__(self, features: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, label: torch.Tensor,
                 columns: slice, room: torch.Tensor):
        self.columns = columns
        logits = mm(features, table[columns].t()).to(room.dtype).add_(bias[columns])
        self.largest = logits.amax(1, keepdim=True)
        self.inside = (label >= columns.start) & (label < columns.stop)
        self.place = (label - columns.start).clamp(0, logits.shape[1] - 1)
        self.wanted = logits.gather(1, self.place) * self.inside
        self.right = self.inside & _is_first_largest(logits, self.place, self.largest)
        self.probabilities = room[:logits.numel()].view_as(logits)
        torch.softmax(logits, 1, out=self.probabilities)
        self.log_sum = self.largest - self.probabilities.amax(1, keepdim=True).log()


def _is_first_largest(logits: torch.Tensor, place: torch.Tensor, largest: torch.Tensor) -> torch.Tensor:
    """Whether column `place` is the first of a row's largest; all but logits [rows, 1].

    On a CPU argmax takes ten times as long as amax, so it only looks at rows where the answer may be yes. A GPU would
    have to tell the host how many these are.
    """
    if logits.device.type != "cpu":
        return logits.argmax(1, keepdim=True) == place
    right = logits.gather(1, place) == largest
    some = right[:, 0].nonzero()[:, 0]
    right[some] = logits[some].argmax(1, keepdim=True) == place[some]
    return right


class _Gradients:
    """The gradients of features [n, size], weight and bias, gathered from blocks of d loss / d logits."""

    def __init__(self, features: torch.Tensor, table: torch.Tensor, full: torch.dtype):
        self.inputs, self.table = features, table
        self.features = torch.zeros_like(features)
        self.weight = torch.empty_like(table, dtype=full) if len(features) else torch.zeros_like(table, dtype=full)
        self.bias = torch.zeros(len(table), dtype=full, device=table.device)

    def add(self, rows: slice, block: _Block, log_share: torch.Tensor) -> None:
        """log_share: log of the share that the block has in the sum over the vocabulary, [rows, 1]."""
        gradient = block.probabilities
        if gradient.shape[1] < len(self.table):
            gradient.mul_(log_share.exp())
        gradient.scatter_add_(1, block.place, -block.inside.to(gradient.dtype))
        self.bias[block.columns] += gradient.sum(0)
        gradient = gradient.to(self.table.dtype)
        self.features[rows] += mm(gradient, self.table[block.columns])
        weight = mm(gradient.t(), self.inputs[rows])
        if rows.start == 0:
            self.weight[block.columns] = weight
        else:
            self.weight[block.columns] += weight


def _parts(length: int, width: int, room: int) -> list[slice]:
    """`length` in equal parts, as few as `room` for parts × `width` allows."""
    parts = min(length, -(-length * width // room)) if length else 0
    size = -(-length // max(1, parts))
    return [slice(start, min(start + size, length)) for start in range(0, length, max(1, size))]
