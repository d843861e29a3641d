"""Everything that a training process needs, loaded and checked against everything else."""

from __future__ import annotations

import argparse
import hashlib
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from uer.calibration.depth import layers_to_keep
from uer.calibration.pooler import take_pooler
from uer.calibration.student import shorten_teacher
from uer.config import ModelConfig, load_config
from uer.cpu.denormals import flush_denormals
from uer.cpu.memory import keep_freed_memory
from uer.data.feed import Feed, went_on
from uer.data.loader import MlmLoader
from uer.data.options import masking_options
from uer.errors import Stopped, UserError
from uer.formats import LoadedModel, load_model
from uer.formats.file_target import outputs_apart
from uer.formats.storage import shortened, tensors_sha256
from uer.formats.tokenizer_files import text_beside
from uer.layer_sizes import read_layer_sizes
from uer.models.bert import from_scratch, from_weights
from uer.parallel.collectives import Place, differing
from uer.parallel.replica import check_comm_hook
from uer.parallel.signals import StopSignals
from uer.report.writer import Reports
from uer.squeeze.mask_file import check_masks, cut_masks, start_mask_file
from uer.tokenizers import TextRules
from uer.tokenizers.rules import KEY, merged, recorded
from uer.training.checkpoint import (
    Checkpoint,
    checkpoint_path,
    checkpoint_steps,
    find_checkpoint,
    open_checkpoint,
    read_card,
    set_aside,
    sweep,
)
from uer.training.choose_learner import build_learner
from uer.training.compilation import check_compiler
from uer.training.course import KEY as COURSE
from uer.training.course import SOFT, check_card, compare_courses, course, run_dropout
from uer.training.layer_states import LayerTargets
from uer.training.learner import Learner
from uer.training.lock import only_writer
from uer.training.objective import TaughtMlm, Teaching, evaluate
from uer.training.open_data import open_data
from uer.training.optimizers import schedule
from uer.training.precision import Precision, slow_products
from uer.training.relations import RelationTargets, left_behind
from uer.training.sharded_master import ShardedLearner
from uer.training.teaching import LogitTargets, StateTargets, misplaced
from uer.training.trainer import Run, Trainer
from uer.training.wid_learner import WidLearner

TARGET_FOR = {"mlm": "mlm", "states": "states", "similarity": "states"}  # --target -> the model's; others: its own
OWN = ("gpu_ranks", "local_rank", "master_ip", "rendezvous_timeout", "world_size")  # of each command, like paths
JUDGED = ("teacher_loss", "teacher_accuracy", "dev_sha256")  # what a card says of the teacher, and on which text


def work(place: Place, args: argparse.Namespace) -> None:
    """What every process does."""
    flush_denormals()
    keep_freed_memory()
    written = {"output_model_path": args.output_model_path, "mask_path": args.mask_path,
               "tb_path": args.tb_path and f"{args.tb_path}/metrics.jsonl"}
    with StopSignals(place.world_size) as signals, ExitStack() as locks:
        for option, path in written.items():
            if place.leads and path:
                locks.enter_context(only_writer(path, option))
        reports = Reports(place.leads, args.log_path, args.tb_path)
        try:
            trainer, start = build_trainer(place, args, reports, signals)
            if place.leads:
                sweep(args.output_model_path, args.mask_path)
            trainer.train(start)
        except Stopped as stopped:
            if not signals.waiting:
                reports.say(f"{stopped} before the first step; there is nothing of it to save")
            raise
        finally:
            reports.close()


