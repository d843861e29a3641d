"""What a run goes on as: recorded in every checkpoint, compared when a run goes on from one.

A checkpoint is of a teacher, a student's size and a mask schedule, and its numbers mean nothing with others: these are
refused. Rates, the number of steps and the rest may be changed on purpose, and that is said. What the command line
leaves open stays as it was, number formats apart. The order of data is a matter of its own (`uer.data.feed`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from uer.config import ModelConfig
from uer.errors import UserError
from uer.made_from import differences
from uer.training.checkpoint import find_checkpoint, read_card

KEY = "course"  # under which a card has it
MODEL = ("teacher", "strategy", "target_dim", "mlm_target_dim", "target_feedforward_size",
         "target_heads", "layer_sizes", "tie_student", "objective")  # of the card itself
NEWER = ("compactor_init", "teacher_sha256")  # which older checkpoints do not say
USUAL = {"objective": "mlm"}  # of cards that do not say it
SOFT = "soft_targets_teacher_sha256"
SCHEDULE = ("w_step", "mask_scores")
SHARE = "mask_schedule_share"  # another way to say w_step
KEPT = ("keep_layers",)
OPTIMIZER = ("bias_correction", "optimizer")  # what the optimizer's state hangs on; a master's is always AdamW's
OLDER = {"optimizer": "adamw"}  # of courses that do not say it
RATES = {"learning_rate", "compactor_learning_rate"}  # the folded student's hangs on them
MASKING = {"penalty", "l2_lambda", "squeeze_tolerance", "no_squeeze"}  # say nothing where nothing is masked
FORMATS = {"bf16", "fp16", "compose_dtype"}
FREE = ("total_steps", "learning_rate", "head_learning_rate", "compactor_learning_rate", "student_learning_rate",
        "scheduler", "warmup", "max_grad_norm", "dropout", "bf16", "fp16", "compose_dtype",
        "penalty", "l2_lambda", "squeeze_tolerance", "no_squeeze", "after_squeeze", "comp_only", "soft_targets_weight",
        "soft_targets_temperature", "soft_targets_top_k", "state_distance", "state_tokens", "similarity_weight",
        "fix_state_map", "relation_weight", "relation_heads", "layer_weight", "layer_signals", "layer_numbers",
        "augment_texts", "target_layers")


def course(args: argparse.Namespace, config: ModelConfig) -> dict[str, Any]:
    """The record of a run whose options are settled."""
    names = (SHARE, *SCHEDULE, *KEPT, *OPTIMIZER, *FREE)
    return {**{name: getattr(args, name) for name in names}, "dropout": config.dropout}


def run_dropout(args: argparse.Namespace, config: ModelConfig) -> float:
    """The share of activations dropped in training; the model's own is what its file goes on saying.

    None where nothing published is repeated: a calibrated student, a target without labels.
    """
    calibrated = args.weight_squeeze and args.compactor_init == "calibrated"
    usual = 0.0 if calibrated or args.objective not in (None, "mlm") else config.dropout
    return usual if args.dropout is None else float(args.dropout)


def check_card(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """`UserError` where a checkpoint does not belong to the run that the options describe."""
    teacher = found.get("origin") or found.get("teacher") or {}
    teacher = {**teacher, "dropout": wanted["teacher"]["dropout"]}  # which is free
    names = {key: key for key in (*MODEL, *(key for key in NEWER if key in found))}
    if found.get(SOFT) and wanted.get(SOFT):  # with and without soft labels is a matter of their weight
        names[SOFT] = "--soft_targets_teacher"
    if differ := differences({**USUAL, **found, "teacher": teacher}, {**USUAL, **wanted}, names):
        raise UserError(f"--resume: {path} is from another run: " + "; ".join(differ), page="cluster")


def keep_course(args: argparse.Namespace, said: Set[str]) -> None:
    """Fill in what is not `said`, by the card of the checkpoint that --resume asks for.
    `UserError` where there is no checkpoint."""
    card = read_card(find_checkpoint(args.output_model_path, args.resume))
    was = {"objective": card.get("objective"), "after_squeeze": "student" if "folded" in card else "compactors",
           **OLDER, **card.get(KEY, {})}
    kept = {"objective", SHARE, *KEPT, *SCHEDULE, *OPTIMIZER, *FREE} - FORMATS - said
    if "w_step" in said:
        kept -= {SHARE}
    elif SHARE in said and SHARE in was and getattr(args, SHARE) != was[SHARE]:  # older checkpoints do not say
        kept -= {"w_step"}  # it follows from the share, and is compared
    if args.weight_squeeze and "after_squeeze" in said and args.after_squeeze == "compactors":
        kept -= {"optimizer"}  # it was that of a student which there will not be
    if said & RATES:
        kept -= {"student_learning_rate"} | (RATES if card.get("folded") == 0 else set())
    for name in kept & was.keys():
        setattr(args, name, was[name])


def compare_courses(found: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> str:
    """What goes on in another way than before, in words; "" where nothing does.

    Args:
        found: the checkpoint's card.
        now: of `course`.
    Raises:
        UserError: masks, layers or moments would not go on from those that the checkpoint has.
    """
    was = {**now, **OLDER, **found.get(KEY, {})}  # older checkpoints do not say, or not everything
    masked = found["kind"] == "wid" and found.get("compactor_init") == "identity"
    moments, free = (OPTIMIZER, FREE) if found["kind"] == "plain" else (OPTIMIZER[:1], (*FREE, OPTIMIZER[1]))
    for what, names in (("has the moments of another optimizer", moments), ("is of other layers", KEPT),
                        ("is within another mask schedule", SCHEDULE if masked else ())):
        if differ := differences(was, now, {name: f"--{name}" for name in names}):
            raise UserError(f"--resume: {path} {what}: " + "; ".join(differ), page="cluster")
    idle = (RATES if "folded" in found else set()) | (set() if masked else MASKING)
    return "; ".join(differences(was, now, {name: f"--{name}" for name in free if name not in idle}))
