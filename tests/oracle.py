"""WID once more: plain, slow, written from the method's formulas; it shares no code with the package it judges.

    y = R (W (C x) + b)        every compactor is applied to activations, nothing is composed

LayerNorm, attention, schedule, scores, masks, the published update and AdamW are spelled out tensor by tensor. Weights
carry the published names: R is `right_compactor`, C is `left_compactor`, both as the weight of y = x · weightᵀ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # src, tgt (0 = not predicted), seg: int [batch, seq]


def add_compactors(weights: dict[str, torch.Tensor], layers: int) -> None:
    """Put an identity compactor at every place that has none."""
    hidden, inner = weights["encoder.transformer.0.feed_forward.linear_1.weight"].shape[::-1]

    def identity(name: str, size: int) -> None:
        weights.setdefault(f"{name}.weight", torch.eye(size, dtype=torch.float64))

    identity("embedding.emb_compactor", hidden)
    for i in range(layers):
        attn, ffn = f"encoder.transformer.{i}.self_attn", f"encoder.transformer.{i}.feed_forward"
        for j in range(3):
            identity(f"{attn}.left_compactor.{j}", hidden)
            identity(f"{attn}.right_compactor.{j}", hidden)
        identity(f"{attn}.final_linear_left_compactor", hidden)
        identity(f"{attn}.final_linear_right_compactor", hidden)
        identity(f"{ffn}.linear_1_left_compactor", hidden)
        identity(f"{ffn}.linear_1_right_compactor", inner)
        identity(f"{ffn}.linear_2_left_compactor", inner)
        identity(f"{ffn}.linear_2_right_compactor", hidden)
    identity("target.mlm_linear_1_left_compactor", hidden)
    identity("target.mlm_linear_1_right_compactor", hidden)
    identity("target.mlm_linear_2_left_compactor", hidden)


def count_layers(weights: Mapping[str, torch.Tensor]) -> int:
    """Encoder layers among published names."""
    return 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.transformer."))


class Oracle:
    """A teacher with compactors, its masks and its optimizer.

    Args:
        teacher: published names -> tensors; compactors that are absent start as identity.
        tied: the vocabulary projection is the word table.
        huggingface: LayerNorm divides by sqrt(var_biased + 1e-12) instead of (std_unbiased + 1e-6).
        compactors_only: leave the teacher's weights as they are.
        factor: step (from 1) -> factor of both learning rates.
    """

    def __init__(self, teacher: Mapping[str, torch.Tensor], *, heads: int, target_dim: int, strategy: str, w_step: int,
                 l2_lambda: float, learning_rate: float, compactor_learning_rate: float, tied: bool = False,
                 huggingface: bool = False, compactors_only: bool = False,
                 factor: Callable[[int], float] = lambda step: 1.0):
        weights = {name: tensor.detach().double().clone() for name, tensor in teacher.items()}
        self.layers = count_layers(weights)
        add_compactors(weights, self.layers)
        self.p = {name: tensor.requires_grad_() for name, tensor in weights.items()}
        if tied:
            self.p["target.mlm_linear_2.weight"] = self.p["embedding.word_embedding.weight"]
        self.heads, self.target_dim, self.strategy = heads, target_dim, strategy
        self.w_step, self.l2_lambda = w_step, l2_lambda
        self.learning_rate, self.compactor_learning_rate = learning_rate, compactor_learning_rate
        self.huggingface, self.factor = huggingface, factor
        table = self.p["embedding.word_embedding.weight"]
        self.trained = [name for name, tensor in self.p.items()
                        if (name == "embedding.word_embedding.weight" or tensor is not table)
                        and ("compactor" in name or not compactors_only)]
        self.hidden = self.p["embedding.word_embedding.weight"].shape[1]
        self.inner = self.p["encoder.transformer.0.feed_forward.linear_1.weight"].shape[0]
        self.dropped: dict[str, list[int]] = {group: [] for group in self.group_names()}
        self.m = {name: torch.zeros_like(tensor) for name, tensor in self.p.items()}
        self.v = {name: torch.zeros_like(tensor) for name, tensor in self.p.items()}
        self.step_number = 0

    # -- forward ---------------------------------------------------------------------------------------------------

    def linear(self, x: torch.Tensor, name: str, left: str, right: str) -> torch.Tensor:
        """R (W (C x) + b)"""
        squeezed = x @ self.p[f"{left}.weight"].T
        y = squeezed @ self.p[f"{name}.weight"].T + self.p[f"{name}.bias"]
        return y @ self.p[f"{right}.weight"].T

    def layer_norm(self, x: torch.Tensor, name: str, group: str) -> torch.Tensor:
        """Mean and std over the kept dimensions, applied to all."""
        gone = set(self.dropped[group])
        kept = [j for j in range(x.shape[-1]) if j not in gone]
        n = len(kept)
        mean = x[..., kept].mean(-1, keepdim=True)
        square = ((x[..., kept] - mean) ** 2).sum(-1, keepdim=True)
        gamma, beta = self.p[f"{name}.gamma"], self.p[f"{name}.beta"]
        if self.huggingface:
            return gamma * math.sqrt((n - 1) / n) * (x - mean) / torch.sqrt(square / n + 1e-12) + beta
        return gamma * (x - mean) / (torch.sqrt(square / (n - 1)) + 1e-6) + beta

    def attention(self, x: torch.Tensor, seg: torch.Tensor, layer: int) -> torch.Tensor:
        """softmax(q kᵀ / √(head size of the teacher)) v per head, padding never attended to."""
        attn = f"encoder.transformer.{layer}.self_attn"
        q, k, v = (self.linear(x, f"{attn}.linear_layers.{j}", f"{attn}.left_compactor.{j}",
                               f"{attn}.right_compactor.{j}") for j in range(3))
        size = self.hidden // self.heads
        outputs = []
        for h in range(self.heads):
            part = slice(h * size, (h + 1) * size)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(size)  # [batch, seq, seq]
            logits = logits.masked_fill((seg == 0)[:, None, :], -math.inf)
            weights = (logits - logits.amax(-1, keepdim=True)).exp()
            weights = weights / weights.sum(-1, keepdim=True)
            outputs.append(weights @ v[..., part])
        return self.linear(torch.cat(outputs, -1), f"{attn}.final_linear", f"{attn}.final_linear_left_compactor",
                           f"{attn}.final_linear_right_compactor")

    def feed_forward(self, x: torch.Tensor, layer: int) -> torch.Tensor:
        """linear_2(gelu(linear_1(x)))"""
        ffn = f"encoder.transformer.{layer}.feed_forward"
        inner = gelu(self.linear(x, f"{ffn}.linear_1", f"{ffn}.linear_1_left_compactor",
                                 f"{ffn}.linear_1_right_compactor"))
        return self.linear(inner, f"{ffn}.linear_2", f"{ffn}.linear_2_left_compactor",
                           f"{ffn}.linear_2_right_compactor")

    def logits(self, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
        """src, seg int [batch, seq] -> float64 [batch, seq, vocab]"""
        p = self.p
        word, position, segment = (p[f"embedding.{kind}_embedding.weight"] for kind in ("word", "position", "segment"))
        x = word[src] + position[torch.arange(src.shape[1])] + segment[seg]
        x = self.layer_norm(x @ p["embedding.emb_compactor.weight"].T, "embedding.layer_norm", "hidden")
        for i in range(self.layers):
            layer = f"encoder.transformer.{i}"
            x = self.layer_norm(x + self.attention(x, seg, i), f"{layer}.layer_norm_1", "hidden")
            x = self.layer_norm(x + self.feed_forward(x, i), f"{layer}.layer_norm_2", "hidden")
        x = gelu(self.linear(x, "target.mlm_linear_1", "target.mlm_linear_1_left_compactor",
                             "target.mlm_linear_1_right_compactor"))
        x = self.layer_norm(x, "target.layer_norm", "mlm")
        x = x @ p["target.mlm_linear_2_left_compactor.weight"].T
        return x @ p["target.mlm_linear_2.weight"].T + p["target.mlm_linear_2.bias"]

    def loss(self, batches: Sequence[Batch]) -> torch.Tensor:
        """Token losses of all micro-batches, summed, over the number of predicted tokens of all of them."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for src, tgt, seg in batches:
            logits = self.logits(src, seg)[tgt > 0]  # [predicted, vocab]
            labels = tgt[tgt > 0]
            right = logits[torch.arange(len(labels)), labels]
            total = total + (torch.logsumexp(logits, -1) - right).sum()
            count += len(labels)
        return total / count

    # -- groups, scores, masks -------------------------------------------------------------------------------------

    def group_names(self) -> list[str]:
        """hidden, attention.i, ffn.i, mlm"""
        return ["hidden", *(f"{kind}.{i}" for i in range(self.layers) for kind in ("attention", "ffn")), "mlm"]

    def scores(self, group: str) -> torch.Tensor:
        """‖C[:, j]‖₂ of the group's scoring compactor."""
        kind, _, layer = group.partition(".")
        name = {
            "hidden": "encoder.transformer.0.self_attn.left_compactor.2",
            "attention": f"encoder.transformer.{layer}.self_attn.final_linear_left_compactor",
            "ffn": f"encoder.transformer.{layer}.feed_forward.linear_2_left_compactor",
            "mlm": "target.mlm_linear_2_left_compactor",
        }[kind]
        c = self.p[f"{name}.weight"].detach()
        return torch.stack([(c[:, j] ** 2).sum().sqrt() for j in range(c.shape[1])])

    def choose(self, group: str, k: int) -> list[int]:
        """The dimensions of a group that are dropped in interval k, ascending."""
        scores = self.scores(group).tolist()
        size, head = len(scores), self.hidden // self.heads
        if group == "mlm" or group.startswith("ffn."):
            total = size - size * self.target_dim // self.hidden
            return lowest(range(size), scores, min(total * k // 16, total))
        blocks = [range(h * head, (h + 1) * head) for h in range(self.heads)]
        if self.strategy == "head":
            energy = [sum(scores[j] for j in block) for block in blocks]
            gone = lowest(range(self.heads), energy, min(k // 2, (size - self.target_dim) // head))
            return [j for h in gone for j in blocks[h]]
        total = head - self.target_dim // self.heads
        return [j for block in blocks for j in lowest(block, scores, min(total * k // 8, total))]

    def masked_axes(self) -> tuple[dict[str, tuple[int, str]], dict[str, tuple[int, str]]]:
        """name -> (axis, group): of the compactors, and of the biases, gammas and betas."""
        compactors = {"embedding.emb_compactor.weight": (0, "hidden"),
                      "target.mlm_linear_1_left_compactor.weight": (1, "hidden"),
                      "target.mlm_linear_1_right_compactor.weight": (0, "mlm"),
                      "target.mlm_linear_2_left_compactor.weight": (1, "mlm")}
        vectors = {"embedding.layer_norm": "hidden", "target.mlm_linear_1": "mlm", "target.layer_norm": "mlm"}
        for i in range(self.layers):
            layer = f"encoder.transformer.{i}"
            attn, ffn = f"{layer}.self_attn", f"{layer}.feed_forward"
            for j in range(3):
                compactors[f"{attn}.left_compactor.{j}.weight"] = (1, "hidden")
                compactors[f"{attn}.right_compactor.{j}.weight"] = (0, f"attention.{i}")
                vectors[f"{attn}.linear_layers.{j}"] = f"attention.{i}"
            compactors[f"{attn}.final_linear_left_compactor.weight"] = (1, f"attention.{i}")
            compactors[f"{attn}.final_linear_right_compactor.weight"] = (0, "hidden")
            compactors[f"{ffn}.linear_1_left_compactor.weight"] = (1, "hidden")
            compactors[f"{ffn}.linear_1_right_compactor.weight"] = (0, f"ffn.{i}")
            compactors[f"{ffn}.linear_2_left_compactor.weight"] = (1, f"ffn.{i}")
            compactors[f"{ffn}.linear_2_right_compactor.weight"] = (0, "hidden")
            vectors |= {f"{attn}.final_linear": "hidden", f"{ffn}.linear_2": "hidden", f"{ffn}.linear_1": f"ffn.{i}",
                        f"{layer}.layer_norm_1": "hidden", f"{layer}.layer_norm_2": "hidden"}
        return compactors, {f"{name}.{part}": (0, group) for name, group in vectors.items()
                            for part in (("gamma", "beta") if "layer_norm" in name else ("bias",))}

    @torch.no_grad()
    def zero_dropped(self) -> None:
        """Set every dropped entry of every compactor to zero."""
        for name, (axis, group) in self.masked_axes()[0].items():
            self.p[name].index_fill_(axis, torch.tensor(self.dropped[group], dtype=torch.long), 0.0)

    # -- a step ----------------------------------------------------------------------------------------------------

    def step(self, batches: Sequence[Batch]) -> float:
        """One optimizer step over these micro-batches; returns its loss."""
        self.step_number += 1
        s = self.step_number
        loss = self.loss(batches)
        gradients = dict(zip(self.trained, torch.autograd.grad(loss, [self.p[name] for name in self.trained])))
        if s % self.w_step == 0:
            self.dropped = {group: self.choose(group, s // self.w_step) for group in self.dropped}
        self.penalise(s, gradients)
        for name, gradient in gradients.items():
            self.adamw(name, gradient, self.factor(s))
        return loss.item()

    @torch.no_grad()
    def penalise(self, s: int, gradients: dict[str, torch.Tensor]) -> None:
        """The published surgery on gradients and first moments."""
        compactors, vectors = self.masked_axes()
        if s <= self.w_step:
            for name in compactors:
                gradients[name] = gradients[name] + self.p[name]
            return
        for name, (axis, group) in (compactors | vectors).items():
            if name not in gradients:
                continue
            p, g = self.p[name], gradients[name]
            gone = torch.zeros(p.shape[axis], dtype=torch.float64)
            gone[self.dropped[group]] = 1.0
            gone = gone[:, None].expand_as(p) if axis == 0 and p.dim() == 2 else gone.expand_as(p)
            gradients[name] = torch.where(gone == 1, min(self.l2_lambda, 1.0) * p, g)
            if self.l2_lambda > 1:
                self.m[name] = 0.9 * self.m[name] + 0.1 * (self.l2_lambda - 1) * p * gone

    @torch.no_grad()
    def adamw(self, name: str, g: torch.Tensor, factor: float) -> None:
        """No bias correction; decay after the update, on matrices only."""
        p = self.p[name]
        rate = factor * (self.compactor_learning_rate if "compactor" in name else self.learning_rate)
        self.m[name] = 0.9 * self.m[name] + 0.1 * g
        self.v[name] = 0.999 * self.v[name] + 0.001 * g * g
        new = p - rate * self.m[name] / (self.v[name].sqrt() + 1e-6)
        if p.dim() == 2:
            new = new - rate * 0.01 * new
        p.copy_(new)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """x Φ(x)"""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def lowest(candidates: Sequence[int], scores: Sequence[float], count: int) -> list[int]:
    """The `count` candidates of lowest score (ties: lowest index), ascending."""
    return sorted(sorted(candidates, key=lambda j: (scores[j], j))[:count])
