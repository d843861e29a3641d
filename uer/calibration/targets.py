"""The last part of a calibration: what stands on the encoder.

    mlm              as a linear with a LayerNorm behind it; C of the vocabulary projection by least squares
    cls              on pooled states: what is behind tanh picked greedily, C of the classes by least squares
    states, tokens   the column compactor C x ≈ C z + c of the last states is all there is

x are the teacher's, z the student's last states. Where a text is read as one vector, C and c are fitted to the pooled
states, as a correction to those of the single ones.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from uer.calibration.calibrate import Calibrator
from uer.calibration.moments import Affine, Moments, regress
from uer.calibration.selection import greedy_regressors
from uer.calibration.tying import fitted_factors, word_shares
from uer.squeeze.wiring import VOCABULARY_LINEAR, target_linears
from uer.targets.mlm_target import MlmTarget
from uer.targets.output_target import ClsTarget
from uer.targets.pooling import pooled


def calibrate_target(calibrator: Calibrator, into: Affine) -> None:
    """Record the target's compactors and biases.

    Args:
        calibrator: with the teacher's and the student's last states spooled as `x` and `z`.
        into: the last states of the teacher from those of the student.
    """
    target = calibrator.teacher.target
    if isinstance(target, MlmTarget):
        _mlm(calibrator, target, into)
    elif isinstance(target, ClsTarget):
        _cls(calibrator, target, _pooled_map(calibrator, into))
    else:
        pools = calibrator.teacher.config.target == "states"
        _from_states(calibrator, target.output_layer, _pooled_map(calibrator, into) if pools else into)


def _mlm(calibrator: Calibrator, target: MlmTarget, into: Affine) -> None:
    linear, norm, vocabulary = target.mlm_linear_1, target.layer_norm, target.mlm_linear_2
    weight, bias = _from_states(calibrator, linear, into)
    moments = calibrator._moments(
        lambda number: {"g": norm(target.act(linear(calibrator._state(number, "x"))))}, g=len(bias))
    index = _choose_features(calibrator, moments, bias)

    def states(number: int) -> tuple[torch.Tensor, torch.Tensor]:
        mine = target.act(F.linear(calibrator._state(number, "z"), weight[index], bias[index]))
        return target.act(linear(calibrator._state(number, "x"))), mine

    onto = calibrator._layer_norm("target.layer_norm", norm, index, states)
    _read(calibrator, 1, vocabulary, onto)
    if calibrator.result.table is not None:
        _share_table(calibrator, vocabulary, calibrator.result.table)


def _share_table(calibrator: Calibrator, vocabulary, table: torch.Tensor) -> None:
    """Features and bias for a decoder that is the embedding's table: a factor of each feature, by least squares."""
    moments = calibrator._moments(lambda number: {name: calibrator._state(number, name) for name in ("z", "x")},
                                  z=table.shape[1], x=vocabulary.weight.shape[1])
    factors = fitted_factors(table, vocabulary.weight, word_shares(calibrator.stream), moments.covariance("z"),
                             moments.covariance("x", "z"))
    for part in ("gamma", "beta"):
        calibrator.out[f"target.layer_norm.{part}"] = calibrator.out[f"target.layer_norm.{part}"] * factors
    calibrator.out[f"{VOCABULARY_LINEAR}.bias"] = (vocabulary.bias + vocabulary.weight @ moments.mean("x")
                                                   - table @ (factors * moments.mean("z")))


def _cls(calibrator: Calibrator, target: ClsTarget, into: Affine) -> None:
    weight, bias = _from_states(calibrator, target.output_layer_1, into)
    moments = Moments(calibrator.device, g=len(bias), h=len(bias))
    for x, z in _pooled(calibrator):
        moments.add(g=target.act(target.output_layer_1(x)), h=target.act(F.linear(z, weight, bias)))
    index = _choose_features(calibrator, moments.share(), bias)
    prior = torch.eye(len(bias), dtype=bias.dtype, device=bias.device)[:, index]
    onto = regress(moments, "h", "g", prior, index=index)
    calibrator._report("target", onto.explained)
    _read(calibrator, 1, target.output_layer_2, onto)


# -- features inside a target ------------------------------------------------------------------------------------------


def _from_states(calibrator: Calibrator, linear, into: Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of the first linear as it reads the student's states."""
    calibrator.result.offset = into.offset
    return linear.weight @ into.matrix, _read(calibrator, 0, linear, into)


def _read(calibrator: Calibrator, place: int, linear, from_student: Affine) -> torch.Tensor:
    """Record how the linear at this place of the target reads what the student has; returns its bias."""
    wired = target_linears(calibrator.teacher.config.target)[place]
    calibrator.out[f"{wired.left}.weight"] = from_student.matrix
    bias = calibrator.out[f"{wired.name}.bias"] = linear.bias + linear.weight @ from_student.offset
    return bias


def _choose_features(calibrator: Calibrator, moments: Moments, bias: torch.Tensor) -> torch.Tensor:
    """The features g that explain all of them best, recorded: int64 [kept], ascending."""
    wired = target_linears(calibrator.teacher.config.target)[0]
    assert wired.leaves
    covariance = moments.covariance("g")
    index = calibrator.hidden if calibrator.tied else \
        greedy_regressors(covariance, covariance, calibrator.groups[wired.leaves].target)
    calibrator.out[f"{wired.right}.weight"] = calibrator._select(index, len(bias))
    calibrator._keep(wired.leaves, index)
    return index


# -- pooled states -----------------------------------------------------------------------------------------------------


def _pooled(calibrator: Calibrator) -> Iterator[list[torch.Tensor]]:
    """Every batch's states `x` and `z`, pooled as the teacher pools: [batch, width] each."""
    for number, real in enumerate(calibrator.stream.real):
        yield [pooled(calibrator._state(number, name), real, calibrator.teacher.config.pooling) for name in ("x", "z")]


def _pooled_map(calibrator: Calibrator, into: Affine) -> Affine:
    """`into`, corrected for pooled states; reported as what it explains of them."""
    width, kept = into.matrix.shape
    moments = Moments(calibrator.device, x=width, z=kept)
    for x, z in _pooled(calibrator):
        moments.add(x=x, z=z)
    fitted = regress(moments.share(), "z", "x", into.matrix)
    calibrator._report("pooled states", fitted.explained)
    return fitted
