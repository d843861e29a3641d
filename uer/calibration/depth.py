"""Fewer layers in closed form: a layer that leaves is made up for by the one below it.

Layer p is kept, the layers up to e above it leave. On what the shorter model itself sees, p's last linear and LayerNorm
are fitted to what layer e of the teacher gives:

    u + W₂ act(W₁ u) ≈ s_e      (s the sum before the last LayerNorm, on p's own scale; W₂ and bias by least squares)
    gamma, beta                  dimension by dimension, onto the teacher's state after e

Which layers leave is chosen greedily: each time the one without which, made up for, the target says most what the
teacher's does (states near the teacher's do not tell that). The lowest layer always stays: below it is only the
embedding. Nothing dropped: the teacher.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from uer.calibration.moments import Moments, regress, rescaled
from uer.calibration.stream import Stream
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.layers.layer_norm import LayerNorm, standardise
from uer.layers.transformer import TransformerLayer
from uer.models.bert import Bert
from uer.parallel.collectives import sum_over_ranks
from uer.progress import Progress
from uer.targets.output_target import one_by_one, span_logits
from uer.targets.pooling import pooled

TRIAL_BATCHES = 2  # of a process, that layers are chosen on


class Shorter(NamedTuple):
    """A teacher with fewer layers.

    Attributes:
        kept: numbers of the teacher's layers that stay.
        layers: them, fitted.
        lost: how far what its target says is from what the teacher's says, mean over masked tokens, tokens or texts:
            Kullback-Leibler divergence in nats; of states, 1 − cosine; of scores, squared error.
    """

    kept: list[int]
    layers: list[TransformerLayer]
    lost: float

    def weights(self, teacher: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The teacher's tensors (published names) with these layers instead of its own, in its dtype."""
        out = {name: tensor for name, tensor in teacher.items() if not name.startswith("encoder.")}
        like = next(iter(out.values()))
        for number, layer in enumerate(self.layers):
            for name, tensor in layer.state_dict().items():
                out[f"encoder.transformer.{number}.{name}"] = tensor.to(like)
        return out

    def line(self, teacher: ModelConfig) -> str:
        """What was found, in words."""
        layers_num, how = teacher.layers_num, f"{self.lost:.3f} nats"
        if teacher.target == "states" or teacher.outputs == 1:
            how = f"{'1 - cosine' if teacher.target == 'states' else 'a squared error of'} {self.lost:.3f}"
        *most, last = map(str, self.kept)
        numbers = f"numbers {', '.join(most)} and {last}" if most else f"number {last}"
        stay = "layers stay" if most else "layers stays"
        return (f"{len(self.kept)} of {layers_num} {stay}, {numbers}; on the text that they were fitted to, what the "
                f"model says is {how} from the teacher's")


def layers_to_keep(layers_num: int, target: int | None, keep: Sequence[int] | None) -> int:
    """How many layers are to stay; `UserError` where a model of `layers_num` layers cannot keep these."""
    if target is not None and not 1 <= target <= layers_num:
        raise UserError(f"--target_layers {target}: must be from 1 to the teacher's {layers_num}")
    if not keep:
        return layers_num if target is None else target
    if list(keep) != sorted(set(keep)) or keep[0] != 0 or keep[-1] >= layers_num:
        raise UserError(f"--keep_layers {' '.join(map(str, keep))}: must be 0 and others up to {layers_num - 1}, "
                        f"ascending: layers are counted from 0, and the lowest always stays")
    if target is not None and target != len(keep):
        raise UserError(f"--keep_layers names {len(keep)} layers, --target_layers is {target}")
    return len(keep)


class Depths:
    """Shorter models of one teacher. Layers leave one after the other, so a choice goes on from that of more layers."""

    def __init__(self, stream: Stream):
        self.stream = stream
        self.layers_num = len(stream.teacher.encoder.layers())
        self._kept = {self.layers_num: list(range(self.layers_num))}

    @torch.no_grad()
    def shorter(self, target: int, keep: Sequence[int] | None = None) -> Shorter:
        """The model of `target` layers, or of the layers `keep`."""
        if not keep and target not in self._kept:
            self._choose(target)
        return _Fitting(self.stream).fitted(list(keep or self._kept[target]))

    def _choose(self, target: int) -> None:
        trial, begun = _Fitting(self.stream, TRIAL_BATCHES), min(self._kept)
        with Progress("choice of layers", sum(range(target, begun)), "trials") as progress:

            def lost(layers: list[int]) -> float:
                progress.advance()
                return trial.fitted(layers).lost

            for count in range(begun - 1, target - 1, -1):
                more = self._kept[count + 1]
                candidates = [[*more[:place], *more[place + 1:]] for place in range(1, len(more))]
                self._kept[count] = min(candidates, key=lost)