def build_trainer(place: Place, args: argparse.Namespace, reports: Reports,
                  signals: StopSignals) -> tuple[Trainer, int]:
    """Everything loaded, checked against everything else; the trainer and the step after which it is to start."""
    wishes = read_layer_sizes(args.layer_sizes)
    if args.compile:
        check_compiler(place.device)
    check_comm_hook(args.ddp_comm_hook)
    dataset, dev, text = open_data(args, place, reports)
    vocab_size = dataset.dataset.header["vocab_size"]
    loaded = load_teacher(args, vocab_size)
    if wrong := misplaced(args):
        raise UserError("; ".join(wrong))
    for line in (*loaded.notes, *slow_products(half_dtype(args), place.device)):
        reports.say(line)
    if args.objective == "relations":
        reports.say(f"note: {left_behind(loaded.config.target)}")
    masked = args.objective == "mlm"
    loaders = [loader for loader in (dataset, dev) if loader is not None]
    for loader in loaders:
        loader.dataset.check_positions(loaded.config.max_seq_length)
        loader.dataset.check_reading(loaded.reading, reports.say)
        loader.masked = masked
    if not masked and masking_options(args) is not None:
        reports.say(f"note: nothing is masked for --target {args.objective}; how words would be is not used")
    dataset.augment = args.augment_texts
    config = replace(loaded.config, layers_num=layers_to_keep(loaded.config.layers_num, args.target_layers,
                                                              args.keep_layers))
    if args.weight_squeeze and args.target_dim is None:
        args.target_dim = config.hidden_size
    card: dict[str, Any] = {
        "kind": "plain", "teacher": config.to_dict(), "strategy": args.compactor_mask_strategy,
        "target_dim": args.target_dim, "mlm_target_dim": args.mlm_target_dim, "target_heads": args.target_heads,
        "layer_sizes": wishes and [wish.to_dict() for wish in wishes],
        "tie_student": args.tie_student or None,
        "target_feedforward_size": args.target_feedforward_size, "vocab_size": vocab_size,
        "vocab_sha256": text.vocab_sha256, KEY: text.to_dict(), "compactor_init": args.compactor_init,
        "teacher_sha256": tensors_sha256(loaded.weights) if args.pretrained_model_path else None}
    if not masked:
        card |= {"objective": args.objective, "sentence": loaded.sentence and loaded.sentence.to_dict(),
                 **loaded.reading}
    objective = build_objective(args, loaded, text, vocab_size, place)
    if objective is not None:
        for loader in loaders:
            loader.dataset.check_positions(objective.teacher.config.max_seq_length,
                                           f"--soft_targets_teacher {args.soft_targets_teacher}")
    if objective is not None and args.layer_weight:
        objective = with_layers(args, objective, config.layers_num)
    along = tensors_sha256(objective.teacher.state_dict()) if objective is not None else None
    resumed, pooler, feeds = None, take_pooler(loaded.extras), [dataset.feed(args.accumulation_steps)]
    if wanted := resume_wish(args, place.job):
        path = find_checkpoint(args.output_model_path, wanted)
        resumed = open_checkpoint(path)
        check_card(resumed[1], {**card, SOFT: along}, path)
        merged([recorded(resumed[1], f"checkpoint {path}"), text], [])
        feeds = go_on(resumed[1], feeds[0], args, path, reports)
        dataset.follow(feeds)
        pooler = take_pooler(resumed[0])
        if isinstance(objective, LayerTargets):
            objective.restore(resumed[2].get("objective", {}), place.device)
    check_alike(args, place, {
        "dataset_path": dataset.dataset.sha256, "dev_path": dev and dev.dataset.sha256, "layer_sizes": wishes,
        "pretrained_model_path": card["teacher_sha256"], "soft_targets_teacher": along,
        "resume": resumed and resumed[1]["step"]})
    precision = Precision(place.device, half_dtype(args), args.compose_dtype, args.max_grad_norm, args.compile)
    card |= judged(args, loaded, dev, place, reports, resumed, precision)
    weights = loaded.weights
    if config.layers_num < loaded.config.layers_num and resumed is None:
        weights = shorten_teacher(args, loaded.config, weights, dataset, place, reports)
    config = replace(config, dropout=run_dropout(args, config))
    learner, card = build_learner(args, config, weights, dataset, place, reports, card, resumed, pooler)
    card = {**card, "data": [asdict(feed) for feed in feeds], COURSE: course(args, config), SOFT: along,
            "job": place.job}
    if resumed is not None and (changed := compare_courses(resumed[1], card[COURSE], path)):
        reports.say(f"note: not as before from step {resumed[1]['step'] + 1:,} on: {changed}")
    if precision.scale is not None and resumed is not None and "loss_scale" in resumed[2]:
        precision.scale.restore(resumed[2]["loss_scale"])
    masks = args.mask_path if place.leads and args.weight_squeeze else None
    if resumed is not None and masks:
        check_masks(masks, resumed[1]["step"], resumed[1].get("masks_sha256"))
    later = resumed is not None and any(step > resumed[1]["step"]
                                        for step in checkpoint_steps(str(path).rpartition("-")[0]))
    if place.leads:  # after all checks, as with an older mask file
        moved = set_aside(args.output_model_path, resumed[1]["step"] if resumed else 0,
                          (args.pretrained_model_path, args.soft_targets_teacher))
        if moved:
            reports.say(moved)
    if resumed is not None:
        if masks:
            cut_masks(masks, resumed[1]["step"], wanted=later)
        reports.go_on_from(resumed[1]["step"], args.output_model_path)
    elif masks:
        start_mask_file(masks)
    reports.say(describe(learner, place, args))
    run = Run(args.output_model_path, args.total_steps, schedule(args.scheduler, args.total_steps, args.warmup),
              args.accumulation_steps, args.save_checkpoint_steps, args.keep_checkpoints, args.report_steps,
              args.eval_steps, args.check_replicas_steps, args.tb_histograms_steps, args.seed,
              args.mask_path if args.weight_squeeze else None, feeds[-1].since, args.ddp_comm_hook,
              args.optimizer)
    trainer = Trainer(learner, dataset, run, place, reports, card, precision, signals, dev, objective, pooler)
    return trainer, resumed[1]["step"] if resumed else 0


