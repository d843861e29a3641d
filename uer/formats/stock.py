"""What stock transformers computes from a folder, for self-checks; the package is optional."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from uer.errors import UserError

CLASSES = {"mlm": "AutoModelForMaskedLM", "states": "AutoModel", "cls": "AutoModelForSequenceClassification",
           "tokens": "AutoModelForTokenClassification", "reader": "AutoModelForQuestionAnswering"}


class NotRead(UserError):
    """Stock transformers does not open a folder, or not as the model that it is."""


def available() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


@torch.no_grad()
def outputs(folder: Path, src: torch.Tensor, seg: torch.Tensor, target: str = "mlm",
            span: bool = False) -> torch.Tensor:
    """What a model of this target says: logits of all positions, or of the texts (`cls`); of `states` the hidden ones.

    Args:
        src, seg: int64 [batch, seq], seg 0 is padding.
        span: `tokens` are a reader's.
    Returns:
        float32 [batch * seq, width], [batch, outputs] for `cls`
    Raises:
        NotRead: it cannot open the folder, or misses tensors in it.
    """
    import transformers
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = CLASSES["reader" if span else target]
    try:
        model, info = getattr(transformers, kind).from_pretrained(str(folder), output_loading_info=True)
    except Exception as error:  # of whatever class: a library's own
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise NotRead(f"self-check: stock transformers cannot open the folder ({why}); nothing was written") from None
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise NotRead(f"self-check: stock transformers finds {missing} missing and "
                      f"{sorted(info['mismatched_keys'])} misshapen; nothing was written")
    ids, mask, types = model_inputs(src, seg)
    segments = {"token_type_ids": types} if getattr(model.config, "type_vocab_size", 0) else {}  # DistilBERT has none
    result = model.float().eval()(ids, attention_mask=mask, **segments)
    if span:
        return torch.stack([result.start_logits, result.end_logits], -1).flatten(0, 1)
    if target == "cls":
        return result.logits
    return (result.last_hidden_state if target == "states" else result.logits).flatten(0, 1)


def model_inputs(src: torch.Tensor, seg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask, token_type_ids) for src and seg."""
    return src, (seg > 0).long(), (seg - 1).clamp(min=0)
