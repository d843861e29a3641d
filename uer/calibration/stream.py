"""The teacher's residual stream over the calibration data: one pass, for students of any shape."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from uer.calibration.moments import Moments
from uer.calibration.spool import Spool
from uer.config import ModelConfig
from uer.data.loader import MlmBatch
from uer.models.bert import Bert, from_weights


class Stream:
    """The sums u0, u1, … before each LayerNorm, spooled, and the covariance of what the LayerNorms make of them.

    Args:
        teacher: a plain BERT in float64, in evaluation mode.
        batches: this process's share of the calibration data.

    Attributes:
        covariance: of the states of all places and real tokens, [hidden, hidden].
        tokens: tokens seen, by all processes.
    """

    @torch.no_grad()
    def __init__(self, teacher: Bert, batches: Sequence[MlmBatch]):
        self.teacher, self.batches = teacher, batches
        self.device = teacher.embedding.word_embedding.weight.device
        self.spool = Spool()
        self.real = [batch.seg > 0 for batch in batches]  # [batch, seq] each
        moments = Moments(self.device, x=teacher.config.hidden_size)
        for number, batch in enumerate(batches):
            for place, (u, x) in enumerate(self._states(batch, self.real[number])):
                self.spool.put(number, **{str(place): u.cpu()})
                moments.add(x=x[self.real[number]])
        self.covariance = moments.share().covariance("x")
        self.tokens = round(moments.tokens) // (2 * teacher.config.layers_num + 1)  # states per token

    def _states(self, batch: MlmBatch, real: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(sum before, result after) each LayerNorm of the stream: [batch, seq, hidden] each."""
        mask, embedding = real[:, None, None, :], self.teacher.embedding
        u = embedding.sum(batch.src, batch.seg)
        x = embedding.layer_norm(u)
        yield u, x
        for layer in self.teacher.encoder.layers():
            u = x + layer.self_attn(x, mask)
            x = layer.layer_norm_1(u)
            yield u, x
            u = x + layer.feed_forward(x)
            x = layer.layer_norm_2(u)
            yield u, x

    def sum(self, number: int, place: int) -> torch.Tensor:
        """u of a batch before the LayerNorm of this place: 0 the embedding's, 2 i + 1 and 2 i + 2 those of layer i."""
        return self.spool.get(number, str(place)).to(self.device)

    def close(self) -> None:
        self.spool.close()


def double_teacher(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    """A model in float64 and evaluation mode, its tables apart."""
    double = {name: tensor.double() for name, tensor in weights.items()}
    return from_weights(replace(config, tie_weights=False), double).eval()
