"""Fewer layers in closed form: a layer that leaves is made up for by the one below it.

Layer p is kept, the layers up to e above it leave. On what the shorter model itself sees, p's last linear and LayerNorm
are fitted to what layer e of the teacher gives:

    u + W₂ act(W₁ u) ≈ s_e      (s the sum before the last LayerNorm, on p's own scale; W₂ and bias by least squares)
    gamma, beta                  dimension by dimension, onto the teacher's state after e

Which layers leave is chosen greedily: each time the one without which, made up for, masked tokens are predicted most
as the teacher does (states near the teacher's do not tell that). The lowest layer always stays: below it is only the
embedding. Nothing dropped: the teacher.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from uer.calibration.moments import Moments, regress, rescaled
from uer.calibration.student import calibration_batches
from uer.config import load_config
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.formats import load_model
from uer.formats.export import config_text, write_uer
from uer.formats.storage import PendingFiles
from uer.formats.teacher import config_path_for
from uer.formats.tokenizer_files import text_beside
from uer.layers.layer_norm import LayerNorm, standardise
from uer.layers.transformer import TransformerLayer
from uer.models.bert import Bert, from_weights
from uer.parallel.collectives import Place
from uer.tokenizers import agreed_rules

TRIAL_BATCHES = 2  # that layers are chosen on


class Shorter(NamedTuple):
    """A teacher with fewer layers.

    Attributes:
        kept: numbers of the teacher's layers that stay.
        layers: them, fitted.
        lost: Kullback-Leibler divergence of its predictions of masked tokens from the teacher's, nats a token.
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


def check_layers(layers_num: int, target: int | None, keep: Sequence[int] | None) -> None:
    """`UserError` where a model of `layers_num` layers cannot keep these."""
    if target is not None and not 1 <= target <= layers_num:
        raise UserError(f"--target_layers {target}: must be from 1 to the teacher's {layers_num}")
    if not keep:
        return
    if list(keep) != sorted(set(keep)) or keep[0] != 0 or keep[-1] >= layers_num:
        raise UserError(f"--keep_layers {' '.join(map(str, keep))}: must be 0 and others up to {layers_num - 1}, "
                        f"ascending: layers are counted from 0, and the lowest always stays")
    if target is not None and target != len(keep):
        raise UserError(f"--keep_layers names {len(keep)} layers, --target_layers is {target}")


@torch.no_grad()
def shorten(teacher: Bert, batches: Sequence[MlmBatch], target: int, keep: Sequence[int] | None = None) -> Shorter:
    """A model of `target` layers, or of the layers `keep`, from a teacher.

    Args:
        teacher: in float64, in evaluation mode; left as it is.
    """
    kept = list(range(len(teacher.encoder.layers())))
    if keep:
        kept = list(keep)
    elif target < len(kept):
        trial = _States(teacher, batches[:TRIAL_BATCHES])
        while len(kept) > target:
            candidates = [[*kept[:place], *kept[place + 1:]] for place in range(1, len(kept))]
            kept = min(candidates, key=lambda layers: trial.fitted(layers).lost)
    return _States(teacher, batches).fitted(kept)


