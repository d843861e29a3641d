"""calibrate.py's work: a student straight from a teacher and text, with what it lost."""

from __future__ import annotations

import argparse
import shlex
import tempfile
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from uer.arguments import SHAPE, check_length, check_writable, refuse_overwriting, typed_again
from uer.calibration.calibrate import Calibration
from uer.calibration.compactors_file import made_for, save_compactors
from uer.calibration.depth import layers_to_keep
from uer.calibration.reducer import Reducer, groups_of, shape_of
from uer.calibration.student import INSTANCES, calibration_batches
from uer.config import ModelConfig, load_config
from uer.conversion.outputs import Source, check_kept_size, check_outputs, output_paths, write_outputs, written_by
from uer.conversion.vocabulary import reduce_words
from uer.data.builder import build_dataset
from uer.data.dataset import Dataset
from uer.data.loader import MlmBatch, MlmLoader
from uer.data.options import PROCESSORS, masking_options, preprocess_parser
from uer.data.sources import expand, total_bytes
from uer.errors import UserError
from uer.evaluation.agreement import agreement, in_words
from uer.files import config_path_for
from uer.formats import LoadedModel, load_model
from uer.formats.export import check_head
from uer.formats.model_card import CardFacts
from uer.formats.shapes import WORDS, parameter_count, table_sizes
from uer.formats.storage import write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.layer_sizes import LayerWish, layers_in_words, read_layer_sizes, refuse_uneven
from uer.models.bert import Bert, from_weights
from uer.opts import calibrate_parser
from uer.parallel.collectives import Place
from uer.planning.spending import Spending
from uer.squeeze.groups import build_groups, student_config
from uer.tokenizers import TextRules, Tokenizer, agreed_rules, build
from uer.training.objective import evaluate

EVALUATION_BATCHES = 64  # of INSTANCES, where no --dev_path is given
WISHES = ("target_dim", "target_feedforward_size", "target_heads", "layer_sizes", "target_layers", "keep_layers",
          "uneven", "tie_student", "target_vocab")


@dataclass
class Material:
    """Teacher and text, as the options name them.

    Attributes:
        loaded: the teacher, with the words that stay.
        batches: to calibrate on.
        held_out: to compare on, and `where` they are from, in words; none where nothing is to be compared.
    """

    loaded: LoadedModel
    text: TextRules
    place: Place
    batches: list[MlmBatch] = field(default_factory=list)
    held_out: list[MlmBatch] = field(default_factory=list)
    where: str = ""


class Made(NamedTuple):
    """A student that has been written.

    Attributes:
        paths: of each format.
        target: of the model, as in `ModelConfig`.
        figures: (what, figures) of the comparison, in words.
    """

    paths: dict[str, Path]
    target: str
    figures: list[tuple[str, str]]


