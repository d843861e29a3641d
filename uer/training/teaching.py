"""Objectives that need a teacher and no labels: its states, its similarities, its logits. All are summed over texts.

    states       distance between the teacher's and the student's states, in the teacher's space: C z + c, where the map
                 comes with a calibrated student as its target and is trained along, or stays as it is
    similarity   (cos zᵢ zⱼ − cos xᵢ xⱼ)² over the pairs of a batch, of the vectors that each model gives by itself;
                 beside states also (cos yᵢ xⱼ − cos xᵢ xⱼ)², y the student's in the teacher's space
    logits       T² · KL(teacher ‖ student) of a classifier's or tagger's softmax over classes, of a reader's two over a
                 text's tokens, of labels that may hold together each against 0; squared error of scores

(Distances through a map: TinyBERT, Jiao et al. 2020, which learns its maps; similarities: Tung and Mori 2019.)
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F

from uer.data.loader import MlmBatch
from uer.models.bert import Bert
from uer.opts import RELATION_HEADS, TOP_K
from uer.targets.output_target import one_by_one, span_logits
from uer.targets.pooling import cosines, pooled

DISTANCES = {"cosine": lambda given, wanted: 1 - F.cosine_similarity(given, wanted, dim=-1),
             "squared": lambda given, wanted: (given - wanted).pow(2).mean(-1)}


OPTIONS = {  # of pretrain.py -> what it is where it does nothing, and the targets that it is for
    "state_distance": ("cosine", ("states",)), "state_tokens": (False, ("states",)),
    "similarity_weight": (0.0, ("states",)), "fix_state_map": (False, ("states", "similarity")),
    "relation_weight": (0.0, ("mlm",)), "relation_heads": (RELATION_HEADS, ("relations", "mlm")),
    "augment_texts": (0.0, ("states", "similarity", "logits", "relations"))}


def misplaced(args: argparse.Namespace) -> list[str]:
    """Options that say nothing to the run's target, one line each."""
    wrong = [f"--{name} goes with --target {' or '.join(targets)}" for name, (usual, targets) in OPTIONS.items()
             if getattr(args, name) != usual and args.objective not in targets]
    needs = {"soft_targets_temperature": (1.0, args.soft_targets_weight or args.objective == "logits"),
             "soft_targets_top_k": (TOP_K, args.soft_targets_weight)}
    wrong += [f"--{name} does nothing without --soft_targets_weight" for name, (usual, used) in needs.items()
              if getattr(args, name) != usual and not used]
    if args.batch_size < 2 and (args.objective == "similarity" or args.similarity_weight):
        wrong.append("--batch_size 1: similarities are of the texts within a micro-step, 2 at least are needed")
    if args.objective == "mlm" and args.relation_heads != RELATION_HEADS and not args.relation_weight:
        wrong.append("--relation_heads does nothing without --relation_weight")
    return wrong


class StateTargets:
    """An `Objective`: the teacher's states, its similarities, or both.

    Args:
        teacher: run without gradients on the same batches; target `states`.
        states: weight of the distance between states; `similarity`: of that between similarities.
        distance: one of `DISTANCES`.
        per_token: compare every token's state (a text counts as the mean of its tokens), not the pooled ones.
        mapped: whether the teacher's and the student's own vectors are their pooled states through their maps.
    """

    figure = "cosine"

    def __init__(self, teacher: Bert, states: float = 1.0, similarity: float = 0.0, distance: str = "cosine",
                 per_token: bool = False, mapped: tuple[bool, bool] = (False, False)):
        self.mapped = mapped
        self.teacher = teacher.eval()
        self.states, self.similarity, self.per_token = states, similarity, per_token
        self.distance = DISTANCES[distance]

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss, and (it, summed cosines of the pooled states in the teacher's space) to report."""
        with torch.no_grad():
            wanted, their_pooled = self._states(self.teacher, batch)
            wanted, pooled = self.teacher.target(wanted).float(), self.teacher.target(their_pooled).float()
        own, own_pooled = self._states(student, batch)
        given = student.target(own_pooled).float()
        loss = 0 * given.sum()  # so that every parameter has a gradient
        if self.states and self.per_token:
            real = batch.seg > 0
            apart = self.distance(student.target(own).float(), wanted).masked_fill(~real, 0.0)
            loss = loss + self.states * (apart.sum(1) / real.sum(1)).sum()
        elif self.states:
            loss = loss + self.states * self.distance(given, pooled).sum()
        if self.similarity and len(given) > 1:
            theirs, mine = (mapped if through else states.float() for through, mapped, states in
                            zip(self.mapped, (pooled, given), (their_pooled, own_pooled)))
            apart = cosines(mine) - cosines(theirs)
            if self.states:  # a student that is to be found among the teacher's vectors, too
                across = cosines(given, pooled) - cosines(pooled)
                loss = loss + self.similarity * across.pow(2).sum() / (len(given) - 1)
            loss = loss + self.similarity * apart.pow(2).sum() / (len(given) - 1)
        cosine = F.cosine_similarity(given.detach(), pooled).sum()
        return loss, torch.stack([loss.detach(), cosine])

    def _states(self, model: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """States of all tokens [batch, seq, hidden] (if they are asked for) and pooled ones [batch, hidden]."""
        if not self.per_token:
            return (model.pooled(batch.src, batch.seg, batch.padded),) * 2
        states = model.hidden_states(batch.src, batch.seg, batch.padded)
        return states, pooled(states, batch.seg, model.config.pooling)


NEAR = 0.5  # a score that counts as the teacher's


class LogitTargets:
    """An `Objective`: the teacher's logits of texts (`cls`), of tokens, or of a text's start and end (a reader's).

    Args:
        teacher: run without gradients on the same batches.
        temperature: T above.
    """

    figure = "equal predictions"

    def __init__(self, teacher: Bert, temperature: float = 1.0):
        self.teacher, self.temperature = teacher.eval(), temperature
        if teacher.config.outputs == 1:
            self.figure = f"scores within {NEAR}"

    def __call__(self, student: Bert, batch: MlmBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed loss, and (it, texts or shares of tokens with equal predictions) to report."""
        real = batch.seg > 0
        reads, several = self.teacher.config.reader, self.teacher.config.multi_label
        with torch.no_grad():
            wanted = self.teacher(batch.src, batch.seg, padded=batch.padded).float()
        given = student(batch.src, batch.seg, padded=batch.padded).float()
        if reads:
            wanted, given = (span_logits(logits, real) for logits in (wanted, given))
        elif several:
            wanted, given = one_by_one(wanted), one_by_one(given)
        if self.teacher.config.outputs == 1:
            loss = (given - wanted).pow(2)[:, 0]
            equal = (loss <= NEAR**2).to(loss.dtype)
        else:
            theirs, mine = (F.log_softmax(logits / self.temperature, -1) for logits in (wanted, given))
            loss = self.temperature**2 * F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)
            equal = (given.argmax(-1) == wanted.argmax(-1)).to(loss.dtype)
        if reads or several:
            loss, equal = loss.sum(1), equal.prod(1)
        elif student.config.target == "tokens":
            loss, equal = ((rows.view_as(real) * real).sum(1) / real.sum(1) for rows in (loss, equal))
        loss = loss.sum()
        return loss, torch.stack([loss.detach(), equal.detach().sum()])
