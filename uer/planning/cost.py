"""What an optimizer step costs, from sizes alone: parameters, operations, memory, bytes between processes.

T tokens and P predicted tokens of a step on one process; every product is counted, at 2 operations a multiply-add; what
works entry by entry (activations, LayerNorm, dropout, penalty, AdamW) is not.

    a linear [out, in] of a plain BERT      3 · 2 · T · out · in         forward, gradient of the input, of the weight
    attention of a layer, inner = heads     (2 + 5) · 2 · T · seq · inner     the fused kernel's backward pass finds the
                                                                              scores once more
    the last layer                          the same with P for T, but for key and value; attention with the queries
                                            of `Step.queries`
    a matrix a ≤ b that Muon moves          5 · 2 · (2 a² b + a³)

Weight-inherited distillation: `uer.planning.wid_cost`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod

import torch

from uer.config import ModelConfig
from uer.formats.shapes import expected_shapes, sizes_of
from uer.sizes import BertSizes
from uer.squeeze.wiring import VOCABULARY_LINEAR
from uer.targets.vocabulary_loss import SLICE, SLICE_ELSEWHERE
from uer.training.muon import TIMES

PARTS = ("embedding", "attention", "feed-forward", "MLM head")
FLOAT = 4  # bytes
WIRE = {"none": FLOAT, "bf16": 2}  # of a gradient between processes, by --ddp_comm_hook
ZIPF = 1.1

Parts = dict[str, int]


@dataclass(frozen=True)
class Step:
    """What one process does in an optimizer step.

    Attributes:
        rows: instances of a micro-step; `seq` tokens each, padding counted.
        predicted: positions to predict in all micro-steps.
        bf16: whether products run in bfloat16.
        cuda: whether on a GPU (larger slices of logits, every token projected where tables are not multiplied out,
            queries of every position in the last layer).
        distinct: distinct tokens of a micro-step, where they are known.
        wire: bytes of a number between processes.
        optimizer: of a plain model, as `--optimizer` has it.
    """

    rows: int
    seq: int
    micro_steps: int = 1
    processes: int = 1
    bf16: bool = False
    cuda: bool = False
    distinct: int | None = None
    wire: int = FLOAT
    optimizer: str = "adamw"

    @property
    def tokens(self) -> int:
        return self.rows * self.seq * self.micro_steps

    def table_rows(self, tables: Mapping[str, int]) -> int:
        """Rows of the embedding tables that a micro-step projects, where they are not multiplied out."""
        if self.cuda:
            return self.rows * self.seq
        distinct = distinct_tokens(self.rows * self.seq, tables["vocab"]) if self.distinct is None else self.distinct
        return distinct + self.seq + tables["segments"]

    @property
    def predicted(self) -> int:
        return self.tokens * 15 // 100

    @property
    def queries(self) -> int:
        """Queries of the last layer in all micro-steps. On a CPU, of every instance as many as of the one with most
        positions to predict."""
        return self.tokens if self.cuda else self.rows * self.micro_steps * -(-self.seq * 15 // 100)


@dataclass
class Cost:
    """The cost of a phase on one process.

    Attributes:
        student: parameters of the model that runs, by part.
        trained: parameters that the optimizer updates, by part.
        operations: of forward and backward pass, by part.
        composition: operations of composing weights and of their gradients, by part.
        memory: bytes by use; `peak` is not their sum, as not all are there at the same time.
        sent: bytes that a process sends (a ring sums the gradients).
    """

    student: Parts
    trained: Parts
    operations: Parts
    composition: Parts = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    memory: dict[str, int] = field(default_factory=dict)
    sent: int = 0

    @property
    def all_operations(self) -> int:
        return sum(self.operations.values()) + sum(self.composition.values())


def distinct_tokens(tokens: int, vocab: int) -> int:
    """Distinct ones to expect among tokens of text, where the r-th most frequent has a share of r^-1.1.

    For a vocabulary of 30522: 33 % of 32 x 128 tokens and 23 % of 128 x 128; counted in English text, 34 and 24 %.
    """
    return round(float((1 - (1 - token_shares(vocab)) ** tokens).sum()))


def token_shares(vocab: int) -> torch.Tensor:
    """Shares of all tokens in a text, the most frequent first: float64 [vocab]."""
    shares = torch.arange(1, vocab + 1, dtype=torch.float64) ** -ZIPF
    return shares / shares.sum()


def part_of(name: str) -> str:
    """The part that a tensor of a published name belongs to; a LayerNorm goes with what it follows."""
    if name.startswith("embedding."):
        return "embedding"
    if name.startswith("target."):
        return "MLM head"
    return "feed-forward" if "feed_forward" in name or "layer_norm_2" in name else "attention"


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> Parts:
    """Entries of all tensors by part."""
    sums = dict.fromkeys(PARTS, 0)
    for name, shape in shapes.items():
        sums[part_of(name)] += prod(shape)
    return sums


# -- a plain BERT ------------------------------------------------------------------------------------------------------


def plain_cost(config: ModelConfig, tables: Mapping[str, int], step: Step) -> Cost:
    """A model of this config, trained as it is.
    `tables`: rows of its embedding tables: `vocab`, `positions`, `segments`."""
    sizes = sizes_of(config, **tables)
    shapes = expected_shapes(sizes, config)
    if config.tie_weights:
        del shapes[f"{VOCABULARY_LINEAR}.weight"]
    count = parameters(shapes)
    weights = FLOAT * sum(count.values())
    operations, moments = model_operations(sizes, step), 2 * weights
    for heads, size, feedforward in sizes.layers if step.optimizer == "muon" else ():
        inner, hidden = heads * size, sizes.hidden
        operations["attention"] += 4 * orthogonal_operations(inner, hidden)
        operations["feed-forward"] += 2 * orthogonal_operations(feedforward, hidden)
        moments -= FLOAT * (4 * inner + 2 * feedforward) * hidden
    memory = {"weights": weights, "optimizer": moments, "gradients": weights,
              "activations": activation_bytes(sizes, config, step) + temporary_bytes(sizes, step)}
    memory["peak"] = sum(memory.values())
    return Cost(count, count, operations, memory=memory, sent=sent_bytes(weights, step))


def orthogonal_operations(rows: int, columns: int) -> int:
    """What `uer.training.muon.orthogonal` multiplies for a matrix."""
    short, long = sorted((rows, columns))
    return TIMES * 2 * (2 * short ** 2 * long + short ** 3)


def model_operations(sizes: BertSizes, step: Step, projected: int = 0, inner: int | None = None,
                     selected: bool = True) -> Parts:
    """Forward and backward pass of a BERT.

    Args:
        projected: entries of the embedding rows that a micro-step projects (0: there is no projection).
        inner: width of a vocabulary table that a projection precedes (None: none).
        selected: whether the last layer leaves out what nobody wants to know.
    """
    tokens, predicted = step.tokens, step.predicted
    attention = forward = 0
    for number, (heads, size, feedforward) in enumerate(sizes.layers, 1):
        last = selected and number == len(sizes.layers)
        outputs, queries = (predicted, step.queries) if last else (tokens, tokens)
        projections = 2 * tokens + (tokens if step.cuda else outputs) + outputs  # key and value, query, output
        attention += (3 * projections * sizes.hidden + 7 * queries * step.seq) * heads * size
        forward += 3 * 2 * outputs * sizes.hidden * feedforward
    vocab = 0 if sizes.outputs else sizes.vocab
    head = sizes.hidden * sizes.mlm + (inner or sizes.mlm) * vocab + (inner or 0) * sizes.mlm
    return {"embedding": 2 * 3 * step.micro_steps * projected * sizes.hidden, "attention": 2 * attention,
            "feed-forward": 2 * forward, "MLM head": 2 * 3 * predicted * head}


def forward_operations(sizes: BertSizes, seq: int) -> int:
    """The last hidden states of a text of `seq` tokens."""
    return sum(2 * seq * (2 * (2 * sizes.hidden + seq) * heads * size + 2 * sizes.hidden * feedforward)
               for heads, size, feedforward in sizes.layers)


def activation_bytes(sizes: BertSizes, config: ModelConfig, step: Step, projected: int = 0, inner: int = 0) -> int:
    """What the forward pass of a micro-step keeps for the backward pass.

    A layer keeps its input, query, key, value, context, two sums or their standardised form, the input of the
    feed-forward network and its inner values before and after the activation; the last one, of some positions only,
    also what is picked of its input (on a CPU) and of its context. In bfloat16 the inputs of products are kept in two
    bytes, the LayerNorms in four. Buffers inside kernels are left out.
    """
    tokens, predicted = step.rows * step.seq, step.predicted // step.micro_steps
    product = 2 if step.bf16 else FLOAT
    hidden = sizes.hidden
    dropped = 1 if config.dropout else 0  # what dropout keeps of an entry
    kept = tokens * (FLOAT + dropped) * hidden + product * projected
    for number, (heads, size, feedforward) in enumerate(sizes.layers, 1):
        outputs, queries, inner_size = tokens, tokens, heads * size
        if number == len(sizes.layers):
            outputs, queries = predicted, step.queries // step.micro_steps
            kept += product * predicted * (inner_size + (0 if step.cuda else hidden))
        kept += product * (tokens * (hidden + 2 * inner_size) + 2 * queries * inner_size)
        kept += outputs * (product * (hidden + 2 * feedforward) + 2 * (FLOAT + dropped) * hidden)
        kept += queries * FLOAT * heads  # log-sum-exp of the attention scores
    return kept + predicted * (product * (hidden + sizes.mlm) + FLOAT * sizes.mlm + product * (inner or sizes.mlm))


def temporary_bytes(sizes: BertSizes, step: Step) -> int:
    """The largest of what comes and goes: a slice of logits and (on a CPU a block at a time) of their gradients, or the
    gradients of the values before and after the activation of a feed-forward network."""
    predicted = step.predicted // step.micro_steps
    copies, most = (2, SLICE_ELSEWHERE) if step.cuda else (1, SLICE["cpu"])
    logits = copies * min(predicted * sizes.vocab, most)
    *layers, last = (layer.feedforward for layer in sizes.layers)
    inner = max(step.rows * step.seq * max(layers, default=0), predicted * last)
    return max(FLOAT * logits, 2 * (2 if step.bf16 else FLOAT) * inner)


def sent_bytes(gradients: int, step: Step) -> int:
    """Bytes that a process sends of gradients of so many bytes in float32."""
    return 2 * (step.processes - 1) * gradients * step.wire // (FLOAT * step.processes)
