"""What a run notes for its report besides losses: what its model costs, and how its masks come about.

Two kinds of lines in metrics.jsonl:

    model    when a run starts (`start`: with the facts that a report needs), when dimensions have left, and after a
             fold: parameters and operations by part
    masks    at mask updates: for each group that has not left, the dimensions kept, its sorted column norms in at most
             `BINS` means, and the share of the dimensions dropped before that are still dropped
"""

from __future__ import annotations

from typing import Any

import torch

from uer.formats.shapes import table_sizes
from uer.planning.cost import Step, plain_cost
from uer.planning.wid_cost import activations_cost, wid_cost
from uer.report.writer import Reports
from uer.training.learner import Learner
from uer.training.wid_learner import WidLearner

BINS = 32
ALL_UPDATES = 128  # mask updates that are all noted; of as many again every second, then every fourth, …


class Recorder:
    """Writes those lines.

    Args:
        learner: what is trained.
        reports: where lines go; without a metrics.jsonl nothing is done.
        step: what a process does in an optimizer step.
        facts: what the start of a run is noted with.
    """

    def __init__(self, learner: Learner, reports: Reports, step: Step, facts: dict[str, Any]):
        self.learner, self.reports, self.step, self.facts = learner, reports, step, facts
        self.before = {name: group.keep for name, group in learner.groups().items() if group.keep is not None}

    def start(self, step: int) -> None:
        """Note a run that starts after `step`."""
        sizes = {name: [group.size, group.target] for name, group in self.learner.groups().items()}
        self._model(step, {"start": {**self.facts, "groups": sizes}})

    def changed(self, step: int) -> None:
        """Note what a squeeze or a fold has made of the model."""
        self._model(step, {})

    def _model(self, step: int, more: dict[str, Any]) -> None:
        if self.reports.metrics is None:
            return
        if isinstance(self.learner, WidLearner):
            master = self.learner.master
            model = master.config, table_sizes(master.parameters), master.groups, self.step
            comp_only = not all(parameter.requires_grad for _, parameter in master.named_parameters())
            cost = wid_cost(*model, comp_only=comp_only, spares=not self.learner.scores.needs_gradients)
            more = {**more, "composition": sum(cost.composition.values()),
                    "on_activations": activations_cost(*model).all_operations}
        else:
            tables = table_sizes(dict(self.learner.named_parameters()))
            cost = plain_cost(self.learner.student.config, tables, self.step)
        self.reports.record(step, "model", {"parameters": cost.student, "trained": sum(cost.trained.values()),
                                            "operations": cost.operations, "peak_memory": cost.memory["peak"],
                                            **more})

    def masks(self, step: int) -> None:
        """Note the masks chosen at `step`. Every process must call it: scores may have to travel."""
        if not isinstance(self.learner, WidLearner):
            return
        groups = [group for group in self.learner.groups().values() if not group.squeezed and group.keep is not None]
        before, self.before = self.before, {group.name: group.keep for group in groups if group.keep is not None}
        if groups and is_noted(step // self.learner.w_step):
            self.reports.record(step, "masks", {"groups": {group.name: {
                "kept": group.kept, "stable": stable_share(before.get(group.name), self.before[group.name]),
                "norms": binned(self.learner.master.scores(group), group.size)} for group in groups}})


def stable_share(before: torch.Tensor | None, now: torch.Tensor) -> float | None:
    """The share of what a mask dropped before that it drops now; None where it dropped nothing."""
    if before is None or bool(before.all()):
        return None
    return float((~before & ~now).sum() / (~before).sum())


def is_noted(k: int) -> bool:
    """Whether the k-th mask update is noted: their number grows with the logarithm of k only."""
    return k % (1 << max(0, (k // ALL_UPDATES).bit_length())) == 0


def binned(norms: torch.Tensor, size: int) -> list[float]:
    """float [n] -> the values in descending order, 0 for those of `size` that have left, in at most `BINS` means."""
    ordered = torch.cat([norms.sort(descending=True).values, norms.new_zeros(size - len(norms))]).cpu()
    return [float(f"{part.mean():.4g}") for part in ordered.tensor_split(min(BINS, len(ordered)))]
