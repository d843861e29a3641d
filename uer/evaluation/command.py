"""evaluate.py's work on all but masked words: --task sts, retrieval, agreement, squad."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from uer.arguments import check_length, check_writable
from uer.config import load_config
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.evaluation.agreement import answers, compare, in_words, rightness
from uer.evaluation.ranking import Embed, retrieval, sts
from uer.evaluation.reading import answered, check_reader
from uer.evaluation.texts import read_texts, wanted
from uer.evaluation.vectors import Embedder, own_length
from uer.finetuning.batches import Instance, collate
from uer.finetuning.classify import LEAST
from uer.finetuning.squad_data import read_squad
from uer.formats import LoadedModel, load_model
from uer.formats.file_model import OF_ANSWERS
from uer.formats.file_target import outputs_apart
from uer.formats.storage import shortened, write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import TextRules, Tokenizer, agreed_rules, build, merged
from uer.training.precision import slow_products


def evaluate_task(args: argparse.Namespace) -> tuple[dict[str, float], bool]:
    """Load, embed, compare, print, write.

    Returns:
        the figures; whether text becomes the same ids for model and teacher, so that the one can teach the other.
    Raises:
        UserError: a model, text or option that cannot be used.
    """
    if not args.test_path:
        raise UserError(f"--task {args.task} needs --test_path: " + {
            "sts": "a table of two texts and a score", "retrieval": "a folder in BEIR's layout",
            "agreement": "a file of text, one a line", "squad": "questions in SQuAD's JSON"}[args.task])
    if args.task == "agreement" and not args.teacher_path:
        raise UserError("--task agreement needs --teacher_path, the model to agree with")
    if args.output_path:
        check_writable(args.output_path)
    beside = text_beside(args.model_path)
    if args.teacher_path and not args.vocab_path and not any(rules.vocab for rules in beside):
        beside += text_beside(args.teacher_path)  # a student's file alone says which vocabulary, and its teacher has it
    text = agreed_rules(args, *beside, say=print)
    theirs = _text_of_teacher(args, text)
    alike = theirs is text
    student = _read(args, args.model_path, args.config_path, tokenizer := build(text))
    teacher = None
    if args.teacher_path:
        teacher = _read(args, args.teacher_path, None, tokenizer if alike else build(theirs))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for warning in slow_products(torch.bfloat16 if args.bf16 else None, device, training=False):
        print(warning, flush=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        if args.task == "squad":
            figures = _answer(args, student, teacher, device)
        else:
            figures = _agree(args, student, teacher, device) if args.task == "agreement" and teacher else \
                _embed(args, student, teacher, device)
    if args.output_path:
        write_via(args.output_path, lambda path: write_json(figures, path))
    return figures, alike


class Reader(NamedTuple):
    """A model and how it reads."""

    loaded: LoadedModel
    tokenizer: Tokenizer


def _text_of_teacher(args: argparse.Namespace, text: TextRules) -> TextRules:
    """How the teacher reads: as the files beside it say; where they say the same, or have no vocabulary, `text`.
    `UserError` where they speak of another vocabulary, which is not there."""
    beside = text_beside(args.teacher_path) if args.teacher_path else []
    if not any(rules.vocab for rules in beside):
        merged([text, *beside], [])
        return text
    apart = argparse.Namespace(**{**vars(args), **dict.fromkeys(("tokenizer", "vocab_path", "merges_path",
                                                                 "spm_model_path"))})
    theirs = agreed_rules(apart, *beside)
    try:
        merged([text, theirs], [])
    except UserError:  # what two files say differs, but for their names
        print(f"the teacher's {theirs.line()}")
        return theirs
    return text


def _read(args: argparse.Namespace, path: str, config_path: str | None, tokenizer: Tokenizer) -> Reader:
    target = None if args.task in ("agreement", "squad") else "states"
    loaded = load_model(path, config=load_config(config_path) if config_path else None,
                        vocab_size=len(tokenizer.vocab), target=target)
    check_length(args.seq_length, loaded.config.max_seq_length, LEAST if args.task == "squad" else 3)
    for note in loaded.notes:
        print(f"note: {note}")
    return Reader(loaded, tokenizer)


def _embed(args: argparse.Namespace, student: Reader, teacher: Reader | None, device: torch.device) -> dict[str, float]:
    def embedder(reader: Reader, mapped: bool, role: str | None) -> Embedder:
        return Embedder(*reader, device, mapped, args.seq_length, args.batch_size, role)

    def similarity(reader: Reader) -> str | None:
        return reader.loaded.sentence.similarity if reader.loaded.sentence else None

    clock, mapped = Clock(args.batch_size), args.keep_embedding_size or student.loaded.mapped
    if args.task == "sts":
        own = embedder(student, mapped, None)
        figures = sts(clock(own), args.test_path)
    else:
        own = embedder(student, mapped, "document")
        figures = retrieval(clock(embedder(student, mapped, "query")), clock(own), args.test_path, similarity(student))
    figures["texts_per_second"] = clock.speed
    print(f"{args.model_path}: {own.parameters / 1e6:.1f} M parameters, {_told(figures)}")
    if teacher is not None and args.task == "sts":
        found = sts(embedder(teacher, teacher.loaded.mapped, None), args.test_path)
        print(f"{args.teacher_path}: {_told(found)}")
        figures |= {f"teacher's {name}": value for name, value in found.items()}
    if teacher is not None and args.task == "retrieval":
        theirs, ours = teacher.loaded.config.outputs, student.loaded.config.outputs
        if theirs != ours:
            raise UserError(f"--teacher_path {args.teacher_path}: {theirs} dimensions, the student maps into {ours}")
        apart = retrieval(embedder(student, True, "query"), embedder(teacher, True, "document"), args.test_path,
                          similarity(teacher))
        print(f"student's queries, teacher's documents: {_told(apart)}")
        figures |= {f"asymmetric {name}": value for name, value in apart.items()}
    return figures


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:,.0f} texts/s" if name == "texts_per_second" else f"{name} {100 * value:.2f}"
                     for name, value in figures.items())


class Clock:
    """Models whose time is taken, together: that of tokens' way through them, after a batch to warm up."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.texts, self.seconds = batch_size, 0, 0.0

    def time(self, run: Callable[[Sequence[Instance]], torch.Tensor], instances: Sequence[Instance]) -> torch.Tensor:
        """What `run` makes of the instances."""
        run(instances[:self.batch_size]).cpu()
        begun = time.perf_counter()
        out = run(instances)
        out.cpu()  # once a GPU is done with it
        self.texts, self.seconds = self.texts + len(instances), self.seconds + time.perf_counter() - begun
        return out

    def __call__(self, embed: Embedder) -> Embed:
        """The same, timed."""
        return lambda texts: self.time(embed.vectors, embed.instances(texts))

    @property
    def speed(self) -> float:
        return self.texts / self.seconds


