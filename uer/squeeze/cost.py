"""What an optimizer step costs, from sizes alone: parameters, operations, memory, bytes between processes.

T tokens and P predicted tokens of a step on one process; every product is counted, at 2 operations a multiply-add; what
works entry by entry (activations, LayerNorm, dropout, penalty, AdamW) is not.

    a linear [out, in] of a plain BERT      3 · 2 · T · out · in         forward, gradient of the input, of the weight
    attention of a layer, inner = heads     (2 + 5) · 2 · T · seq · inner     the fused kernel's backward pass finds the
                                                                              scores once more
    the last layer                          the same with P for T, but for key and value; attention with the queries
                                            of `Step.queries`
    composition  R W C, all gradients       `composition_of`: R [now, out], W [out, in], C [in, now_in]
    compactors on activations               3 · 2 · T · (in² + in·out + out²) for each linear, as published: in the last
                                            layer, too

Decisions that depend on counts (order of products, tables applied or multiplied out) are those of
`uer.squeeze.composition`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import prod

import torch

from uer.config import ModelConfig
from uer.formats.shapes import expected_shapes, sizes_of
from uer.sizes import BertSizes
from uer.squeeze.composition import applies_to_features, applies_to_rows, rows_first
from uer.squeeze.groups import MaskGroup
from uer.squeeze.master import sizes_from_groups
from uer.squeeze.wiring import (
    EMBEDDING_TABLES,
    VOCABULARY_LINEAR,
    layer_norms,
    masked_compactors,
    wrapped_linears,
)
from uer.targets.vocabulary_loss import SLICE, SLICE_ELSEWHERE

PARTS = ("embedding", "attention", "feed-forward", "MLM head")
MANY = 1 << 40  # tokens of a master that serves several processes: its tables are always multiplied out
FLOAT = 4  # bytes
ZIPF = 1.1

Shapes = dict[str, tuple[int, ...]]
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
    """

    rows: int
    seq: int
    micro_steps: int = 1
    processes: int = 1
    bf16: bool = False
    cuda: bool = False
    distinct: int | None = None

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


def by_part(numbers: Iterable[tuple[str, int]]) -> Parts:
    """Sums by part of (name, number)."""
    sums = dict.fromkeys(PARTS, 0)
    for name, number in numbers:
        sums[part_of(name)] += number
    return sums


def parameters(shapes: Mapping[str, tuple[int, ...]]) -> Parts:
    """Entries of all tensors by part."""
    return by_part((name, prod(shape)) for name, shape in shapes.items())


def table_rows(shapes: Mapping[str, tuple[int, ...] | torch.Size]) -> dict[str, int]:
    """Rows of the three embedding tables, as arguments for `plain_cost` and the others."""
    return dict(zip(("vocab", "positions", "segments"), (shapes[name][0] for name in EMBEDDING_TABLES)))


# -- a plain BERT ------------------------------------------------------------------------------------------------------


def plain_cost(config: ModelConfig, tables: Mapping[str, int], step: Step) -> Cost:
    """A model of this config, trained as it is.

    Args:
        tables: rows of its embedding tables: `vocab`, `positions`, `segments`.
    """
    sizes = sizes_of(config, **tables)
    shapes = expected_shapes(sizes, config)
    if config.tie_weights:
        del shapes[f"{VOCABULARY_LINEAR}.weight"]
    count = parameters(shapes)
    weights = FLOAT * sum(count.values())
    memory = {"weights": weights, "optimizer": 2 * weights, "gradients": weights,
              "activations": activation_bytes(sizes, config, step) + temporary_bytes(sizes, step)}
    memory["peak"] = sum(memory.values()) + _buffer(weights, step)
    return Cost(count, count, model_operations(sizes, step), memory=memory, sent=_sent(weights, step))


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
    head = sizes.hidden * sizes.mlm + (inner or sizes.mlm) * sizes.vocab + (inner or 0) * sizes.mlm
    return {"embedding": 2 * 3 * step.micro_steps * projected * sizes.hidden, "attention": 2 * attention,
            "feed-forward": 2 * forward, "MLM head": 2 * 3 * predicted * head}


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