def check_alike(args: argparse.Namespace, place: Place, found: dict[str, Any]) -> None:
    """`UserError` where processes that were started by commands of their own would not do the same.
    `found`: option -> what stands at the path that it names, which may be another on each machine."""
    facts = {name: value for name, value in vars(args).items() if name not in OWN and not name.endswith("_path")}
    digests = {name: hashlib.sha256(repr(value).encode()).digest() for name, value in (facts | found).items()}
    unlike = differing([(name, torch.frombuffer(bytearray(digest), dtype=torch.int64).to(place.device))
                        for name, digest in digests.items()])
    if unlike:
        rank, name = unlike[0]
        raise UserError(f"--{name}: rank {rank} has another than rank 0; start all processes with the same options and "
                        f"files", page="cluster")


def go_on(card: dict[str, Any], now: Feed, args: argparse.Namespace, path: Path, reports: Reports) -> list[Feed]:
    """Say what the run goes on from; returns its feeds, of which the last is its own."""
    step = card["step"]
    feeds, line = went_on(card.get("data"), now, step, args.allow_changed_data, f"checkpoint {path}")
    reports.say(f"going on from {path}")
    if line:
        reports.say(f"note: {line}")
    if step >= args.total_steps:
        reports.say(f"nothing is left to do: it is of step {step:,}, --total_steps is {args.total_steps:,}")
    return feeds


def judged(args: argparse.Namespace, loaded: LoadedModel, dev: MlmLoader | None, place: Place, reports: Reports,
           resumed: Checkpoint | None, precision: Precision) -> dict[str, Any]:
    """The teacher's figures on held-out text, for the student's to be seen against; of a run that goes on with the
    same text, or with none, its own."""
    text = None if dev is None else dev.dataset.sha256 + (", masked by instance" if dev.dataset.dynamic else "")
    found = {key: resumed[1][key] for key in JUDGED if key in resumed[1]} if resumed is not None else {}
    if dev is None or found.get("dev_sha256") == text:
        return found
    if not args.weight_squeeze or loaded.head_made or args.objective != "mlm":
        return {}
    teacher = from_weights(loaded.config, loaded.weights).to(place.device)
    with precision.products():  # as the student's
        result = evaluate(teacher, dev.sequential(), place.device, share=True)
    reports.say(f"teacher: held-out loss {result.loss:.4f}, accuracy {100 * result.accuracy:.2f} %")
    return {"teacher_loss": result.loss, "teacher_accuracy": result.accuracy, "dev_sha256": text}


def resume_wish(args: argparse.Namespace, job: str | None) -> str | None:
    """What to go on from: the newest checkpoint, if torchrun's job has written it before a restart; else as --resume
    says."""
    steps = checkpoint_steps(args.output_model_path) if job else []
    own = steps and read_card(checkpoint_path(args.output_model_path, steps[-1])).get("job") == job
    return "newest" if own else args.resume


def half_dtype(args: argparse.Namespace) -> torch.dtype | None:
    """The dtype of the student's products, None = float32."""
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def load_teacher(args: argparse.Namespace, vocab_size: int | None) -> LoadedModel:
    """The model at --pretrained_model_path, or one from scratch; --target is settled by it.

    What has one table of words keeps it, but for --weight_squeeze, whose compactors take it apart, and for a run that
    goes on with the two tables that it began with.
    """
    config = load_config(args.config_path) if args.config_path else None
    if args.pretrained_model_path:
        loaded = load_model(args.pretrained_model_path, config=config, vocab_size=vocab_size,
                            allow_missing_head=args.allow_missing_head, seed=args.seed,
                            target=TARGET_FOR.get(args.objective))
        if loaded.tied and loaded.config.target == "mlm" and not args.weight_squeeze:
            began = read_card(find_checkpoint(args.output_model_path, args.resume)) if args.resume else {}
            loaded.config = replace(loaded.config, tie_weights=began.get("teacher", {}).get("tie_weights", True))
    else:
        assert config is not None and vocab_size is not None
        weights = dict(from_scratch(config, vocab_size, args.seed).state_dict())
        loaded = LoadedModel(config, weights, ["no --pretrained_model_path: the model starts from scratch"])
    settle_objective(args, loaded.config)
    return loaded


