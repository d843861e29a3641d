"""Texts to token ids, token ids to padded batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch

from uer.data.order import WINDOW
from uer.data.pairs import kept_lengths
from uer.finetuning.tasks import Example
from uer.tokenizers.base import Tokenizer
from uer.training.delayed import sent

TOGETHER = 1000  # examples whose lengths are worked out at once


class Instance(NamedTuple):
    """A tokenized example: token ids (int32 [tokens]), how many of them are of the first segment, the label."""

    tokens: np.ndarray
    first: int
    label: float | int | None


class Batch(NamedTuple):
    """src, seg int64 [batch, longest]; labels [batch], int64 classes or float32 scores, None where not known."""

    src: torch.Tensor
    seg: torch.Tensor
    labels: torch.Tensor | None

    def to(self, device: torch.device) -> Batch:
        return Batch(*(None if tensor is None else sent(tensor, device) for tensor in self))  # type: ignore[arg-type]


def encode(examples: Sequence[Example], tokenizer: Tokenizer, seq_length: int,
           separators: int | None = None) -> list[Instance]:
    """[CLS] a [SEP] or [CLS] a [SEP] b [SEP], `seq_length` tokens at most; RoBERTa's <s> a </s></s> b </s> is all of
    one segment. `separators`: as the model was trained, where its file says so."""
    vocab, between, out = tokenizer.vocab, separators or tokenizer.separators, []
    for begin in range(0, len(examples), TOGETHER):
        some = examples[begin:begin + TOGETHER]
        texts = [[tokenizer.encode(text) for text in example[:2] if text is not None] for example in some]
        lengths = np.array([(len(a), sum(map(len, b)), 2 + between * len(b)) for a, *b in texts])
        kept = kept_lengths(lengths[:, 0], lengths[:, 1], np.maximum(seq_length - lengths[:, 2], 0))
        for (a, *pair), (_, _, label), first, second in zip(texts, some, *(part.tolist() for part in kept)):
            tokens = [vocab.cls_id, *a[:first], vocab.sep_id]
            for b in pair:
                tokens += [*[vocab.sep_id] * (between - 1), *b[:second], vocab.sep_id]
            out.append(Instance(np.array(tokens, dtype=np.int32), first + 2 if between == 1 else len(tokens), label))
    return out


def collate(instances: Sequence[Instance], pad_id: int) -> Batch:
    """A batch as wide as its longest instance."""
    width = max(len(instance.tokens) for instance in instances)
    src = np.full((len(instances), width), pad_id, dtype=np.int64)
    seg = np.zeros((len(instances), width), dtype=np.int64)
    for row, (tokens, first, _) in enumerate(instances):
        src[row, : len(tokens)] = tokens
        seg[row, : len(tokens)] = 2
        seg[row, :first] = 1
    labels = None if instances[0].label is None else torch.tensor([instance.label for instance in instances])
    return Batch(torch.from_numpy(src), torch.from_numpy(seg), labels)


def shuffled(lengths: Sequence[int], batch_size: int, seed: int, epoch: int, grouped: bool = False) -> list[np.ndarray]:
    """The batches of an epoch as index arrays: a permutation that (seed, epoch) alone decides, in pieces.

    Args:
        lengths: of all instances, in tokens.
        grouped: sort windows of `WINDOW` batches by length first, as `uer/data/order.py` does, and shuffle the pieces.
    """
    draw = np.random.default_rng([seed, epoch])
    order = draw.permutation(len(lengths))
    if grouped:
        window = WINDOW * batch_size
        order = np.concatenate([part[np.argsort(np.asarray(lengths)[part], kind="stable")]
                                for part in np.split(order, range(window, len(order), window))])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in draw.permutation(len(batches))] if grouped else batches


def in_order(instances: Sequence[Instance], batch_size: int, pad_id: int, device: torch.device,
             run: Callable[[Batch], torch.Tensor]) -> torch.Tensor:
    """What `run` makes of instances in batches of like length, [instances, …] in their order."""
    parts = list(by_length(instances, batch_size))
    found = torch.cat([run(collate([instances[i] for i in index], pad_id).to(device)) for index in parts])
    out = torch.empty_like(found)
    out[torch.from_numpy(np.concatenate(parts)).to(found.device)] = found
    return out


def by_length(instances: Sequence[Instance], batch_size: int) -> Iterator[np.ndarray]:
    """Batches of like length, for evaluation, where order means nothing."""
    order = np.argsort([-len(instance.tokens) for instance in instances], kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start:start + batch_size]
