"""Checkpoints: `<output>-<step>` (tensors), `.json` beside it (what they are), `.resume` (what going on needs).

The files are written under temporary names, flushed to the disk and renamed, the tensors last: a checkpoint that is
there is whole. What a disk, a copy or an editor spoils later is found by the checksums of every part when it is read.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from uer.errors import UserError
from uer.files import followed, read_object
from uer.formats.storage import (
    PendingFiles,
    old_ending,
    read_tensors,
    reason,
    save_state_dict,
    torch_load,
    write_json,
    written_sha256,
)
from uer.training.optimizers import LONG_AGO, MOMENTS, AdamW

FORMAT = 1
SEAL = "card_sha256"
RESUME = {"format", "step", "optimizer"}  # and what else a learner has to go on from
Checkpoint = tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, Any]]  # tensors, card, resume


def checkpoint_path(output: str, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return Path(f"{output}-{step}")


def checkpoint_steps(output: str) -> list[int]:
    """The steps of which there is a checkpoint, ascending."""
    pattern = re.compile(re.escape(Path(output).name) + r"-(\d+)")
    return sorted(int(match[1]) for file in Path(output).parent.glob("*")
                  if (match := pattern.fullmatch(file.name)) and file.is_file())


# -- writing -----------------------------------------------------------------------------------------------------------


def save_checkpoint(output: str, step: int, tensors: dict[str, torch.Tensor], card: dict[str, Any],
                    resume: dict[str, Any], keep: int | None = None) -> Path:
    """Write a checkpoint's three files, then delete those before it but for the newest `keep - 1` (None: no one).

    Returns:
        the path of the tensors.
    Raises:
        UserError: it cannot be written (a full disk, say); those that were there before still are.
    """
    path = checkpoint_path(output, step)
    try:
        with PendingFiles() as pending:
            rest, beside, whole = (pending.add(f"{path}{ending}") for ending in (".resume", ".json", ""))
            torch.save({"format": FORMAT, "step": step, **resume}, rest)
            save_state_dict(tensors, whole)
            card = {**card, "format": FORMAT, "step": step, "tensors": written_sha256(whole),
                    "resume": written_sha256(rest)}
            write_json({**card, SEAL: sealed(card)}, beside)
            pending.flush()
            followed(path).unlink(missing_ok=True)  # of another run: must not stand beside this one's files
            pending.publish()
    except (OSError, RuntimeError) as error:
        raise UserError(f"checkpoint {path}: cannot be written ({reason(error, path)}); "
                        f"{_last_good(output)}") from None
    for old in [other for other in checkpoint_steps(output) if other <= step][:-keep] if keep else []:
        for ending in ("", ".json", ".resume"):  # the tensors first: without them it is no checkpoint
            Path(f"{checkpoint_path(output, old)}{ending}").unlink(missing_ok=True)
    return path


def _last_good(output: str) -> str:
    steps = checkpoint_steps(output)
    return (f"{checkpoint_path(output, steps[-1])} is the last good one: make room, then go on with --resume" if steps
            else "there is none before it")


def sweep(output: str, mask_path: str | None = None) -> None:
    """Delete the temporary files that killed runs of this output, and of its mask file, left behind."""
    _sweep(Path(output), r"-\d+(\.json|\.resume)?")
    if mask_path:
        _sweep(Path(mask_path), "")


def _sweep(path: Path, more: str) -> None:
    for file in path.parent.glob(".*.tmp*"):
        match = re.fullmatch(r"\.(.+)\.\d+\.tmp(.*)", file.name)
        if match and re.fullmatch(re.escape(path.name) + more, match[1] + match[2]):
            file.unlink(missing_ok=True)


def set_aside(output: str, step: int, inputs: Sequence[str | None] = ()) -> str:
    """Give the checkpoints after a step, of an earlier run, names that end in `.old` (`.old2`, …), so that nothing goes
    on from them or counts them by mistake: none is lost.

    Args:
        step: that the run goes on from; 0: it is new.
        inputs: files that the run has read.
    Returns:
        a line for the reader; "" where there were none.
    Raises:
        UserError: one of them is an input, or cannot be renamed.
    """
    paths = [checkpoint_path(output, later) for later in checkpoint_steps(output) if later > step]
    read = {Path(path).resolve() for path in inputs if path}
    for path in paths:
        if path.resolve() in read:
            raise UserError(f"--output_model_path {output}: {path} would be a checkpoint of this run, and is what it "
                            f"starts from; another name is needed")
    old = old_ending(paths)
    try:
        for path in paths:
            for ending in ("", ".json", ".resume"):  # the tensors first: what is left has no name of a checkpoint
                file = Path(f"{path}{ending}")
                if file.is_file():
                    file.rename(f"{path}{old}{ending}")
    except OSError as error:
        raise UserError(f"{path}: cannot be renamed ({reason(error, path)})") from None
    named = paths[0] if len(paths) == 1 else f"{paths[0]} to {paths[-1].name}" if paths else ""
    return f"note: {named}, of an earlier run: renamed, to end in {old}" if paths else ""


# -- reading -----------------------------------------------------------------------------------------------------------


def find_checkpoint(output: str, wanted: str) -> Path:
    """The checkpoint that --resume asks for: `newest` of `output`, or a path; `UserError` where there is none."""
    if wanted != "newest":
        return Path(wanted)
    steps = checkpoint_steps(output)
    if not steps:
        raise UserError(f"--resume: no checkpoint {output}-<step> is there; leave --resume out to start a new run",
                        page="cluster")
    return checkpoint_path(output, steps[-1])


def read_card(path: Path) -> dict[str, Any]:
    """What a checkpoint says of itself; {} where that cannot be read, which `open_checkpoint` refuses."""
    try:
        return _checked(read_object(f"{path}.json", "checkpoint"), path)
    except UserError:
        return {}


def open_checkpoint(path: Path) -> Checkpoint:
    """`load_checkpoint`, whose error also names the newest of the earlier checkpoints that can be read."""
    try:
        return load_checkpoint(path)
    except UserError as error:
        raise UserError(f"--resume: {error}; {_offer(path)}") from None


def _offer(path: Path) -> str:
    output, _, step = str(path).rpartition("-")
    for earlier in reversed(checkpoint_steps(output) if step.isdecimal() else []):
        if earlier >= int(step):
            continue
        before = checkpoint_path(output, earlier)
        try:
            load_checkpoint(before)
        except UserError:
            continue
        return f"the one before it can be used: --resume {before}"
    return "there is no earlier one that can be used"


def load_checkpoint(path: Path) -> Checkpoint:
    """(tensors, card, resume) of a checkpoint written by `save_checkpoint`.
    `UserError` where a file is absent, damaged, or of another checkpoint."""
    resume_path = Path(f"{path}.resume")
    for file in (path, resume_path):
        if not file.is_file():
            raise UserError(f"checkpoint {path}: {file.name} is not there")
    tensors, resume = read_tensors(path, "checkpoint"), torch_load(resume_path, "checkpoint")
    card = _checked(read_object(f"{path}.json", "checkpoint"), path)
    if not (isinstance(resume, dict) and resume.keys() >= RESUME):
        raise UserError(f"checkpoint {path}: its .json or .resume file is not one of pretrain.py's")
    if not (card.get("format") == resume.get("format") == FORMAT and card.get("step") == resume.get("step")):
        raise UserError(f"checkpoint {path}: its .json and .resume files do not belong together")
    for key, file in (("tensors", path), ("resume", resume_path)):
        if card.get(key) not in (None, written_sha256(file)):
            raise UserError(f"checkpoint {path}: {file.name} is not the file that was written with its .json")
    return tensors, card, resume


def sealed(card: dict[str, Any]) -> str:
    """SHA-256 of what a card says, itself apart."""
    text = json.dumps({key: value for key, value in card.items() if key != SEAL}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checked(card: dict[str, Any], path: Path) -> dict[str, Any]:
    """A card; `UserError` where it is not as it was written."""
    if card.get(SEAL) not in (None, sealed(card)):  # older ones do not say
        raise UserError(f"checkpoint {path}: {path.name}.json has been changed since it was written")
    return card


# -- the optimizer -----------------------------------------------------------------------------------------------------


def optimizer_state(named: list[tuple[str, torch.nn.Parameter]], optimizer: AdamW) -> dict[str, Any]:
    """Adam's moments by parameter name, and the steps that they come from."""
    return {name: {key: optimizer.state[parameter][key].cpu() for key in MOMENTS if key in optimizer.state[parameter]}
            for name, parameter in named if parameter in optimizer.state}


def restore_optimizer(state: dict[str, Any], named: list[tuple[str, torch.nn.Parameter]], optimizer: AdamW) -> None:
    """The inverse of `optimizer_state`."""
    for name, parameter in named:
        if parameter not in optimizer.state:
            continue
        if name not in state or state[name]["exp_avg"].shape != parameter.shape:
            raise UserError(f"--resume: the checkpoint has no optimizer state for {name}; was it another kind of run?")
        for key, moment in optimizer.state[parameter].items():
            moment.copy_(state[name].get(key, LONG_AGO))  # older ones have no step
