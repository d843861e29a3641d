"""sentence-transformers folders: what they say beside their encoder, in and out.

    modules.json                        Transformer, Pooling, (Dense,) (Normalize): a folder each
    sentence_bert_config.json           max_seq_length; a cross-encoder's task
    tokenizer_config.json               model_max_length, where nothing says max_seq_length (since 6.0)
    config_sentence_transformers.json   prompts; a cross-encoder's activation

The files are written as every version since 2.0 reads them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uer.config import POOLINGS
from uer.errors import UserError
from uer.files import read_json, read_object
from uer.formats.storage import read_tensors, save_safetensors, write_json
from uer.tokenizers.beside import sentence_config, tokenizer_limit

MODES = {"mean": "mean", "max": "max", "cls": "first", "lasttoken": "last"}  # theirs -> ours
FLAGS = {"mean": "mean_tokens", "max": "max_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
IDLE = ("Dropout",)  # modules that do nothing in use
KEPT = ("Transformer", "Pooling", "Dense", "Normalize")
CROSS_ENCODER = "sequence-classification"
SHORTEST = 8  # tokens of a text that fine-tuned models are used with
ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}  # what a text is -> names of its prompt
IN_PLACE = {key: ["sentence_embedding"] for key in ("module_input_name", "module_output_name")}
# What else modules may say, and the values that change nothing here (as null does).
NEUTRAL: dict[str, dict[str, list[Any]]] = {
    "Transformer": {"transformer_task": ["feature-extraction"], "module_output_name": ["token_embeddings"],
                    "processing_kwargs": [{}], "query_length": [], "document_length": [], "query_expansion": []},
    "Dense": {**IN_PLACE, "use_residual": [False]}, "Normalize": IN_PLACE}
OF_SCORES = {**NEUTRAL["Transformer"], "transformer_task": [CROSS_ENCODER], "module_output_name": ["scores"]}
OPENING = ("trust_remote_code", "revision", "local_files_only", "token", "cache_dir")  # how files are found
ASIDE = {"config": OPENING, "tokenizer": (*OPENING, "model_max_length", "use_fast", "padding_side")}
SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class SentenceFacts:
    """What makes sentence embeddings of an encoder's states.

    Attributes:
        pooling: one of `POOLINGS`.
        normalize: whether embeddings are brought to length 1.
        max_seq_length: tokens at most; None: not said, and so as many as the encoder has positions.
        prompts: name -> text put in front; `default_prompt_name` the one that is taken unasked.
        similarity: what embeddings are compared by, one of `SIMILARITIES`; None: not said.
        include_prompt: whether mean and max are taken over the prompt's tokens as well.
        mapped: whether embeddings are the pooled states through a map of their own (a Dense module).
    """

    pooling: str = "mean"
    normalize: bool = False
    max_seq_length: int | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    similarity: str | None = None
    include_prompt: bool = True
    mapped: bool = False

    def prompt(self, role: str | None = None) -> str:
        """What stands before a text: of this role (`query` or `document`), or of any other.

        As in sentence-transformers the first name of a role that the folder knows decides, even with an empty text.
        """
        name = next((name for name in ROLES.get(role or "", ()) if name in self.prompts), self.default_prompt_name)
        return self.prompts.get(name or "") or ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any, where: str) -> SentenceFacts:
        """The inverse; `UserError` where it is none."""
        try:
            facts = cls(**data)
        except TypeError:
            raise UserError(f"{where}: {data!r} does not say how sentences are embedded") from None
        _check(facts, where)
        return facts


def _check(facts: SentenceFacts, where: str) -> None:
    wrong = [] if facts.pooling in POOLINGS else [f"pooling {facts.pooling!r}"]
    if facts.max_seq_length is not None and (not isinstance(facts.max_seq_length, int) or facts.max_seq_length < 3):
        wrong.append(f"max_seq_length {facts.max_seq_length!r}")
    if not isinstance(facts.prompts, dict) or not all(isinstance(text, str) for text in facts.prompts.values()):
        wrong.append(f"prompts {facts.prompts!r}")
    elif facts.default_prompt_name is not None and facts.default_prompt_name not in list(facts.prompts):
        wrong.append(f"default_prompt_name {facts.default_prompt_name!r}, which is none of the prompts")
    if facts.similarity not in (None, *SIMILARITIES):
        wrong.append(f"similarity_fn_name {facts.similarity!r}")
    if wrong:
        raise UserError(f"{where}: cannot be used: {', '.join(wrong)}")


def _kind(module: dict[str, Any]) -> str:
    """The name of a module's class in sentence-transformers; another's class with all its path."""
    kind = str(module.get("type", ""))
    return kind.rpartition(".")[2] if kind.startswith("sentence_transformers.") else kind


def read_modules(folder: Path) -> list[dict[str, Any]]:
    """The modules that a modules.json lists; [] where there is none. `UserError` where that is no list of modules."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = read_json(path)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and isinstance(module.get("path"), str)
                                                for module in modules):
        raise UserError(f"{path}: not a list of modules, each with a type and a path")
    return modules