def make_student(args: argparse.Namespace, command: str) -> Made:
    """Calibrate, compare teacher and student on held-out text unless that is not wanted, write the student."""
    check_wish(args)
    paths = output_paths(args.output_model_path, args.output_format or ["uer"])
    sizes = config_path_for(paths["uer"]) if "uer" in paths else \
        Path(f"{args.output_model_path.removesuffix('.onnx')}_layer_sizes.json")  # where --uneven leaves them
    refuse_overwriting(args, {"output_model_path": [*written_by(paths, bool(args.target_vocab)), sizes],
                              "compactors_path": [args.compactors_path]})
    for path in (args.compactors_path, str(sizes) if args.uneven else None):
        if path:
            check_writable(path)
    material = gather(args, paths)
    loaded, place = material.loaded, material.place
    spending = None
    if args.uneven:
        seq = (material.held_out or material.batches)[0].src.shape[1]  # tokens of a text, as --sweep counts them
        spending = Spending(args, loaded.config, table_sizes(loaded.weights), seq)
    wished = spending.student if spending else wished_student(args, loaded.config)
    if spending is not None:
        for name in paths:
            spending.check_format(name)
    with closing(Reducer(loaded.config, loaded.weights, loaded.extras, material.batches, args.tie_student)) as reducer:
        if spending is not None:
            wished = spending.spend(reducer, args.keep_layers)
        if args.compactors_path and shape_of(wished) == shape_of(loaded.config) and not wished.uneven_layers:
            raise UserError("--compactors_path: no dimension leaves, so there are no compactors")
        student = reducer.student(shape_of(wished), args.keep_layers, wished.uneven_layers)
    if args.compactors_path and student.calibration is not None:
        whom = made_for(loaded.config, loaded.weights, material.text.to_dict(), args.compactor_mask_strategy,
                        groups_of(loaded.config, shape_of(wished), wished.uneven_layers))
        save_compactors(args.compactors_path, student.calibration, loaded.weights[WORDS].dtype, whom)
        print(f"written: {args.compactors_path}")
    models = {"teacher": (loaded.config, loaded.weights), "student": (student.config, student.weights)}
    judged = Judged([], [])
    if material.held_out:
        judged = judge(models, material.held_out, material.where, place, loaded.mapped)
    explanation = explained(student.calibration) if student.calibration else []
    for line in [*explanation, *judged.lines, ""]:
        print(line)
    facts = CardFacts(
        name=Path(args.output_model_path).stem, source=str(args.pretrained_model_path),
        how="Closed-form (calibrated) compactors from a few batches of teacher activations, merged; no training.",
        parameters=parameter_count(student.weights), command=command, teacher=loaded.config,
        figures=judged.figures)
    for line in write_outputs(Source(student.config, student.weights, facts, student.extras, material.text,
                                     sentence=loaded.sentence, keep_embedding_size=args.keep_embedding_size,
                                     new_words=bool(args.target_vocab), reading=loaded.reading), paths):
        print(f"written: {line}")
    if spending is not None:
        if "uer" not in paths:
            layers = [LayerWish(layer.heads, layer.feedforward).to_dict() for layer in student.config.layers]
            write_via(sizes, lambda path: write_json(layers, path))
            print(f"written: {sizes}")
        again = repeated(args, student.config, sizes)
        print(f"layers: {layers_in_words(student.config)}; the same shape again: {shlex.join(again)}")
    return Made(paths, student.config.target, judged.figures)


def repeated(args: argparse.Namespace, student: ModelConfig, path: Path) -> list[str]:
    """The options that give a student the same shape without a search; `args` is what they would make of it.
    `path`: a file for --layer_sizes."""
    args.target_dim, args.target_heads, args.uneven, args.budget = student.hidden_size, student.heads_num, False, None
    args.layer_sizes = str(path)
    return typed_again(calibrate_parser(), args, SHAPE)


def check_wish(args: argparse.Namespace) -> None:
    """`UserError` for what can be known to be wrong before any work."""
    wishes = wishes_of(args)
    if all(wish is None for wish in wishes):
        raise UserError("what is the student to be? --target_dim, --target_layers or --target_vocab say it", "shape")
    check_text(args)
    if not args.output_model_path:
        raise UserError("--output_model_path is needed, where the student goes")
    if args.uneven and (args.layer_sizes or args.target_feedforward_size):
        raise UserError("--uneven finds the sizes of layers itself; leave --layer_sizes and --target_feedforward_size "
                        "out", page="shape")
    if args.layer_sizes and args.target_feedforward_size:
        raise UserError("--target_feedforward_size is of layers that are alike; --layer_sizes says it of each: leave "
                        "one of them out")
    read_layer_sizes(args.layer_sizes)
    check_kept_size(args.keep_embedding_size, args.output_format or ["uer"])
    if args.target_vocab and args.dataset_path and any(wish is not None for wish in wishes[:-1]):
        raise UserError("--target_vocab: after it, text is read anew with the words that stay; give it as "
                        "--corpus_path, or let --target_vocab be all that --dataset_path is for")
    if args.compactors_path and args.tie_student:
        raise UserError("--compactors_path: compactors cannot hold the one table of --tie_student; leave it out")
    if args.compactors_path and (args.target_layers or args.keep_layers or args.target_vocab):
        raise UserError("--compactors_path: compactors belong to a teacher that is there as a file; let layers and "
                        "words leave first, in a call of their own, and take what that writes as the teacher")


def wishes_of(args: argparse.Namespace) -> tuple[Any, ...]:
    """What the student is to be, as the options say; words last."""
    return tuple(None if getattr(args, name) is False else getattr(args, name) for name in WISHES)


