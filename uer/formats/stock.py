"""What stock transformers computes from a folder, for self-checks; the package is optional."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

from uer.errors import UserError


def available() -> bool:
    """Whether transformers is installed."""
    return importlib.util.find_spec("transformers") is not None


@torch.no_grad()
def outputs(folder: Path, src: torch.Tensor, seg: torch.Tensor, hidden: bool = False) -> torch.Tensor:
    """Logits [batch * seq, vocab], or with `hidden` the last hidden states [batch * seq, hidden], in float32.

    Args:
        src, seg: int64 [batch, seq], seg 0 is padding.
    Raises:
        UserError: tensors that it misses in the folder.
    """
    from transformers import AutoModel, AutoModelForMaskedLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    kind = AutoModel if hidden else AutoModelForMaskedLM
    model, info = kind.from_pretrained(str(folder), output_loading_info=True)
    missing = sorted(name for name in info["missing_keys"] if not name.startswith("pooler."))
    if missing or info["mismatched_keys"]:
        raise UserError(f"self-check: stock transformers finds {missing} missing and "
                        f"{sorted(info['mismatched_keys'])} misshapen; nothing was written")
    ids, mask, types = model_inputs(src, seg)
    result = model.float().eval()(ids, attention_mask=mask, token_type_ids=types)
    return (result.last_hidden_state if hidden else result.logits).flatten(0, 1)


def model_inputs(src: torch.Tensor, seg: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(input_ids, attention_mask, token_type_ids) for src and seg."""
    return src, (seg > 0).long(), (seg - 1).clamp(min=0)
