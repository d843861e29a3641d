"""What a step of weight-inherited distillation costs, composed as here and with compactors on activations.

    composition  R W C, all gradients       `composition_of`: R [now, out], W [out, in], C [in, now_in]
    compactors on activations               3 · 2 · T · (in² + in·out + out²) for each linear, as published: in the last
                                            layer, too

T, and what is counted: `uer.planning.cost`. Decisions that depend on counts (order of products, tables applied or
multiplied out) are those of `uer.squeeze.composition`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod

from uer.config import ModelConfig
from uer.formats.shapes import expected_shapes, master_shapes, sizes_of
from uer.planning.cost import (
    FLOAT,
    PARTS,
    Cost,
    Parts,
    Step,
    activation_bytes,
    model_operations,
    parameters,
    part_of,
    sent_bytes,
    temporary_bytes,
)
from uer.sizes import BertSizes
from uer.squeeze.composition import applies_to_features, applies_to_rows, rows_first
from uer.squeeze.groups import MaskGroup
from uer.squeeze.master import MANY, sizes_from_groups
from uer.squeeze.wiring import EMBEDDING_TABLES, VOCABULARY_LINEAR, WrappedLinear, wrapped_linears

Shapes = dict[str, tuple[int, ...]]


def held_shapes(config: ModelConfig, tables: Mapping[str, int], groups: Mapping[str, MaskGroup]) -> Shapes:
    """Published name -> shape of everything a master holds, squeezed groups at their targets; a tied table once."""
    shapes = master_shapes(config, tables, {name: group.width for name, group in groups.items()})
    if config.tie_weights:
        del shapes[f"{VOCABULARY_LINEAR}.weight"]
    return shapes


def wid_cost(config: ModelConfig, tables: Mapping[str, int], groups: Mapping[str, MaskGroup], step: Step, *,
             comp_only: bool = False, spares: bool = True) -> Cost:
    """A step of a master and its student, with the groups as they are (masked, squeezed or neither).

    Args:
        config: the teacher's.
        comp_only: whether the teacher's weights stay as they are.
        spares: whether gradients of dropped entries are left out (mask scores by norms).
    """
    shapes = held_shapes(config, tables, groups)
    sizes = sizes_from_groups(config, groups, **tables)
    alone = step.processes == 1  # else gradients travel in the student's size: tables are always multiplied out
    rows = sum(tables[kind] for kind in ("vocab", "positions", "segments"))
    on_rows = applies_to_rows(step.tokens if alone else MANY, rows)
    size, inner, width = config.hidden_size, config.mlm_width, sizes.mlm
    masked = config.target == "mlm"
    on_features = masked and applies_to_features(step.predicted if alone else MANY, sizes.vocab, inner, width)
    composition = _composition(config, groups, comp_only, spares)
    if not on_rows:
        composition["embedding"] += (2 if comp_only else 3) * 2 * rows * size * sizes.hidden
    if masked and not on_features:
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
    memory["peak"] = (held + 2 * updated + memory["student"] + memory["composition"]
                      + max(memory["activations"], updated))  # gradients come once the activations are gone
    return Cost(parameters(student), parameters(trained), operations, composition, memory,
                sent_bytes(FLOAT * _entries(student), step))


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
    trained = parameters(held_shapes(config, tables, whole))
    operations = model_operations(sizes, step, step.rows * step.seq * config.hidden_size, config.mlm_width,
                                  selected=False)
    for linear, leaves, enters in _with_two_compactors(config, groups):
        tokens = step.predicted if enters.name == "hidden" and leaves.name == "mlm" else step.tokens
        operations[part_of(linear.name)] += 2 * 3 * tokens * (enters.size ** 2 + leaves.size ** 2)
    return Cost(trained, trained, operations, sent=sent_bytes(FLOAT * sum(trained.values()), step))


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


def _with_two_compactors(config: ModelConfig, groups: Mapping[str, MaskGroup],
                         ) -> Iterator[tuple[WrappedLinear, MaskGroup, MaskGroup]]:
    """The linears that are composed, with the groups of their outputs and inputs."""
    return ((linear, groups[linear.leaves], groups[linear.enters]) for linear in wrapped_linears(config)
            if linear.leaves is not None)


def _composition(config: ModelConfig, groups: Mapping[str, MaskGroup], comp_only: bool, spares: bool) -> Parts:
    def wanted(group: MaskGroup) -> int:
        return group.kept if spares and group.masked else group.width

    sums = dict.fromkeys(PARTS, 0)
    for linear, leaves, enters in _with_two_compactors(config, groups):
        sums[part_of(linear.name)] += composition_of(leaves.width, leaves.size, enters.size, enters.width,
                                                     wanted(leaves), wanted(enters), not comp_only)
    return sums


def _inner_products(config: ModelConfig, groups: Mapping[str, MaskGroup]) -> int:
    """Entries of R W or W C that the composition keeps for its backward pass."""
    entries = 0
    for _, leaves, enters in _with_two_compactors(config, groups):
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
