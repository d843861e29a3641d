"""pretrain.py's work: check everything, load data and teacher, train."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from uer.arguments import SHAPE, check_writable, no_shares, not_from_zero, outside, refuse_overwriting, too_small
from uer.errors import UserError
from uer.opts import pretrain_parser
from uer.parallel.launch import launch, told_rank
from uer.planning.dryrun import dryrun
from uer.planning.plan import plan
from uer.training.build_trainer import work
from uer.training.course import MASKING, keep_course
from uer.training.teaching import misplaced

MOST_PROCESSES = 1 << 16
OF_SEVERAL = {"master_ip", "local_rank", "rendezvous_timeout"}
CALIBRATION = ("calibration_path", "calibration_batches")
OF_SQUEEZE = (*SHAPE, "mlm_target_dim", "compactor_init", "compactor_learning_rate", "w_step", "l2_lambda", "penalty",
              "comp_only", "squeeze_tolerance", "no_squeeze", "after_squeeze", "student_learning_rate",
              "mask_schedule_share", "mask_scores", "compactors_path", *CALIBRATION)


def pretrain(args: argparse.Namespace, given: set[str]) -> bool:
    """Run pretrain.py with parsed options; `given`: those that the command line gave.

    Returns:
        whether this was a run, and the process of rank 0 is here.
    """
    if args.resume and args.output_model_path and not args.plan:
        usual = vars(pretrain_parser().parse_args([]))
        keep_course(args, given | {name for name, value in vars(args).items() if value != usual[name]})
    if args.after_squeeze is None:
        args.after_squeeze = "student" if args.compactor_init == "calibrated" else "compactors"
    check_options(args, given)
    args.processor = args.uer_data_processor if "uer_data_processor" in given else None  # a config says it of its model
    if told_rank() in (None, "0"):  # under torchrun every process is here
        if "sp" in (args.uer_target or ()) or "bert" in (args.uer_data_processor, *(args.uer_target or ())):
            print("note: masked language modelling alone is trained, no sentence prediction")
        for line in _idle(args, given):
            print(line)
    if _at_once(args) or not args.weight_squeeze:
        args.mask_path = None
    if args.plan:
        print(plan(args), end="")
    elif args.dryrun:
        dryrun(args)
    else:
        return launch(work, args)
    return False


def _at_once(args: argparse.Namespace) -> bool:
    """Whether the student is folded before the first step, and there are no masks to record."""
    return args.compactor_init == "calibrated" and args.after_squeeze == "student" and not args.resume


def _idle(args: argparse.Namespace, given: set[str]) -> list[str]:
    """A line on the options that nothing hangs on here, and that published command lines have all the same."""
    calibrated = args.compactor_init == "calibrated"
    idle = {"with --compactor_init calibrated nothing is masked": (MASKING | {"w_step"}) if calibrated else set(),
            "masks are of compactors, and a calibrated start is folded at once":
                {"mask_path"} if _at_once(args) else set(),
            "a calibrated start is folded at once, and has one rate": set() if not _at_once(args) else
                {"learning_rate", "compactor_learning_rate"} if "student_learning_rate" in given else
                {"compactor_learning_rate"} if "learning_rate" in given else set(),
            "--comp_only trains compactors alone": {"learning_rate"} if args.comp_only else set(),
            "masks are of compactors, and there are none without --weight_squeeze":
                {"mask_path"} if not args.weight_squeeze else set(),
            "nothing is composed without --weight_squeeze": {"compose_dtype"} if not args.weight_squeeze else set(),
            "one process needs no other": OF_SEVERAL if args.world_size == 1 and told_rank() is None else set(),
            "--penalty fade has no strength": {"l2_lambda"} if args.penalty == "fade" and not calibrated else set(),
            "with --scheduler constant no rate rises": {"warmup"} if args.scheduler == "constant" else set()}
    return [f"note: {', '.join(f'--{name}' for name in sorted(names & given))}: not used, as {why}"
            for why, names in idle.items() if names & given]


def check_options(args: argparse.Namespace, given: set[str]) -> None:
    """Everything that can be known to be wrong before any work; all problems in one `UserError`."""
    problems = _problems(args, given)
    if problems:
        raise UserError("; ".join(problems))
    if args.plan:
        return
    refuse_overwriting(args, {"log_path": [args.log_path], "mask_path": [args.mask_path]})
    for path in (args.output_model_path, f"{args.output_model_path}-{args.total_steps}.resume"):
        check_writable(path)
    for path in filter(None, (args.mask_path, args.log_path)):
        check_writable(path, whole=False)
    if args.tb_path and Path(args.tb_path).exists() and not Path(args.tb_path).is_dir():
        raise UserError(f"--tb_path {args.tb_path}: is a file; a folder is needed")


def _problems(args: argparse.Namespace, given: set[str]) -> list[str]:
    problems = [
        *too_small(args, ("batch_size", "seq_length", "total_steps", "accumulation_steps", "report_steps",
                          "save_checkpoint_steps", "w_step", "world_size", "eval_steps", "calibration_batches",
                          "keep_checkpoints", "check_replicas_steps", "tb_histograms_steps", "relation_heads",
                          "soft_targets_top_k")),
        *not_from_zero(args, ("learning_rate", "compactor_learning_rate", "head_learning_rate",
                              "student_learning_rate", "l2_lambda", "squeeze_tolerance", "similarity_weight",
                              "relation_weight", "layer_weight")),
        *outside(args, ("world_size",), lambda number: number <= MOST_PROCESSES,
                 f"at most {MOST_PROCESSES:,} are possible"),
        *outside(args, ("max_grad_norm", "rendezvous_timeout"),
                 lambda number: 0 < number < float("inf"), "a number above 0 is needed"),
        *outside(args, ("soft_targets_temperature",), lambda number: 1e-3 <= number <= 1e3,
                 "a number from 0.001 to 1,000 is needed"),  # logits are divided by it, and the loss takes its square
        *no_shares(args, ("warmup", "mask_schedule_share", "augment_texts", "soft_targets_weight")),
        *no_shares(args, ("dropout",), 0.999)]
    problems += _squeeze_problems(args, given) if args.weight_squeeze else \
        [f"--{name} does nothing without --weight_squeeze" for name in OF_SQUEEZE if name in given]
    taught = [name for name in ("soft_targets_weight", "relation_weight", "layer_weight") if getattr(args, name)]
    problems += [f"--{name} needs --soft_targets_teacher, the model that is learnt from" for name in taught[:1]
                 if not (args.soft_targets_teacher or args.weight_squeeze)]
    problems += _those({
        "--soft_targets_teacher does nothing without --soft_targets_weight, --relation_weight, --layer_weight or "
        "another --target than mlm": args.soft_targets_teacher and not taught and args.objective in (None, "mlm"),
        "--layer_weight looks into the layers, and --compile makes one piece of them; leave one out":
            args.layer_weight and args.compile})
    problems += [f"--{name} goes with --layer_weight" for name in ("layer_signals", "layer_numbers")
                 if name in given and not args.layer_weight]
    problems += misplaced(args) if args.objective else []  # else once the model says it
    problems += _those({
        "--config_path is needed to start from scratch (bert/base_config.json, say)":
            not args.pretrained_model_path and not args.config_path,
        "--plan and --dryrun exclude each other": args.plan and args.dryrun})
    if args.plan:
        return problems
    folds = args.compactor_init == "calibrated" and args.after_squeeze == "student"
    return problems + _those({
        "--seq_length goes with --plan; a run has its dataset's": "seq_length" in given,
        "--dataset_path is needed": not args.dataset_path,
        "--output_model_path is needed": not args.output_model_path,
        "--allow_changed_data goes with --resume":
            args.allow_changed_data and not args.resume and "TORCHELASTIC_RUN_ID" not in os.environ,
        "--eval_steps needs --dev_path": args.eval_steps and not args.dev_path,
        "--tb_histograms_steps needs --tb_path": args.tb_histograms_steps and not args.tb_path,
        "--bf16 and --fp16 exclude each other": args.bf16 and args.fp16,
        "--shard_master shares out the master of --weight_squeeze; there is none in this run"
        f"{' without --train compactors' if args.weight_squeeze else ''}":
            args.shard_master and (not args.weight_squeeze or folds)})


def _those(problems: dict[str, object]) -> list[str]:
    """The sentences that are true."""
    return [words for words, true in problems.items() if true]


def _squeeze_problems(args: argparse.Namespace, given: set[str]) -> list[str]:
    calibrated, folds = args.compactor_init == "calibrated", args.after_squeeze == "student"
    problems = [f"--{name} does nothing with --compactor_init calibrated, where nothing is masked"
                for name in ("mask_schedule_share", "mask_scores") if name in given and calibrated]
    problems += [f"--{name} does nothing with --compactors_path, whose compactors are calibrated"
                 for name in CALIBRATION if name in given and args.compactors_path]
    problems += [f"--{name} needs --compactor_init calibrated" for name in CALIBRATION
                 if name in given and not calibrated]
    return problems + _those({
        "--weight_squeeze needs --target_dim, the student's hidden size, or --target_layers, its depth":
            not any(getattr(args, name) for name in SHAPE if name != "compactor_mask_strategy"),
        "--weight_squeeze needs --pretrained_model_path, the teacher": not args.pretrained_model_path and not args.plan,
        "--weight_squeeze needs --mask_path, where the masks are recorded for convert.py":
            not calibrated and not args.mask_path and not args.plan,
        "--after_squeeze student waits until everything has left, and with --no_squeeze nothing does":
            folds and args.no_squeeze and not calibrated,
        "--head_learning_rate is of a plain model; compactors have --compactor_learning_rate, and --after_squeeze "
        "student trains a plain one": "head_learning_rate" in given and not folds,
        "--optimizer muon trains a plain model, and compactors by AdamW; --after_squeeze student makes a plain one":
            args.optimizer == "muon" and args.after_squeeze == "compactors",
        "--student_learning_rate does nothing without --after_squeeze student":
            "student_learning_rate" in given and not folds,
        "--w_step and --mask_schedule_share say the same thing; give one of them":
            args.mask_schedule_share is not None and "w_step" in given,
        "--compactors_path needs --compactor_init calibrated": args.compactors_path and not calibrated,
        "--fix_state_map needs --compactor_init calibrated: masks take columns out of the map":
            args.fix_state_map and not calibrated,
        "--target_heads needs --compactor_init calibrated; masks leave heads by --compactor_mask_strategy":
            args.target_heads and not calibrated,
        "--layer_sizes needs --compactor_init calibrated; masks leave layers that are alike":
            args.layer_sizes and not calibrated,
        "--target_feedforward_size is of layers that are alike; --layer_sizes says it of each":
            args.layer_sizes and args.target_feedforward_size,
        "--tie_student needs --compactor_init calibrated without --train compactors: they would take the table apart "
        "again": args.tie_student and not (calibrated and folds),
        "--compactors_path: compactors cannot hold the one table of --tie_student":
            args.tie_student and args.compactors_path,
        "--compactors_path has compactors for a teacher that is there as a file; let layers leave with calibrate.py "
        "first, and take what that writes as the teacher":
            args.compactors_path and (args.target_layers or args.keep_layers),
        "--comp_only trains compactors alone, and with --after_squeeze student none are left; --after_squeeze "
        "compactors keeps them": folds and args.comp_only})
