"""config.json of a Hugging Face folder against our `ModelConfig`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from uer.config import ModelConfig, config_from_dict
from uer.errors import UserError

ACTIVATIONS = {"gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_fast", "gelu_fast": "gelu_fast",
               "gelu_pytorch_tanh": "gelu_fast", "relu": "relu", "silu": "silu", "swish": "silu", "tanh": "tanh"}
ACTIVATIONS_BACK = {"gelu": "gelu", "gelu_fast": "gelu_pytorch_tanh", "relu": "relu", "silu": "silu", "tanh": "tanh"}
ROBERTAS = ("roberta", "xlm-roberta", "camembert")
KEYS = {"hidden_size": "hidden_size", "num_hidden_layers": "layers_num", "num_attention_heads": "heads_num",
        "intermediate_size": "feedforward_size"}


@dataclass(frozen=True)
class HuggingFaceConfig:
    """What a config.json says.

    Attributes:
        config: in our words.
        skip_positions: leading rows of the position table that no real token uses.
        tied: whether the decoder is the word embeddings where the file has none of its own.
        vocab_size: rows of the word embeddings.
    """

    config: ModelConfig
    skip_positions: int
    tied: bool
    vocab_size: int | None


def parse_config(data: dict[str, Any], where: str) -> HuggingFaceConfig:
    """Read a config.json.

    Raises:
        UserError: an architecture other than BERT's or RoBERTa's, or a variant of it that our BERT is not.
    """
    model_type = data.get("model_type", "bert")
    if model_type not in ("bert", *ROBERTAS):
        raise UserError(f"{where}: a {model_type} model; a teacher must be a BERT or RoBERTa encoder")
    problems = []
    if data.get("position_embedding_type", "absolute") not in ("absolute", None):
        problems.append(f"position_embedding_type {data['position_embedding_type']!r} (absolute is needed)")
    problems += [f"{key} is set" for key in ("is_decoder", "add_cross_attention", "is_encoder_decoder")
                 if data.get(key)]
    roberta = model_type in ROBERTAS
    act = data.get("hidden_act", "gelu")
    if act not in list(ACTIVATIONS):
        problems.append(f"hidden_act {act!r} (one of {', '.join(ACTIVATIONS)} is needed)")
    elif roberta and ACTIVATIONS[act] != "gelu":
        problems.append(f"hidden_act {act!r} with RoBERTa, whose MLM head always takes gelu")
    numbers = {"max_position_embeddings": data.get("max_position_embeddings", 512), "pad_token_id":
               data.get("pad_token_id", 0) or 0, "layer_norm_eps": _number(data.get("layer_norm_eps", 1e-12))}
    problems += [f"{key} {value!r} (a number is needed)" for key, value in numbers.items()
                 if not isinstance(value, (int, float)) or isinstance(value, bool)]
    if problems:
        raise UserError(f"{where}: not the BERT that this project has: " + "; ".join(problems))
    pad = data.get("pad_token_id")
    skip = (1 if pad is None else pad) + 1 if roberta else 0
    ours = {new: data.get(old) for old, new in KEYS.items()}
    eps = data.get("layer_norm_eps", 1e-12)
    config = config_from_dict({
        **ours, "max_seq_length": data.get("max_position_embeddings", 512) - skip, "hidden_act": ACTIVATIONS[act],
        "dropout": data.get("hidden_dropout_prob", 0.1), "layernorm": "huggingface",
        "layernorm_eps": float(eps)}, where)
    return HuggingFaceConfig(config, skip, bool(data.get("tie_word_embeddings", True)), data.get("vocab_size"))


def _number(value: Any) -> Any:
    """A number that was written as text (1e-12 is text to some writers of JSON and YAML); else the value."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def build_config(config: ModelConfig, *, vocab: int, positions: int, types: int, pad_id: int, tied: bool,
                 architecture: str) -> dict[str, Any]:
    """The config.json of a stock BERT of this config."""
    eps = config.layernorm_eps if config.layernorm == "huggingface" else config.layernorm_eps ** 2
    return {
        "architectures": [architecture],
        "attention_probs_dropout_prob": config.dropout,
        "hidden_act": ACTIVATIONS_BACK[config.hidden_act],
        "hidden_dropout_prob": config.dropout,
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.feedforward_size,
        "layer_norm_eps": eps,
        "max_position_embeddings": positions,
        "model_type": "bert",
        "num_attention_heads": config.heads_num,
        "num_hidden_layers": config.layers_num,
        "pad_token_id": pad_id,
        "tie_word_embeddings": tied,
        "type_vocab_size": types,
        "vocab_size": vocab,
    }
