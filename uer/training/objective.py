"""The training loss of a batch, and evaluation on a held-out dataset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from uer.models.bert import Bert, mlm_loss
from uer.parallel.collectives import sum_over_ranks

if TYPE_CHECKING:
    from uer.data.loader import MlmBatch


def logits_of(model: Bert, batch: MlmBatch) -> torch.Tensor:
    """Logits [n, vocab] of the positions that a batch asks for; no attention mask where nothing is padding."""
    return model(batch.src, batch.seg, batch.positions, batch.tokens < batch.seg.numel())


def loss_of(model: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross entropy and number of right predictions of a batch."""
    return model.loss(batch.src, batch.seg, batch.positions, batch.labels, batch.tokens < batch.seg.numel())


class Objective(Protocol):
    """What a training step runs backward on."""

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss of a batch, and (summed cross entropy, right predictions) to report, float [2], no graph."""


class Teaching(Objective, Protocol):
    """An objective with a teacher that runs along."""

    teacher: Bert


class SoftTargets:
    """Soft labels: the teacher's distribution over its k most likely tokens, softened by a temperature.

    soft = T² · KL(teacher ‖ student) over the teacher's top k, both renormalised there (Hinton et al. 2015).

    Args:
        teacher: run without gradients on the same batches.
        weight: share of the soft loss; the cross entropy keeps 1 − weight.
        temperature, top_k: as above.
    """

    def __init__(self, teacher: Bert, weight: float, temperature: float = 1.0, top_k: int = 128):
        self.teacher = teacher.eval()
        self.weight, self.temperature, self.top_k = weight, temperature, top_k

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """An `Objective`: both losses by their weights."""
        logits = logits_of(student, batch)
        loss, correct = mlm_loss(logits, batch.labels)
        report = torch.stack([loss.detach(), correct.to(loss.dtype)])
        return (1 - self.weight) * loss + self.weight * self.loss(logits, batch), report

    def loss(self, logits: torch.Tensor, batch: MlmBatch) -> torch.Tensor:
        """Summed soft loss of student logits [n, vocab]."""
        with torch.no_grad():
            wanted = logits_of(self.teacher, batch).float()
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
