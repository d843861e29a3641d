"""`pretrain.py --plan`: what a run will cost in each of its phases, before anything of it is there."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from uer.calibration.depth import layers_to_keep
from uer.config import ModelConfig, load_config
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.formats import shapes
from uer.formats.file_target import config_for
from uer.formats.huggingface_config import HuggingFaceConfig
from uer.formats.teacher import config_beside, has_weights
from uer.layer_sizes import read_layer_sizes
from uer.models.bert import SEGMENTS
from uer.planning.cost import PARTS, WIRE, Cost, Step, plain_cost
from uer.planning.wid_cost import activations_cost, wid_cost
from uer.squeeze.groups import MaskGroup, build_groups, student_config
from uer.squeeze.penalty import FADE_PER_INTERVAL, simulate_decay
from uer.tokenizers import build_tokenizer
from uer.training.build_trainer import TARGET_FOR, load_teacher, settle_objective
from uer.training.course import run_dropout
from uer.training.mask_schedule import leaves_early, settle
from uer.training.optimizers import schedule

VOCABULARY, SEQ_LENGTH = 30522, 128  # BERT's vocabulary; the default of preprocess.py
UNITS = {"memory": ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")),
         "operations": ((10**18, "E"), (10**15, "P"), (10**12, "T"), (10**9, "G"), (10**6, "M")),
         "sent": ((10**9, "GB"), (10**6, "MB"), (10**3, "kB"))}
LABEL, COLUMN = 31, 16
MEMORY_ROWS = {"weights": "weights", "optimizer": "Adam's moments", "gradients": "their gradients",
               "student": "student and its gradients", "composition": "kept by the composition",
               "activations": "activations, temporaries", "peak": "in all, at the peak"}


class Teacher(NamedTuple):
    """A config, the rows of its tables, and what had to be assumed."""

    config: ModelConfig
    tables: dict[str, int]
    notes: list[str]


class Phase(NamedTuple):
    """A column of the plan, the share of the run's steps that are of it, and the operations of one of them on average,
    where they become less on the way."""

    title: str
    cost: Cost
    share: float = 0.0
    mean: float | None = None


def plan(args: argparse.Namespace) -> str:
    """The text that --plan prints."""
    teacher = read_teacher(args)
    teacher = teacher._replace(config=replace(teacher.config, dropout=run_dropout(args, teacher.config)))
    seq_length = seq_length_of(args, teacher)
    processes = max(args.world_size, 1)
    step = Step(args.batch_size, seq_length, args.accumulation_steps, processes, args.bf16,
                cuda=bool(args.gpu_ranks) or torch.cuda.is_available(), wire=WIRE[args.ddp_comm_hook],
                optimizer=args.optimizer)
    config = teacher.config
    if args.soft_targets_weight or args.relation_weight or args.layer_weight or args.objective not in (None, "mlm"):
        teacher.notes.append("the teacher that runs along is not counted: its own forward pass and weights")
    if args.weight_squeeze:
        layers = layers_to_keep(config.layers_num, args.target_layers, args.keep_layers)
        teacher = teacher._replace(config=replace(config, layers_num=layers))
        args.target_dim = config.hidden_size if args.target_dim is None else args.target_dim
        groups = build_groups(teacher.config, args.target_dim, args.compactor_mask_strategy, args.mlm_target_dim,
                              args.target_feedforward_size, args.target_heads, read_layer_sizes(args.layer_sizes))
        phases = wid_phases(args, teacher, groups, step)
        deep = f"{layers} x " if layers < config.layers_num else ""
        to = f" to {deep}{args.target_dim} ({args.compactor_mask_strategy})"
    else:
        phases, to = [Phase("the model", plain_cost(config, teacher.tables, step), 1.0)], ""
    head = (f"{config.layers_num} layers x {config.hidden_size}{to}, vocabulary {teacher.tables['vocab']:,}; a step: "
            f"{processes} x {step.micro_steps} x {step.rows} instances of {seq_length} tokens; "
            f"{'bfloat16' if step.bf16 else 'float32'}")
    lines = [head, *(f"note: {note}" for note in teacher.notes), "", *table(phases, args.weight_squeeze, config.target)]
    if args.weight_squeeze:
        lines += ["", *whole_run(args, phases)]
    return "\n".join(lines) + "\n"


# -- what is known -----------------------------------------------------------------------------------------------------


def read_teacher(args: argparse.Namespace) -> Teacher:
    """The config and the rows of the tables, from what is there: the teacher, or the config that says what it will be,
    --config_path, --vocab_path. --target is settled by it."""
    notes: list[str] = []
    path = Path(args.pretrained_model_path) if args.pretrained_model_path else None
    vocab = None
    if (args.vocab_path and Path(args.vocab_path).exists()) or args.spm_model_path:
        vocab = len(build_tokenizer(args).vocab)
    wanted = TARGET_FOR.get(args.objective, "mlm" if args.allow_missing_head else None)
    beside = config_beside(path, wanted) if path is not None else None
    if path is not None and (has_weights(path) or not (beside or args.config_path)):
        loaded = load_teacher(args, vocab)
        return Teacher(loaded.config, shapes.table_sizes(loaded.weights), loaded.notes)
    if beside is not None:
        vocab = vocab or beside.vocab_size
        if not beside.architecture and beside.vocab_size and wanted is None:
            notes.append(f"{path} names no architecture: an MLM head is assumed (--target)")
    if args.config_path:
        config = config_for(HuggingFaceConfig(load_config(args.config_path), 0, False, None), wanted)
    else:
        assert beside is not None
        tied = beside.tied and beside.config.target == "mlm" and not args.weight_squeeze
        config = replace(beside.config, tie_weights=tied or beside.config.tie_weights)
    settle_objective(args, config)
    if vocab is None:
        vocab = VOCABULARY
        missing = f"{args.vocab_path} is not there" if args.vocab_path else "no --vocab_path"
        notes.append(f"{missing}: a vocabulary of {vocab:,} tokens is assumed")
    return Teacher(config, {"vocab": vocab, "positions": config.max_seq_length, "segments": SEGMENTS}, notes)


def seq_length_of(args: argparse.Namespace, teacher: Teacher) -> int:
    """--seq_length, the dataset's, or the default of preprocess.py; notes what is assumed.
    `UserError` where that is more than the model has positions."""
    positions = teacher.config.max_seq_length
    if args.seq_length:
        if args.seq_length > positions:
            raise UserError(f"--seq_length is {args.seq_length}, the model has {positions} positions")
        return args.seq_length
    if args.dataset_path and all(Path(path).exists() for path in args.dataset_path):
        dataset = Dataset.open(args.dataset_path)
        dataset.check_positions(positions)
        return dataset.header["seq_length"]
    missing = f"{' '.join(args.dataset_path)} is not there" if args.dataset_path else "no --dataset_path"
    length = min(SEQ_LENGTH, positions)
    teacher.notes.append(f"{missing}: instances of {length} tokens are assumed (--seq_length)")
    return length


# -- phases ------------------------------------------------------------------------------------------------------------


def wid_phases(args: argparse.Namespace, teacher: Teacher, groups: dict[str, MaskGroup], step: Step) -> list[Phase]:
    """Compactors on activations (for comparison), before and after the squeeze, the student alone (after a fold)."""
    config, tables = teacher.config, teacher.tables
    options = {"comp_only": args.comp_only, "spares": args.mask_scores == "norm"}
    student = replace(student_config(config, groups), tie_weights=args.tie_student)
    phases = [Phase("on activations", activations_cost(config, tables, groups, step))]
    calibrated = args.compactor_init == "calibrated"
    until, mean = (0, 0.0) if calibrated else before_squeeze(args, groups, lambda now: wid_cost(
        config, tables, now, step, **options).all_operations)
    before = until / args.total_steps
    alone = 0.0  # it waits an interval for its moments, but at the start there is nothing to wait for
    if args.after_squeeze == "student":
        alone = 1.0 if calibrated else max(0.0, 1 - before - args.w_step / args.total_steps)
    if not calibrated:
        phases.append(Phase("before squeeze", wid_cost(config, tables, groups, step, **options), before, mean))
    for group in groups.values():
        group.squeezed = True
    return [*phases, Phase("after squeeze", wid_cost(config, tables, groups, step, **options), 1 - before - alone),
            Phase("student alone", plain_cost(student, tables, step), alone)]


def before_squeeze(args: argparse.Namespace, groups: dict[str, MaskGroup],
                   operations: Callable[[dict[str, MaskGroup]], int]) -> tuple[int, float]:
    """The step of the last squeeze (at most all steps), and what a step before it takes on average, from the schedule
    and the decay of an entry that starts at 1. `operations`: of a step with the groups as they are."""
    settle(args, groups)
    never, decay = args.total_steps, cache(lambda last: decay_steps(args, last))
    delay = decay(0) if leaves_early(args) else never
    leaves = {name: group.last_interval * args.w_step for name, group in groups.items()}
    leaves = {name: min(never, last + decay(last)) for name, last in leaves.items()}
    until = max(leaves.values())

    def at(step: int) -> dict[str, MaskGroup]:
        """The groups after the masks of a step have been chosen."""
        now = {}
        for name, group in groups.items():
            masked = group.drop_count(step // args.w_step)
            gone = group.drop_count(max(0, step - delay) // args.w_step)
            now[name] = replace(group, squeezed=step >= leaves[name], there=torch.arange(group.size - gone),
                                dropped=torch.arange(masked - gone))
        return now

    masks = [k * args.w_step for k in range(1 + max(group.last_interval for group in groups.values()))]
    changes = sorted(step for step in {*masks, *(step + delay for step in masks), *leaves.values()} if step < until)
    total = sum(operations(at(step)) * (after - step) for step, after in zip(changes, [*changes[1:], until]))
    return until, total / until if until else 0.0


def decay_steps(args: argparse.Namespace, last: int) -> int:
    """Steps from when an entry is dropped until it is found decayed, at a mask update; at most all that are left."""
    left = args.total_steps - last
    if args.no_squeeze or left <= 0:
        return max(left, 0)
    if args.penalty == "fade":
        path = [FADE_PER_INTERVAL ** (t / args.w_step) for t in range(1, left + 1)]
    else:
        factor = schedule(args.scheduler, args.total_steps, args.warmup)
        rates = [args.compactor_learning_rate * factor(t) for t in range(last, args.total_steps)]
        path = simulate_decay(rates, args.l2_lambda, last if args.bias_correction else None)
    decayed = (t for t in range(args.w_step, len(path) + 1, args.w_step) if abs(path[t - 1]) < args.squeeze_tolerance)
    return next(decayed, left)


# -- words -------------------------------------------------------------------------------------------------------------


def table(phases: list[Phase], wid: bool, target: str) -> list[str]:
    """The lines of the table: parameters, operations, memory, traffic."""
    costs = [phase.cost for phase in phases]
    work = unit("operations", max(cost.all_operations for cost in costs))
    memory = unit("memory", max(cost.memory.get("peak", 0) for cost in costs))
    traffic = unit("sent", max(cost.sent for cost in costs))
    titles = {part: part if target == "mlm" else part.replace("MLM head", "head") for part in PARTS}
    rows = [("", [phase.title for phase in phases]),
            ("parameters that run", [millions(sum(cost.student.values())) for cost in costs]),
            *((f"  {titles[part]}", [millions(cost.student[part]) for cost in costs]) for part in PARTS),
            ("parameters trained", [millions(sum(cost.trained.values())) for cost in costs]),
            (f"operations a step ({work[1]}FLOP)", [amount(cost.all_operations, work) for cost in costs]),
            *((f"  {titles[part]}", [amount(cost.operations[part], work) for cost in costs]) for part in PARTS)]
    if wid:
        rows += [("  composing the weights", [amount(sum(cost.composition.values()), work) for cost in costs]),
                 ("  mean as dimensions leave", [amount(round(phase.mean), work) if phase.mean else "-"
                                                 for phase in phases]),
                 ("times cheaper", [f"{costs[0].all_operations / cost.all_operations:.1f}x" for cost in costs])]
    rows += [(f"memory of a device ({memory[1]})", [])]
    rows += [(f"  {label}", [amount(cost.memory[key], memory) if key in cost.memory else "-" for cost in costs])
             for key, label in MEMORY_ROWS.items() if any(key in cost.memory for cost in costs)]
    if any(cost.sent for cost in costs):
        rows += [(f"sent by a process ({traffic[1]})", [amount(cost.sent, traffic) for cost in costs])]
    return [label.ljust(LABEL) + "".join(cell.rjust(COLUMN) for cell in cells) for label, cells in rows]


def whole_run(args: argparse.Namespace, phases: list[Phase]) -> list[str]:
    """The operations of all steps on one process, against those without a fold and with compactors on activations."""
    steps, shares = args.total_steps, {phase.title: phase.share for phase in phases}
    costs = {phase.title: (phase.mean or phase.cost.all_operations) * steps for phase in phases}
    ours = round(sum(costs[title] * share for title, share in shares.items()))
    scale = unit("operations", costs["on activations"])
    before, alone = shares.get("before squeeze", 0.0), shares["student alone"]
    when = "of the student's size from the first step"
    if before:
        when = f"squeezed at step {round(before * steps):,}" if before < 1 else "never squeezed"
    when += f", folded at step {round((1 - alone) * steps):,}" if alone else ""
    others = {"with compactors on activations": costs["on activations"]}
    if alone:
        others = {"not folded": ours + round(alone * (costs["after squeeze"] - costs["student alone"])), **others}
    compared = "; ".join(f"{how} {amount(number, scale)}, {number / ours:.{1 + (number < 2 * ours)}f} times as many"
                         for how, number in others.items())
    return [f"{steps:,} steps, {when}: {amount(ours, scale)} {scale[1]}FLOP on a process; {compared}",
            "counted: matrix products; memory: tensors, without buffers of kernels and the framework's own"]


def unit(kind: str, largest: int) -> tuple[int, str]:
    """The unit in which the largest of some numbers is at least 1 (the smallest one there is, otherwise)."""
    return next((entry for entry in UNITS[kind] if largest >= entry[0]), UNITS[kind][-1])


def amount(number: int, scale: tuple[int, str]) -> str:
    """A number in a unit, with three digits that matter."""
    value = number / scale[0]
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def millions(number: int) -> str:
    return f"{number / 1e6:,.2f} M" if number < 10**7 else f"{number / 1e6:,.1f} M"
