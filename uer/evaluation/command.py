"""evaluate.py's work on sentence encoders and on what needs a teacher: --task sts, retrieval, agreement."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import torch

from uer.arguments import check_writable
from uer.config import load_config
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.evaluation.agreement import answers, compare, in_words
from uer.evaluation.ranking import Embed, retrieval, sts
from uer.evaluation.vectors import Embedder, own_length
from uer.files import read_lines
from uer.finetuning.batches import Instance, collate
from uer.formats import LoadedModel, load_model
from uer.formats.storage import write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import Tokenizer, agreed_rules, build


def evaluate_task(args: argparse.Namespace) -> dict[str, float]:
    """Load, embed, compare, print, write; returns the figures.

    Raises:
        UserError: a model, text or option that cannot be used.
    """
    if not args.test_path:
        raise UserError(f"--task {args.task} needs --test_path: " + {
            "sts": "a TSV of two texts and a score", "retrieval": "a folder in BEIR's layout",
            "agreement": "a file of text, one a line"}[args.task])
    if args.task == "agreement" and not args.teacher_path:
        raise UserError("--task agreement needs --teacher_path, the model to agree with")
    if args.output_path:
        check_writable(args.output_path)
    tokenizer = build(agreed_rules(args, *text_beside(args.model_path), say=print))
    student = _load(args.model_path, args.config_path, tokenizer, args.task)
    teacher = _load(args.teacher_path, None, tokenizer, args.task) if args.teacher_path else None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        figures = _agree(args, student, teacher, tokenizer, device) if args.task == "agreement" and teacher else \
            _embed(args, student, teacher, tokenizer, device)
    if args.output_path:
        write_via(args.output_path, lambda path: write_json(figures, path))
    return figures


def _load(path: str, config_path: str | None, tokenizer: Tokenizer, task: str) -> LoadedModel:
    loaded = load_model(path, config=load_config(config_path) if config_path else None,
                        vocab_size=len(tokenizer.vocab), target=None if task == "agreement" else "states")
    for note in loaded.notes:
        print(f"note: {note}")
    return loaded


def _embed(args: argparse.Namespace, student: LoadedModel, teacher: LoadedModel | None, tokenizer: Tokenizer,
           device: torch.device) -> dict[str, float]:
    def embedder(loaded: LoadedModel, mapped: bool, role: str | None) -> Embedder:
        return Embedder(loaded, tokenizer, device, mapped, args.seq_length, args.batch_size, role)

    clock = Clock()
    if args.task == "sts":
        own = embedder(student, args.keep_embedding_size, None)
        figures = sts(clock(own), args.test_path)
    else:
        own = embedder(student, args.keep_embedding_size, "document")
        figures = retrieval(clock(embedder(student, args.keep_embedding_size, "query")), clock(own), args.test_path,
                            student.sentence.similarity if student.sentence else None)
    figures["texts_per_second"] = clock.speed
    print(f"{args.model_path}: {own.parameters / 1e6:.1f} M parameters, {_told(figures)}")
    if teacher is not None and args.task == "retrieval":
        if teacher.config.outputs != student.config.outputs:
            raise UserError(f"--teacher_path {args.teacher_path}: {teacher.config.outputs} dimensions, the student "
                            f"maps into {student.config.outputs}")
        apart = retrieval(embedder(student, True, "query"), embedder(teacher, True, "document"), args.test_path,
                          teacher.sentence.similarity if teacher.sentence else None)
        print(f"student's queries, teacher's documents: {_told(apart)}")
        figures |= {f"asymmetric {name}": value for name, value in apart.items()}
    return figures


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:,.0f} texts/s" if name == "texts_per_second" else f"{name} {100 * value:.2f}"
                     for name, value in figures.items())


class Clock:
    """Embedders whose time is taken, together."""

    def __init__(self) -> None:
        self.texts, self.seconds = 0, 0.0

    def __call__(self, embed: Embedder) -> Embed:
        """The same, timed."""
        def timed(texts: Sequence[str]) -> torch.Tensor:
            begun = time.perf_counter()
            out = embed(texts)
            self.texts, self.seconds = self.texts + len(texts), self.seconds + time.perf_counter() - begun
            return out

        return timed

    @property
    def speed(self) -> float:
        """Texts a second."""
        return self.texts / self.seconds


def _agree(args: argparse.Namespace, student: LoadedModel, teacher: LoadedModel, tokenizer: Tokenizer,
           device: torch.device) -> dict[str, float]:
    if (student.config.target, student.config.outputs) != (teacher.config.target, teacher.config.outputs):
        raise UserError(f"--teacher_path {args.teacher_path}: target {teacher.config.target} with "
                        f"{teacher.config.outputs} outputs, the model has {student.config.target} with "
                        f"{student.config.outputs}")
    texts = [line for line in read_lines(args.test_path) if line.strip()]
    if not texts:
        raise UserError(f"--test_path {args.test_path}: no text in there")
    length = args.seq_length or min(own_length(teacher), own_length(student))
    embedders = [Embedder(loaded, tokenizer, device, seq_length=min(length, student.config.max_seq_length,
                                                                    teacher.config.max_seq_length),
                          batch_size=args.batch_size) for loaded in (teacher, student)]
    said, speeds = [], []
    for embedder in embedders:
        instances = embedder.instances(texts)
        begun = time.perf_counter()
        if student.config.target == "states":
            said.append(embedder.pooled(instances))
        else:
            said.append(answers(embedder.model, _batches(instances, args.batch_size, tokenizer), device))
        speeds.append(len(texts) / (time.perf_counter() - begun))
    figures = compare(embedders[0].model, embedders[1].model, *said)
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
