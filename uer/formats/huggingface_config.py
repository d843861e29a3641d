"""config.json of a Hugging Face folder against our `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from uer.config import (
    ROBERTAS,
    ModelConfig,
    config_from_dict,
    huggingface_keys,
    model_type,
    skipped_positions,
    their_keys,
)
from uer.formats.file_model import OF_ANSWERS

ACTIVATIONS_BACK = {"gelu": "gelu", "gelu_fast": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu", "tanh": "tanh"}
READER_KEY = "reading"  # how a reader cuts texts into windows and chooses answers: under this key of config.json
# What readers of a classifier's folder do with its logits: the activation of a cross-encoder, say.
OF_LOGITS = ("problem_type", "sentence_transformers", "sbert_ce_default_activation_function")


@dataclass(frozen=True)
class HuggingFaceConfig:
    """What a config.json says.

    Attributes:
        config: in our words.
        skip_positions: leading rows of the position table that no real token uses.
        tied: whether the decoder is the word embeddings where the file has none of its own.
        vocab_size: rows of the word embeddings.
        architecture: the class that it names, "" where it names none.
        labels: of a task, in the order of their numbers.
        labels_wrong: why id2label does not tell them, "" where it does.
        of_logits: `OF_LOGITS`, as far as it has them.
        of_answers: a reader's `OF_ANSWERS`, as this project writes them into it.
        head_act: as in `LoadedModel`.
        model_type: the family that it names, "" where it names none.
    """

    config: ModelConfig
    skip_positions: int
    tied: bool
    vocab_size: int | None
    architecture: str = ""
    labels: tuple[str, ...] = ()
    labels_wrong: str = ""
    of_logits: dict[str, Any] = field(default_factory=dict)
    of_answers: dict[str, Any] = field(default_factory=dict)
    head_act: str = ""
    model_type: str = ""


def parse_config(data: dict[str, Any], where: str) -> HuggingFaceConfig:
    """Read a config.json; raises `UserError` like `uer.config.huggingface_keys`."""
    config = config_from_dict(huggingface_keys(data, where), where, their_keys(data))
    return HuggingFaceConfig(config, skipped_positions(data), bool(data.get("tie_word_embeddings", True)),
                             data.get("vocab_size"), *_task(data),
                             {key: data[key] for key in OF_LOGITS if data.get(key)}, _of_answers(data),
                             "gelu" if model_type(data) in (*ROBERTAS, "electra") else "", model_type(data))


def _of_answers(data: dict[str, Any]) -> dict[str, Any]:
    said = data.get(READER_KEY)
    return {key: said[key] for key in OF_ANSWERS if key in said} if isinstance(said, dict) else {}


def _task(data: dict[str, Any]) -> tuple[str, tuple[str, ...], str]:
    """The class that a config.json names, its labels, and what is wrong with these."""
    named, labels = data.get("architectures"), data.get("id2label") or {}
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    numbers = [int(key) if str(key).isdecimal() else -1 for key in labels] if isinstance(labels, dict) else [-1]
    if sorted(numbers) != list(range(len(numbers))):
        said = f"the ids {', '.join(map(str, labels))}" if isinstance(labels, dict) else repr(labels)
        return architecture, (), f"id2label has {said}; a name for each output is needed, counted from 0"
    return architecture, tuple(str(label) for _, label in sorted(zip(numbers, labels.values()))), ""


def build_config(config: ModelConfig, *, vocab: int, positions: int, types: int, pad_id: int, tied: bool,
                 architecture: str) -> dict[str, Any]:
    """The config.json of a stock BERT of this config."""
    eps = config.layernorm_eps if config.layernorm == "huggingface" else config.layernorm_eps ** 2
    return {
        "architectures": [architecture], "attention_probs_dropout_prob": config.dropout,
        "hidden_act": ACTIVATIONS_BACK[config.hidden_act], "hidden_dropout_prob": config.dropout,
        "hidden_size": config.hidden_size, "initializer_range": 0.02, "intermediate_size": config.feedforward_size,
        "layer_norm_eps": eps, "max_position_embeddings": positions, "model_type": "bert",
        "num_attention_heads": config.heads_num, "num_hidden_layers": config.layers_num, "pad_token_id": pad_id,
        "tie_word_embeddings": tied, "type_vocab_size": types, "vocab_size": vocab, **_labels(config)}


def _labels(config: ModelConfig) -> dict[str, Any]:
    """What a config.json says of a classifier's outputs."""
    if config.target not in ("cls", "tokens"):
        return {}
    labels = config.labels or tuple(f"LABEL_{number}" for number in range(config.outputs))
    regression = {"problem_type": "regression"} if config.target == "cls" and config.outputs == 1 else {}
    return {"id2label": {str(number): label for number, label in enumerate(labels)},
            "label2id": {label: number for number, label in enumerate(labels)}, **regression}
