"""Closed-form compactors, layer by layer, on what the student itself sees.

Written for a kept set F of the residual stream and, in layer i, x the teacher's and z the student's states:

    hidden       F greedily, to explain all residual-stream states;  z_0 = LN(embedding[F])
    q, k, v      one column compactor C: x ≈ C z + c;  c goes into the biases
    q, k         rank-r maps of the bilinear form of the queries and keys that C z predicts, balanced; key biases 0
    v, o         the part of each head's context that the output needs, then least squares of the residual error
                 (x + attention(x))[F] − z on the student's own contexts, balanced
    ffn          neurons greedily, then least squares of the residual error on the student's own activations
    LayerNorms   gamma and beta refitted per dimension; an error before them counts as much as the teacher's gamma
    target       see `uer.calibration.targets`

Everything ends as rows of R, columns of C, biases, gammas and betas of the published form, so a calibrated model is a
squeezed stage-1 model. All arithmetic is float64. Where nothing is dropped every correction vanishes: the student is
the teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from uer.calibration.heads import query_key_maps, value_maps
from uer.calibration.maps import lift
from uer.calibration.moments import Affine, Moments, regress, rescaled
from uer.calibration.selection import greedy_blocks, greedy_regressors
from uer.calibration.spool import Spool
from uer.calibration.stream import Stream
from uer.calibration.tying import shared_table
from uer.layers.layer_norm import LayerNorm, standardise
from uer.squeeze.groups import MaskGroup
from uer.squeeze.wiring import EMBEDDING_COMPACTOR, encoder_linears

SILENT = 1e-2  # a gamma up to this share of their mean leaves next to nothing of its dimension
NEURON_RIDGE = 0.1  # variance, as a share of the mean, that counts against every neuron's gain
SLACK = 0.01  # of the error, given to keep the weights of linear_2 near the teacher's


@dataclass
class Calibration:
    """What calibration found.

    Attributes:
        tensors: compactors (R [kept, d], C [d, kept]), biases, gammas and betas, under the published names.
        keep: by group, the dimensions kept: bool [size] (attention: nominally, the first of each head).
        explained: (part, share of variance explained) in the order of the forward pass.
        tokens: tokens seen.
        offset: constant part of the teacher's last states as the student's tell them: x ≈ C z + offset, [d].
        table: of a student with one table for both, that table, [vocab, kept]; it takes the place of both others.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    keep: dict[str, torch.Tensor] = field(default_factory=dict)
    explained: list[tuple[str, float]] = field(default_factory=list)
    tokens: int = 0
    offset: torch.Tensor = field(default_factory=lambda: torch.zeros(0))
    table: torch.Tensor | None = None


