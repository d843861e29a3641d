"""Model configs (JSON, as in `bert/`) and the precedence of options: command line > config JSON > default."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from uer.arguments import checked
from uer.errors import UserError
from uer.files import read_object
from uer.sizes import LayerShape, LayerSizes, is_size

SIZES = ("hidden_size", "layers_num", "heads_num", "feedforward_size")
MOST_LAYERS = 10_000  # above, a config is damaged, and would be counted through layer by layer
TARGETS = ("mlm", "states", "cls", "tokens")  # what stands on the encoder, see `uer.targets`
POOLINGS = ("mean", "max", "first", "last")
SPAN_LABELS = ("start", "end")  # of a reader
CLS_ACTS = {"tanh": "Bert", "relu": "DistilBert", "gelu": "Electra"}  # and whose classifiers have it
LAYERNORM_EPS = {"uer": 1e-6, "huggingface": 1e-12}
ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_fast", "gelu_fast": "gelu_fast",
               "gelu_pytorch_tanh": "gelu_fast", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}
ACTIVATION_NAMES = tuple(dict.fromkeys(ACTIVATIONS.values()))
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
RELATIVES: dict[str, dict[str, str]] = {  # BERTs under other names, see `uer.formats.relatives`: their keys -> BERT's
    "electra": {}, "distilbert": {
        "dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads",
        "hidden_dim": "intermediate_size", "activation": "hidden_act", "dropout": "hidden_dropout_prob"}}
HUGGINGFACE_SIZES = {"hidden_size": "hidden_size", "num_hidden_layers": "layers_num",
                     "num_attention_heads": "heads_num", "intermediate_size": "feedforward_size"}
HUGGINGFACE_KEYS = {**HUGGINGFACE_SIZES, "max_position_embeddings": "max_seq_length", "hidden_dropout_prob": "dropout",
                    "layer_norm_eps": "layernorm_eps", "hidden_act": "hidden_act"}

# What UER-py's configs may say of the architecture, and the values that leave it BERT's.
OF_BERT: dict[str, list[Any]] = {
    "encoder": ["transformer"], "mask": ["fully_visible"], "layernorm_positioning": ["post"], "feed_forward": ["dense"],
    **{key: [False, None] for key in (
        "parameter_sharing", "factorized_embedding_parameterization", "remove_embedding_layernorm",
        "remove_transformer_bias", "remove_attention_scale", "relative_position_embedding",
        "rotary_position_embedding")}}


@dataclass(frozen=True)
class ModelConfig:
    """What a config JSON says about a BERT. UER's keys; `layernorm*`, `tie_weights` and from `mlm_size` on are ours.

    `uneven_layers` are the sizes of each layer where they differ; empty, all have `heads_num` and `feedforward_size`.
    Otherwise a layer's heads are `head_size` wide all the same, so that they may have more or fewer dimensions together
    than the states, and `feedforward_size` is that of the layer with most.

    `layernorm` is the form of the denominator (see `uer.layers.layer_norm`): `uer` for UER's own models, `huggingface`
    for models that were trained there. `mlm_size` is the width of the features inside the target, MLM's or a
    classifier's (None: hidden_size). `target` is one of `TARGETS`; `pooling` is how `states` and `cls` make one vector
    of a text; all but MLM have `outputs` numbers for each, which `labels` names (`multi_label`: several of a
    classifier's may hold at once, or none). `cls_act` stands between the two linears of `cls`, one of `CLS_ACTS`.
    """

    hidden_size: int
    layers_num: int
    heads_num: int
    feedforward_size: int
    max_seq_length: int = 512
    hidden_act: str = "gelu"
    dropout: float = 0.1
    layernorm: str = "uer"
    layernorm_eps: float = 1e-6
    tie_weights: bool = False
    mlm_size: int | None = None
    target: str = "mlm"
    pooling: str = "mean"
    outputs: int = 0
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    cls_act: str = "tanh"
    uneven_layers: tuple[LayerShape, ...] = ()

    @property
    def mlm_width(self) -> int:
        """Features inside the target, before the vocabulary or the classes."""
        return self.mlm_size or self.hidden_size

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads_num

    @property
    def layers(self) -> tuple[LayerSizes, ...]:
        shapes = self.uneven_layers or (LayerShape(self.heads_num, self.feedforward_size),) * self.layers_num
        return tuple(LayerSizes(heads, self.head_size, feedforward) for heads, feedforward in shapes)

    def with_layers(self, shapes: Sequence[LayerShape]) -> ModelConfig:
        """This config with layers of these shapes; where they are alike and as usual, they are not listed."""
        widest = max(shape.feedforward for shape in shapes)
        alike = set(shapes) == {LayerShape(self.heads_num, widest)}
        return replace(self, feedforward_size=widest, uneven_layers=() if alike else tuple(shapes))

    def student(self, target_dim: int, strategy: str, mlm_target_dim: int | None = None) -> ModelConfig:
        """The config of the student that `strategy` leaves at `target_dim`, with an MLM head of `mlm_target_dim`."""
        mlm_size = None if mlm_target_dim == target_dim else mlm_target_dim
        heads = self.heads_num if strategy == "dim" else target_dim // self.head_size
        return replace(self, hidden_size=target_dim, heads_num=heads, tie_weights=False, mlm_size=mlm_size,
                       feedforward_size=self.feedforward_size * target_dim // self.hidden_size)

    def to_dict(self) -> dict[str, Any]:
        """The config under UER's keys."""
        fields = asdict(self)
        uneven = [shape._asdict() for shape in fields.pop("uneven_layers")]
        ours = {key: fields.pop(key) for key in ("layernorm", "layernorm_eps", "tie_weights", "mlm_size")}
        if self.mlm_size is None:
            del ours["mlm_size"]
        target = {key: fields.pop(key) for key in ("pooling", "outputs", "labels")}
        if self.target != "mlm":
            ours |= {**target, "labels": list(self.labels)}
        for key in ("multi_label", "cls_act"):
            if fields[key] == getattr(type(self), key):
                del fields[key]
        uer = {"emb_size": self.hidden_size, **fields, "data_processor": "mlm", "embedding": "word_pos_seg",
               "encoder": "transformer", "target": self.target}
        return {**uer, **ours, **({"uneven_layers": uneven} if uneven else {})}

    @property
    def reader(self) -> bool:
        """Whether it tells the start and the end of an answer."""
        return self.target == "tokens" and self.labels == SPAN_LABELS

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def load_config(path: str | Path, overrides: dict[str, Any] | None = None) -> ModelConfig:
    """Read and check a model config.

    Args:
        path: JSON file with UER's keys, or the config.json of a Hugging Face model.
        overrides: values that go before the file's (options given on the command line).
    Raises:
        UserError: unreadable file, missing or senseless sizes, an architecture other than BERT's: all problems at once.
    """
    data, where = read_object(path), f"config {path}"
    data, theirs = (huggingface_keys(data, where), their_keys(data)) if is_huggingface(data) else (data, {})
    return config_from_dict({**data, **(overrides or {})}, where, theirs)


def config_from_dict(data: dict[str, Any], where: str, spelled: Mapping[str, str] | None = None) -> ModelConfig:
    """A checked `ModelConfig` from UER's keys; in messages `where` names the source, and `spelled` its own keys."""
    norm = "uer" if data.get("layernorm") == "normal" else data.get("layernorm", "uer")  # UER-py's word
    usual = {**dict.fromkeys(SIZES), "max_seq_length": 512, "hidden_act": "gelu", "dropout": 0.1,
             "layernorm_eps": LAYERNORM_EPS.get(str(norm), 1e-6), "mlm_size": None}
    values: dict[str, Any] = {key: data.get(key, value) for key, value in usual.items()}
    values |= {"layernorm": norm, "tie_weights": bool(data.get("tie_weights"))}
    sizes = (*SIZES, "max_seq_length", *(["mlm_size"] if values["mlm_size"] is not None else []))
    problems = _foreign_parts(data) + [f"{key} is {values[key]!r}, a positive whole number is needed" for key in sizes
                                       if not is_size(values[key])]
    if is_size(values["layers_num"]) and values["layers_num"] > MOST_LAYERS:
        problems.append(f"layers_num is {values['layers_num']}, at most {MOST_LAYERS:,} are possible")
    if values["hidden_act"] not in ACTIVATION_NAMES:
        problems.append(f"hidden_act {values['hidden_act']!r} is unknown, one of {', '.join(ACTIVATION_NAMES)} is "
                        f"needed")
    if not isinstance(values["dropout"], (int, float)) or not 0 <= values["dropout"] < 1:
        problems.append(f"dropout is {values['dropout']!r}, a number from 0 to below 1 is needed")
    if norm not in list(LAYERNORM_EPS):
        problems.append(f"layernorm {norm!r} is unknown, uer or huggingface is needed")
    if not isinstance(values["layernorm_eps"], float) or not 0 <= values["layernorm_eps"] < 1:
        problems.append(f"layernorm_eps is {values['layernorm_eps']!r}, a small number such as 1e-6 is needed")
    if data.get("tie_weights") not in (True, False, None):
        problems.append(f"tie_weights is {data['tie_weights']!r}, true or false is needed")
    if values["tie_weights"] and values["mlm_size"] not in (None, values["hidden_size"]):
        problems.append(f"mlm_size {values['mlm_size']} differs from hidden_size, so tie_weights cannot be true")
    values |= _target(data, problems)
    emb_size = data.get("emb_size", values["hidden_size"])
    if emb_size != values["hidden_size"]:
        problems.append(f"emb_size {emb_size} differs from hidden_size {values['hidden_size']}; they must be equal")
    if not problems and values["hidden_size"] % values["heads_num"]:
        problems.append(f"hidden_size {values['hidden_size']} is no multiple of heads_num {values['heads_num']}")
    shapes = _layer_shapes(data, values["layers_num"], problems)
    if problems:
        said = "; ".join(problems)
        raise UserError(f"{where}: " + re.sub(r"\w+", lambda word: (spelled or {}).get(word[0], word[0]), said))
    config = ModelConfig(**values)
    return config.with_layers(shapes) if shapes else config


def _layer_shapes(data: dict[str, Any], layers_num: Any, problems: list[str]) -> list[LayerShape]:
    """The sizes of layers that differ; none where the config lists none."""
    found = data.get("uneven_layers") or []
    right = isinstance(found, list) and all(isinstance(layer, dict) and layer.keys() == set(LayerShape._fields)
                                            and all(map(is_size, layer.values())) for layer in found)
    if not right:
        problems.append('uneven_layers is not a list of one {"heads": 12, "feedforward": 512} for each layer')
    elif found and len(found) != layers_num:
        problems.append(f"uneven_layers has {len(found)} layers, layers_num is {layers_num!r}")
    return [LayerShape(**layer) for layer in found] if right else []


def _target(data: dict[str, Any], problems: list[str]) -> dict[str, Any]:
    """What stands on the encoder."""
    target = data.get("target", "mlm")
    if isinstance(target, list) and len(target) == 1:  # as UER-py writes it
        target = target[0]
    if target not in TARGETS[1:]:
        return {}  # MLM under one of UER's words; others have been told
    pooling, outputs, labels = data.get("pooling", "mean"), data.get("outputs", 0), data.get("labels", [])
    if pooling not in list(POOLINGS):
        problems.append(f"pooling {pooling!r} is unknown, one of {', '.join(POOLINGS)} is needed")
    if not is_size(outputs):
        problems.append(f"outputs is {outputs!r}, a positive whole number is needed for target {target}")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        problems.append(f"labels is {labels!r}, a list of names is needed")
        labels = []
    act = data.get("cls_act", "tanh")
    if act not in list(CLS_ACTS):
        problems.append(f"cls_act {act!r} is unknown, one of {', '.join(CLS_ACTS)} is needed")
    return {"target": target, "pooling": pooling, "outputs": outputs, "labels": tuple(labels), "cls_act": act,
            "multi_label": data.get("multi_label") is True}


def _foreign_parts(data: dict[str, Any]) -> list[str]:
    """What in a config asks for something other than BERT's encoder with an MLM head."""
    def words(key: str) -> list[str]:
        value = data.get(key, [])
        return list(map(str, value)) if isinstance(value, list) else str(value).replace("_", " ").split()

    problems = []
    if set(words("embedding")) - {"word", "pos", "seg"}:
        problems.append(f"embedding {data['embedding']!r} is not BERT's; word_pos_seg is needed")
    if set(words("target")) - {"bert", "sp", *TARGETS} or set(words("target")) == {"sp"}:
        problems.append(f"target {data['target']!r} is unknown here; {', '.join(TARGETS)} or bert is needed")
    return problems + [f"{key} is {data[key]!r}; BERT's is {needed[0]!r}" for key, needed in OF_BERT.items()
                       if key in data and data[key] not in needed]


# -- Hugging Face's keys -----------------------------------------------------------------------------------------------


def their_keys(data: dict[str, Any]) -> dict[str, str]:
    """UER's keys -> what this config.json of a Hugging Face model calls them."""
    own = {bert: theirs for theirs, bert in RELATIVES.get(model_type(data), {}).items()}
    return {ours: own.get(bert, bert) for bert, ours in HUGGINGFACE_KEYS.items()}


def is_huggingface(data: dict[str, Any]) -> bool:
    """Whether this is the config.json of a Hugging Face model."""
    return any(key in data for key in ("num_hidden_layers", "model_type", "architectures"))


def model_type(data: dict[str, Any]) -> Any:
    """model_type; older files have none, and the class that they name tells it."""
    named = data.get("architectures")
    kind = str(named[0]).lower() if isinstance(named, list) and named else ""
    told = (family for family in (*ROBERTAS, *RELATIVES) if kind.startswith(family.replace("-", "")))
    return data.get("model_type") or next(told, "bert")


def huggingface_keys(data: dict[str, Any], where: str) -> dict[str, Any]:
    """A Hugging Face config.json under UER's keys.
    `UserError` for an architecture other than BERT's, RoBERTa's or a relative's, or a variant that our BERT is not."""
    kind = model_type(data)
    if kind not in ("bert", *ROBERTAS, *RELATIVES):
        raise UserError(f"{where}: model_type {kind!r}; an encoder of one of these is needed: bert, "
                        f"{', '.join((*ROBERTAS, *RELATIVES))}")
    problems = []
    data = {RELATIVES.get(kind, {}).get(key, key): value for key, value in data.items()}
    if kind == "electra" and data.get("embedding_size", 128) != data.get("hidden_size", 256):
        problems.append(f"embedding_size {data.get('embedding_size', 128)!r} beside hidden_size "
                        f"{data.get('hidden_size', 256)!r} (BERT has no projection between them)")
    if data.get("position_embedding_type", "absolute") not in ("absolute", None):
        problems.append(f"position_embedding_type {data['position_embedding_type']!r} (absolute is needed)")
    problems += [f"{key} is set" for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder")
                 if data.get(key)]
    act = data.get("hidden_act", "gelu")
    if act not in list(ACTIVATIONS):
        problems.append(f"{their_keys(data)['hidden_act']} {act!r} (one of {', '.join(ACTIVATIONS)} is needed)")
    pad = data.get("pad_token_id")
    numbers = {"max_position_embeddings": data.get("max_position_embeddings", 512),
               "pad_token_id": 0 if pad is None else pad, "layer_norm_eps": _number(data.get("layer_norm_eps", 1e-12))}
    problems += [f"{key} {value!r} (a number is needed)" for key, value in numbers.items()
                 if not isinstance(value, (int, float)) or isinstance(value, bool)]
    if problems:
        raise UserError(f"{where}: not the BERT that this project has: " + "; ".join(problems))
    return {**{ours: data.get(theirs) for theirs, ours in HUGGINGFACE_SIZES.items()}, "hidden_act": ACTIVATIONS[act],
            "max_seq_length": numbers["max_position_embeddings"] - skipped_positions(data),
            "dropout": data.get("hidden_dropout_prob", 0.1), "layernorm": "huggingface",
            "layernorm_eps": float(numbers["layer_norm_eps"])}


def skipped_positions(data: dict[str, Any]) -> int:
    """Leading rows of the position table that no real token uses: RoBERTa counts from its padding."""
    pad = data.get("pad_token_id")
    return (1 if pad is None else pad) + 1 if model_type(data) in ROBERTAS else 0


def _number(value: Any) -> Any:
    """A number that was written as text (1e-12 is text to some writers of JSON and YAML); else the value."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


# -- options out of a config -------------------------------------------------------------------------------------------


def parse_with_config(build_parser: Callable[[], argparse.ArgumentParser],
                      argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, set[str]]:
    """Parse a command line; options that it does not give take their value from the JSON at `--config_path`.

    Returns:
        the options, and the names of those that the command line gave.
    Raises:
        UserError: a value in the JSON that its option does not take.
    """
    args = build_parser().parse_args(argv)
    bare = build_parser()
    for action in bare._actions:
        action.default = argparse.SUPPRESS
    given = set(vars(bare.parse_args(argv)))
    path = getattr(checked(args), "config_path", None)
    if not path:
        return args, given
    actions = {action.dest: action for action in bare._actions}
    found = read_object(path)
    of_model = {"config_path", "dropout", *(["pooling"] if found.get("target") in TARGETS[1:] else [])}  # read with it
    for key, value in ({} if is_huggingface(found) else found).items():
        key = f"uer_{key}" if f"uer_{key}" in actions else key
        if key not in actions or key in given or key in of_model:
            continue
        if key.startswith("uer_"):  # checked with the model's config
            setattr(args, key, value)
            continue
        action = actions[key]
        if action.choices is not None and value not in action.choices:
            raise UserError(f"config {path}: {key} is {value!r}; --{key} takes {', '.join(map(str, action.choices))}")
        if not _takes(action, value):
            raise UserError(f"config {path}: {key} is {value!r}, which is not what --{key} takes")
        setattr(args, key, value)
    return checked(args), given


def _takes(action: argparse.Action, value: Any) -> bool:
    """Whether a JSON value is of the kind that an option takes."""
    if action.nargs == 0:
        return isinstance(value, bool)
    values = value if action.nargs in ("+", "*") else [value]
    kinds = {int: (int,), float: (int, float)}.get(action.type, (str,))  # type: ignore[arg-type,call-overload]
    return isinstance(values, list) and all(isinstance(x, kinds) and not isinstance(x, bool) for x in values)
