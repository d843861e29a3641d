"""Vocabulary projection and cross entropy on a CPU: in blocks of the vocabulary that fit its caches.

In as few passes over them as can be. With e = exp(logit), but 0 for the label, E = Σ e over the vocabulary and
Z = E + exp(logit of the label):

    d f = (Σ e W − E W[label]) / Z              and, with e = −E for the label:  d W = eᵀ (f / Z)    d b = eᵀ (1 / Z)

Σ e W is gathered before Z is known, and no pass divides by it. This needs logits whose exp is a float32: `LARGEST`. e
is 2 to the power of the logit in bits, which the product yields as well as in nats: torch's exp2 takes half as long as
its exp.
"""

from __future__ import annotations

import math

import torch

from uer.cpu.products import add_mm, mm

BLOCK = 1 << 21  # logits worked on at a time
FEW_ROWS = 512  # fewer have no wider blocks: products of another shape are faster
LINE = 16  # numbers; a block is a multiple of it wide, as a row that begins inside a cache line takes longer to write
LARGEST = -86.0, 101.0  # bits; where a row's largest logit may lie so that float32 holds all e that count, and sums
BITS = 1 / math.log(2)  # in a nat

Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def blocks_serve(features: torch.Tensor) -> bool:
    """Whether `loss_in_blocks` is the way for them: on a CPU, but in float16, whose numbers end at exp(11)."""
    return features.device.type == "cpu" and features.dtype != torch.float16


def loss_in_blocks(features: torch.Tensor, label: torch.Tensor, table: torch.Tensor, bias: torch.Tensor,
                   gradients: Gradients | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Summed cross entropy (nats) of a slice of rows, and number of right predictions.

    Args:
        features: float [n, size]
        label: int [n]
        table, bias: float [vocab, size], of the features' dtype, and [vocab].
        gradients: of features, table and bias, float32 at least: the slice's are written to the first, which holds 0,
            and added to the others. None: not wanted.
    Returns:
        None, with nothing but the first of the gradients touched, where a logit is too large or all are too small.
    """
    full = torch.promote_types(features.dtype, torch.float32)
    largest = torch.full(label.shape, -torch.inf, dtype=full)
    right = torch.zeros(label.shape, dtype=torch.bool)
    wanted = torch.full_like(largest, torch.nan)  # logit of the label; stays that where no column is it
    others = torch.zeros_like(largest)  # E
    room = None if gradients is None else torch.empty(len(label) * len(table), dtype=full)
    blocks = []
    for columns in parts(len(table), max(len(label), FEW_ROWS), BLOCK, LINE):
        logits = logits_of(features, table[columns], bias[columns], BITS)
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
        if gradients is not None:
            add_mm(gradients[0], exponentials.to(table.dtype), table[columns])
            blocks.append((columns, exponentials, inside, place))
    if not ((largest > LARGEST[0]) & (largest < LARGEST[1])).all():
        return None
    total = others + wanted.exp2()
    if gradients is not None:
        d_features, d_weight, d_bias = gradients
        share = 1 / total
        d_features.mul_(share[:, None]).sub_((others * share)[:, None] * table[label])
        scaled = (features * share[:, None]).to(table.dtype)
        for columns, exponentials, inside, place in blocks:
            exponentials[inside, place] = -others[inside]
            d_bias[columns] += exponentials.t() @ share
            add_mm(d_weight[columns], exponentials.to(scaled.dtype).t(), scaled)
    return (total.log2() - wanted).sum() / BITS, right.sum()


def logits_of(features: torch.Tensor, table: torch.Tensor, bias: torch.Tensor, unit: float = 1.0) -> torch.Tensor:
    """features tableᵀ + bias, [rows, columns], in float32 at least, `unit` in a nat."""
    full = torch.promote_types(features.dtype, torch.float32)
    bias = bias.to(full) * unit
    if features.dtype == full:
        return mm(features * unit, table.t(), bias)
    logits = mm(features, table.t()).to(full)
    return torch.add(bias, logits, alpha=unit, out=logits)


def parts(length: int, width: int, room: int, multiple: int = 1) -> list[slice]:
    """`length` in equal parts, as few as `room` for parts × `width` allows, then rounded up to a `multiple`."""
    count = min(length, -(-length * width // room)) if length else 0
    size = -(-length // max(1, count) // multiple) * multiple
    return [slice(start, min(start + size, length)) for start in range(0, length, max(1, size))]
