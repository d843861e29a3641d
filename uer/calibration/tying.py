"""One table for words to read and words to predict: the shared table that fits both best, in closed form.

With E and D the teacher's two tables, F the kept dimensions, g ≈ C g_F + c the teacher's features from those kept, and
a factor f for each feature, which the head's LayerNorm can take in, the table T of a student minimises

    share · Σ_v p_v |(T_v − E_v[F]) Γ|² / e  +  (1 − share) · Σ_v p_v E|(T_v f − D_v C) g_F|² / d

(Γ the gammas behind the embedding, g_F about its mean, p_v the share of word v in the text, e and d what the terms are
where T is 0.) T and f are found in turns, both by least squares. Where D is E and nothing left, T is E and f is 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from uer.calibration.moments import Moments, regress
from uer.calibration.stream import Stream
from uer.config import ModelConfig
from uer.errors import UserError
from uer.parallel.collectives import sum_over_ranks
from uer.squeeze.groups import MaskGroup
from uer.targets.mlm_target import MlmTarget

TURNS = 4
RIDGE = 1e-8  # share of the mean
ROUNDING = 1e-12
SHARE = 0.2  # of reading; 0.1 to 0.2 lost least at half and at a quarter of the width


def check_tied(config: ModelConfig, groups: Mapping[str, MaskGroup]) -> None:
    """`UserError` where a student of these groups cannot have one table."""
    if config.target != "mlm":
        raise UserError("--tie_student: the table is shared with an MLM head, which this teacher has not")
    if config.mlm_width != config.hidden_size or groups["mlm"].target != groups["hidden"].target:
        raise UserError(f"--tie_student: a shared table is as wide as the states ({groups['hidden'].target}), the MLM "
                        f"head is to have {groups['mlm'].target} features; leave --mlm_target_dim out")


def shared_table(stream: Stream, kept: torch.Tensor) -> torch.Tensor:
    """T [vocab, kept], on the stream's device, in float64.
    `kept`: dimensions of the residual stream and of the head's features that stay, int64, ascending."""
    teacher, target = stream.teacher, stream.teacher.target
    assert isinstance(target, MlmTarget)
    words, decoder = teacher.embedding.word_embedding.weight[:, kept], target.mlm_linear_2.weight
    moments = Moments(stream.device, g=decoder.shape[1])
    last = teacher.encoder.layers()[-1].layer_norm_2
    for number, real in enumerate(stream.real):
        hidden = last(stream.sum(number, 2 * len(teacher.encoder.layers())))
        moments.add(g=target.features(hidden[real]))
    moments.share()
    prior = torch.eye(decoder.shape[1], dtype=torch.float64, device=stream.device)[:, kept]
    onto = regress(moments, "g", "g", prior, index=kept)
    covariance = moments.covariance("g")[kept][:, kept]
    return _fit(words, decoder @ onto.matrix, word_shares(stream), teacher.embedding.layer_norm.gamma[kept], covariance)


def word_shares(stream: Stream) -> torch.Tensor:
    """Shares of words in the text of all processes, [vocab]; one of which there is none counts like half a one."""
    vocab = len(stream.teacher.embedding.word_embedding.weight)
    counts = torch.zeros(vocab, dtype=torch.float64, device=stream.device)
    for batch, real in zip(stream.batches, stream.real):
        counts += torch.bincount(batch.src[real], minlength=vocab)
    sum_over_ranks([counts])
    return (counts + 0.5) / (counts + 0.5).sum()


def _fit(words: torch.Tensor, decoder: torch.Tensor, shares: torch.Tensor, gamma: torch.Tensor,
         covariance: torch.Tensor) -> torch.Tensor:
    heard = gamma.square()
    reading = SHARE / (shares @ words.square() @ heard)
    predicting = (1 - SHARE) / (shares @ ((decoder @ covariance) * decoder).sum(1))
    table = words
    for _ in range(TURNS):
        factors = fitted_factors(table, decoder, shares, covariance, covariance)
        weight = predicting * covariance * torch.outer(factors, factors)
        error = decoder / factors - words
        table = words + torch.linalg.solve(torch.diag(reading * heard) + weight, weight @ error.T).T
    return table


def fitted_factors(table: torch.Tensor, decoder: torch.Tensor, shares: torch.Tensor, own: torch.Tensor,
                   cross: torch.Tensor) -> torch.Tensor:
    """f with T (f z) ≈ D g, word by word, by least squares.

    Args:
        table: T [vocab, kept], decoder: D [vocab, d]
        own: Cov[z], [kept, kept], cross: Cov[g, z], [d, kept]
    """
    weighted = shares[:, None] * table
    matrix = (table.T @ weighted) * own
    wanted = ((weighted.T @ decoder) @ cross).diagonal()
    residual = wanted - matrix.sum(1)  # that f = 1 leaves
    residual = torch.where(residual.abs() > ROUNDING * matrix.abs().sum(1), residual, 0.0)
    ridge = RIDGE * matrix.diagonal().mean().clamp_min(1e-300)
    return 1 + torch.linalg.solve(matrix + ridge * torch.eye(len(own)).to(own), residual)
