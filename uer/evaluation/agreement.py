"""How far a student does what its teacher does on text without labels.

    states        mean cosine between the teacher's pooled states and the student's in the teacher's space; Spearman's
                  correlation of the two models' similarities of all pairs of texts; share of each text's ten nearest
                  that are the same (similarities of the vectors that each model gives by itself)
    cls, tokens   share of equal predictions (of a tagger: for the tokens of the texts, [CLS] and [SEP] left out; a
                  reader's: of texts with equal start and end); of scores Pearson's correlation
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from uer.data.loader import MlmBatch
from uer.finetuning.metrics import pearson, spearman
from uer.models.bert import Bert
from uer.targets.output_target import one_by_one, span_logits
from uer.targets.pooling import cosines

MOST_TEXTS = 2048  # whose pairs are compared
NEAREST = 10
SHARES = ("equal predictions", "accuracy", "teacher's accuracy")


def agreement(teacher: Bert, student: Bert, batches: Sequence[MlmBatch], device: torch.device,
              mapped: bool = False) -> dict[str, float]:
    """Figure -> value, from 0 to 1 (a correlation: from −1), of two models with the same target.

    Args:
        batches: without masks.
        mapped: both models' vectors are their pooled states through their maps.
    """
    said = (answers(model, batches, device) for model in (teacher, student))
    return compare(teacher, student, *said, mapped=(mapped, mapped))


@torch.no_grad()
def answers(model: Bert, batches: Sequence[MlmBatch], device: torch.device) -> torch.Tensor:
    """What a model says of texts: its pooled states [texts, hidden]; classes or scores of texts or their tokens [n];
    a reader's start and end in each text [texts, 2]; which of the labels that may hold together do [texts, labels]"""
    model.eval()
    found, moved = [], (batch.to(device) for batch in batches)
    if model.config.target == "states":
        return torch.cat([model.pooled(batch.src, batch.seg) for batch in moved])
    for batch in moved:
        real, logits = batch.seg > 0, model(batch.src, batch.seg)
        if model.config.reader:
            logits = span_logits(logits, real)
        elif model.config.multi_label:
            logits = one_by_one(logits)
        elif model.config.target == "tokens":
            logits = logits[of_text(batch.src, real).flatten()]
        found.append(logits.argmax(-1) if model.config.outputs > 1 else logits[:, 0])
    return torch.cat(found)


def of_text(src: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Which tokens are no [CLS] or [SEP], as the first and the last one of a row are: bool [batch, seq]

    Args:
        src: token ids [batch, seq]; real: bool [batch, seq], without padding.
    """
    last = src.gather(1, real.sum(1, keepdim=True) - 1)
    return real & (src != src[:, :1]) & (src != last)


@torch.no_grad()
def compare(teacher: Bert, student: Bert, wanted: torch.Tensor, given: torch.Tensor, *,
            mapped: tuple[bool, bool] = (False, False)) -> dict[str, float]:
    """`agreement` of the two models' `answers`; mapped: whether the teacher's and the student's vectors are so."""
    if teacher.config.target == "states":
        through = teacher.target(wanted), student.target(given)
        own = (own if maps else states for maps, own, states in zip(mapped, through, (wanted, given)))
        return {"cosine": F.cosine_similarity(*through).mean().item(), **pairs(*own)}
    if teacher.config.outputs == 1:
        return {"correlation": pearson(given.double().cpu().numpy(), wanted.double().cpu().numpy())}
    return {"equal predictions": (given == wanted).view(len(given), -1).all(1).double().mean().item()}


def rightness(said: torch.Tensor, labels: np.ndarray) -> float:
    """Share of classes (or labels that hold alone) that are the labels; of scores Pearson's correlation with them."""
    found = said.cpu().numpy()
    if found.ndim == 2:
        found = np.where(found.sum(1) == 1, found.argmax(1), -1)
    return pearson(found.astype(np.float64), labels) if found.dtype.kind == "f" else float((found == labels).mean())


def pairs(wanted: torch.Tensor, given: torch.Tensor) -> dict[str, float]:
    """How alike two sets of embeddings of the same texts see all pairs: float [texts, width], widths may differ."""
    first, second = (cosines(rows[:MOST_TEXTS].double()).cpu().numpy() for rows in (wanted, given))
    above = np.triu_indices(len(first), 1)
    nearest = min(NEAREST, len(first) - 1)
    if nearest < 1:
        return {}
    tops = [np.argpartition(2 * np.eye(len(matrix)) - matrix, nearest - 1)[:, :nearest] for matrix in (first, second)]
    shared = [len(np.intersect1d(a, b)) for a, b in zip(*tops)]
    return {"similarities": spearman(second[above], first[above]),
            f"nearest {nearest}": float(np.mean(shared) / nearest)}


def spelled(name: str, value: float) -> str:
    """A figure: shares in percent, others as they are."""
    return f"{100 * value:.1f} %" if name in SHARES or name.startswith("nearest") else f"{value:.3f}"


def in_words(figures: dict[str, float]) -> str:
    """Names and values."""
    return ", ".join(f"{name} {spelled(name, value)}" for name, value in figures.items())