# -- weight-inherited distillation -------------------------------------------------------------------------------------


def master_shapes(config: ModelConfig, tables: Mapping[str, int], groups: Mapping[str, MaskGroup]) -> Shapes:
    """Published name -> shape of everything a master holds, squeezed groups at their targets; a tied table once."""
    shapes = expected_shapes(sizes_of(config, **tables), config)
    if config.tie_weights:
        del shapes[f"{VOCABULARY_LINEAR}.weight"]
    for name, owner in layer_norms(config.layers_num):
        for part in ("gamma", "beta"):
            shapes[f"{name}.{part}"] = (groups[owner].width,)
    for tensor in masked_compactors(config.layers_num):
        group = groups[tensor.group]
        sides = [group.size, group.size]
        sides[tensor.dim] = group.width
        shapes[tensor.name] = tuple(sides)
    return shapes


def wid_cost(config: ModelConfig, tables: Mapping[str, int], groups: Mapping[str, MaskGroup], step: Step, *,
             comp_only: bool = False, spares: bool = True) -> Cost:
    """A step of a master and its student, with the groups as they are (masked, squeezed or neither).

    Args:
        config: the teacher's.
        comp_only: whether the teacher's weights stay as they are.
        spares: whether gradients of dropped entries are left out (mask scores by norms).
    """
    shapes = master_shapes(config, tables, groups)
    sizes = sizes_from_groups(config, groups, **tables)
    alone = step.processes == 1
    rows = sum(tables[kind] for kind in ("vocab", "positions", "segments"))
    on_rows = applies_to_rows(step.tokens if alone else MANY, rows)
    size, inner, width = config.hidden_size, config.mlm_width, sizes.mlm
    on_features = applies_to_features(step.predicted if alone else MANY, sizes.vocab, inner, width)
    composition = _composition(config, groups, comp_only, spares)
    if not on_rows:
        composition["embedding"] += (2 if comp_only else 3) * 2 * rows * size * sizes.hidden
    if not on_features:
        composition["MLM head"] += (2 if comp_only else 3) * 2 * sizes.vocab * inner * width
    student = student_shapes(config, sizes, on_rows, on_features)
    projected = step.table_rows(tables) * size if on_rows else 0
    operations = model_operations(sizes, step, projected, inner if on_features else None)
    trained = {name: shape for name, shape in shapes.items() if not comp_only or "compactor" in name}
    held, updated = FLOAT * _entries(shapes), FLOAT * _entries(trained)
    own = FLOAT * _entries({name: shape for name, shape in student.items() if _is_composed(name, on_rows, on_features)})
    memory = {"weights": held, "optimizer": 2 * updated, "gradients": updated, "student": 2 * own,
              "composition": FLOAT * _inner_products(config, groups),
              "activations": temporary_bytes(sizes, step) + activation_bytes(
                  sizes, config, step, projected, inner if on_features else 0)}
    later = updated + _buffer(FLOAT * _entries(student), step)  # once the activations are gone
    memory["peak"] = (held + 2 * updated + memory["student"] + memory["composition"]
                      + max(memory["activations"], later))
    return Cost(parameters(student), parameters(trained), operations, composition, memory,
                _sent(FLOAT * _entries(student), step))


def student_shapes(config: ModelConfig, sizes: BertSizes, on_rows: bool = False, on_features: bool = False) -> Shapes:
    """Name -> shape of a student's parameters.

    Args:
        config: the teacher's.
        on_rows: whether it has the teacher's embedding tables and a projection; `on_features`: its vocabulary.
    """
    shapes = expected_shapes(sizes, config)
    if on_rows:
        shapes |= {name: (shapes[name][0], config.hidden_size) for name in EMBEDDING_TABLES}
        shapes["embedding.projection"] = (sizes.hidden, config.hidden_size)
    if on_features:
        shapes[f"{VOCABULARY_LINEAR}.weight"] = (sizes.vocab, config.mlm_width)
        shapes["target.projection"] = (config.mlm_width, sizes.mlm)
    return shapes


