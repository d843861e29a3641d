"""A model with fewer words: its tables keep the rows of the words that stay, others are spelt with pieces that stay.

The rarest word of a corpus leaves first and passes its count on to the pieces that WordPiece makes of it, then the
rarest of what is left, and so on. Every character that occurs stays, so that no word becomes unknown.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numpy as np
import torch

from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.formats import LoadedModel, shapes
from uer.formats.storage import shortened
from uer.tokenizers import TextRules, Vocab

CONTINUED = "##"
AT_A_TIME = 1 << 14  # instances


def token_counts(dataset: Dataset, size: int) -> np.ndarray:
    """How often each token occurs in a dataset: int64 [size]."""
    counts = np.zeros(size, dtype=np.int64)
    for start in range(0, len(dataset), AT_A_TIME):
        rows = dataset.instances(np.arange(start, min(start + AT_A_TIME, len(dataset))))
        counts += np.bincount(rows.values["tokens"], minlength=size)
    return counts


def words_to_keep(vocab: Vocab, counts: np.ndarray, wanted: int) -> list[int]:
    """The ids, ascending, of the `wanted` tokens that stay.

    Args:
        counts: of each token, int64 [len(vocab)].
    Raises:
        UserError: more than there are, or fewer than the characters need.
    """
    if wanted > len(vocab):
        raise UserError(f"--target_vocab {wanted:,}: the model has {len(vocab):,} words")
    used = [token for token, count in zip(vocab.tokens, counts) if count]
    letters = {letter for token in used for letter in token.removeprefix(CONTINUED)}
    spelling = {word for letter in letters for word in (letter, CONTINUED + letter)}
    needed = {*vocab.special_tokens, *(word for word in spelling if word in vocab)}
    if wanted < len(needed):
        raise UserError(f"--target_vocab {wanted:,}: the special tokens and the characters of this text alone are "
                        f"{len(needed):,}")
    kept, weight = set(vocab.ids), {token: int(counts[number]) for token, number in vocab.ids.items()}
    queue = [(weight[token], number) for token, number in vocab.ids.items() if token not in needed]
    heapq.heapify(queue)
    while len(kept) > wanted:
        count, number = heapq.heappop(queue)
        token = vocab.tokens[number]
        if count < weight[token]:  # it has inherited since it was queued
            heapq.heappush(queue, (weight[token], number))
            continue
        kept.discard(token)
        for piece in pieces(token, kept):
            weight[piece] += count
    return sorted(vocab.ids[token] for token in kept)


def pieces(token: str, kept: set[str]) -> list[str]:
    """What WordPiece makes of a token that is not among those kept, longest match first; [] where it cannot."""
    start = token.removeprefix(CONTINUED)
    prefix = CONTINUED if token.startswith(CONTINUED) else ""
    found: list[str] = []
    while start:
        for end in range(len(start), 0, -1):
            if prefix + start[:end] in kept:
                break
        else:
            return []
        found.append(prefix + start[:end])
        start, prefix = start[end:], CONTINUED
    return found


def ids_of(words: Vocab, vocab: Vocab) -> list[int]:
    """Ids in `vocab` of all of `words`, in their order; `UserError` for words that the model does not have."""
    strange = [token for token in words.tokens if token not in vocab]
    if strange:
        raise UserError(f"{words.source.replace('--vocab_path', '--target_vocab')}: {len(strange):,} of its words are "
                        f"not in the model's vocabulary, {strange[0]!r} first; only words that it has can stay")
    return [vocab.ids[token] for token in words.tokens]


def reduce_words(model: LoadedModel, text: TextRules, wanted: str, dataset: Dataset | None,
                 say: Callable[[str], object]) -> TextRules:
    """Leave a model the words that are wanted; how text becomes ids from then on.

    Args:
        model: its tables keep the rows of these words, in the new order.
        wanted: how many, or a file with them.
        dataset: with the present vocabulary, whose words are counted; None for a file.
    Raises:
        UserError: no WordPiece vocabulary, or a wish that cannot be.
    """
    vocab = text.vocab
    if vocab is not None and text.kind != "bert":
        raise UserError(f"--target_vocab: only a WordPiece vocabulary can lose words, and {vocab.source} is "
                        f"{text.kind}'s")
    if vocab is None:
        raise UserError("--target_vocab: the teacher's WordPiece vocabulary is needed, and none is beside it; give it "
                        "as --vocab_path")
    own = [token.content for token in vocab.added if token.content not in vocab.special_tokens]
    if own:
        raise UserError(f"--target_vocab: {vocab.source} has added tokens ({shortened(own)}), which are no words and "
                        f"cannot be kept")
    if dataset is not None and wanted.isdecimal():
        counts = token_counts(dataset, len(vocab))
        ids = words_to_keep(vocab, counts, int(wanted))
        say(f"{100 * counts[ids].sum() / max(1, counts.sum()):.2f} % of the text's tokens stay as they are")
    else:
        ids = ids_of(Vocab.load(wanted), vocab)
    before = shapes.parameter_count(model.weights)
    rows = torch.tensor(ids)
    tables = (shapes.WORDS, shapes.DECODER, shapes.DECODER.replace("weight", "bias"))
    model.weights = {name: tensor[rows] if name in tables else tensor for name, tensor in model.weights.items()}
    left = shapes.parameter_count(model.weights)
    say(f"{len(ids):,} of {len(vocab):,} words, {left / 1e6:.1f} M of {before / 1e6:.1f} M parameters")
    return text.holding(Vocab([vocab.tokens[number] for number in ids]), f"{len(ids):,} words of {text.vocab_name}")
