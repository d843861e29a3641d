"""pretrain.py's work: check everything, load data and teacher, build the learner, train."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from uer.calibration.student import apply_calibration, calibrate_groups
from uer.checkpoint import load_checkpoint, newest_checkpoint, restore_optimizer
from uer.config import ModelConfig, load_config
from uer.data.dataset import Dataset
from uer.data.loader import MlmLoader
from uer.data.options import masking_options
from uer.distributed import Place, launch
from uer.errors import UserError
from uer.formats import LoadedModel, load_model
from uer.learner import Learner, PlainLearner
from uer.memory import keep_freed_memory
from uer.models.build import from_scratch, from_weights
from uer.objective import SoftTargets
from uer.optimizers import AdamW, parameter_groups, schedule
from uer.plan import plan, shared_w_step
from uer.reports import Reports
from uer.squeeze.groups import MaskGroup, build_groups
from uer.squeeze.importance import build_scores
from uer.squeeze.learner import WidLearner
from uer.squeeze.mask_file import cut_masks, start_mask_file
from uer.squeeze.master import Master
from uer.squeeze.penalty import build_penalty, simulate_decay
from uer.squeeze.pooler import COLUMNS, last_gamma, shift_pooler, squeeze_pooler, take_pooler
from uer.tokenizers import Vocab, build_tokenizer
from uer.trainer import Run, Trainer

SWING = 0.1  # share of its size by which a masked entry may overshoot zero before a run is warned


def pretrain(args: argparse.Namespace, given: set[str]) -> None:
    """Run pretrain.py with parsed options; `given`: those that the command line gave."""
    check_options(args, given)
    if args.plan:
        print(plan(args), end="")
    else:
        launch(work, args)


def check_options(args: argparse.Namespace, given: set[str]) -> None:
    """Everything that can be known to be wrong before any work; all problems in one `UserError`."""
    problems = _problems(args, given)
    if problems:
        raise UserError("; ".join(problems))
    for path in () if args.plan else (args.output_model_path, args.mask_path, args.log_path):
        if path:
            check_writable(path)


def _problems(args: argparse.Namespace, given: set[str]) -> list[str]:
    problems = []
    for name in ("batch_size", "seq_length", "total_steps", "accumulation_steps", "report_steps",
                 "save_checkpoint_steps", "w_step", "world_size", "eval_steps", "calibration_batches"):
        value = getattr(args, name)
        if value is not None and value < 1:
            problems.append(f"--{name} is {value}, at least 1 is needed")
    for name in ("learning_rate", "compactor_learning_rate", "head_learning_rate", "l2_lambda", "squeeze_tolerance"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < float("inf"):
            problems.append(f"--{name} is {value}, a number from 0 is needed")
    for name, below in (("warmup", 1.0), ("dropout", 1.0), ("mask_schedule_share", 1.0)):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= below:
            problems.append(f"--{name} is {value}, a number from 0 to {below:g} is needed")
    problems += _squeeze_problems(args, given)
    if not 0 <= args.soft_targets_weight <= 1:
        problems.append(f"--soft_targets_weight is {args.soft_targets_weight}, a number from 0 to 1 is needed")
    if args.soft_targets_weight and not (args.soft_targets_teacher or args.weight_squeeze):
        problems.append("--soft_targets_weight needs --soft_targets_teacher, the model that gives the labels")
    if args.soft_targets_teacher and not args.soft_targets_weight:
        problems.append("--soft_targets_teacher does nothing without --soft_targets_weight")
    if not args.pretrained_model_path and not args.config_path:
        problems.append("--config_path is needed to start from scratch (bert/base_config.json, say)")
    if args.plan:
        return problems
    if "seq_length" in given:
        problems.append("--seq_length goes with --plan; a run has its dataset's")
    problems += [f"--{name} is needed" for name in ("vocab_path", "dataset_path", "output_model_path")
                 if not getattr(args, name)]
    if args.eval_steps and not args.dev_path:
        problems.append("--eval_steps needs --dev_path")
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
        if args.train == "student" and args.compactor_init != "calibrated":
            problems.append("--train student needs --compactor_init calibrated: only then there is a student to train")
        if args.mask_schedule_share is not None and "w_step" in given:
            problems.append("--w_step and --mask_schedule_share say the same thing; give one of them")
        unused = [name for name in ("mask_schedule_share", "mask_scores") if name in given]
        if unused and args.compactor_init == "calibrated":
            problems.append(f"--{unused[0]} does nothing with --compactor_init calibrated, where nothing is masked")
        return problems
    idle = ("target_dim", "mlm_target_dim", "compactor_mask_strategy", "compactor_init", "compactor_learning_rate",
            "w_step", "l2_lambda", "penalty", "comp_only", "squeeze_tolerance", "no_squeeze", "train",
            "mask_schedule_share", "mask_scores")
    return [f"--{name} does nothing without --weight_squeeze" for name in idle if name in given]


def check_writable(path: str) -> None:
    """Make the folder of an output; `UserError` where it cannot be written."""
    folder = Path(path).absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: its folder cannot be made ({error.strerror})") from None
    if not os.access(folder, os.W_OK) or Path(path).is_dir():
        raise UserError(f"{path}: cannot be written there; give a file in a folder that you may write to")


# -- one process -------------------------------------------------------------------------------------------------------


def work(place: Place, args: argparse.Namespace) -> None:
    """What every process does."""
    keep_freed_memory()
    reports = Reports(place.leads, args.log_path, args.tb_path)
    try:
        _work(place, args, reports)
    finally:
        reports.close()


def _work(place: Place, args: argparse.Namespace, reports: Reports) -> None:
    dataset, dev, vocab = open_data(args, place)
    loaded = load_teacher(args, len(vocab))
    for note in loaded.notes:
        reports.say(note)
    if args.dropout is not None:
        loaded.config = replace(loaded.config, dropout=float(args.dropout))
    for loader in (dataset, dev):
        if loader is not None:
            loader.dataset.check_positions(loaded.config.max_seq_length)
    weights = {name: tensor.to(place.device) for name, tensor in loaded.weights.items()}
    card: dict[str, Any] = {
        "kind": "plain", "teacher": loaded.config.to_dict(), "strategy": args.compactor_mask_strategy,
        "target_dim": args.target_dim, "mlm_target_dim": args.mlm_target_dim, "vocab_size": len(vocab),
        "vocab_sha256": vocab.sha256}
    resumed, pooler = None, take_pooler(loaded.extras)
    if args.resume:
        path = newest_checkpoint(args.output_model_path) if args.resume == "newest" else Path(args.resume)
        resumed = load_checkpoint(path)
        check_card(resumed[1], card, path)
        pooler = take_pooler(resumed[0])
        reports.say(f"going on from {path}")
    learner: Learner
    if args.weight_squeeze:
        learner, card = wid_learner(args, loaded.config, weights, dataset, place, reports, card, resumed, pooler)
    else:
        learner = plain_learner(args, loaded.config, weights if resumed is None else resumed[0], place.device)
    if resumed is not None:
        restore_optimizer(resumed[2]["optimizer"], learner.named_parameters(), learner.optimizer)
    if args.mask_path and place.leads and args.weight_squeeze:  # after all checks, as an older one may be there
        start_mask_file(args.mask_path) if resumed is None else cut_masks(args.mask_path, resumed[1]["step"])
    reports.say(describe(learner, place, args))
    run = Run(args.output_model_path, args.total_steps, schedule(args.scheduler, args.total_steps, args.warmup),
              args.accumulation_steps, args.save_checkpoint_steps, args.report_steps, args.eval_steps, args.seed,
              args.mask_path if args.weight_squeeze else None, args.bf16)
    trainer = Trainer(learner, dataset, run, place, reports, card, dev, soft_targets(args, loaded, len(vocab), place),
                      pooler)
    trainer.train(resumed[1]["step"] if resumed else 0)


def open_data(args: argparse.Namespace, place: Place) -> tuple[MlmLoader, MlmLoader | None, Vocab]:
    """Training and held-out loaders and the vocabulary, checked against each other."""
    vocab = build_tokenizer(args).vocab

    def loader(paths: list[str], **options: Any) -> MlmLoader:
        dataset = Dataset.open(paths, option="--dataset_path" if paths is args.dataset_path else "--dev_path")
        dataset.check_vocab(vocab)
        return MlmLoader(dataset, args.batch_size, seed=args.seed, group_by_length=args.group_by_length,
                         pin_memory=place.device.type == "cuda", **options)

    train = loader(args.dataset_path, rank=place.rank, world_size=place.world_size, masking=masking_options(args))
    return train, loader(args.dev_path) if args.dev_path else None, vocab


def load_teacher(args: argparse.Namespace, vocab_size: int) -> LoadedModel:
    """The model at --pretrained_model_path, or one from scratch."""
    config = load_config(args.config_path) if args.config_path else None
    if args.pretrained_model_path:
        return load_model(args.pretrained_model_path, config=config, vocab_size=vocab_size,
                          allow_missing_head=args.allow_missing_head, seed=args.seed)
    assert config is not None
    weights = dict(from_scratch(config, vocab_size, args.seed).state_dict())
    return LoadedModel(config, weights, ["no --pretrained_model_path: the model starts from scratch"])


def soft_targets(args: argparse.Namespace, loaded: LoadedModel, vocab_size: int, place: Place) -> SoftTargets | None:
    """Soft labels, where asked for, from --soft_targets_teacher or else the teacher that is compressed."""
    if not args.soft_targets_weight:
        return None
    if args.soft_targets_teacher:
        loaded = load_model(args.soft_targets_teacher, config=None, vocab_size=vocab_size)
    teacher = from_weights(loaded.config, loaded.weights).to(place.device)
    return SoftTargets(teacher, args.soft_targets_weight, args.soft_targets_temperature, args.soft_targets_top_k)


def check_card(found: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    """`UserError` where a checkpoint does not belong to the run that the options describe."""
    found = {**found, "teacher": found.get("origin", found.get("teacher"))}
    differ = [f"{key} {found.get(key)!r} there, {wanted[key]!r} here"
              for key in ("teacher", "vocab_sha256", "target_dim", "mlm_target_dim")
              if found.get(key) != wanted[key]]
    if differ:
        raise UserError(f"--resume: {path} is from another run: " + "; ".join(differ))


# -- learners ----------------------------------------------------------------------------------------------------------


def plain_learner(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor],
                  device: torch.device) -> PlainLearner:
    """A plain MLM run of a model with these weights."""
    model = from_weights(config, weights).to(device)
    head = args.head_learning_rate

    def special(name: str) -> float | None:
        return head if head is not None and name.startswith("target.") else None

    named = [(name, parameter) for name, parameter in model.named_parameters()]
    return PlainLearner(model, AdamW(parameter_groups(named, args.learning_rate, special,
                                                      special_kind="head_learning_rate")))


def wid_learner(args: argparse.Namespace, config: ModelConfig, weights: dict[str, torch.Tensor], loader: MlmLoader,
                place: Place, reports: Reports, card: dict[str, Any], resumed,
                pooler: dict[str, torch.Tensor]) -> tuple[Learner, dict[str, Any]]:
    """The learner of a WID run and what its checkpoints say about themselves; a new start brings `pooler` along."""
    groups = build_groups(config, args.target_dim, args.compactor_mask_strategy, args.mlm_target_dim)
    for group in groups.values():
        group.dropped = group.dropped.to(place.device)
    if args.mask_schedule_share is not None:
        args.w_step = shared_w_step(groups, args.total_steps, args.mask_schedule_share)
        reports.say(f"masks change every {args.w_step:,} steps (--w_step)")
    card = {**card, "kind": "wid"}
    if resumed is not None:
        weights = {name: tensor.to(place.device) for name, tensor in resumed[0].items()}
        if resumed[1]["kind"] == "plain":
            student = config.student(args.target_dim, args.compactor_mask_strategy, groups["mlm"].target)
            return plain_learner(args, student, weights, place.device), {**card, **resumed[1]}
        restore_groups(groups, resumed[1], resumed[2], place.device)
    elif args.compactor_init == "calibrated":
        calibration = calibrate_groups(args, config, weights, groups, loader, place, reports)
        weights = apply_calibration(calibration, weights, groups)
        pooler.update(shift_pooler(pooler, calibration.offset))
        if args.train == "student":
            master = Master(config, weights, groups)
            student = config.student(args.target_dim, args.compactor_mask_strategy, groups["mlm"].target)
            tensors = master.compose(multiply_out=True)
            pooler.update(squeeze_pooler(pooler, weights[COLUMNS], tensors[last_gamma(config.layers_num)]))
            card = {**card, "kind": "plain", "teacher": student.to_dict(), "origin": config.to_dict()}
            return plain_learner(args, student, tensors, place.device), card
    tokens = args.batch_size * args.accumulation_steps * loader.dataset.header["seq_length"]
    many = 1 << 40  # several processes send gradients in the student's size
    shape = (tokens, tokens * 15 // 100) if place.world_size == 1 else (many, many)
    master = Master(config, weights, groups, *shape)
    if args.comp_only:
        for name, parameter in master.named_parameters():
            parameter.requires_grad_("compactor" in name)
    optimizer = AdamW(parameter_groups(master.named_parameters(), args.learning_rate,
                                       lambda name: args.compactor_learning_rate if "compactor" in name else None,
                                       special_kind="compactor_learning_rate"))
    penalty = build_penalty(args.penalty, master, optimizer, args.w_step, args.l2_lambda)
    tolerance = None if args.no_squeeze else args.squeeze_tolerance
    scores = build_scores(args.mask_scores, master)
    if resumed is not None:
        scores.load_state_dict(resumed[2].get("scores", {}))
    learner = WidLearner(master, optimizer, penalty, args.w_step, tolerance, scores)
    if args.compactor_init == "identity":
        warn_of_decay(args, groups, reports)
    return learner, card


def restore_groups(groups: dict[str, MaskGroup], card: dict[str, Any], resume: dict[str, Any],
                   device: torch.device) -> None:
    """Bring the mask groups to where a checkpoint left them."""
    for name, group in groups.items():
        if name in resume["keep"]:
            group.set_keep(resume["keep"][name].to(device))
        if not resume["penalised"][name]:
            group.dropped = group.dropped[:0]
        group.squeezed = name in card["squeezed"]


def warn_of_decay(args: argparse.Namespace, groups: dict[str, MaskGroup], reports: Reports) -> None:
    """Say so when masked entries will not be gone at the end of the run, by running the update on one entry."""
    intervals = max(group.last_interval for group in groups.values())
    last = intervals * args.w_step
    if last >= args.total_steps:
        reports.say(f"warning: the mask schedule ends at step {last:,}, after the last step "
                    f"{args.total_steps:,}; a --w_step of {max(1, args.total_steps // 2 // intervals)} would "
                    f"leave half of the run for the finished student")
        return
    if args.penalty != "published":
        return
    factor = schedule(args.scheduler, args.total_steps, args.warmup)
    rates = [args.compactor_learning_rate * factor(t) for t in range(args.total_steps)]
    swing = -min(simulate_decay(rates[args.w_step:last], args.l2_lambda))
    left = abs(simulate_decay(rates[last:], args.l2_lambda)[-1])
    product = f"--compactor_learning_rate {args.compactor_learning_rate:g} × --l2_lambda {args.l2_lambda:g}"
    if swing > SWING:
        reports.say(f"warning: {product} is past the stability limit of the published penalty: a masked entry "
                    f"overshoots zero by {100 * swing:.0f} % instead of fading (a product of 0.02 is about the limit); "
                    f"lower one of them, or take --penalty fade")
    elif left > args.squeeze_tolerance:
        reports.say(f"warning: with {product}, entries masked last are still at {left:.1e} of their size after the "
                    f"last step, above --squeeze_tolerance {args.squeeze_tolerance:g}, so their groups stay; "
                    f"more steps, a larger rate, or --penalty fade would do")


def describe(learner: Learner, place: Place, args: argparse.Namespace) -> str:
    """One line on what is about to run."""
    parameters = sum(p.numel() for _, p in learner.named_parameters())
    student = sum(p.numel() for p in learner.student.parameters())
    trained = f"{parameters / 1e6:.1f} M parameters trained"
    if isinstance(learner, WidLearner):
        trained += f" (teacher and compactors) through a student of {student / 1e6:.1f} M"
    return (f"{trained}; {args.total_steps:,} steps of {place.world_size} × {args.accumulation_steps} × "
            f"{args.batch_size} instances on {place.device}")
