"""Checkpoints: `<output>-<step>` (tensors), `.json` beside it (what they are), `.resume` (what going on needs).

The files are written under temporary names, flushed to the disk and renamed, the tensors last: a checkpoint that is
there is whole.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch

from uer.errors import UserError
from uer.formats.storage import PendingFiles, read_tensors, save_state_dict, torch_load, write_json

FORMAT = 1


def checkpoint_path(output: str, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return Path(f"{output}-{step}")


def save_checkpoint(output: str, step: int, tensors: dict[str, torch.Tensor], card: dict[str, Any],
                    resume: dict[str, Any]) -> Path:
    """Write a checkpoint's three files; returns the path of the tensors."""
    path = checkpoint_path(output, step)
    with PendingFiles() as pending:
        torch.save({"format": FORMAT, "step": step, **resume}, pending.add(f"{path}.resume"))
        write_json({**card, "format": FORMAT, "step": step}, pending.add(f"{path}.json"))
        save_state_dict(tensors, pending.add(path))
        pending.publish()
    return path


def newest_checkpoint(output: str) -> Path:
    """The checkpoint of `output` with the highest step; `UserError` where there is none."""
    folder = Path(output).parent
    steps = [int(match[1]) for file in folder.glob("*")
             if (match := re.fullmatch(re.escape(Path(output).name) + r"-(\d+)", file.name))]
    if not steps:
        raise UserError(f"--resume: no checkpoint {output}-<step> is there; leave --resume out to start a new run")
    return checkpoint_path(output, max(steps))


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]:
    """(tensors, card, resume) of a checkpoint written by `save_checkpoint`."""
    tensors, resume = read_tensors(path, "checkpoint"), torch_load(Path(f"{path}.resume"), "checkpoint")
    try:
        card = json.loads(Path(f"{path}.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}.json: cannot be read ({error})") from None
    if not (card.get("format") == resume.get("format") == FORMAT and card.get("step") == resume.get("step")):
        raise UserError(f"{path}: its .json and .resume files do not belong together")
    return tensors, card, resume


def optimizer_state(named: list[tuple[str, torch.nn.Parameter]], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Adam's moments by parameter name."""
    return {name: {key: optimizer.state[parameter][key].cpu() for key in ("exp_avg", "exp_avg_sq")}
            for name, parameter in named if parameter in optimizer.state}


def restore_optimizer(state: dict[str, Any], named: list[tuple[str, torch.nn.Parameter]],
                      optimizer: torch.optim.Optimizer) -> None:
    """The inverse of `optimizer_state`."""
    for name, parameter in named:
        if parameter not in optimizer.state:
            continue
        if name not in state or state[name]["exp_avg"].shape != parameter.shape:
            raise UserError(f"--resume: the checkpoint has no optimizer state for {name}; was it another kind of run?")
        for key in ("exp_avg", "exp_avg_sq"):
            optimizer.state[parameter][key].copy_(state[name][key])
