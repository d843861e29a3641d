"""From options, a teacher and perhaps a checkpoint to what the trainer trains."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from uer.calibration.pooler import last_gamma, shift_pooler, squeeze_pooler
from uer.calibration.student import apply_calibration, calibrate_groups, calibrated_groups
from uer.config import ModelConfig
from uer.data.loader import MlmLoader
from uer.errors import UserError
from uer.layer_sizes import read_layer_sizes
from uer.models.bert import from_weights
from uer.parallel.collectives import Place
from uer.report.writer import Reports
from uer.squeeze.fold import fold
from uer.squeeze.groups import MaskGroup, build_groups, schedule_intervals, student_config
from uer.squeeze.importance import build_scores
from uer.squeeze.master import Master
from uer.squeeze.penalty import build_penalty
from uer.squeeze.wiring import features_group, state_columns
from uer.tokenizers.rules import KEY
from uer.training.checkpoint import Checkpoint
from uer.training.learner import Learner, PlainLearner
from uer.training.mask_schedule import leaves_early, settle, warn_of_rate, warn_of_schedule
from uer.training.optimizers import AdamW, parameter_groups
from uer.training.sharded_master import ShardedLearner, ShardedMaster
from uer.training.wid_learner import Folding, WidLearner

GATHERED = 20  # steps from which a calibrated student that is folded on the way has its moments; masks have --w_step
FOLDED = ("kind", "teacher", "origin", "folded")  # what a card says of a student that was folded


def build_learner(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor], loader: MlmLoader,
                  place: Place, reports: Reports, card: dict[str, Any], resumed: Checkpoint | None,
                  pooler: dict[str, torch.Tensor]) -> tuple[Learner, dict[str, Any]]:
    """The learner that the options ask for, at its start or where a checkpoint left it, and its card.

    Args:
        weights: the teacher's, on any device.
        card: what checkpoints of any kind say about themselves.
        pooler: the teacher's; a new start brings it along.
    """
    learner: Learner
    if args.weight_squeeze:
        learner, card = wid_learner(args, config, weights, loader, place, reports, card, resumed, pooler)
    else:
        settle(args, {})
        learner = plain_learner(args, config, weights if resumed is None else resumed[0], place.device)
    if resumed is not None:
        learner.restore(resumed[2])
    return learner, card


def plain_learner(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor],
                  device: torch.device, kind: str = "learning_rate") -> PlainLearner:
    """A plain MLM run of a model with these weights; `kind`: the option with its rate."""
    model = from_weights(config, weights).to(device)
    fix_map(args, model.named_parameters())
    groups = parameter_groups(model.named_parameters(), getattr(args, kind),
                              lambda name: args.head_learning_rate if name.startswith("target.") else None,
                              kind=kind, special_kind="head_learning_rate", optimizer=args.optimizer)
    return PlainLearner(model, AdamW(groups, args.bias_correction))


def wid_learner(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor], loader: MlmLoader,
                place: Place, reports: Reports, card: dict[str, Any], resumed: Checkpoint | None,
                pooler: dict[str, torch.Tensor]) -> tuple[Learner, dict[str, Any]]:
    """The learner of a WID run and what its checkpoints say about themselves."""
    if args.mlm_target_dim is not None and features_group(config.target) is None:
        raise UserError(f"--mlm_target_dim {args.mlm_target_dim}: the teacher's head has no features of its own; leave "
                        f"it out")
    groups = build_groups(config, args.target_dim, args.compactor_mask_strategy, args.mlm_target_dim,
                          args.target_feedforward_size, args.target_heads, read_layer_sizes(args.layer_sizes))
    for group in groups.values():
        group.dropped = group.dropped.to(place.device)
    at_once = args.compactor_init == "calibrated" and (resumed is None or resumed[1].get("folded") == 0)
    chosen = settle(args, groups, at_once)
    if chosen:
        reports.say(chosen)
    masked = args.compactor_init == "identity"
    card = {**card, "kind": "wid", "masks_complete": args.w_step * schedule_intervals(groups) if masked else 0}
    weights, table = resumed[0] if resumed else weights, None
    sharded = args.shard_master and place.world_size > 1
    if not sharded or args.compactor_init == "calibrated":
        weights = {name: tensor.to(place.device) for name, tensor in weights.items()}
    if resumed is not None:
        if resumed[1]["kind"] == "plain":
            if args.after_squeeze != "student":
                raise UserError(f"--resume: this run was folded into its plain student at step "
                                f"{resumed[1].get('folded', 0)}; --after_squeeze student goes on with it")
            student = replace(student_config(config, groups), tie_weights=args.tie_student)
            return plain_learner(args, student, weights, place.device, "student_learning_rate"), {
                **card, **{key: resumed[1][key] for key in FOLDED if key in resumed[1]}}
        if args.compactor_init == "calibrated":
            calibrated_groups(groups)
        restore_groups(groups, resumed[1], resumed[2], place.device)
    elif args.compactor_init == "calibrated":
        calibration = calibrate_groups(args, config, weights, groups, loader, place, reports, card[KEY])
        weights = apply_calibration(calibration, weights, groups)
        pooler.update(shift_pooler(pooler, calibration.offset))
        table = calibration.table
    tokens = args.batch_size * args.accumulation_steps * loader.dataset.header["seq_length"]
    load = (tokens, tokens * 15 // 100) if place.world_size == 1 else ()  # several send gradients in the student's size
    master = ShardedMaster(config, weights, groups, place) if sharded else Master(config, weights, groups, *load)
    folding = None
    if args.after_squeeze == "student":
        wait = args.w_step if masked else GATHERED
        folding = Folding(wait, lambda master: student_learner(args, master, pooler, table, card["teacher"]["dropout"]))
        if resumed is None and master.has_left:
            plain, facts = folding.student_of(master)
            warn_of_rate(args, reports)
            return plain, {**card, **facts, "folded": 0}
        step, state = (resumed[1]["step"], resumed[2]) if resumed else (0, {})
        earliest = max(card["masks_complete"], step - state.get("means", {}).get("steps", 0)) + wait
        if earliest >= args.total_steps:
            reports.say(f"warning: --after_squeeze student: the run ends at step {args.total_steps:,}, and at step "
                        f"{earliest:,} is the earliest that it could fold")
    if args.comp_only:
        for name, parameter in master.named_parameters():
            parameter.requires_grad_("compactor" in name)
    fix_map(args, master.named_parameters())
    optimizer = AdamW(parameter_groups(master.named_parameters(), args.learning_rate,
                                       lambda name: args.compactor_learning_rate if "compactor" in name else None,
                                       special_kind="compactor_learning_rate"), args.bias_correction)
    penalty = build_penalty(args.penalty, master, optimizer.state, args.w_step, args.l2_lambda)
    tolerance = None if args.no_squeeze else args.squeeze_tolerance
    scores = build_scores(args.mask_scores, master)
    kind = ShardedLearner if sharded else WidLearner
    learner = kind(master, optimizer, penalty, args.w_step, tolerance, scores, folding, leaves_early(args))
    if masked:
        warn_of_schedule(args, groups, reports)
    return learner, card


def student_learner(args: argparse.Namespace, master: Master, pooler: dict[str, torch.Tensor],
                    table: torch.Tensor | None, dropout: float) -> tuple[PlainLearner, dict[str, Any]]:
    """The learner of a master's plain student, with one table of words where it is given, and what its checkpoints say
    about it (the teacher's own dropout, not the run's); the pooler becomes its own."""
    config, weights = fold(master, table)
    if pooler:
        columns = master.whole(state_columns(config.target))
        pooler.update(squeeze_pooler(pooler, columns, weights[last_gamma(config.layers_num)]))
    learner = plain_learner(args, config, weights, master.like.device, "student_learning_rate")
    of_student, of_teacher = (replace(model, dropout=dropout).to_dict() for model in (config, master.config))
    return learner, {"kind": "plain", "teacher": of_student, "origin": of_teacher}


def fix_map(args: argparse.Namespace, named: Iterable[tuple[str, nn.Parameter]]) -> None:
    """Leave the map into the teacher's space alone, where the options want that."""
    for name, parameter in named:
        if args.fix_state_map and name.startswith("target."):
            parameter.requires_grad_(False)


def restore_groups(groups: dict[str, MaskGroup], card: dict[str, Any], resume: dict[str, Any],
                   device: torch.device) -> None:
    """Bring the mask groups to where a checkpoint left them."""
    for name, group in groups.items():
        group.squeezed = name in card["squeezed"]
        if name in resume.get("there", {}) and not group.squeezed:
            group.there = resume["there"][name].to(device)
        if name in resume["keep"]:
            group.set_keep(resume["keep"][name].to(device))
        if not resume["penalised"][name]:
            group.dropped = group.dropped[:0]
