"""What comes out of a model file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from uer.config import ModelConfig
from uer.formats.sentence import SentenceFacts

THRESHOLD = "null_score_diff_threshold"
OF_ANSWERS = ("seq_length", "doc_stride", "max_query_length", "n_best_size", "max_answer_length", THRESHOLD)
READING = {"pairs": bool, "of_logits": dict, "separators": int, **dict.fromkeys(OF_ANSWERS, int), THRESHOLD: float}


@dataclass
class LoadedModel:
    """A BERT from a file.

    Attributes:
        config: its sizes and conventions.
        weights: published names -> tensors, all of them and no others; float32 (float64 if stored so).
        notes: what a user should know: what was made up, what was left out, what differs.
        extras: pooler and next-sentence head, where the file has them, as `target.nsp_linear_{1,2}.*`.
        source: `uer` or `huggingface`.
        head_made: whether the MLM head is new.
        architecture: the class that a config.json names.
        labels: of a task, as a config.json names them; `labels_wrong` is why they cannot be told apart ("": they can).
        spelled: linears of a task's head -> what the user's file calls them.
        left_out: what else of the file was not taken over, by its names there.
        tied: whether the folder says that words are read and predicted by one table (`weights` has two alike).
        sentence: how the model embeds sentences, where its folder or file says so.
        head_act: what its MLM head takes whatever the layers do; "": the same.
        facts: the JSON that a training run wrote beside its checkpoint, or what a config.json says beyond the config.
    """

    config: ModelConfig
    weights: dict[str, torch.Tensor]
    notes: list[str] = field(default_factory=list)
    extras: dict[str, torch.Tensor] = field(default_factory=dict)
    source: str = "uer"
    head_made: bool = False
    architecture: str = ""
    labels: tuple[str, ...] = ()
    labels_wrong: str = ""
    spelled: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    tied: bool = False
    sentence: SentenceFacts | None = None
    head_act: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def reading(self) -> dict[str, Any]:
        """How a fine-tuned model reads and is read: `seq_length`, `pairs`, `of_logits`, `separators` in a pair, a
        reader's windows and answers (`OF_ANSWERS`), as far as its JSON says so; a reader's are pairs."""
        return {**({"pairs": True} if self.config.reader else {}), **reading_of(self.facts)}

    @property
    def mapped(self) -> bool:
        """Whether the vectors that it gives by itself are its pooled states through its map."""
        return self.sentence is not None and self.sentence.mapped


def reading_of(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a JSON says of `READING`."""
    before = {"separators": 1} if facts.get("kind") == "classifier" else {}  # in files that do not say
    return {**before, **{key: facts[key] for key, kind in READING.items() if key in facts and _is(facts[key], kind)}}


def _is(value: Any, kind: type) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    if kind is int:
        return type(value) is int and value > 0
    return type(value) is kind
