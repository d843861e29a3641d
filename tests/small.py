"""Small teachers, batches, and the package driven step by step, for tests that compare it with the oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from oracle import Batch, Oracle

from uer.config import LAYERNORM_EPS, ModelConfig
from uer.models.bert import Bert
from uer.sizes import BertSizes
from uer.squeeze.groups import build_groups
from uer.squeeze.importance import build_scores
from uer.squeeze.master import Master
from uer.squeeze.penalty import build_penalty
from uer.training.optimizers import AdamW, parameter_groups
from uer.training.wid_learner import WidLearner

MULTIPLIED, PROJECTED = (1 << 40, 1 << 40), (1, 1)  # loads that decide what is done with the vocabulary's tables


@dataclass(frozen=True)
class Shape:
    """A teacher's sizes."""

    hidden: int
    heads: int
    feedforward: int
    layers: int = 2
    vocab: int = 90
    positions: int = 16

    def config(self, **changes) -> ModelConfig:
        """As the package wants it, without dropout."""
        fields = {"hidden_size": self.hidden, "layers_num": self.layers, "heads_num": self.heads,
                  "feedforward_size": self.feedforward, "max_seq_length": self.positions, "dropout": 0.0}
        return ModelConfig(**(fields | changes))


FOUR_BY_32 = Shape(hidden=128, heads=4, feedforward=256)
THREE_BY_8 = Shape(hidden=24, heads=3, feedforward=72)


def teacher(shape: Shape, seed: int = 1, scale: float = 0.15) -> dict[str, torch.Tensor]:
    """Random weights under the published names, float64, gammas, betas and biases away from their usual start."""
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def draw(name: str, *size: int, mean: float = 0.0, std: float = scale) -> None:
        weights[name] = mean + std * torch.randn(size, generator=generator, dtype=torch.float64)

    def linear(name: str, rows: int, columns: int) -> None:
        draw(f"{name}.weight", rows, columns)
        draw(f"{name}.bias", rows, std=0.1)

    def norm(name: str) -> None:
        draw(f"{name}.gamma", shape.hidden, mean=1.0, std=0.1)
        draw(f"{name}.beta", shape.hidden, std=0.1)

    draw("embedding.word_embedding.weight", shape.vocab, shape.hidden)
    draw("embedding.position_embedding.weight", shape.positions, shape.hidden)
    draw("embedding.segment_embedding.weight", 3, shape.hidden)
    norm("embedding.layer_norm")
    for i in range(shape.layers):
        layer = f"encoder.transformer.{i}"
        for j in range(3):
            linear(f"{layer}.self_attn.linear_layers.{j}", shape.hidden, shape.hidden)
        linear(f"{layer}.self_attn.final_linear", shape.hidden, shape.hidden)
        norm(f"{layer}.layer_norm_1")
        linear(f"{layer}.feed_forward.linear_1", shape.feedforward, shape.hidden)
        linear(f"{layer}.feed_forward.linear_2", shape.hidden, shape.feedforward)
        norm(f"{layer}.layer_norm_2")
    linear("target.mlm_linear_1", shape.hidden, shape.hidden)
    norm("target.layer_norm")
    linear("target.mlm_linear_2", shape.vocab, shape.hidden)
    return weights


