"""pretrain.py's work: check everything, load data and teacher, train."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from uer.arguments import check_writable, refuse_overwriting
from uer.errors import UserError
from uer.opts import pretrain_parser
from uer.parallel.launch import launch
from uer.planning.dryrun import dryrun
from uer.planning.plan import plan
from uer.training.build_trainer import work
from uer.training.course import keep_course
from uer.training.teaching import misplaced

MOST_PROCESSES = 1 << 16
WEIGHTS = ("similarity_weight", "relation_weight", "layer_weight")


def pretrain(args: argparse.Namespace, given: set[str]) -> None:
    """Run pretrain.py with parsed options; `given`: those that the command line gave."""
    if args.resume and args.output_model_path and not args.plan:
        usual = vars(pretrain_parser().parse_args([]))
        keep_course(args, given | {name for name, value in vars(args).items() if value != usual[name]})
    check_options(args, given)
    if "sp" in (args.uer_target or ()) or "bert" in (args.uer_data_processor, *(args.uer_target or ())):
        print("note: masked language modelling alone is trained, no sentence prediction")
    if args.plan:
        print(plan(args), end="")
    elif args.dryrun:
        dryrun(args)
    else:
        launch(work, args)


def check_options(args: argparse.Namespace, given: set[str]) -> None:
    """Everything that can be known to be wrong before any work; all problems in one `UserError`."""
    problems = _problems(args, given)
    if problems:
        raise UserError("; ".join(problems))
    if args.plan:
        return
    refuse_overwriting(args, {"log_path": [args.log_path], "mask_path": [args.mask_path]})
    for path in (args.output_model_path, args.mask_path, args.log_path):
        if path:
            check_writable(path)
    if args.tb_path and Path(args.tb_path).exists() and not Path(args.tb_path).is_dir():
        raise UserError(f"--tb_path {args.tb_path}: is a file; a folder is needed")


def _problems(args: argparse.Namespace, given: set[str]) -> list[str]:
    problems = []
    for name in ("batch_size", "seq_length", "total_steps", "accumulation_steps", "report_steps",
                 "save_checkpoint_steps", "w_step", "world_size", "eval_steps", "calibration_batches",
                 "keep_checkpoints", "check_replicas_steps", "tb_histograms_steps", "relation_heads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            problems.append(f"--{name} is {value}, at least 1 is needed")
    for name in ("learning_rate", "compactor_learning_rate", "head_learning_rate", "student_learning_rate",
                 "l2_lambda", "squeeze_tolerance", "relation_weight"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            problems.append(f"--{name} is {value}, a number from 0 is needed")
    if args.world_size > MOST_PROCESSES:
        problems.append(f"--world_size is {args.world_size}, at most {MOST_PROCESSES:,} are possible")
    for name in ("max_grad_norm", "rendezvous_timeout"):
        value = getattr(args, name)
        if value is not None and not 0 < value < float("inf"):
            problems.append(f"--{name} is {value}, a number above 0 is needed")
    for name, below in (("warmup", 1.0), ("dropout", 0.999), ("mask_schedule_share", 1.0), ("augment_texts", 1.0)):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= below:
            problems.append(f"--{name} is {value}, a number from 0 to {below:g} is needed")
    problems += _squeeze_problems(args, given)
    if not 0 <= args.soft_targets_weight <= 1:
        problems.append(f"--soft_targets_weight is {args.soft_targets_weight}, a number from 0 to 1 is needed")
    if not 1e-3 <= args.soft_targets_temperature <= 1e3:  # logits are divided by it, and the loss takes its square
        problems.append(f"--soft_targets_temperature is {args.soft_targets_temperature}, a number from 0.001 to 1,000 "
                        f"is needed")
    if args.soft_targets_top_k < 1:
        problems.append(f"--soft_targets_top_k is {args.soft_targets_top_k}, at least 1 is needed")
    taught = [name for name in ("soft_targets_weight", "relation_weight", "layer_weight") if getattr(args, name)]
    if taught and not (args.soft_targets_teacher or args.weight_squeeze):
        problems.append(f"--{taught[0]} needs --soft_targets_teacher, the model that is learnt from")
    if args.soft_targets_teacher and not taught and args.objective in (None, "mlm"):
        problems.append("--soft_targets_teacher does nothing without --soft_targets_weight, --relation_weight, "
                        "--layer_weight or another --target than mlm")
    problems += [f"--{name} is {getattr(args, name)}, a number from 0 is needed" for name in WEIGHTS
                 if not 0 <= getattr(args, name) < float("inf")]
    if args.layer_weight and args.compile:
        problems.append("--layer_weight looks into the layers, and --compile makes one piece of them; leave one out")
    problems += [f"--{name} goes with --layer_weight" for name in ("layer_signals", "layer_numbers")
                 if name in given and not args.layer_weight]
    problems += misplaced(args) if args.objective else []  # else once the model says it
    if not args.pretrained_model_path and not args.config_path:
        problems.append("--config_path is needed to start from scratch (bert/base_config.json, say)")
    if args.plan and args.dryrun:
        problems.append("--plan and --dryrun exclude each other")
    if args.plan:
        return problems
    if "seq_length" in given:
        problems.append("--seq_length goes with --plan; a run has its dataset's")
    problems += [f"--{name} is needed" for name in ("dataset_path", "output_model_path")
                 if not getattr(args, name)]
    if args.allow_changed_data and not args.resume and "TORCHELASTIC_RUN_ID" not in os.environ:
        problems.append("--allow_changed_data goes with --resume")
    if args.eval_steps and not args.dev_path:
        problems.append("--eval_steps needs --dev_path")
    if args.tb_histograms_steps and not args.tb_path:
        problems.append("--tb_histograms_steps needs --tb_path")
    if args.bf16 and args.fp16:
        problems.append("--bf16 and --fp16 exclude each other")
    if args.shard_master and (not args.weight_squeeze or
                              (args.compactor_init == "calibrated" and args.after_squeeze == "student")):
        problems.append("--shard_master shares out the master of --weight_squeeze; there is none in this run")
    return problems


def _squeeze_problems(args: argparse.Namespace, given: set[str]) -> list[str]:
    if args.weight_squeeze:
        problems = []
        if not args.target_dim:
            problems.append("--weight_squeeze needs --target_dim, the student's hidden size")
        if not args.pretrained_model_path and not args.plan:
            problems.append("--weight_squeeze needs --pretrained_model_path, the teacher")
        if args.compactor_init == "identity" and not args.mask_path and not args.plan:
            problems.append("--weight_squeeze needs --mask_path, where the masks are recorded for convert.py")
        folds = args.after_squeeze == "student"
        if folds and args.no_squeeze:
            problems.append("--after_squeeze student waits until everything has left, and with --no_squeeze nothing "
                            "does")
        if "head_learning_rate" in given and not folds:
            problems.append("--head_learning_rate is of a plain model; compactors have --compactor_learning_rate, and "
                            "--after_squeeze student trains a plain one")
        if "student_learning_rate" in given and not folds:
            problems.append("--student_learning_rate does nothing without --after_squeeze student")
        if args.mask_schedule_share is not None and "w_step" in given:
            problems.append("--w_step and --mask_schedule_share say the same thing; give one of them")
        unused = [name for name in ("mask_schedule_share", "mask_scores") if name in given]
        if unused and args.compactor_init == "calibrated":
            problems.append(f"--{unused[0]} does nothing with --compactor_init calibrated, where nothing is masked")
        if args.compactors_path and args.compactor_init != "calibrated":
            problems.append("--compactors_path needs --compactor_init calibrated")
        if args.fix_state_map and args.compactor_init != "calibrated":
            problems.append("--fix_state_map needs --compactor_init calibrated: masks take columns out of the map")
        if args.target_heads and args.compactor_init != "calibrated":
            problems.append("--target_heads needs --compactor_init calibrated; masks leave heads by "
                            "--compactor_mask_strategy")
        if args.layer_sizes and args.compactor_init != "calibrated":
            problems.append("--layer_sizes needs --compactor_init calibrated; masks leave layers that are alike")
        if args.layer_sizes and args.target_feedforward_size:
            problems.append("--target_feedforward_size is of layers that are alike; --layer_sizes says it of each")
        if args.tie_student and (args.compactor_init != "calibrated" or args.after_squeeze != "student"):
            problems.append("--tie_student needs --compactor_init calibrated and --after_squeeze student: compactors "
                            "would take the table apart again")
        if args.tie_student and args.compactors_path:
            problems.append("--compactors_path: compactors cannot hold the one table of --tie_student")
        if args.compactors_path and (args.target_layers or args.keep_layers):
            problems.append("--compactors_path has compactors for a teacher that is there as a file; let layers leave "
                            "with calibrate.py first, and take what that writes as the teacher")
        repeated = [name for name in ("calibration_path", "calibration_batches") if name in given]
        if repeated and args.compactors_path:
            problems.append(f"--{repeated[0]} does nothing with --compactors_path, whose compactors are calibrated")
        if folds and args.comp_only:
            problems.append("--comp_only trains compactors alone, and with --after_squeeze student none are left in "
                            "the end")
        return problems
    idle = ("target_dim", "mlm_target_dim", "target_feedforward_size", "target_heads", "layer_sizes", "target_layers",
            "keep_layers", "tie_student", "compactor_mask_strategy", "compactor_init", "compactor_learning_rate",
            "w_step", "l2_lambda", "penalty", "comp_only", "squeeze_tolerance", "no_squeeze", "after_squeeze",
            "student_learning_rate", "mask_schedule_share", "mask_scores", "compactors_path")
    return [f"--{name} does nothing without --weight_squeeze" for name in idle if name in given]
