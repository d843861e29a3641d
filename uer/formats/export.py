"""Writing a BERT: UER files of both generations, Hugging Face folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats import shapes
from uer.formats.huggingface_config import build_config
from uer.formats.huggingface_names import to_huggingface
from uer.formats.storage import PendingFiles, save_safetensors, save_state_dict, write_json
from uer.formats.teacher import is_cased
from uer.formats.tokenizer_files import load_wordpiece, write_tokenizer
from uer.formats.uer_names import GENERATIONS, to_uer_py


def save_uer(path: str | Path, weights: Mapping[str, torch.Tensor], generation: str = "published") -> None:
    """Write a UER file, whole or not at all.

    Args:
        weights: under published names.
        generation: `published`, or `uer-py` for the names of UER-py since 2022.
    """
    with PendingFiles() as pending:
        write_uer(pending.add(path), weights, generation)
        pending.publish()


def write_uer(path: Path, weights: Mapping[str, torch.Tensor], generation: str) -> None:
    """`save_uer` in place."""
    assert generation in GENERATIONS
    save_state_dict(to_uer_py(weights) if generation == "uer-py" else weights, path)


def check_head(config: ModelConfig, name: str) -> None:
    """`UserError` where a format has no place for an MLM head whose features are not as wide as the hidden states."""
    if config.mlm_width != config.hidden_size and name in ("huggingface", "uer-py"):
        raise UserError(f"--output_format {name}: MLM heads there are as wide as the hidden states "
                        f"({config.hidden_size}), this model's has {config.mlm_width} features (pretrain.py "
                        f"--mlm_target_dim); uer and onnx can hold it", page="formats")


def config_text(config: ModelConfig, weights: Mapping[str, torch.Tensor], generation: str) -> str:
    """The config JSON that goes with a UER file, as the code of its generation reads it.

    `max_seq_length` is the number of positions in the file: UER shapes its table after it.
    """
    settings = replace(config, max_seq_length=len(weights[shapes.POSITIONS])).to_dict()
    if generation == "uer-py":
        settings |= {"embedding": ["word", "pos", "seg"], "mask": "fully_visible", "target": ["mlm"]}
    return json.dumps(settings, indent=2) + "\n"


def save_huggingface(folder: str | Path, config: ModelConfig, weights: Mapping[str, torch.Tensor], *,
                     vocab_path: str | Path | None = None, lower_case: bool | None = None,
                     card: str | None = None) -> None:
    """Write a folder that stock `AutoModel`, `AutoModelForMaskedLM` and `AutoTokenizer` load, whole or not at all.

    Args:
        weights: under published names; with pooler and next-sentence head (`target.nsp_linear_*`) or without.
        vocab_path: a WordPiece vocabulary; None: no tokenizer files.
        lower_case: whether the tokenizer folds case; None: unless the vocabulary has capital letters.
        card: text of the README.md.
    """
    with PendingFiles() as pending:
        write_huggingface(pending.add(folder), config, weights, vocab_path=vocab_path, lower_case=lower_case, card=card)
        pending.publish()


def write_huggingface(folder: Path, config: ModelConfig, weights: Mapping[str, torch.Tensor], *,
                      vocab_path: str | Path | None = None, lower_case: bool | None = None,
                      card: str | None = None) -> None:
    """`save_huggingface` in place."""
    check_head(config, "huggingface")
    tables = shapes.table_sizes(weights)
    vocab = check_vocabulary(vocab_path, tables["vocab"]) if vocab_path else None
    folder.mkdir(parents=True, exist_ok=True)
    tied = torch.equal(weights[shapes.DECODER], weights[shapes.WORDS])
    theirs = to_huggingface(weights)
    if tied:
        del theirs["cls.predictions.decoder.weight"]
    whole = all(name in weights for name in shapes.NSP_HEAD)
    save_safetensors(theirs, folder / "model.safetensors")
    settings = build_config(config, vocab=tables["vocab"], positions=tables["positions"],
                            types=tables["segments"] - 1, pad_id=vocab.pad_id if vocab else 0, tied=tied,
                            architecture="BertForPreTraining" if whole else "BertForMaskedLM")
    dtype = str(weights[shapes.WORDS].dtype).removeprefix("torch.")
    write_json({**settings, "torch_dtype": dtype}, folder / "config.json")
    if vocab is not None and vocab_path is not None:
        lower = lower_case if lower_case is not None else not is_cased(Path(vocab_path))
        write_tokenizer(folder, vocab, vocab_path, lower_case=lower, max_length=tables["positions"])
    if card is not None:
        (folder / "README.md").write_text(card, encoding="utf-8")


def check_vocabulary(path: str | Path, rows: int):
    """The WordPiece vocabulary at `path`; `UserError` if it does not fit a table of `rows` word embeddings."""
    vocab = load_wordpiece(path)
    if not shapes.fits_vocabulary(rows, len(vocab)):
        raise UserError(f"--vocab_path {path}: {len(vocab)} tokens, but the model has {rows} word embeddings")
    return vocab