class Calibrator:
    """Calibrates one student.

    Args:
        stream: the teacher's, over this process's share of the calibration data, which is gone through several times.
        groups: the mask groups, which say what size the student is to have.
        tied: whether the student is to have one table of words.
        progress: called with the name of each part as it is finished.
    """

    def __init__(self, stream: Stream, groups: dict[str, MaskGroup], tied: bool = False,
                 progress: Callable[[str], None] = lambda part: None):
        self.stream, self.groups, self.tied, self.progress = stream, groups, tied, progress
        self.teacher, self.batches, self.device = stream.teacher, stream.batches, stream.device
        self.spool = Spool()
        self.result = Calibration(tokens=stream.tokens)
        self.out = self.result.tensors
        self.heads = self.teacher.config.heads_num
        self.size = self.teacher.config.head_size

    @torch.no_grad()
    def run(self, last: Callable[[Calibrator, Affine], None]) -> Calibration:
        """All parts, in the order of the forward pass; `last` does what stands on the encoder."""
        with closing(self.spool):
            covariance = self.stream.covariance
            self.hidden = greedy_regressors(covariance, covariance, self.groups["hidden"].target)
            self._keep("hidden", self.hidden)
            into = self._embedding()
            for i in range(self.teacher.config.layers_num):
                into = self._attention(i, into)
                into = self._feed_forward(i, into)
            last(self, into)
        return self.result

    # -- helpers ---------------------------------------------------------------------------------------------------

    def _moments(self, states: Callable[[int], Mapping[str, torch.Tensor]], **widths: int) -> Moments:
        """Of the real tokens of states: by batch, name -> [batch, seq, width]."""
        moments = Moments(self.device, **widths)
        for number, real in enumerate(self.stream.real):
            moments.add(**{name: state[real] for name, state in states(number).items()})
        return moments.share()

    def _state(self, number: int, name: str) -> torch.Tensor:
        return self.spool.get(number, name).to(self.device)

    def _put(self, number: int, **tensors: torch.Tensor) -> None:
        self.spool.put(number, **{name: tensor.cpu() for name, tensor in tensors.items()})

    def _keep(self, group: str, index: torch.Tensor) -> None:
        keep = torch.zeros(self.groups[group].size, dtype=torch.bool)
        keep[index.cpu()] = True
        self.result.keep[group] = keep

    def _select(self, index: torch.Tensor, size: int) -> torch.Tensor:
        """Rows `index` of the identity: [len(index), size]."""
        return torch.eye(size, dtype=torch.float64, device=self.device)[index]

    def _report(self, part: str, explained: float) -> None:
        self.result.explained.append((part, explained))
        self.progress(part)

    # -- residual stream -------------------------------------------------------------------------------------------

    def _embedding(self) -> Affine:
        self.out[f"{EMBEDDING_COMPACTOR}.weight"] = self._select(self.hidden, self.teacher.config.hidden_size)
        changed = None
        if self.tied:
            self.result.table = shared_table(self.stream, self.hidden)
            changed = self.result.table - self.teacher.embedding.word_embedding.weight[:, self.hidden]

        def states(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            total = self.stream.sum(number, 0)
            mine = total[..., self.hidden]
            return total, mine if changed is None else mine + F.embedding(self.batches[number].src, changed)

        return self._layer_norm("embedding.layer_norm", self.teacher.embedding.layer_norm, self.hidden, states)

    def _layer_norm(self, name: str, norm: LayerNorm, index: torch.Tensor,
                    states: Callable[[int], tuple[torch.Tensor, torch.Tensor]]) -> Affine:
        """Refit gamma and beta of a LayerNorm on the student's own sums, spool both sides' results.

        Args:
            index: which of the teacher's dimensions the student has here.
            states: of a batch, the teacher's [.., d] and the student's [.., kept] states before the LayerNorm.
        Returns:
            the teacher's result from the student's: the next column compactor.
        """
        width, kept = len(norm.gamma), len(index)

        def normed(number: int) -> dict[str, torch.Tensor]:
            before, mine = states(number)
            found = {"x": norm(before), "z": standardise(mine, norm.style, norm.eps)}
            self._put(number, **found)
            return found

        moments = self._moments(normed, z=kept, x=width)
        gamma, beta = rescaled(moments, "z", "x", norm.gamma[index], index)
        self.out[f"{name}.gamma"], self.out[f"{name}.beta"] = gamma, beta
        loud = torch.minimum(gamma.abs(), norm.gamma[index].abs()) > SILENT * norm.gamma.abs().mean()
        told = loud.nonzero().flatten()  # dimensions that tell the next layer something
        prior = self._select(index[told], width).T * gamma[told]
        onto = regress(moments, "z", "x", prior, index=told)
        self._report(name, onto.explained)
        for number in range(len(self.batches)):
            self._put(number, z=self._state(number, "z") * gamma + beta)
        matrix = torch.zeros(width, kept, dtype=torch.float64, device=self.device)
        matrix[:, told] = onto.matrix / gamma[told]
        offset = onto.offset - matrix @ beta
        quiet = (~loud).nonzero().flatten()  # tell themselves alone, as nearly nothing over a tiny gamma tells much
        matrix[index[quiet]] = self._select(quiet, kept)
        offset[index[quiet]] = 0
        return Affine(matrix, offset, onto.explained)

    # -- attention -------------------------------------------------------------------------------------------------

    def _attention(self, i: int, into: Affine) -> Affine:
        layer = self.teacher.encoder.layers()[i]
        query, key, value, output = encoder_linears(i)[:4]
        linears = layer.self_attn.linears()
        weights = [linear.weight @ into.matrix for linear in linears]  # [d, kept] each
        biases = [linear.bias + linear.weight @ into.offset for linear in linears]
        group, final = self.groups[f"attention.{i}"], layer.self_attn.final_linear
        rank = group.target // group.target_blocks
        changed = rank < self.size or len(self.hidden) < len(final.bias)  # where nothing is, the teacher's own heads
        maps_q, maps_k = query_key_maps(self._heads_of(weights[0].T), self._heads_of(biases[0]),
                                        self._heads_of(weights[1].T), *self._seen(), rank, changed)
        if changed:
            biases[1] = torch.zeros_like(biases[1])  # a constant key shifts all scores of a query alike
        moments = self._contexts(i, weights, biases, maps_q, maps_k)
        heard = self._heard(layer.layer_norm_1)
        heads = list(range(self.heads))
        if group.target_blocks < self.heads:  # those whose contexts together explain the residual error best
            heads = greedy_blocks(moments.covariance("context"),
                                  heard[:, None] * moments.covariance("error", "context"), self.size,
                                  group.target_blocks)
        rows = torch.cat([torch.arange(h * self.size, (h + 1) * self.size) for h in heads]).to(self.device)
        reduce, start, fitted = value_maps(moments, rows, weights[2] if changed else None,
                                           final.weight[self.hidden], heard, self.size, rank)
        self._report(f"encoder.transformer.{i}.self_attn", fitted.explained)
        whole = self._select(rows, len(final.bias))  # [heads' * size, heads * size]
        for linear, maps, bias in ((query, torch.block_diag(*maps_q[heads]), biases[0]),
                                   (key, torch.block_diag(*maps_k[heads]), biases[1]), (value, reduce, biases[2])):
            self._linear(linear, maps @ whole, into.matrix, bias)
        self._linear(output, self._select(self.hidden, len(final.bias)),
                     lift(fitted.matrix, final.weight[self.hidden], whole.T @ start),
                     self._spread(fitted.offset, final.bias))
        self._keep(f"attention.{i}", torch.cat([torch.arange(h * self.size, h * self.size + rank) for h in heads]))

        def states(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            mine = F.linear(self._state(number, "context")[..., rows], fitted.matrix @ reduce, fitted.offset)
            return self.stream.sum(number, 2 * i + 1), self._state(number, "z") + mine

        return self._layer_norm(f"encoder.transformer.{i}.layer_norm_1", layer.layer_norm_1, self.hidden, states)

    def _linear(self, linear, rows: torch.Tensor, columns: torch.Tensor, bias: torch.Tensor) -> None:
        self.out[f"{linear.right}.weight"] = rows
        self.out[f"{linear.left}.weight"] = columns
        self.out[f"{linear.name}.bias"] = bias

    def _spread(self, offset: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The teacher's whole bias with the kept entries replaced."""
        whole = bias.clone()
        whole[self.hidden] = offset
        return whole

    def _heads_of(self, matrix: torch.Tensor) -> torch.Tensor:
        """[.., heads * size] -> [.., heads, size]"""
        return matrix.unflatten(-1, (self.heads, self.size))

    def _heard(self, norm: LayerNorm) -> torch.Tensor:
        """What a LayerNorm makes of an error in each kept dimension of the sum before it, to a factor: [kept]"""
        return norm.gamma[self.hidden].abs()

    def _seen(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Covariance and mean of the student's states."""
        moments = self._moments(lambda number: {"z": self._state(number, "z")}, z=len(self.hidden))
        return moments.covariance("z"), moments.mean("z")

    def _contexts(self, i: int, weights, biases, maps_q, maps_k) -> Moments:
        """Moments of the student's contexts (values at full width) and the residual error they are to explain."""
        def seen(number: int) -> dict[str, torch.Tensor]:
            z, u = self._state(number, "z"), self.stream.sum(number, 2 * i + 1)
            mask = self.stream.real[number][:, None, None, :]
            q, k, v = (self._heads_of(F.linear(z, w, b)) for w, b in zip(weights, biases))
            q = torch.einsum("bshd,hrd->bhsr", q, maps_q)
            k = torch.einsum("bshd,hrd->bhsr", k, maps_k)
            context = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), attn_mask=mask, scale=self.size**-0.5)
            context = context.transpose(1, 2).flatten(2)
            self._put(number, context=context)
            return {"context": context, "error": u[..., self.hidden] - z}

        return self._moments(seen, context=self.heads * self.size, error=len(self.hidden))

    # -- feed-forward ----------------------------------------------------------------------------------------------

    def _feed_forward(self, i: int, into: Affine) -> Affine:
        layer = self.teacher.encoder.layers()[i]
        linear_1, linear_2 = encoder_linears(i)[4:]
        first, second = layer.feed_forward.linear_1, layer.feed_forward.linear_2
        weight, bias = first.weight @ into.matrix, first.bias + first.weight @ into.offset

        def inner(number: int) -> dict[str, torch.Tensor]:
            z, u = self._state(number, "z"), self.stream.sum(number, 2 * i + 2)
            return {"a": layer.feed_forward.act(F.linear(z, weight, bias)), "error": u[..., self.hidden] - z}

        moments = self._moments(inner, a=len(bias), error=len(self.hidden))
        heard = self._heard(layer.layer_norm_2)
        neurons = greedy_regressors(moments.covariance("a"), heard[:, None] * moments.covariance("error", "a"),
                                    self.groups[f"ffn.{i}"].target, ridge=NEURON_RIDGE)
        target_rows = second.weight[self.hidden]
        fitted = regress(moments, "a", "error", target_rows[:, neurons], index=neurons, heard=heard, slack=SLACK)
        self._report(f"encoder.transformer.{i}.feed_forward", fitted.explained)
        rows = self._select(neurons, len(bias))
        self._linear(linear_1, rows, into.matrix, bias)
        self._linear(linear_2, self._select(self.hidden, len(second.bias)), lift(fitted.matrix, target_rows, rows.T),
                     self._spread(fitted.offset, second.bias))
        self._keep(f"ffn.{i}", neurons)

        def states(number: int) -> tuple[torch.Tensor, torch.Tensor]:
            z = self._state(number, "z")
            a = layer.feed_forward.act(F.linear(z, weight[neurons], bias[neurons]))
            return self.stream.sum(number, 2 * i + 2), z + F.linear(a, fitted.matrix, fitted.offset)

        return self._layer_norm(f"encoder.transformer.{i}.layer_norm_2", layer.layer_norm_2, self.hidden, states)