def activations_cost(config: ModelConfig, tables: Mapping[str, int], groups: Mapping[str, MaskGroup],
                     step: Step) -> Cost:
    """The teacher with its compactors applied to activations: parameters, operations, bytes sent."""
    sizes = sizes_of(config, **tables)
    whole = {name: replace(group, squeezed=False) for name, group in groups.items()}
    trained = parameters(master_shapes(config, tables, whole))
    operations = model_operations(sizes, step, step.rows * step.seq * config.hidden_size, config.mlm_width,
                                  selected=False)
    for linear in wrapped_linears(config.layers_num)[:-1]:
        assert linear.leaves
        tokens = step.predicted if linear.enters == "hidden" and linear.leaves == "mlm" else step.tokens
        squares = groups[linear.enters].size ** 2 + groups[linear.leaves].size ** 2
        operations[part_of(linear.name)] += 2 * 3 * tokens * squares
    return Cost(trained, trained, operations, sent=_sent(FLOAT * sum(trained.values()), step))


def composition_of(now: int, out: int, size: int, now_in: int, rows: int, columns: int, weight: bool = True) -> int:
    """Operations of R W C and its gradients, for R [now, out], W [out, size], C [size, now_in].

    Args:
        rows, columns: rows of dR and columns of dC that are wanted.
        weight: whether dW is.
    """
    if rows_first(now, out, size, now_in):  # inner = R W
        forward = now * size * (out + now_in)
        backward = now * now_in * size + rows * size * out + columns * now * size + weight * out * now * size
    else:  # inner = W C
        forward = out * now_in * (size + now)
        backward = out * now * now_in + rows * now_in * out + columns * out * size + weight * out * now_in * size
    return 2 * (forward + backward)


def _composition(config: ModelConfig, groups: Mapping[str, MaskGroup], comp_only: bool, spares: bool) -> Parts:
    def wanted(group: MaskGroup) -> int:
        return group.kept if spares and group.masked else group.width

    sums = dict.fromkeys(PARTS, 0)
    for linear in wrapped_linears(config.layers_num)[:-1]:
        assert linear.leaves
        leaves, enters = groups[linear.leaves], groups[linear.enters]
        sums[part_of(linear.name)] += composition_of(leaves.width, leaves.size, enters.size, enters.width,
                                                     wanted(leaves), wanted(enters), not comp_only)
    return sums


def _inner_products(config: ModelConfig, groups: Mapping[str, MaskGroup]) -> int:
    """Entries of R W or W C that the composition keeps for its backward pass."""
    entries = 0
    for linear in wrapped_linears(config.layers_num)[:-1]:
        assert linear.leaves
        leaves, enters = groups[linear.leaves], groups[linear.enters]
        first = rows_first(leaves.width, leaves.size, enters.size, enters.width)
        entries += leaves.width * enters.size if first else leaves.size * enters.width
    return entries


def _is_composed(name: str, on_rows: bool, on_features: bool) -> bool:
    """Whether a parameter of the student is a tensor of its own, and not the master's."""
    if name.endswith(("gamma", "beta", "projection")) or name == f"{VOCABULARY_LINEAR}.bias":
        return False
    return not (on_rows and name in EMBEDDING_TABLES) and not (on_features and name == f"{VOCABULARY_LINEAR}.weight")


def _entries(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(map(prod, shapes.values()))


def _sent(gradients: int, step: Step) -> int:
    return 2 * (step.processes - 1) * gradients // step.processes


def _buffer(gradients: int, step: Step) -> int:
    """Bytes of the one array in which gradients travel."""
    return gradients if step.processes > 1 else 0
