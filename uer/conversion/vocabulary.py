"""A model with fewer words: its tables keep the rows of the words that stay, others are spelt with pieces that stay.

The rarest word of a corpus leaves first and passes its count on to the pieces that WordPiece makes of it, then the
rarest of what is left, and so on. Every character that occurs stays, so that no word becomes unknown.
"""

from __future__ import annotations

import argparse
import heapq
from pathlib import Path

import numpy as np
import torch

from uer.config import load_config
from uer.data.dataset import Dataset
from uer.errors import UserError
from uer.formats import LoadedModel, load_model, shapes
from uer.formats.export import config_text, write_uer
from uer.formats.storage import PendingFiles
from uer.formats.teacher import config_path_for
from uer.formats.tokenizer_files import text_beside
from uer.tokenizers import Vocab, agreed_rules

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
    kept, weight = set(vocab.tokens), dict(zip(vocab.tokens, counts.tolist()))
    queue = [(weight[token], number) for number, token in enumerate(vocab.tokens) if token not in needed]
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
    return [number for number, token in enumerate(vocab.tokens) if token in kept]


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
    """Ids in `vocab` of all of `words`, in their order.

    Raises:
        UserError: words that the model does not have.
    """
    strange = [token for token in words.tokens if token not in vocab]
    if strange:
        raise UserError(f"{words.source.replace('--vocab_path', '--target_vocab')}: {len(strange):,} of its words are "
                        f"not in the model's vocabulary, {strange[0]!r} first; only words that it has can stay")
    return [vocab.ids[token] for token in words.tokens]


def reduced(model: LoadedModel, ids: list[int]) -> dict[str, torch.Tensor]:
    """The model's tensors with these rows of everything that has a row for each word, in this order."""
    rows = torch.tensor(ids)
    tables = (shapes.WORDS, shapes.DECODER, shapes.DECODER.replace("weight", "bias"))
    return {name: tensor[rows] if name in tables else tensor for name, tensor in model.weights.items()}


def reduce_file(args: argparse.Namespace) -> list[str]:
    """scripts/reduce_vocabulary.py's work; a line on each file that was written.

    Raises:
        UserError: files that do not belong together, or a wish that cannot be.
    """
    config = load_config(args.config_path) if args.config_path else None
    model = load_model(args.pretrained_model_path, config=config, vocab_size=None)
    dataset = Dataset.open(args.dataset_path) if args.dataset_path else None
    lines: list[str] = []
    text = agreed_rules(args, *([dataset.rules] if dataset else []), *text_beside(args.pretrained_model_path),
                        say=lines.append)
    vocab = text.vocab
    if vocab is None or text.kind != "bert":
        raise UserError(f"--vocab_path: the WordPiece vocabulary of {args.pretrained_model_path} is needed; none is "
                        f"beside it")
    if len(vocab) > len(model.weights[shapes.WORDS]):
        raise UserError(f"{vocab.source}: {len(vocab):,} tokens, the model has "
                        f"{len(model.weights[shapes.WORDS]):,} word embeddings")
    if dataset is not None:
        counts = token_counts(dataset, len(vocab))
        ids = words_to_keep(vocab, counts, int(args.target_vocab))
        lines.append(f"{100 * counts[ids].sum() / max(1, counts.sum()):.2f} % of the dataset's tokens stay as they are")
    else:
        ids = ids_of(Vocab.load(args.target_vocab), vocab)
    weights = reduced(model, ids)
    numbers = [sum(tensor.numel() for tensor in tensors.values()) for tensors in (model.weights, weights)]
    output = Path(args.output_model_path)
    config_path = config_path_for(output)
    vocab_path = config_path.with_name(config_path.name.replace("_config.json", "_vocab.txt"))
    words = [vocab.tokens[number] for number in ids]
    with PendingFiles() as pending:
        write_uer(pending.add(output), {**weights, **model.extras}, "published")
        pending.add(config_path).write_text(config_text(
            model.config, weights, "published", text.holding(Vocab(words), vocab_path.name)), encoding="utf-8")
        pending.add(vocab_path).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        pending.publish()
    return [*lines, f"{len(ids):,} of {len(vocab):,} words, {numbers[1] / 1e6:.1f} M of {numbers[0] / 1e6:.1f} M "
            f"parameters", *(f"written: {file}" for file in (output, config_path, vocab_path))]
