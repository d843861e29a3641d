"""A model from elsewhere as a UER file, checked before it appears."""

from __future__ import annotations

from pathlib import Path

import torch

from uer.conversion.merge import TOLERANCE, student_model
from uer.conversion.outputs import Check, Source, facts_beside, put_vocabularies
from uer.errors import UserError
from uer.files import read_object
from uer.formats import LoadedModel, load_model, shapes, stock
from uer.formats.export import config_text, write_uer
from uer.formats.file_target import SPAN_LABELS
from uer.formats.model_card import CardFacts
from uer.formats.storage import PendingFiles, write_json
from uer.formats.teacher import config_path_for, model_folder
from uer.formats.tokenizer_files import vocab_path_for, vocabulary_files
from uer.tokenizers import TextRules
from uer.tokenizers.beside import MERGES


def chosen_extras(model: LoadedModel, kind: str | None, where: str) -> dict[str, torch.Tensor]:
    """Pooler and next-sentence head as `--type` wants them: bert (both needed), mlm (none), None (what there is).

    Raises:
        UserError: bert, and the file lacks them.
    """
    missing = [name for name in shapes.NSP_HEAD if name not in model.extras]
    if kind == "mlm":
        return {}
    if kind == "bert" and missing:
        raise UserError(f"{where}: no pooler or next-sentence head in it, as --type bert wants; use --type mlm")
    return model.extras


def import_lines(model: LoadedModel, extras: dict[str, torch.Tensor], source: Path, output: Path,
                 generation: str, text: TextRules | None) -> list[str]:
    """Write a Hugging Face model as a UER file with config and vocabulary beside it, checked like `write_outputs`.

    The check is against stock transformers where that is installed and opens the folder.
    Returns:
        a line on each file.
    """
    whole = Source(model.config, model.weights, CardFacts("", "", "", 0, ""), text=text, sentence=model.sentence,
                   reading=model.reading)
    check = Check(whole, hidden=model.config.target == "states")
    config, lines = config_path_for(output), []
    with PendingFiles() as pending:
        temporary = pending.add(output)
        write_uer(temporary, {**model.weights, **extras}, generation)
        again = load_model(temporary, config=model.config, vocab_size=None, target=None, look_around=False)
        found = check(check.logits(again.config, again.weights), "read back")
        if source.is_dir() and stock.available():
            try:
                found += "; " + stock_check(model, source, check)
            except stock.NotRead:
                found += "; stock transformers does not open the folder itself"
        lines.append(f"written: {output}: {found}")
        pending.add(config).write_text(config_text(model.config, model.weights, generation, text), encoding="utf-8")
        lines.append(f"written: {config}")
        if text is not None:
            place = vocab_path_for(output)
            files = {place.with_name(place.name.removesuffix("vocab.txt") + (
                name if name == MERGES else f"vocab{Path(name).suffix}")): content
                for name, content in vocabulary_files(text).items()}
            put_vocabularies(pending, text, {"uer": output}, files)
            lines += [f"written: {file}" for file in files]
        if model.config.target != "mlm":
            write_json(facts_beside(whole), pending.add(f"{output}.json"))
        else:
            pending.drop(f"{output}.json")
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
    found = stock.outputs(folder, src, seg, target, model.config.labels == SPAN_LABELS)
    difference = float((found - expected)[check.real].abs().max())
    scale, what = float(expected[check.real].abs().max()), "hidden state" if target == "states" else "logit"
    if not difference <= TOLERANCE * max(1.0, scale):
        raise UserError(f"self-check (stock transformers): a {what} differs by {difference:.3g} (up to {scale:.3g}); "
                        f"nothing was written")
    return f"stock transformers: largest {what} difference {difference:.2g} (up to {scale:.3g})"
