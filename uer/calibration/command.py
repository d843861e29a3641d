"""calibrate.py's work: a student straight from a teacher and text, with what it lost."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import torch

from uer.arguments import check_writable, refuse_overwriting
from uer.calibration.calibrate import Calibration
from uer.calibration.compactors_file import made_for, save_compactors
from uer.calibration.pooler import last_gamma, shift_pooler, squeeze_pooler, take_pooler
from uer.calibration.student import INSTANCES, apply_calibration, calibrate, calibration_batches, token_warning
from uer.config import ModelConfig, load_config
from uer.conversion.outputs import Source, check_outputs, output_paths, write_outputs, written_by
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch, MlmLoader
from uer.data.options import masking_options, preprocess_parser
from uer.errors import UserError
from uer.evaluation.agreement import agreement, in_words
from uer.formats import load_model
from uer.formats.model_card import CardFacts
from uer.formats.shapes import WORDS
from uer.formats.tokenizer_files import text_beside
from uer.models.bert import from_weights
from uer.parallel.collectives import Place
from uer.squeeze.fold import fold
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master
from uer.squeeze.wiring import state_columns
from uer.tokenizers import Tokenizer, agreed_rules, build
from uer.training.objective import evaluate

EVALUATION_BATCHES = 64  # of INSTANCES, where no --dev_path is given


def make_student(args: argparse.Namespace, command: str) -> list[tuple[str, str]]:
    """Calibrate, compare teacher and student on held-out text unless that is not wanted, write the student.

    Returns:
        (what, figures) of the comparison, in words.
    """
    if bool(args.corpus_path) == bool(args.dataset_path):
        raise UserError("give the text either as --corpus_path or, preprocessed, as --dataset_path")
    if args.dev_path and args.skip_evaluation:
        raise UserError("--dev_path is text to evaluate on, and --skip_evaluation leaves that out; give one of them")
    if args.calibration_batches is not None and args.calibration_batches < 1:
        raise UserError(f"--calibration_batches is {args.calibration_batches}, at least 1 is needed")
    if args.keep_embedding_size and "huggingface" not in args.output_format:
        raise UserError("--keep_embedding_size goes with --output_format huggingface")
    if args.dataset_path and args.full_sentences:
        raise UserError("--full_sentences says how text becomes instances; those of --dataset_path are made already")
    paths = output_paths(args.output_model_path, args.output_format)
    refuse_overwriting(args, {"output_model_path": written_by(paths), "compactors_path": [args.compactors_path]})
    if args.compactors_path:
        check_writable(args.compactors_path)
    given = {option: Dataset.open(getattr(args, option), f"--{option}") for option in ("dataset_path", "dev_path")
             if getattr(args, option)}
    text = agreed_rules(args, *(dataset.rules for dataset in given.values()), *text_beside(args.pretrained_model_path),
                        say=print)
    tokenizer = build(text) if args.corpus_path else None
    check_outputs(paths, text)
    config = load_config(args.config_path) if args.config_path else None
    loaded = load_model(args.pretrained_model_path, config=config, vocab_size=text.vocab_size,
                        allow_missing_head=args.allow_missing_head, seed=args.seed, target=None)
    for note in loaded.notes:
        print(note)
    groups = build_groups(loaded.config, args.target_dim, args.compactor_mask_strategy,
                          target_feedforward_size=args.target_feedforward_size)
    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    weights = {name: tensor.to(place.device) for name, tensor in loaded.weights.items()}
    with tempfile.TemporaryDirectory() as folder:
        dataset = given["dataset_path"] if tokenizer is None else \
            _dataset(args, tokenizer, Path(folder), loaded.config)
        dataset.check_positions(loaded.config.max_seq_length)
        evaluating = not args.skip_evaluation
        batches = calibration_batches(dataset, args.calibration_batches, args.seed, place, masking_options(args),
                                      loaded.config.target)
        dev = given.get("dev_path")
        held_out, where = _held_out(args, dataset, dev, loaded.config, len(batches)) if evaluating else ([], "")
        begun = time.perf_counter()
        calibration = calibrate(loaded.config, weights, groups, batches)
        print(f"calibrated on {calibration.tokens:,} tokens in {time.perf_counter() - begun:.0f} s")
        warning = token_warning(calibration, loaded.config)
        if warning:
            print(warning)
        if args.compactors_path:
            whom = made_for(loaded.config, loaded.weights, text.to_dict(), args.compactor_mask_strategy, groups)
            save_compactors(args.compactors_path, calibration, loaded.weights[WORDS].dtype, whom)
            print(f"written: {args.compactors_path}")
        calibrated = apply_calibration(calibration, weights, groups)
        reduced, student = fold(Master(loaded.config, calibrated, groups))
        pooler = squeeze_pooler(shift_pooler(take_pooler(loaded.extras), calibration.offset),
                                calibrated[state_columns(loaded.config.target)],
                                student[last_gamma(loaded.config.layers_num)])
        models = {"teacher": (loaded.config, weights), "student": (reduced, student)}
        judged = _judge(models, held_out, where, place) if evaluating else Judged([], [])
    for line in [*explained(calibration), *judged.lines, ""]:
        print(line)
    facts = CardFacts(
        name=Path(args.output_model_path).stem, source=str(args.pretrained_model_path),
        how="Closed-form (calibrated) compactors from a few batches of teacher activations, merged; no training.",
        parameters=sum(tensor.numel() for tensor in student.values()), command=command, teacher=loaded.config,
        figures=judged.figures)
    for line in write_outputs(Source(reduced, student, facts, pooler, text, sentence=loaded.sentence,
                                     keep_embedding_size=args.keep_embedding_size), paths):
        print(f"written: {line}")
    return judged.figures


def _dataset(args: argparse.Namespace, tokenizer: Tokenizer, folder: Path, config: ModelConfig) -> Dataset:
    """A dataset made of the corpus."""
    path = folder / "dataset.pt"
    words = ["--corpus_path", *args.corpus_path, "--dataset_path", str(path), "--dynamic_masking",
             "--seq_length", str(min(args.seq_length, config.max_seq_length)),
             *(["--text_field", args.text_field] if args.text_field else [])]
    if args.full_sentences == "true" or (args.full_sentences is None and config.target == "mlm"):
        words.append("--full_sentences")
    build_dataset(preprocess_parser().parse_args(words), tokenizer)
    return Dataset.open([str(path)])


def _held_out(args: argparse.Namespace, dataset: Dataset, dev: Dataset | None, config: ModelConfig,
              first: int) -> tuple[list[MlmBatch], str]:
    """Batches to evaluate on: --dev_path, or batches of the epoch after the `first` ones, which calibration used."""
    masked = config.target == "mlm"
    if dev is not None:
        dev.check_positions(config.max_seq_length)
        return list(MlmLoader(dev, INSTANCES, seed=args.seed, masked=masked).sequential()), "held-out text"
    loader = MlmLoader(dataset, INSTANCES, seed=args.seed, prefetch=0, group_by_length=False, masked=masked)
    last = min(loader.batches_per_epoch, first + EVALUATION_BATCHES)
    if first < last:
        return [loader.batch(i) for i in range(first, last)], "other text of the corpus"
    return [loader.batch(i) for i in range(loader.batches_per_epoch)], "the calibration text itself (nothing else left)"


def explained(calibration: Calibration) -> list[str]:
    """Lines: explained variance part by part."""
    return ["", f"{'part':<40} explained",
            *(f"{part:<40} {100 * share:8.1f} %" for part, share in calibration.explained)]


class Judged(NamedTuple):
    """What teacher and student are found to be: lines to print, figures for the model card."""

    lines: list[str]
    figures: list[tuple[str, str]]


def _judge(models: dict[str, tuple[ModelConfig, dict[str, torch.Tensor]]], batches: list[MlmBatch], where: str,
           place: Place) -> Judged:
    """Teacher and student side by side: masked language modelling, or what both make of text without labels."""
    sizes = {who: sum(tensor.numel() for tensor in weights.values()) for who, (_, weights) in models.items()}
    if models["teacher"][0].target != "mlm":
        teacher, student = (from_weights(*model).to(place.device) for model in models.values())
        found = agreement(teacher, student, batches, place.device)
        figures = in_words(found)
        return Judged(["", *(f"{who:<10} {size / 1e6:8.1f} M parameters" for who, size in sizes.items()),
                       f"the student against its teacher, on {where}: {figures}"],
                      [(f"agreement with the teacher on {where}", figures)])
    results = {who: evaluate(from_weights(*model), batches, place.device) for who, model in models.items()}
    lines = ["", f"on {where}, {results['teacher'].predicted:,} predictions:",
             f"{'':<10} parameters   loss  accuracy"]
    lines += [f"{who:<10} {sizes[who] / 1e6:8.1f} M {result.loss:6.3f} {100 * result.accuracy:7.1f} %"
              for who, result in results.items()]
    return Judged(lines, [(f"{who}, MLM on {where}", f"loss {result.loss:.3f}, accuracy {100 * result.accuracy:.1f} %")
                          for who, result in results.items()])
