"""evaluate.py --task squad: what a reader answers to SQuAD's questions."""

from __future__ import annotations

import argparse

import torch

from uer.errors import UserError
from uer.finetuning.options import squad_parser
from uer.finetuning.squad import Reading, longest_question
from uer.finetuning.squad_data import Question
from uer.formats import LoadedModel
from uer.formats.file_model import THRESHOLD
from uer.models.bert import from_weights
from uer.tokenizers import Tokenizer
from uer.tokenizers.bert import BertTokenizer

SETTINGS = ("seq_length", "max_query_length", "doc_stride", "n_best_size", "max_answer_length")  # of run_squad.py


def check_reader(loaded: LoadedModel, tokenizer: Tokenizer, path: str) -> None:
    """`UserError` for a model that is no reader, or whose tokens are not told from characters; `path` names it."""
    if not loaded.config.reader:
        raise UserError(f"--task squad: {path} is no reader; finetune/run_squad.py makes one")
    if not isinstance(tokenizer, BertTokenizer):
        raise UserError(f"--task squad: {path} has the tokenizer {tokenizer.rules.kind}; only bert can tell which "
                        f"characters its tokens stand for")


def answered(loaded: LoadedModel, tokenizer: Tokenizer, questions: list[Question], seq_length: int | None,
             batch_size: int, device: torch.device) -> tuple[dict[str, float], str]:
    """Exact match and F1, from 0 to 1, of a reader's answers, and a word on answers that are none, "" where all are.

    Where some questions have no answer, nor does the reader where none is ahead by more than a threshold: its own, as
    far as it says, or the one that is best for these.

    Args:
        seq_length: of the windows; None: the reader's own, as far as it says.
    """
    assert isinstance(tokenizer, BertTokenizer)  # as `check_reader` found
    usual = {name: squad_parser().get_default(name) for name in SETTINGS}
    own, threshold = (loaded.reading.get(name) for name in ("seq_length", THRESHOLD))
    length = seq_length or min(own or usual["seq_length"], loaded.config.max_seq_length)
    sizes = argparse.Namespace(**{**usual, "seq_length": length, THRESHOLD: threshold,
                                  "max_query_length": min(usual["max_query_length"], longest_question(length))})
    nullable = any(not question.answers for question in questions)
    model = from_weights(loaded.config, loaded.weights).to(device).eval()
    reading = Reading([], questions, tokenizer, sizes, device, nullable, batch_size)
    figures = reading.evaluate(model).figures
    whose = "its own" if threshold is not None else "the best for these questions"
    return figures, f"; none where that is ahead by more than {reading.chosen:.2f}, {whose}" if nullable else ""
