"""A model from elsewhere as a UER file, checked before it appears."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from uer.config import load_config
from uer.conversion.merge import student_model
from uer.conversion.outputs import Check, Source, largest_difference, put_uer, put_vocabularies
from uer.errors import UserError
from uer.files import config_path_for, read_object, vocab_path_for
from uer.formats import LoadedModel, load_model, shapes, stock
from uer.formats.model_card import CardFacts
from uer.formats.storage import PendingFiles
from uer.formats.teacher import model_folder
from uer.formats.tokenizer_files import vocabulary_files
from uer.tokenizers import TextRules
from uer.tokenizers.beside import MERGES


def model_to_convert(args: argparse.Namespace, source: str, otherwise: str,
                     **how: Any) -> tuple[LoadedModel, dict[str, torch.Tensor]]:
    """The model at --input_model_path, its notes told; pooler and next-sentence head as `--type` wants them.

    Args:
        source: of which the model has to be, and what it is `otherwise`.
        how: to load it.
    Raises:
        UserError: another source, other layers than --layers_num says, or no heads where --type bert wants them.
    """
    model = load_model(args.input_model_path, vocab_size=None,
                       config=load_config(args.config_path) if args.config_path else None, **how)
    where = f"--input_model_path {args.input_model_path}"
    if model.source != source:
        raise UserError(f"{where}: {otherwise}")
    if args.layers_num not in (None, model.config.layers_num):
        raise UserError(f"--layers_num {args.layers_num}, but the file has {model.config.layers_num} layers")
    for note in model.notes:
        print(f"note: {note}")
    if args.type == "bert" and any(name not in model.extras for name in shapes.NSP_HEAD):
        raise UserError(f"{where}: no pooler or next-sentence head in it, as --type bert wants; use --type mlm")
    return model, {} if args.type == "mlm" else model.extras


def import_lines(model: LoadedModel, extras: dict[str, torch.Tensor], source: Path, output: Path,
                 generation: str, text: TextRules | None) -> list[str]:
    """Write a Hugging Face model as a UER file with config and vocabulary beside it, checked like `write_outputs`.

    The check is against stock transformers where that is installed and opens the folder.
    Returns:
        a line on each file.
    """
    whole = Source(model.config, model.weights, CardFacts("", "", "", 0, ""), extras, text, sentence=model.sentence,
                   reading=model.reading)
    check = Check(whole, hidden=model.config.target == "states")
    with PendingFiles() as pending:
        found = put_uer(pending, whole, output, generation, check)
        if source.is_dir() and stock.available():
            try:
                found += "; " + stock_check(model, source, check)
            except stock.NotRead:
                found += "; stock transformers does not open the folder itself"
        lines = [f"written: {output}: {found}", f"written: {config_path_for(output)}"]
        if text is not None:
            place = vocab_path_for(output)
            files = {place.with_name(place.name.removesuffix("vocab.txt") + (
                name if name == MERGES else f"vocab{Path(name).suffix}")): content
                for name, content in vocabulary_files(text).items()}
            put_vocabularies(pending, text, {"uer": output}, files)
            lines += [f"written: {file}" for file in files]
        pending.publish()
    if text is None:
        lines.append("note: no vocabulary beside the model")
    return lines


@torch.no_grad()
def stock_check(model: LoadedModel, folder: Path, check: Check) -> str:
    """Compare with stock transformers on the folder itself: logits, or hidden states where there is no head of its."""
    folder = model_folder(folder)
    settings = read_object(folder / "config.json")
    src, seg, pad = check.src, check.seg, settings.get("pad_token_id") or 0
    src = src.masked_fill(src == pad, pad + 1).masked_fill(seg == 0, pad)  # RoBERTa counts positions by the padding
    if settings.get("type_vocab_size") == 1 or settings.get("model_type") == "distilbert":
        seg = seg.clamp(max=1)
    ours = student_model(model.config, {name: tensor.float() for name, tensor in model.weights.items()})
    target = "states" if model.head_made else model.config.target
    expected = (ours.hidden_states(src, seg) if target == "states" else ours(src, seg)).flatten(0, -2)
    found = stock.outputs(folder, src, seg, target, model.config.reader)
    return largest_difference(found[check.real], expected[check.real], "stock transformers",
                              "hidden state" if target == "states" else "logit")
