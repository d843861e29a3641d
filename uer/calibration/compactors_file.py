"""Calibrated compactors in a file: found once by calibrate.py, taken by any number of runs of pretrain.py.

The file says for whom they were found: teacher, text rules, strategy and size. No other run takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uer.calibration.calibrate import Calibration
from uer.config import ModelConfig
from uer.errors import UserError
from uer.formats.storage import contiguous, reason, tensors_sha256, torch_load, write_via
from uer.made_from import differences
from uer.squeeze.groups import MaskGroup, features_target, student_config
from uer.tokenizers.rules import KEY, merged, recorded

FORMAT = 1
WHAT = "file of compactors"
KEYS = {"format", "made_for", "tensors", "keep", "tokens", "offset"}
WORDS = {"teacher": "the teacher's config", "weights_sha256": "the teacher's weights",
         "strategy": "--compactor_mask_strategy", "target_dim": "--target_dim", "mlm_target_dim": "--mlm_target_dim",
         "feedforward_size": "--target_feedforward_size", "heads": "the number of heads",
         "layer_sizes": "--layer_sizes"}  # and how text becomes ids


def made_for(config: ModelConfig, weights: Mapping[str, torch.Tensor], text: dict[str, Any], strategy: str,
             groups: Mapping[str, MaskGroup]) -> dict[str, Any]:
    """What compactors depend on, the text itself excepted: they serve wherever all of this is the same.

    Args:
        weights: the teacher's.
        text: how text becomes ids (`TextRules.to_dict`).
    """
    student = student_config(config, groups)
    target, ffn, mlm = student.hidden_size, student.feedforward_size, features_target(config, groups)
    usual = config.feedforward_size * target // config.hidden_size
    heads = student.heads_num
    usual_heads = config.heads_num if strategy == "dim" else target // config.head_size
    return {"teacher": replace(config, dropout=0.0).to_dict(),  # calibration runs without
            "weights_sha256": tensors_sha256(weights), KEY: text, "strategy": strategy,
            "target_dim": target, "mlm_target_dim": None if mlm == target else mlm,
            **({} if ffn == usual or student.uneven_layers else {"feedforward_size": ffn}),
            **({} if heads == usual_heads else {"heads": heads}),
            **({"layer_sizes": [list(layer) for layer in student.uneven_layers]} if student.uneven_layers else {})}


def save_compactors(path: str | Path, calibration: Calibration, dtype: torch.dtype, whom: dict[str, Any]) -> None:
    """Write the file, whole or not at all.

    Args:
        dtype: the teacher's, in which the compactors are used.
        whom: of `made_for`.
    Raises:
        UserError: it cannot be written.
    """
    tensors = contiguous({name: tensor.to(dtype) for name, tensor in calibration.tensors.items()})
    content = {"format": FORMAT, "made_for": whom, "tensors": tensors, "keep": contiguous(calibration.keep),
               "tokens": calibration.tokens, "offset": calibration.offset.cpu()}
    try:
        write_via(path, lambda temporary: torch.save(content, temporary))
    except (OSError, RuntimeError) as error:
        raise UserError(f"--compactors_path {path}: cannot be written ({reason(error, path)})") from None


def load_compactors(path: str | Path, whom: dict[str, Any], device: torch.device) -> Calibration:
    """What `save_compactors` wrote.

    Args:
        whom: of `made_for`, for the run that wants them.
    Raises:
        UserError: no such file, damaged, something else, or found for another teacher or student.
    """
    path = Path(path)
    if not path.is_file():
        kind = "a folder, a file is needed" if path.is_dir() else "no such file"
        raise UserError(f"--compactors_path {path}: {kind}; calibrate.py --compactors_path writes it")
    content = torch_load(path, WHAT)
    if not isinstance(content, dict) or content.keys() != KEYS or content["format"] != FORMAT:
        raise UserError(f"--compactors_path {path}: not what calibrate.py --compactors_path writes")
    found = content["made_for"]
    if differ := differences(found, whom, WORDS):
        raise UserError(f"--compactors_path {path}: found for another run; not the same: {', '.join(differ)}")
    merged([recorded(found, f"--compactors_path {path}"), recorded(whom, "this run")], [])

    def here(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(device) for name, tensor in tensors.items()}

    return Calibration(here(content["tensors"]), here(content["keep"]), tokens=content["tokens"],
                       offset=content["offset"].to(device))
