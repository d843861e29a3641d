"""evaluate.py's work on sentence encoders and on what needs a teacher: --task sts, retrieval, agreement."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from uer.arguments import check_writable
from uer.config import load_config
from uer.data.loader import MlmBatch
from uer.errors import UserError
from uer.evaluation.agreement import answers, compare, in_words
from uer.evaluation.ranking import retrieval, sts
from uer.evaluation.vectors import Embedder
from uer.files import read_text
from uer.finetuning.batches import collate, encode
from uer.finetuning.tasks import Example
from uer.formats import LoadedModel, load_model
from uer.formats.storage import write_json, write_via
from uer.formats.tokenizer_files import text_beside
from uer.models.bert import from_weights
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
    own = Embedder(student, tokenizer, device, args.keep_embedding_size, args.seq_length, args.batch_size)
    clock = Clock(own)
    if args.task == "sts":
        figures = sts(clock, args.test_path)
    else:
        figures = retrieval(clock, clock, args.test_path)
    figures["texts_per_second"] = clock.speed
    print(f"{args.model_path}: {own.parameters / 1e6:.1f} M parameters, {_told(figures)}")
    if teacher is not None and args.task == "retrieval":
        if teacher.config.outputs != student.config.outputs:
            raise UserError(f"--teacher_path {args.teacher_path}: {teacher.config.outputs} dimensions, the student "
                            f"maps into {student.config.outputs}")
        into = Embedder(student, tokenizer, device, True, args.seq_length, args.batch_size)
        theirs = Embedder(teacher, tokenizer, device, True, args.seq_length, args.batch_size)
        apart = retrieval(into, theirs, args.test_path)
        print(f"student's queries, teacher's documents: {_told(apart)}")
        figures |= {f"asymmetric {name}": value for name, value in apart.items()}
    return figures


def _told(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:,.0f} texts/s" if name == "texts_per_second" else f"{name} {100 * value:.2f}"
                     for name, value in figures.items())


class Clock:
    """An embedder whose time is taken."""

    def __init__(self, embed: Embedder):
        self.embed, self.texts, self.seconds = embed, 0, 0.0

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        begun = time.perf_counter()
        out = self.embed(texts)
        self.texts, self.seconds = self.texts + len(texts), self.seconds + time.perf_counter() - begun
        return out

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
    texts = [line for line in read_text(Path(args.test_path)).splitlines() if line.strip()]
    if not texts:
        raise UserError(f"--test_path {args.test_path}: no text in there")
    length = min(args.seq_length or 128, student.config.max_seq_length, teacher.config.max_seq_length)
    instances = encode([Example(text, None, None) for text in texts], tokenizer, length)
    batches = []
    for start in range(0, len(instances), args.batch_size):
        src, seg, _ = collate(instances[start:start + args.batch_size], tokenizer.vocab.pad_id)
        none = torch.zeros(0, dtype=torch.long)
        batches.append(MlmBatch(src, seg, none, none, int((seg > 0).sum()), masked=False))
    models = [from_weights(loaded.config, loaded.weights).to(device) for loaded in (teacher, student)]
    said, speeds = [], []
    for model in models:
        begun = time.perf_counter()
        said.append(answers(model, batches, device).cpu())
        speeds.append(len(texts) / (time.perf_counter() - begun))
    figures = compare(models[0], models[1], *(rows.to(device) for rows in said))
    print(f"{args.model_path} against {args.teacher_path} on {len(texts):,} texts: {in_words(figures)}; "
          f"{speeds[1]:,.0f} against {speeds[0]:,.0f} texts/s")
    return {**figures, "texts_per_second": speeds[1], "teacher_texts_per_second": speeds[0]}
