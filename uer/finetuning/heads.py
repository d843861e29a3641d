"""A BERT with a head to fine-tune: a classifier as UER files hold it, or one that finds spans of text.

Under pooling `pooler` the first token is read, and the first linear of the head is the model's own pooler.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uer.config import SPAN_LABELS, ModelConfig, config_from_dict, load_config
from uer.errors import UserError
from uer.files import read_object
from uer.finetuning.options import POOLINGS
from uer.formats import LoadedModel, load_model, shapes
from uer.formats.file_target import OUTPUT
from uer.formats.storage import PendingFiles, read_tensors, save_state_dict, write_json
from uer.formats.tokenizer_files import drop_vocabularies
from uer.formats.uer_names import heads_in, to_published
from uer.models.bert import Bert
from uer.tokenizers import TextRules
from uer.tokenizers.rules import KEY

INIT_STD = 0.02
FORMAT = 1


# -- from a pretrained model -------------------------------------------------------------------------------------------


def load_encoder(path: str, config_path: str | None, dropout: float | None = None) -> LoadedModel:
    """A BERT of any format, with or without MLM head, for fine-tuning; raises `UserError` like `load_model`."""
    loaded = load_model(path, config=load_config(config_path) if config_path else None, vocab_size=None,
                        encoder_only=True)
    if dropout is not None:
        loaded.config = replace(loaded.config, dropout=float(dropout))
    return loaded


def check_words(loaded: LoadedModel, path: str, vocab_size: int) -> None:
    """`UserError` where a vocabulary is larger than the model's table; a note where it is smaller."""
    wrong = shapes.disagreements(loaded.config, loaded.weights, vocab_size)
    if wrong:
        raise UserError(f"model {path}: " + "; ".join(wrong))
    loaded.notes += shapes.spare_words(loaded.weights, vocab_size)


def _bert(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> Bert:
    return Bert(shapes.sizes_of(config, **shapes.table_sizes(weights)), config)


def _classifier_config(config: ModelConfig, outputs: int, pooling: str, features: int | None = None) -> ModelConfig:
    return replace(config, target="cls", outputs=outputs, pooling="first" if pooling == "pooler" else pooling,
                   mlm_size=features)


def build_classifier(loaded: LoadedModel, outputs: int, pooling: str, seed: int) -> Bert:
    """A classifier on a pretrained encoder; the head is new, but for the model's own pooler under pooling `pooler`.
    `UserError` for `pooler` where the model has none."""
    weights = dict(loaded.weights)
    if pooling == "pooler":
        check_pooler(loaded)
        for part, name in zip(("weight", "bias"), shapes.POOLER):
            weights[f"{OUTPUT}_1.{part}"] = loaded.extras[name]
    return _filled(_classifier_config(loaded.config, outputs, pooling), weights, seed)


def check_pooler(loaded: LoadedModel) -> None:
    """`UserError` where a model has no pooler, or none that fits it."""
    if not all(name in loaded.extras for name in shapes.POOLER):
        raise UserError("--pooling pooler: the model has no pooler; take first (with a new layer), mean, max or last")
    size = loaded.config.hidden_size
    found = [list(loaded.extras[name].shape) for name in shapes.POOLER]
    if found != [[size, size], [size]]:
        raise UserError(f"--pooling pooler: the model's pooler is {found[0]} instead of {[size, size]}")


def build_span_finder(loaded: LoadedModel, seed: int) -> Bert:
    """A start and an end logit for every token: a new head on a pretrained encoder."""
    config = replace(loaded.config, target="tokens", outputs=len(SPAN_LABELS), labels=SPAN_LABELS)
    return _filled(config, loaded.weights, seed)


def _filled(config: ModelConfig, weights: Mapping[str, torch.Tensor], seed: int) -> Bert:
    """A model with these weights; everything else is the head, which starts as BERT's: N(0, 0.02²), biases 0."""
    model, generator = _bert(config, weights), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])
                continue
            assert name.startswith(OUTPUT), name
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(0.0, INIT_STD, generator=generator)
    return model


# -- files -------------------------------------------------------------------------------------------------------------


def add_tuned(pending: PendingFiles, path: str, weights: Mapping[str, torch.Tensor], card: dict[str, Any],
              text: TextRules) -> None:
    """Write a fine-tuned model and, as `<path>.json`, what it is, among files that appear together.

    Args:
        weights: under the names of files.
        card: with the keys of `ModelConfig.to_dict()` under `config`.
        text: how it becomes ids; the vocabulary of a model that was there before leaves, where it is another one.
    """
    drop_vocabularies(pending, text, path)
    write_json({"format": FORMAT, KEY: text.to_dict(), **card}, pending.add(f"{path}.json"))
    save_state_dict(weights, pending.add(path))


def read_card(path: str) -> dict[str, Any]:
    """What is beside a fine-tuned model ({} for a file of UER's own)."""
    beside = Path(f"{path}.json")
    card = read_object(beside) if beside.is_file() else {}
    right = {"config": lambda value: isinstance(value, dict), "seq_length": lambda value: isinstance(value, int),
             "pairs": lambda value: isinstance(value, bool),
             "pooling": lambda value: value in list(POOLINGS),
             "labels": lambda value: isinstance(value, list) and all(isinstance(label, str) for label in value)}
    wrong = [f"{key} {card[key]!r}" for key, check in right.items() if key in card and not check(card[key])]
    if wrong:
        raise UserError(f"{beside}: not what is beside a fine-tuned model: {'; '.join(wrong)}")
    return card


def load_classifier(path: str, card: dict[str, Any], config_path: str | None, outputs: int | None,
                    pooling: str | None, vocab_size: int) -> Bert:
    """A classifier of run_classifier.py or of UER's.

    Args:
        card: from `read_card`.
        outputs, pooling: as given by the user; None: taken from the card.
    Raises:
        UserError: a file that is no classifier, or options that contradict it.
    """
    if Path(path).is_dir():
        raise UserError(f"model {path}: a folder; a UER file is needed, which "
                        f"scripts/convert_bert_from_huggingface_to_uer.py makes of it")
    weights = heads_in(to_published(read_tensors(path)))
    if "config" in card:
        config = config_from_dict(card["config"], f"config {path}.json")
    elif config_path:
        config = load_config(config_path)
    else:
        raise UserError(f"model {path}: there is no {Path(path).name}.json beside it, so --config_path is needed")
    if f"{OUTPUT}_2.weight" not in weights:
        raise UserError(f"model {path}: no classifier (output_layer_2 is not in it); run_classifier.py makes one of a "
                        f"pretrained model")
    weights = {name: tensor.float() for name, tensor in weights.items()
               if name.startswith(OUTPUT) or not name.startswith(shapes.HEAD)}
    own = config.pooling if config.target == "cls" else None
    found = {"--labels_num": (outputs, len(weights[f"{OUTPUT}_2.weight"])),
             "--pooling": (pooling, card.get("pooling", own or pooling or "first"))}
    problems = [f"{name} is {given}, the model has {there}" for name, (given, there) in found.items()
                if given not in (None, there)]
    config = _classifier_config(config, found["--labels_num"][1], found["--pooling"][1],
                                len(weights.get(f"{OUTPUT}_1.bias", ())) or None)
    problems += shapes.disagreements(config, weights, vocab_size)
    problems = problems or shapes.tensor_problems(weights, config)
    if problems:
        raise UserError(f"model {path}: " + "; ".join(problems))
    model = _bert(config, weights)
    model.load_state_dict(weights)
    return model