class _Fitting:
    """Fits layers to what the teacher makes of the first `most` batches of a stream."""

    def __init__(self, stream: Stream, most: int | None = None):
        self.stream, self.teacher = stream, stream.teacher
        self.batches, self.real = stream.batches[:most], stream.real[:most]
        self.masks = [real[:, None, None, :] for real in self.real]
        self.start = [self.teacher.embedding.layer_norm(total) for total in self._sums(0)]
        self.wanted = self._said(self._after(len(self.teacher.encoder.layers()) - 1))

    def _sums(self, place: int) -> list[torch.Tensor]:
        return [self.stream.sum(number, place) for number in range(len(self.batches))]

    def _after(self, layer: int) -> list[torch.Tensor]:
        """The teacher's states after a layer."""
        return [self.teacher.encoder.layers()[layer].layer_norm_2(total) for total in self._sums(2 * layer + 2)]

    def _attended(self, layer: TransformerLayer, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layer.layer_norm_1(x + layer.self_attn(x, mask)) for x, mask in zip(states, self.masks)]

    def fitted(self, kept: list[int]) -> Shorter:
        """These layers, each fitted to what those above it that leave have made."""
        states = self.start
        layers: list[TransformerLayer] = []
        for number, above in zip(kept, [*kept[1:], len(self.teacher.encoder.layers())]):
            layer = self.teacher.encoder.layers()[number]
            if above - 1 > number:
                layer = copy.deepcopy(layer)
                states = self._fit(layer, states, above - 1)
            elif number == len(layers):  # nothing has left below, so these are the teacher's
                states = self._after(number)
            else:
                states = [layer.layer_norm_2(u + layer.feed_forward(u)) for u in self._attended(layer, states)]
            layers.append(layer)
        return Shorter(kept, layers, self._lost(states))

    def _fit(self, layer: TransformerLayer, states: list[torch.Tensor], end: int) -> list[torch.Tensor]:
        """Fit a layer to the teacher's layer `end`, its sums or those on its own scale, as is better; its states."""
        network, attended = layer.feed_forward, self._attended(layer, states)
        inner = [network.act(network.linear_1(u)) for u in attended]
        sums = self._sums(2 * end + 2)
        own = [self._rescaled(total, u + network.linear_2(a), layer.layer_norm_2)
               for total, u, a in zip(sums, attended, inner)]
        fits = [self._fit_to(wanted, layer, attended, inner, end) for wanted in (own, sums)]
        _, states, tensors = min(fits, key=lambda fit: fit[0])
        layer.load_state_dict({**layer.state_dict(), **tensors})
        return states

    def _fit_to(self, wanted: list[torch.Tensor], layer: TransformerLayer, attended: list[torch.Tensor],
                inner: list[torch.Tensor], end: int) -> tuple[float, list[torch.Tensor], dict[str, torch.Tensor]]:
        """(squared error of the states, the states, the tensors) where the sums are to be these."""
        second, norm = layer.feed_forward.linear_2, self.teacher.encoder.layers()[end].layer_norm_2
        after, width = self._after(end), len(norm.gamma)
        errors = [total - u for total, u in zip(wanted, attended)]
        moments = self._moments(a=(inner, second.weight.shape[1]), y=(errors, width))
        found = regress(moments, "a", "y", second.weight)
        sums = [u + F.linear(a, found.matrix, found.offset) for u, a in zip(attended, inner)]
        flat = [standardise(total, norm.style, norm.eps) for total in sums]
        index = torch.arange(width, device=norm.gamma.device)
        gamma, beta = rescaled(self._moments(z=(flat, width), x=(after, width)), "z", "x", norm.gamma, index)
        states = [z * gamma + beta for z in flat]
        error = torch.zeros((), dtype=torch.float64, device=self.stream.device)
        for x, z, real in zip(after, states, self.real):
            error += (x - z)[real].square().sum()
        sum_over_ranks([error.view(1)])
        return error.item(), states, {"feed_forward.linear_2.weight": found.matrix,
                                      "feed_forward.linear_2.bias": found.offset,
                                      "layer_norm_2.gamma": gamma, "layer_norm_2.beta": beta}

    @staticmethod
    def _rescaled(total: torch.Tensor, like: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
        """A sum before a LayerNorm, which does not see its mean and scale, with those of another one at each place."""
        deviation, mean = torch.std_mean(like, -1, keepdim=True)
        return standardise(total, norm.style, norm.eps) * deviation + mean

    def _moments(self, **states: tuple[list[torch.Tensor], int]) -> Moments:
        """Of states, a list of [batch, seq, width], and their width."""
        moments = Moments(self.stream.device, **{name: width for name, (_, width) in states.items()})
        for number, real in enumerate(self.real):
            moments.add(**{name: found[number][real] for name, (found, _) in states.items()})
        return moments.share()

    def _lost(self, states: list[torch.Tensor]) -> float:
        """How far what the target says of these states is from what the teacher's says."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.stream.device)
        for found, wanted in zip(self._said(states), self.wanted):
            if self.teacher.config.target == "states":
                sums[0] += (1 - (found * wanted).sum(1)).sum()
            elif self.teacher.config.outputs == 1:
                sums[0] += (found - wanted).pow(2).sum()
            else:
                sums[0] += F.kl_div(found, wanted, reduction="sum", log_target=True)
            sums[1] += len(wanted)
        sum_over_ranks([sums])
        return (sums[0] / sums[1].clamp_min(1)).item()

    def _said(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return [said(self.teacher, *told) for told in zip(self.batches, self.real, states)]


def said(teacher: Bert, batch: MlmBatch, real: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What a target says of a batch's states: log-probabilities [n, classes], a reader's of starts and ends
    [2 * texts, tokens], those of labels that may hold together [texts * labels, 2]; scores [n, 1], or vectors of length
    1 [texts, d]."""
    target, config = teacher.target, teacher.config
    if config.target == "mlm":
        return target(hidden.flatten(0, 1)[batch.positions]).log_softmax(-1)
    if config.reader:
        outputs = span_logits(target(hidden), real).flatten(0, 1)
    elif config.target == "tokens":
        outputs = target(hidden[real])
    else:
        outputs = target(pooled(hidden, real, config.pooling))
    if config.multi_label:
        outputs = one_by_one(outputs).flatten(0, 1)
    if config.target == "states":
        return F.normalize(outputs, dim=1)
    return outputs if config.outputs == 1 else outputs.log_softmax(-1)
