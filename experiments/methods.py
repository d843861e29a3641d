"""The ways to make a student that are compared: how each starts, what trains it, the learning rates to try."""

from __future__ import annotations

from dataclasses import dataclass

WID = ("--weight_squeeze", "--compactor_init")
CALIBRATED, PUBLISHED = (*WID, "calibrated"), (*WID, "identity")
FOLDED = ("--after_squeeze", "student")
SOFT = ("--soft_targets_weight", "0.5")
RELATIONS = ("--target", "relations")
MUON = ("--optimizer", "muon")


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        start: teacher (pretrain.py squeezes it), norm or random (weights picked from it), scratch, layers (every second
            one of it, which is another size).
        extra: options of pretrain.py.
        rates: learning rates to try, the likelier one first; "" where nothing is trained.
        objective: of peers.py, which runs instead of pretrain.py.
        via: for a third of the steps a student of a width between the teacher's and its own is trained first, and is
            its teacher then.
    """

    name: str
    start: str
    extra: tuple[str, ...] = ()
    rates: tuple[str, ...] = ("",)
    strategy: str = "dim"
    objective: str = ""
    via: bool = False

    @property
    def masked(self) -> bool:
        """Whether dimensions are masked in the course of the run, so that masks are recorded."""
        return "identity" in self.extra

    @property
    def taught(self) -> bool:
        """Whether the teacher runs along in pretrain.py."""
        return not {"--soft_targets_weight", "--target"}.isdisjoint(self.extra)

    @property
    def ours(self) -> bool:
        """Whether it is weight-inherited distillation."""
        return self.start == "teacher"

    @property
    def headless(self) -> bool:
        """Whether its MLM head is not trained, so that it has no MLM figures."""
        return self.objective == "tinybert" or "relations" in self.extra

    def options(self, rate: str, teacher: str) -> list[str]:
        """Options of pretrain.py, or of peers.py."""
        options = [*self.extra, "--learning_rate", rate]
        if self.ours:
            options += ["--compactor_learning_rate", rate]
        if self.objective:
            options += ["--objective", self.objective, "--teacher_path", teacher]
        if self.taught and not self.ours:
            options += ["--soft_targets_teacher", teacher]
        return options


UNTRAINED = Method("calibrated, untrained", "teacher")
METHODS = (  # by importance: a table that is cut off is a smaller table
    UNTRAINED,
    Method("calibrated, soft labels", "teacher", (*CALIBRATED, *SOFT), ("2e-4", "4e-4")),
    Method("calibrated, relations", "teacher", (*CALIBRATED, *RELATIONS), ("6e-4", "1.2e-3")),
    Method("calibrated, soft labels and relations", "teacher",
           (*CALIBRATED, *SOFT, "--relation_weight", "1"), ("2e-4", "4e-4")),
    Method("calibrated", "teacher", CALIBRATED, ("2e-4", "1e-4")),
    Method("calibrated, soft labels, Muon", "teacher", (*CALIBRATED, *SOFT, *MUON), ("1e-3", "5e-4")),
    Method("calibrated, relations, Muon", "teacher", (*CALIBRATED, *RELATIONS, *MUON), ("1.2e-3", "2.4e-3")),
    Method("published start, dim", "teacher", (*PUBLISHED, *FOLDED), ("1e-4", "2e-4")),
    Method("MiniLMv2, picked by norm", "norm", RELATIONS, ("6e-4", "1.2e-3")),
    Method("picked by norm", "norm", (), ("3e-4", "6e-4")),
    Method("TinyBERT, picked by norm", "norm", (), ("3e-4", "6e-4"), objective="tinybert"),
    Method("calibrated in two stages", "teacher", CALIBRATED, ("2e-4", "1e-4"), via=True),
    Method("published start, dim, soft labels", "teacher", (*PUBLISHED, *FOLDED, *SOFT), ("2e-5", "5e-5")),
    Method("from scratch", "scratch", (), ("1e-3", "5e-4")),
    Method("published start, dim, relations", "teacher", (*PUBLISHED, *FOLDED, *RELATIONS), ("5e-5", "2e-5")),
    Method("published start, head", "teacher", (*PUBLISHED, *FOLDED), ("2e-5", "5e-5"), "head"),
    Method("published start, dim, not folded", "teacher", PUBLISHED, ("2e-5",)),
    Method("published start, dim, over 40 % of the run", "teacher",
           (*PUBLISHED, "--penalty", "fade", "--mask_schedule_share", "0.4"), ("1e-4",)),
    Method("calibrated, compactors and teacher", "teacher",
           (*CALIBRATED, "--train", "compactors"), ("2e-5", "5e-5")),
    Method("published start, dim, published penalty", "teacher",
           (*PUBLISHED, *FOLDED, "--l2_lambda", "100", "--mask_schedule_share", "0.25"), ("1e-4",)),
    Method("MiniLMv2, from scratch", "scratch", RELATIONS, ("1e-3", "5e-4")),
    Method("DistilBERT, 3 layers of full width", "layers", (), ("2e-4", "4e-4"), objective="distilbert"),
    Method("picked by norm, soft labels", "norm", SOFT, ("6e-4", "3e-4")),
    Method("from scratch, soft labels", "scratch", SOFT, ("1e-3", "5e-4")),
)
