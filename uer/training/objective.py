"""The training loss of a batch, and evaluation on a held-out dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from uer.data.loader import MlmBatch
from uer.models.bert import Bert, mlm_loss
from uer.opts import RELATION_HEADS, TOP_K
from uer.parallel.collectives import sum_over_ranks
from uer.targets.mlm_target import MlmTarget
from uer.training.relations import relation_loss


def logits_of(model: Bert, batch: MlmBatch) -> torch.Tensor:
    """Logits [n, vocab] of the positions that a batch asks for; no attention mask where nothing is padding."""
    return model(batch.src, batch.seg, batch.positions, batch.padded)


def loss_of(model: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy and number of right predictions of a batch."""
    return model.loss(batch.src, batch.seg, batch.positions, batch.labels, batch.padded)


class Objective(Protocol):
    """What a training step runs backward on."""

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of a batch, and (summed cross entropy, right predictions) to report, float [2], no graph."""


class Teaching(Objective, Protocol):
    """An objective with a teacher that runs along."""

    teacher: Bert


class TaughtMlm:
    """Cross entropy, soft labels and relations, of one pass of each model.

    Soft labels are the teacher's distribution over its k most likely tokens, softened by a temperature:
    T² · KL(teacher ‖ student) over the teacher's top k, both renormalised there (Hinton et al. 2015).

    Args:
        teacher: run without gradients on the same batches.
        weight: share of the soft loss; the cross entropy keeps 1 − weight.
        temperature, top_k: as above.
        relations: weight of `relation_loss`, a text, beside a prediction's loss; heads: its heads.
    """

    def __init__(self, teacher: Bert, weight: float = 0.0, temperature: float = 1.0, top_k: int = TOP_K,
                 relations: float = 0.0, heads: int = RELATION_HEADS):
        self.teacher = teacher.eval()
        self.weight, self.temperature, self.top_k = weight, temperature, top_k
        self.relations, self.heads = relations, heads

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """An `Objective`: all losses by their weights."""
        passed = batch.src, batch.seg, batch.padded, batch.positions
        with torch.no_grad():
            wanted, their_states = self.teacher.encode(*passed)
        given, states = student.encode(*passed)
        assert isinstance(student.target, MlmTarget)
        if self.weight:
            logits = student.target(states.flatten(0, -2))
            loss, correct = mlm_loss(logits, batch.labels)
            total = (1 - self.weight) * loss + self.weight * self.soft(logits, their_states)
        else:
            loss, correct = student.target.loss(states, batch.labels)
            total = loss
        if self.relations:
            apart = relation_loss(self.teacher, wanted, student, given, batch, self.heads)
            total = total + self.relations * batch.units_a_text * apart
        return total, torch.stack([loss.detach(), correct.to(loss.dtype)])

    def soft(self, logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Summed soft loss of student logits [n, vocab] against the teacher's, of its states [n, hidden]."""
        with torch.no_grad():
            wanted = self.teacher.target(states.flatten(0, -2)).float()
            wanted, tokens = wanted.topk(min(self.top_k, wanted.shape[1]), dim=1)  # [n, k]
            wanted = F.log_softmax(wanted / self.temperature, 1)
        given = F.log_softmax(logits.gather(1, tokens).float() / self.temperature, 1)
        return self.temperature**2 * F.kl_div(given, wanted, reduction="sum", log_target=True)


def mlm_objective(student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """An `Objective`: the cross entropy alone."""
    loss, correct = loss_of(student, batch)
    return loss, torch.stack([loss.detach(), correct.to(loss.dtype)])


class Evaluation(NamedTuple):
    """Mean cross entropy (nats a masked token), share of right predictions, masked tokens."""

    loss: float
    accuracy: float
    predicted: int


@torch.no_grad()
def evaluate(model: Bert, batches: Iterable[MlmBatch], device: torch.device, share: bool = False,
             objective: Objective | None = None) -> Evaluation:
    """Loss and accuracy (or the objective's figure in its place) of a model, dropout off.

    Args:
        objective: what is summed, MLM's by default.
        share: the batches are this process's share of the data; the result is that of all processes.
    """
    training = model.training
    model.eval()
    sums, predicted = torch.zeros(3, dtype=torch.float64, device=device), 0
    for batch in batches:
        batch = batch.to(device)
        sums[:2] += (objective or mlm_objective)(model, batch)[1].double()
        predicted += batch.units
    model.train(training)
    sums[2] = predicted
    if share:
        sum_over_ranks([sums])
    loss_sum, correct_sum, count = sums.tolist()
    return Evaluation(loss_sum / max(count, 1), correct_sum / max(count, 1), int(count))
