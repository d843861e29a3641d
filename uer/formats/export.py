"""Writing a BERT: UER files of both generations, Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uer.config import CLS_ACTS, ModelConfig
from uer.errors import UserError
from uer.formats import shapes
from uer.formats.file_model import OF_ANSWERS
from uer.formats.huggingface_config import READER_KEY, build_config
from uer.formats.huggingface_names import to_huggingface
from uer.formats.relatives import as_relative, one_segment, to_distilbert
from uer.formats.storage import save_safetensors, save_state_dict, write_json
from uer.formats.tokenizer_files import check_written, write_tokenizer
from uer.formats.uer_names import GENERATIONS, heads_out, to_uer_py
from uer.layer_sizes import refuse_uneven
from uer.tokenizers import TextRules
from uer.tokenizers.rules import KEY, PAD

HEADS = {  # our linears -> theirs
    "BertForSequenceClassification": {"target.output_layer_1": "bert.pooler.dense",
                                      "target.output_layer_2": "classifier"},
    "DistilBertForSequenceClassification": {"target.output_layer_1": "pre_classifier",
                                            "target.output_layer_2": "classifier"},
    "ElectraForSequenceClassification": {"target.output_layer_1": "classifier.dense",
                                         "target.output_layer_2": "classifier.out_proj"},
    "BertForTokenClassification": {"target.output_layer": "classifier"},
    "BertForQuestionAnswering": {"target.output_layer": "qa_outputs"},
}


def write_uer(path: str | Path, weights: Mapping[str, torch.Tensor], generation: str = "published") -> None:
    """Write a UER file of weights under published names; generation `uer-py`: with the names of UER-py since 2022."""
    assert generation in GENERATIONS
    save_state_dict(heads_out(to_uer_py(weights) if generation == "uer-py" else weights), path)


def check_head(config: ModelConfig, name: str) -> None:
    """`UserError` where a format has no place for a head: features of another width than the states, a pooling,
    layers that differ."""
    refuse_uneven(config, name)
    if config.target == "cls" and config.pooling != "first" and name == "huggingface":
        raise UserError(f"--output_format {name}: classifiers there read the first token, this one's pooling is "
                        f"{config.pooling}; uer and onnx can hold it")
    if config.cls_act != "tanh" and name == "uer-py":
        raise UserError(f"--output_format {name}: classifiers there have tanh between their linears, this one "
                        f"{config.cls_act}, as {CLS_ACTS[config.cls_act]}'s have; the other formats can hold it")
    if config.mlm_width != config.hidden_size and name in ("huggingface", "uer-py"):
        raise UserError(f"--output_format {name}: heads there are as wide as the hidden states "
                        f"({config.hidden_size}), this model's has {config.mlm_width} features (pretrain.py "
                        f"--mlm_target_dim); uer and onnx can hold it", page="formats")


def config_text(config: ModelConfig, weights: Mapping[str, torch.Tensor], generation: str,
                text: TextRules | None = None) -> str:
    """The config JSON that goes with a UER file, as the code of its generation reads it.

    `max_seq_length` is the number of positions in the file: UER shapes its table after it. How text becomes ids stands
    there as well, where it is known.
    """
    settings = replace(config, max_seq_length=len(weights[shapes.POSITIONS])).to_dict()
    if generation == "uer-py":
        settings |= {"embedding": ["word", "pos", "seg"], "mask": "fully_visible", "target": [config.target]}
    if text is not None:
        settings[KEY] = text.to_dict()
    return json.dumps(settings, indent=2) + "\n"


def write_huggingface(folder: Path, config: ModelConfig, weights: Mapping[str, torch.Tensor], *,
                      text: TextRules | None = None, reading: Mapping[str, Any] | None = None) -> None:
    """Write a folder that stock `AutoModel`, `AutoModelForMaskedLM` and `AutoTokenizer` load.

    Args:
        weights: under published names; with pooler and next-sentence head (`target.nsp_linear_*`) or without.
        text: how text becomes ids; with a vocabulary, tokenizer files are written.
        reading: as `LoadedModel` has it.
    """
    check_head(config, "huggingface")
    tables, reading = shapes.table_sizes(weights), reading or {}
    if text is not None:
        text = replace(text, separators=reading.get("separators", text.separators))
    if text is not None and text.vocab is not None:
        check_written(text)
    folder.mkdir(parents=True, exist_ok=True)
    tied = config.target != "mlm" or torch.equal(weights[shapes.DECODER], weights[shapes.WORDS])
    architecture = architecture_of(config, weights)
    alone, family = architecture == "BertModel", CLS_ACTS[config.cls_act].lower()
    if family == "distilbert":
        weights = one_segment(weights)
    kept = {name: tensor for name, tensor in weights.items() if not (alone and name.startswith(shapes.TASK_HEAD))}
    prefix = "" if alone else "electra." if family == "electra" else "bert."
    theirs = to_huggingface(kept, HEADS.get(architecture), prefix)
    if family == "distilbert":
        theirs = to_distilbert(theirs)
    if tied:
        theirs.pop("cls.predictions.decoder.weight", None)
    save_safetensors(theirs, folder / "model.safetensors")
    pad = text.special_ids[PAD] if text is not None and text.special_ids else 0
    settings = build_config(config, vocab=tables["vocab"], positions=tables["positions"],
                            types=tables["segments"] - 1, pad_id=pad, tied=tied,
                            architecture=architecture)
    if family != "bert":
        settings = as_relative(settings, family)
    dtype = str(weights[shapes.WORDS].dtype).removeprefix("torch.")
    positions = tables["positions"]
    settings |= reading.get("of_logits", {}) if config.target == "cls" else {}
    answers = {key: reading[key] for key in OF_ANSWERS if key in reading}
    settings |= {READER_KEY: answers} if config.reader and answers else {}
    write_json({**settings, "torch_dtype": dtype}, folder / "config.json")
    if text is not None and text.vocab is not None:
        write_tokenizer(folder, text, max_length=min(reading.get("seq_length", positions), positions),
                        segments=family != "distilbert")


def architecture_of(config: ModelConfig, weights: Mapping[str, torch.Tensor]) -> str:
    """The class of stock transformers that a model is."""
    if config.target == "mlm":
        whole = all(name in weights for name in shapes.NSP_HEAD)
        return "BertForPreTraining" if whole else "BertForMaskedLM"
    if config.target == "tokens":
        return "BertForQuestionAnswering" if config.reader else "BertForTokenClassification"
    return "BertModel" if config.target == "states" else f"{CLS_ACTS[config.cls_act]}ForSequenceClassification"