def _answer(args: argparse.Namespace, student: Reader, teacher: Reader | None,
            device: torch.device) -> dict[str, float]:
    questions, figures = read_squad(args.test_path), dict[str, float]()
    given = {name: getattr(args, name, None) for name in OF_ANSWERS}
    readers = [("", args.model_path, student), *([("teacher's ", args.teacher_path, teacher)] if teacher else [])]
    for _, path, reader in readers:
        check_reader(*reader, path, questions, args.test_path)
    for whose, path, reader in readers:
        found, line = answered(*reader, questions, given, args.batch_size, device, print)
        figures |= {f"{whose}{name}": value for name, value in found.items()}
        print(f"{path}: {_told(found)}, {len(questions):,} questions{line}")
    return figures


def _agree(args: argparse.Namespace, reads: Reader, taught: Reader, device: torch.device) -> dict[str, float]:
    student, teacher = reads.loaded, taught.loaded
    if student.config.target == teacher.config.target == "mlm":
        raise UserError("--task agreement: these are models of masked words; --task mlm judges each of them")
    if apart := outputs_apart(teacher.config, student.config):
        raise UserError(f"--teacher_path {args.teacher_path}: {apart}")
    named = list(zip(teacher.config.labels, student.config.labels))
    if any(his != own for his, own in named):
        print(f"note: labels taken for the same: {shortened([' = '.join(pair) for pair in named])}")
    if student.config.target == "tokens" and reads.tokenizer is not taught.tokenizer:
        raise UserError(f"--teacher_path {args.teacher_path}: its text becomes other tokens than the model's, so that "
                        f"what they say of tokens cannot be compared")
    texts, labels, column = read_texts(args.test_path)
    length = args.seq_length or min(own_length(teacher), own_length(student))
    length = min(length, student.config.max_seq_length, teacher.config.max_seq_length)
    embedders = [Embedder(*reader, device, seq_length=length, batch_size=args.batch_size) for reader in (taught, reads)]
    said, speeds = [], []
    for embedder in embedders:
        def answered_by(instances: Sequence[Instance], of: Embedder = embedder) -> torch.Tensor:
            return answers(of.model, _batches(instances, args.batch_size, of.tokenizer), device)

        clock = Clock(args.batch_size)
        run = embedder.pooled if student.config.target == "states" else answered_by
        said.append(clock.time(run, embedder.instances(texts)))
        speeds.append(clock.speed)
    figures = compare(embedders[0].model, embedders[1].model, *said, mapped=(teacher.mapped, student.mapped))
    right, unused = None, "only a classifier predicts what stands there"
    if labels and student.config.target == "cls":
        try:
            right = wanted(args.test_path, labels, teacher.config.labels, teacher.config.outputs)
        except UserError as error:
            if column == "label":
                raise
            unused = str(error)  # GLUE's column, perhaps another model's
    if right is not None:
        name = "correlation with the labels" if teacher.config.outputs == 1 else "accuracy"
        figures |= {name: rightness(said[1], right), f"teacher's {name}": rightness(said[0], right)}
    elif labels:
        print(f"note: the labels are not used: {unused}")
    print(f"{args.model_path} against {args.teacher_path} on {len(texts):,} texts: {in_words(figures)}; "
          f"{speeds[1]:,.0f} against {speeds[0]:,.0f} texts/s")
    return {**figures, "texts_per_second": speeds[1], "teacher_texts_per_second": speeds[0]}


def _batches(instances: Sequence[Instance], size: int, tokenizer: Tokenizer) -> list[MlmBatch]:
    """Texts as they are, in their order."""
    out = []
    for start in range(0, len(instances), size):
        src, seg, _ = collate(instances[start:start + size], tokenizer.vocab.pad_id)
        none = torch.zeros(0, dtype=torch.long)
        out.append(MlmBatch(src, seg, none, none, int((seg > 0).sum()), masked=False))
    return out
