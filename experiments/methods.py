"""The ways to make a student that are compared, each a row: how it starts, options of pretrain.py, learning rates."""

from __future__ import annotations

from dataclasses import dataclass

WID = ("--weight_squeeze", "--compactor_init")
CALIBRATED = (*WID, "calibrated")
STUDENT = (*CALIBRATED, "--train", "student")
FADING = (*WID, "identity", "--penalty", "fade")  # the published λ of 20 needs thousands of steps
EARLY = ("--mask_schedule_share", "0.3")
SOFT = ("--soft_targets_weight", "0.5")
INTERVALS = 24  # mask updates in a run; the schedule of 12 heads takes 16 of them


@dataclass(frozen=True)
class Method:
    """A row.

    Attributes:
        start: teacher, random or norm (weights picked from it), or scratch.
        extra: options of pretrain.py.
        rates: learning rates to try, the likelier one first; "" where nothing is trained.
    """

    name: str
    start: str
    extra: tuple[str, ...] = ()
    rates: tuple[str, ...] = ("",)
    strategy: str = "dim"

    @property
    def masked(self) -> bool:
        """Whether dimensions are masked in the course of the run, so that masks are recorded."""
        return "identity" in self.extra

    @property
    def soft(self) -> bool:
        """Whether it learns from the teacher's soft labels."""
        return "--soft_targets_weight" in self.extra

    def options(self, steps: int, teacher: str) -> list[str]:
        """Options of pretrain.py for a run of this many steps."""
        options = list(self.extra)
        if self.masked and "--mask_schedule_share" not in options:
            options += ["--w_step", str(max(1, steps // INTERVALS))]
        if self.soft and self.start != "teacher":
            options += ["--soft_targets_teacher", teacher]
        return options

    def rate_options(self, rate: str) -> list[str]:
        """Learning rates: compactors are trained at the rate of the weights."""
        both = "--weight_squeeze" in self.extra and "student" not in self.extra
        return ["--learning_rate", rate, *(["--compactor_learning_rate", rate] if both else [])]


UNTRAINED = Method("calibrated, no training", "teacher")
METHODS = (
    UNTRAINED,
    Method("calibrated, merged student trained", "teacher", STUDENT, ("1e-4", "2e-4")),
    Method("calibrated, compactors and teacher trained", "teacher", CALIBRATED, ("2e-5", "5e-5", "1e-5")),
    Method("calibrated, merged student, soft labels", "teacher", (*STUDENT, *SOFT), ("2e-4", "4e-4")),
    Method("published start, dim", "teacher", FADING, ("1e-4", "3e-4")),
    Method("published start, head", "teacher", FADING, ("1e-4",), "head"),
    Method("published start, dim, published penalty", "teacher", (*WID, "identity", "--l2_lambda", "100"), ("1e-4",)),
    Method("published start, dim, Taylor scores", "teacher", (*FADING, "--mask_scores", "taylor"), ("1e-4",)),
    Method("published start, dim, masks early", "teacher", (*FADING, *EARLY), ("1e-4",)),
    Method("weights picked by norm", "norm", (), ("3e-4", "6e-4")),
    Method("weights picked at random", "random", (), ("3e-4", "6e-4")),
    Method("from scratch", "scratch", (), ("1e-3", "5e-4")),
    Method("from scratch, soft labels", "scratch", SOFT, ("1e-3", "5e-4")),
)
