"""evaluate.py --task squad: what a reader answers to SQuAD's questions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence

import torch

from uer.errors import UserError
from uer.finetuning.options import squad_parser
from uer.finetuning.squad import Reading, question_length
from uer.finetuning.squad_data import Question, check_answers
from uer.formats import LoadedModel
from uer.formats.file_model import OF_ANSWERS
from uer.models.bert import from_weights
from uer.tokenizers import Tokenizer
from uer.tokenizers.bert import BertTokenizer


def check_reader(loaded: LoadedModel, tokenizer: Tokenizer, path: str, questions: Sequence[Question],
                 test_path: str) -> None:
    """`UserError` for a model that is no reader, or whose tokens are not told from characters, and for questions with
    an answer that it has no token for; the paths name both."""
    if not loaded.config.reader:
        raise UserError(f"--task squad: {path} is no reader; finetune/run_squad.py makes one")
    if not isinstance(tokenizer, BertTokenizer):
        raise UserError(f"--task squad: {path} has the tokenizer {tokenizer.rules.kind}; only bert can tell which "
                        f"characters its tokens stand for")
    check_answers(questions, tokenizer, test_path)


def answered(loaded: LoadedModel, tokenizer: Tokenizer, questions: list[Question], given: Mapping[str, int | None],
             batch_size: int, device: torch.device, say: Callable[[str], object]) -> tuple[dict[str, float], str]:
    """Exact match and F1, from 0 to 1, of a reader's answers, and a word on answers that are none, "" where all are.

    The reader gives none where that is ahead by more than its own threshold; one without gives answers to all, unless
    some questions have none: then the threshold is the one that is best for these.

    Args:
        given: `OF_ANSWERS` that the user wants; None: the reader's own, as far as it says, or run_squad.py's usual.
        say: takes a warning.
    Raises:
        UserError: questions that are wanted too long for the windows.
    """
    assert isinstance(tokenizer, BertTokenizer)  # as `check_reader` found
    usual = {name: squad_parser().get_default(name) for name in OF_ANSWERS}
    wanted = {name: value for name, value in given.items() if value is not None}
    sizes = argparse.Namespace(**{name: loaded.reading.get(name, usual[name]) for name in OF_ANSWERS} | wanted)
    sizes.seq_length = min(sizes.seq_length, loaded.config.max_seq_length)
    sizes.max_query_length = question_length(sizes.seq_length, sizes.max_query_length, "max_query_length" in wanted)
    threshold = sizes.null_score_diff_threshold
    nullable = threshold is not None or any(not question.answers for question in questions)
    model = from_weights(loaded.config, loaded.weights).to(device).eval()
    reading = Reading([], questions, tokenizer, sizes, device, nullable, batch_size)
    if reading.warning:
        say(reading.warning)
    figures = reading.evaluate(model).figures
    whose = "its own" if threshold is not None else "the best for these questions"
    return figures, f"; none where that is ahead by more than {reading.chosen:.2f}, {whose}" if nullable else ""
