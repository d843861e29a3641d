"""Loading a teacher: a UER file of either generation of names, or a Hugging Face folder or file.

A wrong or partial file never loads silently: every missing, unexpected or misshapen tensor is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uer.arguments import hint
from uer.config import ModelConfig, config_from_dict, load_config
from uer.config import is_huggingface as is_config_of_huggingface
from uer.errors import UserError
from uer.files import as_written, config_path_for, read_object
from uer.formats import shapes
from uer.formats.file_model import LoadedModel
from uer.formats.file_target import (
    MLM_HEAD,
    OUTPUT,
    complete_head,
    config_for,
    name_in_file,
    named_head,
    settle_target,
    strip_heads,
)
from uer.formats.huggingface_config import HuggingFaceConfig, parse_config
from uer.formats.huggingface_names import is_huggingface, task_heads, to_internal
from uer.formats.relatives import cls_act
from uer.formats.sentence import SHORTEST, SentenceFacts, cross_encoder, encoder_path, read_dense, read_sentence_facts
from uer.formats.storage import read_tensors, shortened, without_shared_prefix
from uer.formats.uer_names import heads_in, is_uer, to_published
from uer.tokenizers.beside import tokenizer_limit

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
# For a file without config.json: only the tying is taken from this, sizes come from the tensors.
BARE_CONFIG = HuggingFaceConfig(ModelConfig(1, 1, 1, 1), 0, True, None)


def load_model(path: str | Path, *, config: ModelConfig | None, vocab_size: int | None,
               allow_missing_head: bool = False, seed: int = 0, encoder_only: bool = False,
               target: str | None = "mlm", look_around: bool = True) -> LoadedModel:
    """Load a BERT, whatever its format.

    Args:
        path: UER file; Hugging Face folder; or a .safetensors or .bin file of one.
        config: what the model must be; None: taken from the JSON beside the file, or from the shapes.
        vocab_size: tokens of the vocabulary it is to be used with; None: not checked.
        allow_missing_head: make an MLM head where the file has none.
        target: what is to stand on the encoder: `mlm`, `states` (no head), or None for what the file has.
        seed: of the noise in such a head.
        encoder_only: leave the heads out, of masked language modelling or of a task, whether the file has them or not.
        look_around: heed the JSON beside a UER file, which may be another model's.
    Raises:
        UserError: anything wrong with the file, all of it in one message.
    """
    path = as_written(path)
    where = f"model {path}"
    raw = without_shared_prefix(_read(path), lambda tensors: is_uer(tensors) or is_huggingface(tensors))
    if is_uer(raw):
        model = _from_uer(raw, path, config, _json_beside(path) if look_around else None)
    elif is_huggingface(raw):
        model = _from_huggingface(raw, path, config)
    else:
        raise UserError(f"{where}: neither UER's nor Hugging Face's BERT; its tensors are called "
                        f"{shortened(list(raw), most=5)}")
    _take_extras(model)
    dtype = torch.float64 if any(tensor.dtype == torch.float64 for tensor in model.weights.values()) else torch.float32
    model.weights = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor
                     for name, tensor in model.weights.items()}
    if allow_missing_head and target is None:
        target = "mlm"
    if encoder_only:
        strip_heads(model)
    else:
        _take_sentence_facts(model, path, target)
        settle_target(model, target, where)
        if model.config.target == "mlm" and model.head_act not in ("", model.config.hidden_act) and any(
                name.startswith(MLM_HEAD) for name in model.weights):
            raise UserError(f"{where}: its MLM head takes {model.head_act}, its layers {model.config.hidden_act}; here "
                            f"both take the same")
        if model.extras and model.config.target == "mlm":
            model.notes.append("pooler or next-sentence head present: masked language modelling does not train it")
    problems = shapes.disagreements(model.config, model.weights, vocab_size)
    if not problems:
        if model.config.target == "mlm" and not encoder_only:
            complete_head(model, allow_missing_head, seed)
        problems = shapes.tensor_problems(model.weights, model.config, lambda name: name_in_file(model, name),
                                          encoder_only)
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems) + ("" if encoder_only else _hint(model.weights)))
    model.notes += shapes.spare_words(model.weights, vocab_size)
    return model


def _hint(weights: Mapping[str, torch.Tensor]) -> str:
    headless = not any(name.startswith("target.") for name in weights)
    return ". It has no MLM head" + hint("allow_missing_head", "; --allow_missing_head makes one") if headless else ""


# -- reading -----------------------------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, torch.Tensor]:
    if not path.is_dir():
        return read_tensors(path)
    folder = model_folder(path)
    if (folder / "adapter_config.json").exists():
        beside = "beside the model, which is another one with it" if has_weights(path) else \
            "alone, not the model that it belongs to"
        raise UserError(f"model {path}: an adapter {beside}; merge it into that first")
    for name in WEIGHT_FILES:
        if (folder / name).exists():
            return read_tensors(folder / name)
        if (folder / f"{name}.index.json").exists():
            return _read_shards(folder / f"{name}.index.json")
    raise UserError(f"model {path}: the folder holds neither {' nor '.join(WEIGHT_FILES)}")


def model_folder(path: Path) -> Path:
    """The folder itself, or the one inside it that a sentence-transformers folder names as its encoder."""
    return path if (path / "config.json").exists() and not (path / "modules.json").exists() else encoder_path(path)


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    files = read_object(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"model {index}: not an index of shards (no weight_map)")
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        tensors.update(read_tensors(index.parent / Path(file).name))
    return tensors


def _json_beside(path: Path) -> Path | None:
    """The config of a model file: `<file>.json`, `<file without .bin>_config.json`, or config.json in its folder; the
    first that is one, where there is one."""
    if path.is_dir():
        candidates = [model_folder(path) / "config.json"]
    else:
        candidates = [Path(f"{path}.json"), config_path_for(path), path.with_name("config.json")]
    there = [candidate for candidate in candidates if candidate.is_file()]
    return next((candidate for candidate in there if is_config(read_object(candidate))), there[-1] if there else None)


def is_config(data: dict[str, Any]) -> bool:
    """Whether a JSON says what model it is beside, and is not of something else (what an evaluation found, say)."""
    return is_config_of_huggingface(data) or "layers_num" in data or isinstance(_own(data), dict)


def _own(data: Mapping[str, Any]) -> Any:
    """The config in the JSON beside a checkpoint or a fine-tuned model."""
    return data.get("teacher", data.get("config"))


def has_weights(path: Path) -> bool:
    """Whether a model is there, not a config alone or nothing."""
    return path.is_file() or (path.is_dir() and any(
        (model_folder(path) / f"{name}{more}").exists() for name in WEIGHT_FILES for more in ("", ".index.json")))


def config_beside(path: Path, target: str | None) -> HuggingFaceConfig | None:
    """What the JSON beside a model says of it, without its weights; None if there is no JSON.
    `target`: as for `load_model`; None: what the JSON names."""
    beside = _json_beside(as_written(path))
    data = read_object(beside) if beside else {}
    if is_config_of_huggingface(data):
        found = parse_config(data, f"config {beside}")
    elif (config := _uer_config(beside)) is not None:
        found = HuggingFaceConfig(config, 0, False, None)
    else:
        return None
    return replace(found, config=config_for(found, target))


# -- UER ---------------------------------------------------------------------------------------------------------------


def _from_uer(raw: dict[str, torch.Tensor], path: Path, config: ModelConfig | None, beside: Path | None) -> LoadedModel:
    tensors = heads_in(to_published(raw))
    compactors = [name for name in tensors if "compactor" in name]
    if compactors:
        raise UserError(f"model {path}: a checkpoint with {len(compactors)} compactors, not a finished model; "
                        f"convert.py merges them")
    notes: list[str] = []
    facts = read_object(beside) if beside is not None and beside == Path(f"{path}.json") else {}
    own = _uer_config(beside)
    if config is None:
        config = own or guessed_config(tensors, f"model {path}", notes)
    elif own is not None:
        _compare_heads(config, own, path, beside)
        if (own.layernorm, own.layernorm_eps) != (config.layernorm, config.layernorm_eps):
            notes.append(f"LayerNorm as the given config says ({config.layernorm}, eps {config.layernorm_eps:g}), "
                         f"not as {beside} ({own.layernorm}, eps {own.layernorm_eps:g})")
    return LoadedModel(config, tensors, notes, facts=facts)


def _uer_config(path: Path | None) -> ModelConfig | None:
    if path is None:
        return None
    data = read_object(path)
    own = _own(data)
    if isinstance(own, dict):
        return config_from_dict(own, f"config {path}")
    return load_config(path) if "layers_num" in data else None


def _compare_heads(config: ModelConfig, own: ModelConfig, path: Path, beside: Path | None) -> None:
    problems = [f"{key} is {getattr(own, key)} there, {getattr(config, key)} in the given config"
                for key in ("heads_num", "hidden_act") if getattr(own, key) != getattr(config, key)]
    if own.uneven_layers != config.uneven_layers:
        problems.append("the sizes of its layers differ, there and in the given config")
    if problems:
        raise UserError(f"model {path}: contradicts {beside}: " + "; ".join(problems))


def guessed_config(tensors: Mapping[str, torch.Tensor], where: str, notes: list[str], style: str = "uer",
                   heads: int | None = None) -> ModelConfig:
    """The config of a model with no config beside it, from its tensors; `UserError` where they do not tell it.

    Args:
        where: names the model in messages.
        notes: takes a line on the heads, where nobody says how many.
        heads: how many the user says there are.
    """
    sizes = shapes.measured(tensors)
    if len(sizes) < 3:
        raise UserError(f"{where}: not a whole BERT: there is no {shapes.WORDS} or no encoder layer in it")
    hidden = sizes["hidden_size"]
    if heads is None and hidden % shapes.HEAD_SIZE:
        remedy = hint("heads_num", "; give --heads_num or --config_path") or hint("config_path", "; give --config_path")
        raise UserError(f"{where}: no config beside it, and hidden_size {hidden} is no multiple of {shapes.HEAD_SIZE}, "
                        f"so the number of heads cannot be told{remedy}", page="formats")
    if shapes.uneven(tensors, sizes["layers_num"]):
        raise UserError(f"{where}: no config beside it, and its layers differ in size: of an uneven student the "
                        f"config that was written with it is needed" + hint("config_path", " (--config_path)"),
                        page="shape")
    if heads is None:
        heads = hidden // shapes.HEAD_SIZE
        notes.append(f"no config beside the file: {heads} heads of {shapes.HEAD_SIZE} are assumed (hidden_size "
                     f"{hidden})")
    positions = len(tensors[shapes.POSITIONS]) if shapes.POSITIONS in tensors else 512
    return config_from_dict({**sizes, "heads_num": heads, "max_seq_length": positions, "layernorm": style}, where)


# -- Hugging Face ------------------------------------------------------------------------------------------------------


def _from_huggingface(raw: dict[str, torch.Tensor], path: Path, config: ModelConfig | None) -> LoadedModel:
    beside = _json_beside(path)
    theirs = parse_config(read_object(beside), f"config {beside}") if beside else BARE_CONFIG
    counted = next((prefix for prefix in ("roberta.", "lm_head.", "bert.", "cls.")
                    if any(name.startswith(prefix) for name in raw)), "")
    if counted and (counted in ("roberta.", "lm_head.")) != bool(theirs.skip_positions):
        raise UserError(f"model {path}: its tensors are called {counted}…, which is not what "
                        f"{beside or 'a file without config.json'} says of model_type and architectures; RoBERTa and "
                        f"BERT count positions differently")
    raw = {name: tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
           for name, tensor in raw.items()}
    theirs, notes, others = named_head(theirs, raw)
    raw = {name: tensor for name, tensor in raw.items() if name not in others}
    tensors, left_out, strangers = to_internal(raw, theirs.skip_positions)
    left_out += others
    if strangers:
        raise UserError(f"model {path}: these tensors belong to no BERT, and change what the model computes: "
                        f"{shortened(strangers, most=1000)}; merge adapters into the weights first")
    if left_out:
        notes.append(f"not taken over, as the encoder is the same without: {shortened(left_out)}")
    if beside is None:
        own = config or guessed_config(tensors, f"model {path}", notes, "huggingface")
        theirs = replace(theirs, config=replace(own, layernorm="huggingface", layernorm_eps=1e-12))
    own = theirs.config
    if config is None:
        config = own
    else:
        if beside is not None:
            _compare_heads(config, own, path, beside)
        if (config.layernorm, config.layernorm_eps) != (own.layernorm, own.layernorm_eps):
            notes.append(f"LayerNorm as Hugging Face computes it (eps {own.layernorm_eps:g})")
        config = replace(config, layernorm=own.layernorm, layernorm_eps=own.layernorm_eps)
    tied = theirs.tied and "target.mlm_linear_1.weight" in tensors
    for name, twin in ((shapes.WORDS, shapes.DECODER), (shapes.DECODER, shapes.WORDS)):
        if tied and name not in tensors and twin in tensors:
            tensors[name] = tensors[twin].clone()
    tied = tied and shapes.WORDS in tensors and torch.equal(tensors[shapes.DECODER], tensors[shapes.WORDS])
    facts: dict[str, Any] = {"of_logits": theirs.of_logits} if theirs.of_logits else {}
    limit = tokenizer_limit(beside.parent) if beside else None
    if limit is not None and SHORTEST <= limit < own.max_seq_length:
        facts["seq_length"] = limit
    facts |= theirs.of_answers
    config = replace(config, cls_act=cls_act(raw, theirs.model_type))
    return LoadedModel(config, tensors, notes, source="huggingface", architecture=theirs.architecture,
                       labels=theirs.labels, labels_wrong=theirs.labels_wrong, spelled=task_heads(raw),
                       left_out=left_out, tied=tied, facts=facts, head_act=theirs.head_act)


# -- beside the encoder ------------------------------------------------------------------------------------------------


def _take_sentence_facts(model: LoadedModel, path: Path, target: str | None) -> None:
    """How sentences are embedded, from the folder or from the JSON beside the file, for an encoder alone."""
    if target == "mlm":
        return
    folder = path if path.is_dir() else path.parent
    if model.source == "huggingface":
        whole = path.is_dir() or encoder_path(folder) == folder  # a file of its own is not the encoder inside a folder
        model.sentence = read_sentence_facts(folder) if whole else None
        scorer = cross_encoder(folder) if whole else None
        if scorer and scorer.max_seq_length:
            model.facts["seq_length"] = scorer.max_seq_length
        if scorer and scorer.activation is not None:  # where readers of a folder without modules.json look for it
            activation = scorer.activation
            model.facts["of_logits"] = {**model.facts.get("of_logits", {}),
                                        "sentence_transformers": {"activation_fn": activation}}
        if model.sentence is not None and model.sentence.mapped:
            dtype = next(iter(model.weights.values())).dtype
            model.weights |= {f"{OUTPUT}.{part}": tensor.to(dtype) for part, tensor in read_dense(folder).items()}
            model.config = replace(model.config, target="states")
    elif model.facts.get("sentence"):  # null of a model that is no sentence encoder
        model.sentence = SentenceFacts.from_dict(model.facts["sentence"], f"{path}.json")
    if model.sentence is not None:
        model.config = replace(model.config, pooling=model.sentence.pooling)


def _take_extras(model: LoadedModel) -> None:
    for name in shapes.NSP_HEAD:
        if name in model.weights:
            tensor = model.weights.pop(name)
            model.extras[name] = tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
