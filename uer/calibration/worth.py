"""What each layer's heads and neurons are worth to what the model says, and how a budget is best spent on them.

Near the teacher a model that says something else loses ½ eᵀ F e, e its error in a sum before a LayerNorm and F the
Fisher information of what the model says there: of log-probabilities E[g gᵀ], g their gradient for a label that the
model itself draws; of states, which are compared by their cosine, the same with a random direction for the label.

    attention    y = W_o context    heads in the order of forward selection, each with the part of its context that
                                    a student's narrower head can hold
    ffn          y = W₂ a           neurons in that order

The k-th adds F-weighted variance of y that those before it do not explain: its worth, in one unit for all layers. The
budget goes, unit by unit of the concave hull of each layer's curve, to what is worth most for its cost.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from uer.calibration.depth import said
from uer.calibration.maps import symmetric_root, value_directions
from uer.calibration.moments import Moments
from uer.calibration.selection import blocks_in_order, regressors_in_order
from uer.calibration.stream import Stream
from uer.parallel.collectives import sum_over_ranks
from uer.progress import Progress
from uer.sizes import LayerShape

SEED = 1  # of the labels drawn


class Step(NamedTuple):
    """Some units of a layer, heads or neurons, and what they are worth."""

    units: int
    gain: float


class Worth(NamedTuple):
    """Of a layer: its heads and its neurons, best first."""

    heads: list[Step]
    neurons: list[Step]


def worth_of_layers(stream: Stream, rank: int) -> list[Worth]:
    """What the layers of a stream's teacher are worth to students whose heads are `rank` wide."""
    informations = fisher(stream)
    return [_worth(stream, i, rank, *informations[2 * i:2 * i + 2])
            for i in range(len(stream.teacher.encoder.layers()))]


def fisher(stream: Stream) -> list[torch.Tensor]:
    """Fisher information of what the teacher says, [hidden, hidden], at the sums of each layer: attention, ffn, …"""
    teacher, generator = stream.teacher, torch.Generator().manual_seed(SEED)
    found = [torch.zeros_like(stream.covariance) for _ in range(2 * len(teacher.encoder.layers()))]
    with Progress("worth of layers", len(stream.batches), "batches") as progress:
        for number, batch in enumerate(stream.batches):
            real, sums = stream.real[number], list[torch.Tensor]()
            with torch.enable_grad():
                x = teacher.embedding.layer_norm(stream.sum(number, 0)).requires_grad_()
                for layer in teacher.encoder.layers():
                    sums.append(x + layer.self_attn(x, real[:, None, None, :]))
                    x = layer.layer_norm_1(sums[-1])
                    sums.append(x + layer.feed_forward(x))
                    x = layer.layer_norm_2(sums[-1])
                told = said(teacher, batch, real, x)
                gradients = torch.autograd.grad(_drawn(told, teacher.config.target, generator), sums)
            for information, gradient in zip(found, gradients):
                information.addmm_(gradient[real].T, gradient[real])
            progress.advance()
    sum_over_ranks(found)
    return [information / stream.tokens for information in found]


def _drawn(told: torch.Tensor, target: str, generator: torch.Generator) -> torch.Tensor:
    """The sum of what is said [n, classes or d] of labels drawn from it, or along random directions."""
    if target == "states":
        return (told * torch.randn(told.shape, dtype=told.dtype, generator=generator).to(told.device)).sum()
    labels = torch.multinomial(told.detach().exp().cpu(), 1, generator=generator).to(told.device)
    return told.gather(1, labels).sum()


@torch.no_grad()
def _worth(stream: Stream, i: int, rank: int, attention: torch.Tensor, ffn: torch.Tensor) -> Worth:
    """Of layer i, with the information at its two sums."""
    layer, config = stream.teacher.encoder.layers()[i], stream.teacher.config
    below = stream.teacher.embedding.layer_norm if i == 0 else stream.teacher.encoder.layers()[i - 1].layer_norm_2
    out, second, size = layer.self_attn.final_linear.weight, layer.feed_forward.linear_2.weight, config.head_size
    contexts = Moments(stream.device, context=out.shape[1])
    inner = Moments(stream.device, a=second.shape[1])
    for number, real in enumerate(stream.real):
        x, u = below(stream.sum(number, 2 * i)), stream.sum(number, 2 * i + 1)
        contexts.add(context=layer.self_attn.context(x, real[:, None, None, :])[real])
        inner.add(a=layer.feed_forward.act(layer.feed_forward.linear_1(layer.layer_norm_1(u)[real])))
    context, a = contexts.share().covariance("context"), inner.share().covariance("a")
    needed = symmetric_root(attention)[0] @ out
    parts = [slice(start, start + size) for start in range(0, len(context), size)]
    reduce = torch.block_diag(*(value_directions(context[part, part], needed[:, part], rank)[0] for part in parts))
    heads = blocks_in_order(reduce @ context @ reduce.T, needed @ context @ reduce.T, rank, config.heads_num)
    neurons = regressors_in_order(a, symmetric_root(ffn)[0] @ second @ a, len(a))
    return Worth([Step(1, gain) for _, gain in heads], [Step(len(index), gain) for index, gain in neurons])


# -- spending ----------------------------------------------------------------------------------------------------------


def hull(steps: Sequence[Step]) -> Iterator[Step]:
    """Steps joined where a later one is worth more for each unit: worth falls from step to step."""
    joined: list[Step] = []
    for step in steps:
        while joined and step.gain * joined[-1].units > joined[-1].gain * step.units:
            last = joined.pop()
            step = Step(last.units + step.units, last.gain + step.gain)
        joined.append(step)
    yield from joined


def spread(worths: Sequence[Worth], budget: int, head: int, neuron: int) -> list[LayerShape]:
    """The shapes of layers on which a budget is best spent; each has a head and a neuron, which are not counted.

    Args:
        head, neuron: what one costs.
    """
    counts = [[1, 1] for _ in worths]
    costs = (head, neuron)
    offers = []
    for layer, worth in enumerate(worths):
        for kind, (first, *rest) in enumerate(worth):
            steps = [Step(first.units - 1, first.gain * (first.units - 1) / first.units), *rest]
            offers += [(step.gain / (step.units * costs[kind]), step.units, layer, kind)
                       for step in hull([step for step in steps if step.units])]
    for _, units, layer, kind in sorted(offers, key=lambda offer: -offer[0]):
        units = min(units, budget // costs[kind])
        counts[layer][kind] += units
        budget -= units * costs[kind]
    return [LayerShape(*count) for count in counts]