class _States:
    """What the teacher makes of some batches: its states (and sums before the last LayerNorm) by layer and batch."""

    def __init__(self, teacher: Bert, batches: Sequence[MlmBatch]):
        self.teacher, self.batches = teacher, batches
        self.masks = [(batch.seg > 0)[:, None, None, :] for batch in batches]
        self.real = [batch.seg > 0 for batch in batches]
        states = [teacher.embedding(batch.src, batch.seg) for batch in batches]
        self.start, self.sums, self.after = states, [], []
        for layer in teacher.encoder.layers():
            sums = [u + layer.feed_forward(u) for u in self._attended(layer, states)]
            states = [layer.layer_norm_2(total) for total in sums]
            self.sums.append(sums)
            self.after.append(states)
        self.wanted = self._predictions(states)

    def _attended(self, layer: TransformerLayer, states: list[torch.Tensor]) -> list[torch.Tensor]:
        return [layer.layer_norm_1(x + layer.self_attn(x, mask)) for x, mask in zip(states, self.masks)]

    def fitted(self, kept: list[int]) -> Shorter:
        """These layers, each fitted to what those above it that leave have made."""
        states, layers = self.start, []
        for number, above in zip(kept, [*kept[1:], len(self.after)]):
            layer = self.teacher.encoder.layers()[number]
            if above - 1 > number:
                layer = copy.deepcopy(layer)
                states = self._fit(layer, states, above - 1)
            else:
                states = [layer.layer_norm_2(u + layer.feed_forward(u)) for u in self._attended(layer, states)]
            layers.append(layer)
        return Shorter(kept, layers, self._lost(states))

    def _fit(self, layer: TransformerLayer, states: list[torch.Tensor], end: int) -> list[torch.Tensor]:
        """Fit a layer to the teacher's layer `end`, its sums or those on its own scale, as is better; its states."""
        network, attended = layer.feed_forward, self._attended(layer, states)
        inner = [network.act(network.linear_1(u)) for u in attended]
        own = [self._rescaled(total, u + network.linear_2(a), layer.layer_norm_2)
               for total, u, a in zip(self.sums[end], attended, inner)]
        fits = [self._fit_to(wanted, layer, attended, inner, end) for wanted in (own, self.sums[end])]
        _, states, tensors = min(fits, key=lambda fit: fit[0])
        layer.load_state_dict({**layer.state_dict(), **tensors})
        return states

    def _fit_to(self, wanted: list[torch.Tensor], layer: TransformerLayer, attended: list[torch.Tensor],
                inner: list[torch.Tensor], end: int) -> tuple[float, list[torch.Tensor], dict[str, torch.Tensor]]:
        """(squared error of the states, the states, the tensors) where the sums are to be these."""
        second, norm = layer.feed_forward.linear_2, self.teacher.encoder.layers()[end].layer_norm_2
        errors = [total - u for total, u in zip(wanted, attended)]
        found = regress(self._moments(a=inner, y=errors), "a", "y", second.weight)
        sums = [u + F.linear(a, found.matrix, found.offset) for u, a in zip(attended, inner)]
        flat = [standardise(total, norm.style, norm.eps) for total in sums]
        index = torch.arange(len(norm.gamma), device=norm.gamma.device)
        gamma, beta = rescaled(self._moments(z=flat, x=self.after[end]), "z", "x", norm.gamma, index)
        states = [z * gamma + beta for z in flat]
        error = sum(float((x - z)[real].square().sum()) for x, z, real in zip(self.after[end], states, self.real))
        return error, states, {"feed_forward.linear_2.weight": found.matrix, "feed_forward.linear_2.bias": found.offset,
                               "layer_norm_2.gamma": gamma, "layer_norm_2.beta": beta}

    @staticmethod
    def _rescaled(total: torch.Tensor, like: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
        """A sum before a LayerNorm, which does not see its mean and scale, with those of another one at each place."""
        deviation, mean = torch.std_mean(like, -1, keepdim=True)
        return standardise(total, norm.style, norm.eps) * deviation + mean

    def _moments(self, **states: list[torch.Tensor]) -> Moments:
        widths = {name: found[0].shape[-1] for name, found in states.items()}
        moments = Moments(self.start[0].device, **widths)
        for number, real in enumerate(self.real):
            moments.add(**{name: found[number][real] for name, found in states.items()})
        return moments.share()

    def _lost(self, states: list[torch.Tensor]) -> float:
        """Kullback-Leibler divergence of what the head predicts from these states, mean over masked tokens, nats."""
        lost = [F.kl_div(found, wanted, reduction="sum", log_target=True)
                for found, wanted in zip(self._predictions(states), self.wanted)]
        return float(sum(lost)) / max(1, sum(len(wanted) for wanted in self.wanted))

    def _predictions(self, states: list[torch.Tensor]) -> list[torch.Tensor]:
        head = self.teacher.target
        return [head(hidden.flatten(0, 1)[batch.positions]).log_softmax(-1)
                for batch, hidden in zip(self.batches, states)]


def drop_layers(args: argparse.Namespace) -> list[str]:
    """scripts/drop_layers.py's work; lines on what was found.

    Raises:
        UserError: a model and a dataset that do not belong together, or layers that the model has not.
    """
    config = load_config(args.config_path) if args.config_path else None
    dataset = Dataset.open(args.dataset_path)
    model = load_model(args.pretrained_model_path, config=config, vocab_size=dataset.header["vocab_size"])
    dataset.check_positions(model.config.max_seq_length)
    lines: list[str] = []
    text = agreed_rules(args, dataset.rules, *text_beside(args.pretrained_model_path), say=lines.append)
    target = len(args.keep_layers) if args.keep_layers else args.target_layers
    check_layers(model.config.layers_num, args.target_layers, args.keep_layers)
    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    batches = calibration_batches(dataset, args.calibration_batches, args.seed, place)
    double = {name: tensor.double().to(place.device) for name, tensor in model.weights.items()}
    teacher = from_weights(replace(model.config, tie_weights=False), double).eval()
    shorter = shorten(teacher, batches, target, args.keep_layers)
    output, found = Path(args.output_model_path), replace(model.config, layers_num=target)
    with PendingFiles() as pending:
        tensors = {**shorter.weights(model.weights), **model.extras}
        write_uer(pending.add(output), tensors, "published")
        pending.add(config_path_for(output)).write_text(config_text(found, tensors, "published", text),
                                                        encoding="utf-8")
        pending.publish()
    kept = " ".join(map(str, shorter.kept))
    kept = " ".join(map(str, shorter.kept))
    return [*lines, f"layers {kept} of {model.config.layers_num} stay; on the text that they were fitted to, "
            f"predictions of masked tokens are {shorter.lost:.3f} nats from the teacher's"]
