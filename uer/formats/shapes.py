"""The tensors that a BERT must have: sizes read off a state dict; what is missing, unexpected or misshapen in it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from uer.config import ModelConfig
from uer.formats.storage import shortened
from uer.models.bert import Bert, sizes_of
from uer.sizes import BertSizes
from uer.squeeze.wiring import EMBEDDING_TABLES, compactor_sizes, layer_norms, masked_compactors

HEAD_SIZE = 64  # of every BERT that Google published
LAYER = re.compile(r"encoder\.transformer\.(\d+)\.")
WORDS, POSITIONS, SEGMENTS = EMBEDDING_TABLES
NEURONS, QUERY = (f"encoder.transformer.{{}}.{part}.weight" for part in ("feed_forward.linear_1",
                                                                         "self_attn.linear_layers.0"))
DECODER = "target.mlm_linear_2.weight"
POOLER = ("target.nsp_linear_1.weight", "target.nsp_linear_1.bias")
NSP_HEAD = (*POOLER, "target.nsp_linear_2.weight", "target.nsp_linear_2.bias")
ENCODER, HEAD = ("embedding.", "encoder."), "target."
TASK_HEAD = "target.output_layer"


def expected_shapes(sizes: BertSizes, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of every tensor of a plain BERT."""
    with torch.device("meta"):
        model = Bert(sizes, replace(config, tie_weights=False))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def master_shapes(config: ModelConfig, tables: Mapping[str, int],
                  widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Published name -> shape of everything that a master holds.

    Args:
        tables: rows of its embedding tables (`table_sizes`).
        widths: of the groups that have been squeezed.
    """
    shapes, sizes = expected_shapes(sizes_of(config, **tables), config), compactor_sizes(config)
    shapes |= {f"{name}.{part}": (widths[group],) for name, group in layer_norms(config) if group in widths
               for part in ("gamma", "beta")}
    for tensor in masked_compactors(config):
        sides = [sizes[tensor.name]] * 2
        sides[tensor.dim] = widths.get(tensor.group, sides[tensor.dim])
        shapes[tensor.name] = tuple(sides)
    return shapes


def table_sizes(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """Rows of the three embedding tables, as arguments for `sizes_of`."""
    return {"vocab": len(tensors[WORDS]), "positions": len(tensors[POSITIONS]), "segments": len(tensors[SEGMENTS])}


def parameter_count(tensors: Mapping[str, torch.Tensor]) -> int:
    """Numbers in all tensors; a table that is embedding and decoder alike counts once."""
    tied = DECODER in tensors and torch.equal(tensors[DECODER], tensors[WORDS])
    return sum(tensor.numel() for name, tensor in tensors.items() if not (tied and name == DECODER))


def measured(tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """hidden_size, layers_num and feedforward_size (of layer 0) as the tensors have them (those that can be told).

    mlm_size as well, where it differs from hidden_size, and outputs where there are some.
    """
    sizes = {}
    if WORDS in tensors and tensors[WORDS].dim() == 2:
        sizes["hidden_size"] = tensors[WORDS].shape[1]
    layers = {int(found.group(1)) for found in map(LAYER.match, tensors) if found}
    if layers:
        sizes["layers_num"] = max(layers) + 1
    inner = tensors.get(NEURONS.format(0))
    if inner is not None and inner.dim() == 2:
        sizes["feedforward_size"] = inner.shape[0]
    last = tensors.get("target.output_layer_2.bias", tensors.get("target.output_layer.bias"))
    if last is not None:
        sizes["outputs"] = last.numel()
    head = tensors.get("target.mlm_linear_1.bias", tensors.get("target.output_layer_1.bias"))
    if head is not None and "hidden_size" in sizes and head.numel() != sizes["hidden_size"]:
        sizes["mlm_size"] = head.numel()
    return sizes


def as_measured(config: ModelConfig, key: str) -> int | None:
    """What `measured` finds in a model of this config."""
    return config.layers[0].feedforward if key == "feedforward_size" else getattr(config, key)


def uneven(tensors: Mapping[str, torch.Tensor], layers_num: int) -> bool:
    """Whether layers have different numbers of neurons, or of dimensions inside attention."""
    return any(len({len(tensors[name]) for i in range(layers_num) if (name := form.format(i)) in tensors}) > 1
               for form in (NEURONS, QUERY))


def disagreements(config: ModelConfig, tensors: Mapping[str, torch.Tensor], vocab_size: int | None) -> list[str]:
    """Where the sizes of the tensors differ from the config's or the vocabulary's; tables that are none."""
    none = [f"{name} is {list(tensors[name].shape)}, a table is needed" for name in (WORDS, POSITIONS, SEGMENTS)
            if name in tensors and (tensors[name].dim() != 2 or not tensors[name].numel())]
    if none:
        return none
    problems = [f"{key} is {value} in the file, {as_measured(config, key)} in the config"
                for key, value in measured(tensors).items() if value != as_measured(config, key)]
    if POSITIONS in tensors and len(tensors[POSITIONS]) < config.max_seq_length:
        problems.append(f"the file has {len(tensors[POSITIONS])} positions, the config's max_seq_length is "
                        f"{config.max_seq_length}")
    rows = len(tensors[WORDS]) if WORDS in tensors else None
    if rows is not None and vocab_size is not None and rows < vocab_size:
        problems.append(f"the file has {rows} word embeddings, the vocabulary {vocab_size} tokens")
    return problems


def spare_words(tensors: Mapping[str, torch.Tensor], vocab_size: int | None) -> list[str]:
    """A note where there are more word embeddings than tokens, as in models whose table was rounded up or extended."""
    spare = len(tensors[WORDS]) - vocab_size if vocab_size is not None else 0
    return [f"the model has {len(tensors[WORDS]):,} word embeddings, the vocabulary {vocab_size:,} tokens: {spare:,} "
            f"belong to no token"] if spare else []


def tensor_problems(tensors: Mapping[str, torch.Tensor], config: ModelConfig, spelled: Callable[[str], str] = str,
                    encoder_only: bool = False, widths: Mapping[str, int] | None = None) -> list[str]:
    """Every missing, unexpected or misshapen tensor of a BERT of this config, in words; empty if all is well.

    Args:
        spelled: turns a published name into what the user's file calls it.
        encoder_only: a BERT without MLM head.
        widths: as for `master_shapes`, of a master with this teacher; None: of a plain BERT.
    """
    absent = [spelled(name) for name in (WORDS, POSITIONS, SEGMENTS) if name not in tensors or tensors[name].dim() != 2]
    if absent:
        return [f"missing: {shortened(absent)}"]
    tables = table_sizes(tensors)
    shapes = expected_shapes(sizes_of(config, **tables), config) if widths is None else \
        master_shapes(config, tables, widths)
    shapes = {name: shape for name, shape in shapes.items() if not (encoder_only and name.startswith(HEAD))}
    missing = [spelled(name) for name in shapes if name not in tensors]
    unexpected = [spelled(name) for name in tensors if name not in shapes]
    misshapen = [f"{spelled(name)} is {list(tensors[name].shape)} instead of {list(shape)}"
                 for name, shape in shapes.items() if name in tensors and tuple(tensors[name].shape) != shape]
    whole = [f"{spelled(name)} ({tensors[name].dtype})" for name in shapes
             if name in tensors and not tensors[name].is_floating_point()]
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected), ("of the wrong shape", misshapen),
                        ("of whole numbers", whole)):
        if names:
            problems.append(f"{what}: {shortened(names, most=1000)}")
    return problems