def batch(shape: Shape, seed: int, rows: int = 3, seq: int = 12) -> Batch:
    """src, tgt, seg: rows of different lengths in two segments; a row mostly repeats one token: learnable."""
    generator = torch.Generator().manual_seed(seed)
    theme = torch.randint(5, shape.vocab, (rows, 1), generator=generator)
    other = torch.randint(5, shape.vocab, (rows, seq), generator=generator)
    src = torch.where(torch.rand(rows, seq, generator=generator) < 0.8, theme, other)
    lengths = torch.randint(seq // 2, seq + 1, (rows, 1), generator=generator)
    column = torch.arange(seq)[None, :]
    seg = torch.where(column < lengths, 1 + (column >= lengths // 2).long(), 0)
    picked = (torch.rand(rows, seq, generator=generator) < 0.2) & (seg > 0)
    picked[:, 1] = True
    tgt = torch.where(picked, src, 0)
    return torch.where(seg == 0, 0, torch.where(picked, 4, src)), tgt, seg


def micro_batches(shape: Shape, step: int, count: int) -> list[Batch]:
    """The micro-batches of a step: unequal numbers of predicted tokens."""
    return [batch(shape, 1000 * step + i, rows=3 + i) for i in range(count)]


class Product:
    """The package's master, student, penalty and optimizer, one call a step."""

    def __init__(self, shape: Shape, weights: Mapping[str, torch.Tensor], *, target_dim: int, strategy: str,
                 w_step: int, l2_lambda: float, learning_rate: float, compactor_learning_rate: float,
                 penalty: str = "published", load: tuple[int, int] = MULTIPLIED,
                 squeeze_tolerance: float | None = None, compactors_only: bool = False, scores: str = "norm",
                 mlm_target_dim: int | None = None, target_feedforward_size: int | None = None, early: bool = False,
                 factor: Callable[[int], float] = lambda step: 1.0, **config):
        self.config = shape.config(**config)
        self.groups = build_groups(self.config, target_dim, strategy, mlm_target_dim, target_feedforward_size)
        copies = {name: tensor.clone() for name, tensor in weights.items()}
        self.master = Master(self.config, copies, self.groups, tokens=load[0], predicted=load[1])
        if compactors_only:
            for name, parameter in self.master.named_parameters():
                parameter.requires_grad_("compactor" in name)
        self.optimizer = AdamW(parameter_groups(
            self.master.named_parameters(), learning_rate,
            lambda name: compactor_learning_rate if "compactor" in name else None))
        self.learner = WidLearner(self.master, self.optimizer,
                                  build_penalty(penalty, self.master, self.optimizer.state, w_step, l2_lambda), w_step,
                                  squeeze_tolerance, build_scores(scores, self.master), early=early)
        self.factor = factor
        self.step_number = 0

    def loss(self, batches: Sequence[Batch], backward: bool = False) -> float:
        """Loss of the student as composed last, micro-batch by micro-batch."""
        predicted = sum(int((tgt > 0).sum()) for _, tgt, _ in batches)
        total = 0.0
        for src, tgt, seg in batches:
            positions = (tgt.flatten() > 0).nonzero().flatten()
            summed, _ = self.learner.student.loss(src, seg, positions, tgt.flatten()[positions])
            if backward:
                (summed / predicted).backward()
            total += summed.item()
        return total / predicted

    @torch.no_grad()
    def next_loss(self, batches: Sequence[Batch]) -> float:
        """What the next step's loss would be."""
        self.learner.prepare()
        return self.loss(batches)

    def step(self, batches: Sequence[Batch]) -> float:
        """One optimizer step; returns its loss."""
        self.step_number += 1
        self.learner.prepare()
        loss = self.loss(batches, backward=True)
        self.learner.finish(self.step_number, self.factor(self.step_number))
        return loss

    def dropped(self) -> dict[str, list[int]]:
        """group -> dropped dimensions, ascending."""
        return {name: group.dropped.tolist() for name, group in self.groups.items()}


def pair(shape: Shape, weights: Mapping[str, torch.Tensor] | None = None, *, load: tuple[int, int] = MULTIPLIED,
         squeeze_tolerance: float | None = None, tied: bool = False, layernorm: str = "uer",
         **method) -> tuple[Product, Oracle]:
    """The package and the oracle at the same start."""
    weights = teacher(shape) if weights is None else weights
    config = {"tie_weights": tied, "layernorm": layernorm, "layernorm_eps": LAYERNORM_EPS[layernorm]}
    product = Product(shape, weights, load=load, squeeze_tolerance=squeeze_tolerance, **config, **method)
    oracle = Oracle(weights, heads=shape.heads, tied=tied, huggingface=layernorm == "huggingface", **method)
    return product, oracle


def student_sizes(shape: Shape, config: ModelConfig) -> BertSizes:
    """Sizes of a plain BERT of this config, with the shape's tables."""
    return BertSizes.uniform(vocab=shape.vocab, hidden=config.hidden_size, layers=config.layers_num,
                             heads=config.heads_num, feedforward=config.feedforward_size, positions=shape.positions)


def plain_bert(shape: Shape, config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    """A plain BERT of this config with these weights, in their dtype; every key must fit."""
    model = Bert(student_sizes(shape, config), config).to(next(iter(weights.values())).dtype)
    model.load_state_dict(dict(weights))
    return model.eval()


def trained_teacher(shape: Shape, steps: int = 200) -> dict[str, torch.Tensor]:
    """A teacher that has learned `batch`'s rule."""
    model = plain_bert(shape, shape.config(), teacher(shape)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(steps):
        src, tgt, seg = batch(shape, 10**6 + step, rows=32)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(src, seg)[tgt.flatten() > 0], tgt[tgt > 0]).backward()
        optimizer.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Standard normal numbers, always the same."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