def check_text(args: argparse.Namespace) -> None:
    """`UserError` where the options that name text do not go together."""
    if bool(args.corpus_path) == bool(args.dataset_path):
        raise UserError("give the text either as --corpus_path or, preprocessed, as --dataset_path")
    if args.dev_path and args.skip_evaluation:
        raise UserError("--dev_path is text to evaluate on, and --skip_evaluation leaves that out; give one of them")
    if args.calibration_batches is not None and args.calibration_batches < 1:
        raise UserError(f"--calibration_batches is {args.calibration_batches}, at least 1 is needed")
    idle = [f"--{name}" for name in ("full_sentences", "seq_length", "text_field") if getattr(args, name) is not None]
    if args.dataset_path and idle:
        raise UserError(f"{', '.join(idle)}: how text becomes instances; those of --dataset_path are made already")
    if args.corpus_path and (args.target_vocab or "").isdecimal() and total_bytes(expand(args.corpus_path)) is None:
        raise UserError(f"--target_vocab {args.target_vocab}: text is read twice, to count its words and with those "
                        f"that stay, and standard input or a pipe only once; give --corpus_path a file")
    if args.target_vocab and not (args.target_vocab.isdecimal() or Path(args.target_vocab).exists()):
        raise UserError(f"--target_vocab {args.target_vocab}: no such file, and no whole number of words")
    if args.target_vocab and args.dev_path:
        raise UserError("--dev_path has words that may leave with --target_vocab; without it, other parts of the text "
                        "are compared on")


def wished_student(args: argparse.Namespace, config: ModelConfig) -> ModelConfig:
    """The student's config as the options say; what they do not say is the teacher's, or in proportion.
    `UserError` where it cannot be had."""
    if args.target_vocab and all(wish is None for wish in wishes_of(args)[:-1]):
        return config
    layers = layers_to_keep(config.layers_num, args.target_layers, args.keep_layers)
    config = replace(config, layers_num=layers)
    return student_config(config, build_groups(
        config, config.hidden_size if args.target_dim is None else args.target_dim, args.compactor_mask_strategy,
        target_feedforward_size=args.target_feedforward_size, target_heads=args.target_heads,
        layers=read_layer_sizes(args.layer_sizes)))


def check_student(args: argparse.Namespace, paths: Mapping[str, Path], config: ModelConfig) -> None:
    """`UserError` where a teacher of this config has no such student, or a format no place for it."""
    check_kept_size(args.keep_embedding_size, paths, config.target)
    wished = config if args.uneven else wished_student(args, config)
    for name in paths:
        refuse_uneven(wished, name, config.feedforward_size)
        check_head(wished, name)


