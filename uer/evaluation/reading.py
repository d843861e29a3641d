"""evaluate.py --task squad: what a reader answers to SQuAD's questions."""

from __future__ import annotations

import argparse

import torch

from uer.config import SPAN_LABELS
from uer.errors import UserError
from uer.finetuning.options import squad_parser
from uer.finetuning.squad import Reading, longest_question
from uer.finetuning.squad_data import Question
from uer.formats import LoadedModel
from uer.models.bert import from_weights
from uer.tokenizers import Tokenizer
from uer.tokenizers.bert import BertTokenizer

SETTINGS = ("seq_length", "max_query_length", "doc_stride", "n_best_size", "max_answer_length",
            "null_score_diff_threshold")  # which are those of fine-tuning


def answered(loaded: LoadedModel, path: str, tokenizer: Tokenizer, questions: list[Question], seq_length: int | None,
             device: torch.device) -> dict[str, float]:
    """Exact match and F1, from 0 to 1, of a reader's answers.

    Where some questions have no answer, nor does the reader where none is ahead by more than a threshold, the one with
    the best F1.

    Args:
        path: of the model, for messages.
        seq_length: of the windows; None: the reader's own, as far as it says.
    Raises:
        UserError: a model that is no reader, or whose tokens are not told from characters.
    """
    if loaded.config.labels != SPAN_LABELS:
        raise UserError(f"--task squad: {path} is no reader; finetune/run_squad.py makes one")
    if not isinstance(tokenizer, BertTokenizer):
        raise UserError(f"--task squad: {path} has the tokenizer {tokenizer.rules.kind}; only bert can tell which "
                        f"characters its tokens stand for")
    usual = {name: squad_parser().get_default(name) for name in SETTINGS}
    length = seq_length or min(loaded.reading.get("seq_length", usual["seq_length"]), loaded.config.max_seq_length)
    sizes = argparse.Namespace(**{**usual, "seq_length": length,
                                  "max_query_length": min(usual["max_query_length"], longest_question(length))})
    nullable = any(not question.answers for question in questions)
    model = from_weights(loaded.config, loaded.weights).to(device).eval()
    return Reading([], questions, tokenizer, sizes, device, nullable).evaluate(model).figures
