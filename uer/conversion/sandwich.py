"""The model that training means, computed the plain way: every compactor applied to activations.

    y = R (W (C x) + b)

Slow, and independent of the composition of weights; conversions are checked against it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from uer.config import ModelConfig
from uer.layers.layer_norm import LayerNorm
from uer.layers.position_ffn import ACTIVATIONS
from uer.squeeze.master import Master
from uer.squeeze.wiring import (
    EMBEDDING_COMPACTOR,
    EMBEDDING_TABLES,
    WrappedLinear,
    encoder_linears,
    masked_compactors,
    target_linears,
)
from uer.targets.pooling import pooled


def real_rows(config: ModelConfig, seg: torch.Tensor) -> torch.Tensor:
    """The rows of a model's result that are not of padding, of which a text as a whole has none: bool [rows]"""
    return torch.ones(len(seg), dtype=torch.bool) if config.target == "cls" else (seg > 0).flatten()


class Sandwich:
    """A master's model in evaluation mode.

    Args:
        master: before, amid or after a squeeze. Unsqueezed groups with masks: LayerNorm runs over the kept dimensions.
        zero_dropped: set the dropped compactor entries to zero first (the master is left as it is).
        student_scale: divide attention scores by the root of the kept head size, as the published conversion's
            students do; training divides by the root of the teacher's.
    """

    def __init__(self, master: Master, zero_dropped: bool = False, student_scale: bool = False):
        self.config = master.config
        self.groups = master.groups
        self.student_scale = student_scale
        self.p = master.state_dict()
        if zero_dropped:
            for tensor in masked_compactors(self.config):
                group = self.groups[tensor.group]
                if not group.squeezed and len(group.dropped):
                    self.p[tensor.name] = self.p[tensor.name].index_fill(tensor.dim, group.dropped, 0.0)

    @torch.no_grad()
    def logits(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """src, seg int [batch, seq] (seg 0 = padding) -> as `Bert.forward`: [batch * seq, vocab] of an MLM head"""
        word, position, segment = (self.p[name] for name in EMBEDDING_TABLES)
        rows = word[src] + position[: src.shape[1]] + segment[seg]
        hidden = self._norm("embedding.layer_norm", "hidden", F.linear(rows, self.p[f"{EMBEDDING_COMPACTOR}.weight"]))
        for i in range(self.config.layers_num):
            hidden = self._layer(i, hidden, (seg > 0)[:, None, None, :])
        return self._target(hidden, seg)

    def _target(self, hidden: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        linears = target_linears(self.config.target)
        if self.config.target == "mlm":
            inner = ACTIVATIONS[self.config.hidden_act](self._linear(linears[0], hidden.flatten(0, 1)))
            return self._linear(linears[1], self._norm("target.layer_norm", "mlm", inner))
        if self.config.target == "cls":
            read = pooled(hidden, seg, self.config.pooling)
            return self._linear(linears[1], ACTIVATIONS[self.config.cls_act](self._linear(linears[0], read)))
        return self._linear(linears[0], hidden.flatten(0, 1))

    def _layer(self, i: int, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        query, key, value, output, linear_1, linear_2 = encoder_linears(i)
        group = self.groups[f"attention.{i}"]
        heads = group.heads
        q, k, v = (self._linear(linear, hidden).unflatten(-1, (heads, -1)).transpose(1, 2)
                   for linear in (query, key, value))  # [batch, heads, seq, size]
        size = self.config.head_size
        if self.student_scale and not group.whole_blocks:
            size = group.kept // heads
        scores = q @ k.transpose(-1, -2) / size**0.5
        context = scores.masked_fill(~mask, float("-inf")).softmax(-1) @ v
        attended = self._linear(output, context.transpose(1, 2).flatten(2))
        hidden = self._norm(f"encoder.transformer.{i}.layer_norm_1", "hidden", hidden + attended)
        inner = ACTIVATIONS[self.config.hidden_act](self._linear(linear_1, hidden))
        return self._norm(f"encoder.transformer.{i}.layer_norm_2", "hidden", hidden + self._linear(linear_2, inner))

    def _linear(self, linear: WrappedLinear, x: torch.Tensor) -> torch.Tensor:
        p = self.p
        y = F.linear(F.linear(x, p[f"{linear.left}.weight"]), p[f"{linear.name}.weight"], p[f"{linear.name}.bias"])
        return F.linear(y, p[f"{linear.right}.weight"]) if linear.right else y

    def _norm(self, name: str, owner: str, x: torch.Tensor) -> torch.Tensor:
        group = self.groups[owner]
        norm = LayerNorm(x.shape[-1], self.config.layernorm, self.config.layernorm_eps).to(x)
        norm.gamma.data, norm.beta.data = self.p[f"{name}.gamma"], self.p[f"{name}.beta"]
        if group.keep is not None and not group.squeezed and len(group.dropped):
            norm.set_keep(group.keep.to(x), group.kept)
        return norm(x)
