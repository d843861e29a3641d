"""Layers that differ: the file of --layer_sizes, the nearest model whose layers are alike, and both in words.

    [{"heads": 12, "feedforward": 512}, {"heads": 4}, …]      one object for each layer of the student, lowest first

Every head of a student is as wide as usual: the student's width / its usual number of heads (--target_heads, or what
--compactor_mask_strategy leaves). A layer with fewer or more of them has an attention that is narrower or wider than
the states. What an object leaves out is as usual. A student's config serves as such a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from uer.arguments import hint
from uer.config import ModelConfig, config_from_dict
from uer.errors import UserError
from uer.files import read_json
from uer.sizes import LayerShape, is_size

ALIKE = ("huggingface", "uer-py")  # formats whose layers are alike
OPTION = "--layer_sizes"
FORM = '[{"heads": 12, "feedforward": 512}, …]'


class LayerWish(NamedTuple):
    """What a layer is to have; None: as usual."""

    heads: int | None = None
    feedforward: int | None = None

    def to_dict(self) -> dict[str, int]:
        """As in the file."""
        return {key: size for key, size in self._asdict().items() if size is not None}


def read_layer_sizes(path: str | Path | None) -> list[LayerWish] | None:
    """What the file of --layer_sizes asks for; None where there is none.
    `UserError` where it is not of that form: all problems at once."""
    if path is None:
        return None
    data = read_json(path, OPTION)
    if isinstance(data, dict):
        if "layers_num" not in data:
            raise UserError(f"{OPTION} {path}: an object that is no student's config; a list like {FORM} is needed, or "
                            f"such a config", page="shape")
        config = config_from_dict(data, f"{OPTION} {path}")
        return [LayerWish(layer.heads, layer.feedforward) for layer in config.layers]
    return wishes_from(data, f"{OPTION} {path}")


def wishes_from(data: Any, where: str) -> list[LayerWish]:
    """The wishes in JSON data; `where` names the source in messages."""
    if not isinstance(data, list) or not data:
        raise UserError(f"{where}: a list of one object for each layer is needed, like {FORM}", page="shape")
    problems = []
    for number, layer in enumerate(data):
        if not isinstance(layer, dict):
            problems.append(f"layer {number} is {layer!r}, an object like {FORM[1:34]} is needed")
            continue
        problems += [f"layer {number}: {key!r} is unknown, heads and feedforward can be said" for key in layer
                     if key not in LayerWish._fields]
        problems += [f"layer {number}: {key} is {layer[key]!r}, a whole number from 1 is needed"
                     for key in LayerWish._fields if key in layer and not is_size(layer[key])]
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems), page="shape")
    return [LayerWish(**layer) for layer in data]


def shapes_wished(wishes: Sequence[LayerWish], usual: LayerShape, heads: int, neurons: int,
                  layers_num: int) -> list[LayerShape]:
    """The shape of every layer.

    Args:
        usual: what a wish leaves out.
        heads, neurons: of the teacher's layers; `layers_num`: those of the student.
    Raises:
        UserError: more than the teacher has, or another number of layers: all problems at once.
    """
    if len(wishes) != layers_num:
        deeper = f"give {layers_num}" + (f", or --target_layers {len(wishes)}" if len(wishes) < layers_num else "")
        raise UserError(f"{OPTION}: has {len(wishes)} layers, the student {layers_num}; {deeper}", page="shape")
    problems = [f"layer {number}: {key} {size}, but the teacher's layers have {most}; {most} would do"
                for number, wish in enumerate(wishes)
                for key, size, most in (("heads", wish.heads, heads), ("feedforward", wish.feedforward, neurons))
                if size is not None and size > most]
    if problems:
        raise UserError(f"{OPTION}: " + "; ".join(problems), page="shape")
    return [LayerShape(wish.heads or usual.heads, wish.feedforward or usual.feedforward) for wish in wishes]


def nearest_uniform(config: ModelConfig, most: int | None = None) -> ModelConfig:
    """The model of the same width whose layers are alike and which is nearest in parameters.
    `most`: neurons that a layer may have (default: as many as the layer with most)."""
    d = config.hidden_size
    head, neuron = (4 * d + 3) * config.head_size, 2 * d + 1  # parameters
    spent = sum(layer.heads * head + layer.feedforward * neuron for layer in config.layers)
    neurons = round((spent / config.layers_num - config.heads_num * head) / neuron)
    most = most or max(layer.feedforward for layer in config.layers)
    return replace(config, feedforward_size=min(max(neurons, 1), most), uneven_layers=())


def refuse_uneven(config: ModelConfig, name: str, most: int | None = None) -> None:
    """`UserError` where layers differ and a format has no place for that; it names the nearest that could be had."""
    if config.uneven_layers and name in ALIKE:
        near = nearest_uniform(config, most)
        options = (f"--target_dim {near.hidden_size} --target_heads {near.heads_num} --target_feedforward_size "
                   f"{near.feedforward_size}")
        raise UserError(f"format {name}: layers there are alike, this model's differ; uer and onnx can hold "
                        f"it; nearest in parameters with layers alike: {near.layers_num} x {near.hidden_size}, "
                        f"{near.heads_num} heads, feedforward_size {near.feedforward_size}"
                        + hint("layer_sizes", f" ({options} without {OPTION})"), page="shape")


def layers_in_words(config: ModelConfig) -> str:
    """The sizes of a model's layers."""
    if not config.uneven_layers:
        return f"{config.heads_num} heads, feedforward_size {config.feedforward_size}"
    heads, neurons = (" ".join(map(str, sizes)) for sizes in zip(*config.uneven_layers))
    return f"heads {heads} of {config.head_size}, feedforward {neurons}"