def _paths(folder: Path, kind: str) -> list[Path]:
    """The folders of the modules of a kind."""
    return [folder / module["path"] for module in read_modules(folder) if _kind(module) == kind]


def encoder_path(folder: Path) -> Path:
    """The folder of the encoder: itself, or the one that modules.json names.
    `UserError` where modules.json names several encoders, or none."""
    modules = read_modules(folder)
    encoders = _paths(folder, "Transformer")
    if modules and len(encoders) != 1:
        raise UserError(f"{folder / 'modules.json'}: {len(encoders)} encoders (Transformer) among its modules "
                        f"{', '.join(map(_kind, modules))}; exactly one is needed")
    return encoders[0] if encoders else folder


def read_sentence_facts(folder: Path) -> SentenceFacts | None:
    """What a sentence-transformers folder says; None where it is none, or a cross-encoder's.
    `UserError` for modules that a smaller encoder could not keep."""
    modules = [module for module in read_modules(folder) if _kind(module) not in IDLE]
    if not modules or _scores(folder):
        return None
    where, kinds = f"{folder / 'modules.json'}", [_kind(module) for module in modules]
    others = [kind for kind in kinds if kind not in KEPT]
    if others:
        raise UserError(f"{where}: module {', '.join(others)} cannot be kept; {', '.join(KEPT)} can")
    if kinds != sorted(kinds, key=KEPT.index) or kinds.count("Dense") > 1:
        raise UserError(f"{where}: modules {', '.join(kinds)}; {', '.join(KEPT)} are known in this order, one of each")
    for module, kind in zip(modules, kinds):
        path = folder / module["path"]
        path = sentence_config(path) if kind == "Transformer" else path / "config.json"
        said = read_object(path) if path.is_file() else {}
        _check_said(path, said, NEUTRAL.get(kind, {}))
    pools = [path / "config.json" for path in _paths(folder, "Pooling")]
    if len(pools) != 1:
        raise UserError(f"{where}: {len(pools)} Pooling modules; exactly one is needed")
    settings = folder / "config_sentence_transformers.json"
    more = read_object(settings) if settings.is_file() else {}
    if more.get("truncate_dim") is not None:
        raise UserError(f"{settings}: truncate_dim {more['truncate_dim']!r} cannot be kept; without it vectors have "
                        f"their full width, and can be cut where they are used")
    prompts = more.get("prompts") or {}
    if isinstance(prompts, dict):
        prompts = {name: text for name, text in prompts.items() if text is not None}
    whole = read_object(pools[0]).get("include_prompt", True) is not False
    facts = SentenceFacts(_pooling(pools[0]), any(_kind(module) == "Normalize" for module in modules),
                          _limit(encoder_path(folder)), prompts, more.get("default_prompt_name"),
                          more.get("similarity_fn_name"), whole, "Dense" in kinds)
    _check(facts, str(folder))
    if not whole and facts.pooling == "first" and any(prompts.values()):
        raise UserError(f"{pools[0]}: include_prompt false with pooling cls: the first token is the prompt's in some "
                        f"versions of sentence-transformers, the text's in others")
    return facts


def _check_said(path: Path, said: Mapping[str, Any], neutral: Mapping[str, list[Any]]) -> None:
    """`UserError` where a module's config says what changes something and cannot be kept."""
    odd = [f"{key} {said[key]!r}" for key, values in neutral.items() if said.get(key) not in (None, *values)]
    odd += [f"{key} {value!r} for the {part}" for part, aside in ASIDE.items()
            for key, value in _made_with(said, part).items() if value is not None and key not in aside]
    if odd:
        raise UserError(f"{path}: {', '.join(odd)} cannot be kept")


class CrossEncoder(NamedTuple):
    """What a folder says of a cross-encoder beside its classifier: the activation of its scores, tokens at most."""

    activation: Any = None
    max_seq_length: int | None = None


def _scores(folder: Path) -> bool:
    """Whether a folder of sentence-transformers is a cross-encoder's: its only module is the classifier."""
    alone = [_kind(module) for module in read_modules(folder)] == ["Transformer"]
    beside = sentence_config(encoder_path(folder)) if alone else None
    return beside is not None and beside.is_file() and read_object(beside).get("transformer_task") == CROSS_ENCODER