def gather(args: argparse.Namespace, paths: Mapping[str, Path] | None = None) -> Material:
    """Open and load everything.
    `paths`: of the student's formats; what cannot be written there is refused before any long work."""
    given = {option: Dataset.open(getattr(args, option), f"--{option}") for option in ("dataset_path", "dev_path")
             if getattr(args, option)}
    text = agreed_rules(args, *(dataset.rules for dataset in given.values()), *text_beside(args.pretrained_model_path),
                        *(text_beside(args.student_path) if args.student_path else []), say=print)
    tokenizer = build(text) if args.corpus_path else None
    if paths is not None:
        check_outputs(paths, text)
    config = load_config(args.config_path) if args.config_path else None
    loaded = load_model(args.pretrained_model_path, config=config, vocab_size=text.vocab_size,
                        allow_missing_head=args.allow_missing_head, seed=args.seed, target=None)
    if paths is not None:
        check_student(args, paths, loaded.config)
    for note in loaded.notes:
        print(note)
    place = Place(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    with tempfile.TemporaryDirectory() as folder:
        if args.target_vocab:
            counted = given.get("dataset_path")
            if tokenizer is not None and args.target_vocab.isdecimal():
                counted = _dataset(args, tokenizer, Path(folder), loaded.config)
            text = reduce_words(loaded, text, args.target_vocab, counted, print)
            tokenizer = build(text) if args.corpus_path else None
        loaded.weights = {name: tensor.to(place.device) for name, tensor in loaded.weights.items()}
        material = Material(loaded, text, place)
        if args.target_vocab and tokenizer is None:
            return material
        dataset = given["dataset_path"] if tokenizer is None else \
            _dataset(args, tokenizer, Path(folder), loaded.config)
        dataset.check_positions(loaded.config.max_seq_length)
        dataset.check_processor(args.processor, "--data_processor says")
        dataset.check_reading(loaded.reading, print, " ".join(args.corpus_path or ()))
        material.batches = calibration_batches(dataset, args.calibration_batches, args.seed, place,
                                               masking_options(args), loaded.config.target)
        if not args.skip_evaluation and not loaded.head_made:  # a head that has learnt nothing tells nothing
            material.held_out, material.where = _held_out(args, dataset, given.get("dev_path"), loaded.config,
                                                          len(material.batches))
            if args.target_vocab:
                material.where += ", in the words that stay (the teacher reads these as well)"
    return material


def _dataset(args: argparse.Namespace, tokenizer: Tokenizer, folder: Path, config: ModelConfig) -> Dataset:
    path = folder / f"{len(tokenizer.vocab)}.pt"
    check_length(args.seq_length, config.max_seq_length)
    length = 128 if args.seq_length is None else args.seq_length
    words = ["--corpus_path", *args.corpus_path, "--dataset_path", str(path), "--dynamic_masking",
             "--seq_length", str(min(length, config.max_seq_length)),
             *(["--text_field", *args.text_field] if args.text_field else []),
             *(["--data_processor", args.processor] if args.processor in PROCESSORS else [])]
    joined = config.target == "mlm" and args.processor != "pairs"
    if args.full_sentences == "true" or (args.full_sentences is None and joined):
        words.append("--full_sentences")
    build_dataset(preprocess_parser().parse_args(words), tokenizer)
    return Dataset.open([str(path)])


def _held_out(args: argparse.Namespace, dataset: Dataset, dev: Dataset | None, config: ModelConfig,
              first: int) -> tuple[list[MlmBatch], str]:
    """Batches to evaluate on: --dev_path, or batches of the epoch after the `first` ones, which calibration used."""
    masked = config.target == "mlm"
    if dev is not None:
        dev.check_positions(config.max_seq_length)
        dev.check_processor(dataset.header["data_processor"], "the text to calibrate on is of")
        return list(MlmLoader(dev, INSTANCES, seed=args.seed, masked=masked).sequential()), "held-out text"
    loader = MlmLoader(dataset, INSTANCES, seed=args.seed, prefetch=0, group_by_length=False, masked=masked)
    last = min(loader.batches_per_epoch, first + EVALUATION_BATCHES)
    if first < last:
        return [loader.batch(i) for i in range(first, last)], "other text of the corpus"
    return [loader.batch(i) for i in range(min(last, EVALUATION_BATCHES))], \
        "the calibration text itself (nothing else left)"


def explained(calibration: Calibration) -> list[str]:
    return ["", f"{'part':<40} explained",
            *(f"{part:<40} {100 * share:8.1f} %" for part, share in calibration.explained)]


def figures_of(model: Bert, teacher: Bert, batches: list[MlmBatch], device: torch.device,
               mapped: bool) -> dict[str, float]:
    """Loss and accuracy of a model; without MLM head, its agreement with the teacher (`mapped`: as there)."""
    if model.config.target != "mlm":
        return agreement(teacher, model, batches, device, mapped)
    found = evaluate(model, batches, device)
    return {"loss": found.loss, "accuracy": found.accuracy}


class Judged(NamedTuple):
    """What teacher and student are found to be: lines to print, figures for the model card."""

    lines: list[str]
    figures: list[tuple[str, str]]


def judge(models: dict[str, tuple[ModelConfig, dict[str, torch.Tensor]]], batches: list[MlmBatch], where: str,
          place: Place, mapped: bool = False) -> Judged:
    """Teacher and student side by side: masked language modelling, or what both make of text without labels.
    `mapped`: as for `agreement`."""
    sizes = {who: parameter_count(weights) for who, (_, weights) in models.items()}
    if models["teacher"][0].target != "mlm":
        teacher, student = (from_weights(*model).to(place.device) for model in models.values())
        found = agreement(teacher, student, batches, place.device, mapped)
        figures = in_words(found)
        return Judged(["", *(f"{who:<10} {size / 1e6:8.1f} M parameters" for who, size in sizes.items()),
                       f"the student against its teacher, on {where}: {figures}"],
                      [(f"agreement with the teacher on {where}", figures)])
    results = {who: evaluate(from_weights(*model), batches, place.device) for who, model in models.items()}
    lines = ["", f"on {where}, {results['teacher'].predicted:,} predictions:", f"{'':<10} parameters   loss  accuracy"]
    lines += [f"{who:<10} {sizes[who] / 1e6:8.1f} M {result.loss:6.3f} {100 * result.accuracy:7.1f} %"
              for who, result in results.items()]
    return Judged(lines, [(f"{who}, MLM on {where}", f"loss {result.loss:.3f}, accuracy {100 * result.accuracy:.1f} %")
                          for who, result in results.items()])