def settle_objective(args: argparse.Namespace, config: ModelConfig) -> None:
    """Fill in --target by the model; `UserError` where the model has nothing for it, or a teacher is wanting."""
    fitting = {"mlm": ("mlm",), "states": ("states", "similarity"), "cls": ("logits",), "tokens": ("logits",)}
    fits = (*fitting[config.target], "relations")
    said, args.objective = args.objective, args.objective or fits[0]
    if args.objective not in fits:
        whose = args.pretrained_model_path or "a model from scratch"
        raise UserError(f"--target {args.objective}: {whose} has nothing to compare so; {' or '.join(fits)} would do")
    if args.objective != "mlm" and not args.weight_squeeze and not args.soft_targets_teacher:
        raise UserError(f"--target {args.objective} needs a teacher: --weight_squeeze, or --soft_targets_teacher PATH")
    if args.objective != "mlm" and args.soft_targets_weight and not said:
        raise UserError(f"--soft_targets_weight: {args.pretrained_model_path} has no head for masked words, so its "
                        f"student learns by --target {args.objective}, all from the teacher; leave the weight out",
                        page="sentences" if config.target == "states" else "classifiers")
    if args.objective != "mlm" and args.soft_targets_weight:
        raise UserError(f"--soft_targets_weight goes with --target mlm; {args.objective} is all from the teacher")


def build_objective(args: argparse.Namespace, loaded: LoadedModel, text: TextRules, vocab_size: int,
                    place: Place) -> Teaching | None:
    """What a step runs backward on; its teacher is --soft_targets_teacher or else the one that is compressed."""
    if args.objective == "mlm" and not (args.soft_targets_weight or args.relation_weight or args.layer_weight):
        return None
    student = loaded
    if args.soft_targets_teacher:
        merged([text, *text_beside(args.soft_targets_teacher)], [])
        kind = loaded.config.target if loaded.config.target in ("mlm", "states") else None
        loaded = load_model(args.soft_targets_teacher, config=None, vocab_size=vocab_size, target=kind)
    if args.objective != "relations" and (apart := outputs_apart(loaded.config, student.config)):
        raise UserError(f"--soft_targets_teacher {args.soft_targets_teacher}: {apart}")
    teacher = from_weights(loaded.config, loaded.weights).to(place.device)
    if args.objective == "mlm":
        return TaughtMlm(teacher, args.soft_targets_weight, args.soft_targets_temperature, args.soft_targets_top_k,
                         args.relation_weight, args.relation_heads)
    if args.objective == "relations":
        return RelationTargets(teacher, args.relation_heads)
    if args.objective == "logits":
        return LogitTargets(teacher, args.soft_targets_temperature)
    states, similarity = (1.0, args.similarity_weight) if args.objective == "states" else (0.0, 1.0)
    return StateTargets(teacher, states, similarity, args.state_distance, args.state_tokens,
                        (loaded.mapped, student.mapped))


def with_layers(args: argparse.Namespace, objective: Teaching, layers_num: int) -> LayerTargets:
    """The objective and the losses of the student's layers."""
    wrong = [str(number) for number in args.layer_numbers or () if not 0 <= number < layers_num]
    if wrong:
        raise UserError(f"--layer_numbers {shortened(wrong)}: the student's layers are 0 to {layers_num - 1}")
    theirs = objective.teacher.config.layers_num
    if theirs < layers_num:
        raise UserError(f"--layer_weight: the teacher has {theirs} layers and the student {layers_num}; it needs "
                        f"one at the height of each")
    return LayerTargets(objective, args.layer_weight, args.layer_signals, args.layer_numbers)


def describe(learner: Learner, place: Place, args: argparse.Namespace) -> str:
    """One line on what is about to run."""
    whole = learner.master.parameters.values() if isinstance(learner, WidLearner) else learner.student.parameters()
    parameters = sum(p.numel() for p in {id(p): p for p in whole}.values())
    student = sum(p.numel() for p in learner.student.parameters())
    trained = f"{parameters / 1e6:.1f} M parameters trained"
    if isinstance(learner, WidLearner):
        trained += f" (teacher and compactors) through a student of {student / 1e6:.1f} M"
    if isinstance(learner, ShardedLearner):
        mine = sum(p.numel() for _, p in learner.named_parameters())
        trained += f", {mine / 1e6:.1f} M of them by this process"
    return (f"{trained}; {args.total_steps:,} steps of {place.world_size} × {args.accumulation_steps} × "
            f"{args.batch_size} instances on {place.device}")