def cross_encoder(folder: Path) -> CrossEncoder | None:
    """None where the folder is of another kind. `UserError` for a prompt before every text, and what else a smaller
    one could not keep."""
    if not _scores(folder):
        return None
    path, settings = sentence_config(encoder_path(folder)), folder / "config_sentence_transformers.json"
    _check_said(path, read_object(path), OF_SCORES)
    more = read_object(settings) if settings.is_file() else {}
    prompts, name = more.get("prompts") or {}, more.get("default_prompt_name")
    if name is not None and prompts.get(name):
        raise UserError(f"{settings}: default_prompt_name {name!r} puts {prompts[name]!r} before what a cross-encoder "
                        f"reads, which cannot be kept; null would leave it out")
    limit = _limit(encoder_path(folder))
    return CrossEncoder(more.get("activation_fn"), limit if isinstance(limit, int) and limit >= SHORTEST else None)


def read_dense(folder: Path) -> dict[str, torch.Tensor]:
    """weight [out, width] and bias [out] of a folder's Dense module; `UserError` where it does more than map."""
    path = _paths(folder, "Dense")[0]
    activation = str(read_object(path / "config.json").get("activation_function", "Tanh"))  # theirs, where none is said
    if activation.rpartition(".")[2] != "Identity":
        raise UserError(f"{path / 'config.json'}: activation_function {activation}; only a map without one can be kept")
    files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    if not files:
        raise UserError(f"{path}: neither model.safetensors nor pytorch_model.bin is there")
    tensors = {name.removeprefix("linear."): tensor for name, tensor in read_tensors(files[0]).items()}
    weight = tensors.pop("weight", torch.empty(0))
    bias = tensors.pop("bias", weight.new_zeros(len(weight)))
    if weight.dim() != 2 or bias.shape != weight.shape[:1] or tensors:
        raise UserError(f"{files[0]}: not one linear map (linear.weight [out, in] and linear.bias [out])")
    return {"weight": weight, "bias": bias}


def _limit(encoder: Path) -> Any:
    """Tokens at most, as the encoder's folder says; None: it does not."""
    own = sentence_config(encoder)
    said = read_object(own) if own.is_file() else {}
    limit = _made_with(said, "tokenizer").get("model_max_length")
    limit = said.get("max_seq_length") if limit is None else limit
    return tokenizer_limit(encoder) if limit is None else limit


def _made_with(said: Mapping[str, Any], part: str) -> dict[str, Any]:
    """What an encoder's folder has its tokenizer or config made with, as newer and older versions say it."""
    newer = {"tokenizer": "processor_kwargs", "config": "config_kwargs"}[part]
    given = said.get(newer, said.get(f"{part}_args"))
    return given if isinstance(given, dict) else {}


def _pooling(path: Path) -> str:
    """Our name of the pooling in a Pooling module's config."""
    data = read_object(path)
    flags = [mode for mode, flag in FLAGS.items() if data.get(f"pooling_mode_{flag}")]
    named = data.get("pooling_mode")
    found = flags if named is None else named if isinstance(named, list) else [named]
    others = [key for key, value in data.items() if key.startswith("pooling_mode_") and value
              and key.removeprefix("pooling_mode_") not in FLAGS.values()]
    found = found or ([] if others else ["mean"])  # theirs, where none is said
    if len(found) != 1 or found[0] not in list(MODES) or others:
        raise UserError(f"{path}: pooling {', '.join(map(str, [*found, *others]))} is unknown here; one of "
                        f"{', '.join(MODES)} is needed")
    return MODES[found[0]]


def write_sentence_files(folder: Path, facts: SentenceFacts, width: int, positions: int,
                         dense: Mapping[str, torch.Tensor] | None = None) -> None:
    """Everything that turns a Hugging Face folder into one of sentence-transformers.

    Args:
        width: of the encoder's states.
        positions: that the encoder has.
        dense: weight [out, width] and bias [out] of a map of the pooled states.
    """
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense else []), *(["Normalize"] if facts.normalize else [])]
    modules = [{"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}",
                "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", encoding="utf-8")
    for i, kind in enumerate(kinds[1:], 1):
        (folder / f"{i}_{kind}").mkdir()
    write_json({"word_embedding_dimension": width, **{f"pooling_mode_{flag}": MODES[mode] == facts.pooling
                                                      for mode, flag in FLAGS.items()},
                "include_prompt": facts.include_prompt},
               folder / "1_Pooling" / "config.json")
    if dense:
        write_json({"in_features": width, "out_features": len(dense["bias"]), "bias": True,
                    "activation_function": "torch.nn.modules.linear.Identity"}, folder / "2_Dense" / "config.json")
        save_safetensors({f"linear.{part}": tensor for part, tensor in dense.items()},
                         folder / "2_Dense" / "model.safetensors")
    write_json({"max_seq_length": min(facts.max_seq_length or positions, positions), "do_lower_case": False},
               folder / "sentence_bert_config.json")
    write_json({"prompts": dict(facts.prompts), "default_prompt_name": facts.default_prompt_name,
                "similarity_fn_name": facts.similarity or "cosine"}, folder / "config_sentence_transformers.json")
