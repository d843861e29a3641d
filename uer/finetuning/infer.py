"""run_classifier_infer.py's work: texts in, labels out."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from uer.arguments import check_length, check_writable, refuse_overwriting, too_small
from uer.errors import UserError
from uer.files import as_written
from uer.finetuning.batches import encode
from uer.finetuning.classify import LEAST, predict
from uer.finetuning.heads import load_classifier, read_card
from uer.finetuning.tasks import Task, read_uer, texts_of
from uer.formats.file_model import reading_of
from uer.formats.file_target import MULTI_LABEL
from uer.formats.storage import write_via
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import build_tokenizer
from uer.training.precision import slow_products

SEQ_LENGTH = 128  # of a model that does not say its own


def infer(args: argparse.Namespace, given: set[str]) -> int:
    """Classify every line of --test_path; returns how many there were.
    `UserError` for a model, vocabulary or file that cannot be used."""
    if problems := too_small(args, ("batch_size",)):
        raise UserError(problems[0])
    refuse_overwriting(args, {"prediction_path": [args.prediction_path]})
    check_writable(args.prediction_path)
    args.load_model_path = str(as_written(args.load_model_path))
    card = read_card(args.load_model_path)
    tokenizer = build_tokenizer(args, *text_beside(args.load_model_path), say=print)
    model = load_classifier(args.load_model_path, card, args.config_path, args.labels_num, args.pooling,
                            len(tokenizer.vocab))
    outputs = model.config.outputs
    labels = tuple(card.get("labels") or map(str, range(outputs)))  # a file need not name them
    if len(labels) != outputs:
        raise UserError(f"{args.load_model_path}.json: {len(labels)} labels for a model of {outputs}")
    if outputs == 1 and args.output_prob:
        raise UserError("--output_prob: the model gives a score, of which there is no probability; leave it out")
    if broken := [name for name in labels if set(name) & set("\t\r\n")]:
        raise UserError(f"{args.load_model_path}.json: label {broken[0]!r} has a tab or a line's end in it, which the "
                        f"file of predictions cannot hold; give it another name there")
    task = Task("", labels if outputs > 1 else (), texts_of(args.test_path, card.get("pairs")))  # one is a score
    positions = model.sizes.positions
    usual = min(card.get("seq_length", SEQ_LENGTH), positions)
    seq_length = usual if args.seq_length is None else args.seq_length
    check_length(seq_length, positions, LEAST)
    reading = reading_of(card)
    instances = encode(read_uer(task, args.test_path, labelled=False), tokenizer, seq_length, reading.get("separators"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for warning in slow_products(torch.bfloat16 if args.bf16 else None, device, training=False):
        print(warning, flush=True)
    model.to(device).eval()
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        logits = predict(model, instances, tokenizer.vocab.pad_id, device, args.batch_size)
    several = reading.get("of_logits", {}).get("problem_type") == MULTI_LABEL
    text = "".join(lines(task, logits, args.output_logits, args.output_prob, several))
    write_via(args.prediction_path, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"written: {args.prediction_path}, {len(instances):,} predictions")
    return len(instances)


def lines(task: Task, logits: np.ndarray, with_logits: bool, with_prob: bool, several: bool = False) -> Iterator[str]:
    """UER's file: a header, then the label (or score) and what was asked for, numbers separated by spaces.

    `several`: labels may hold together: those with at least half, separated by commas, as CSV quotes them.
    """
    highest = np.maximum(logits, 0) if several else logits.max(1, keepdims=True)  # of the label and of 0
    shifted = np.exp(logits - highest)
    whole = shifted + np.exp(-highest) if several else shifted.sum(1, keepdims=True)
    columns = [("logits", logits)] * with_logits + [("prob", shifted / whole)] * with_prob
    yield "\t".join(["label", *(name for name, _ in columns)]) + "\n"
    for row in range(len(logits)):
        if several:
            label = ",".join(map(_quoted, (name for name, logit in zip(task.labels, logits[row]) if logit >= 0)))
        else:
            label = f"{logits[row, 0]:.4f}" if task.regression else task.labels[logits[row].argmax()]
        yield "\t".join([label, *(" ".join(f"{x:.6g}" for x in values[row]) for _, values in columns)]) + "\n"


def _quoted(name: str) -> str:
    """A field of CSV."""
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name
