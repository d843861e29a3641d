"""The golden run: 160 steps of the published code in float64, to be met digit by digit.

One layer, 768 hidden, 12 heads, ffn 3072, vocabulary 1000, batch 4 × 32, dropout 0, strategy `dim`, target 192,
w_step 5, lambda 20, learning rate 1e-5, compactor learning rate 5e-4, constant schedule, no tying, no accumulation.
Initial weights and batches come out of two seeded streams of numpy's legacy generator, whose numbers are frozen.

Padding: the published code adds −10000 to the scores of padded keys, the package leaves these keys out. That is the
same until scores reach 1e4, which only a diverging run does: in one, the losses differed by 0.47 of themselves at step
10, and by 1e-11 with −10000 added.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from oracle import Batch

HIDDEN, FFN, VOCABULARY, POSITIONS, SEGMENTS = 768, 3072, 1000, 64, 3
PAD, CLS, SEP, MASK, FIRST_WORD = 0, 2, 3, 4, 5
FIGURES = Path(__file__).parent / "data" / "golden_dim_med_f64.npz"


class Figures(NamedTuple):
    """loss [160]; keep: group -> bool [32, size], row i = masks of step 5 (i + 1)."""

    loss: list[float]
    keep: dict[str, np.ndarray]


def figures() -> Figures:
    """What the published code arrived at."""
    with np.load(FIGURES) as data:
        sizes = {"hidden": HIDDEN, "attention.0": HIDDEN, "ffn.0": FFN, "mlm": HIDDEN}
        keep = {group: np.unpackbits(data[f"keep.{group}"], axis=1, count=size).astype(bool)
                for group, size in sizes.items()}
        return Figures(data["loss"].tolist(), keep)


def initial_weights() -> dict[str, torch.Tensor]:
    """The teacher at step 0, float64 (its numbers are float32's): every tensor in turn from one normal stream."""
    stream = np.random.RandomState(20240101)
    weights: dict[str, torch.Tensor] = {}

    def draw(name: str, shape: tuple[int, ...], mean: float, scale: float) -> None:
        values = mean + scale * stream.standard_normal(shape)
        weights[name] = torch.from_numpy(values.astype(np.float32)).double()

    def linear(name: str, rows: int, columns: int) -> None:
        draw(f"{name}.weight", (rows, columns), 0.0, 0.04)
        draw(f"{name}.bias", (rows,), 0.0, 0.02)

    def norm(name: str) -> None:
        draw(f"{name}.gamma", (HIDDEN,), 1.0, 0.05)
        draw(f"{name}.beta", (HIDDEN,), 0.0, 0.05)

    for table, rows in (("word", VOCABULARY), ("position", POSITIONS), ("segment", SEGMENTS)):
        draw(f"embedding.{table}_embedding.weight", (rows, HIDDEN), 0.0, 0.05)
    norm("embedding.layer_norm")
    layer = "encoder.transformer.0"
    for j in range(3):
        linear(f"{layer}.self_attn.linear_layers.{j}", HIDDEN, HIDDEN)
    linear(f"{layer}.self_attn.final_linear", HIDDEN, HIDDEN)
    norm(f"{layer}.layer_norm_1")
    linear(f"{layer}.feed_forward.linear_1", FFN, HIDDEN)
    linear(f"{layer}.feed_forward.linear_2", HIDDEN, FFN)
    norm(f"{layer}.layer_norm_2")
    linear("target.mlm_linear_1", HIDDEN, HIDDEN)
    norm("target.layer_norm")
    linear("target.mlm_linear_2", VOCABULARY, HIDDEN)
    return weights


def batches(count: int) -> list[Batch]:
    """The first `count` batches of 4 × 32: skewed ids, rows of 20 to 32 tokens, 15 % predicted, masked 80/10/10."""
    stream = np.random.RandomState(777)
    return [one_batch(stream) for _ in range(count)]


def one_batch(stream: np.random.RandomState, rows: int = 4, seq: int = 32) -> Batch:
    """The next batch of the stream: src, tgt, seg."""
    words = VOCABULARY - FIRST_WORD
    clean = FIRST_WORD + np.floor(words * stream.random_sample((rows, seq)) ** 2).astype(np.int64)
    lengths = stream.randint(20, seq + 1, size=rows)
    picked = stream.random_sample((rows, seq)) < 0.15
    kind = stream.random_sample((rows, seq))
    other = stream.randint(FIRST_WORD, VOCABULARY, size=(rows, seq)).astype(np.int64)

    column, last = np.arange(seq)[None, :], lengths[:, None] - 1
    clean = np.where(column == 0, CLS, np.where(column == last, SEP, np.where(column > last, PAD, clean)))
    picked &= (column > 0) & (column < last)
    if not picked.any():
        picked[0, 1] = True
    src = np.select([picked & (kind < 0.8), picked & (kind < 0.9)], [np.full_like(clean, MASK), other], clean)
    tgt, seg = np.where(picked, clean, 0), (column <= last).astype(np.int64)
    return torch.from_numpy(src), torch.from_numpy(tgt), torch.from_numpy(seg)
