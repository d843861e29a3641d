"""How fast dimensions leave, and at what rates: what a run takes where nothing is said, and a word on what cannot work.

Two things lose what the teacher knew. Too few steps between mask updates: with 12 the others cannot take over what a
dimension said, with 31 they can. And first steps that are too large: without bias correction, as published, step t of
AdamW is 1 / √(1 − 0.999ᵗ) times the rate, tenfold at t = 10 and threefold at t = 100, which a warm-up of thousands of
steps hides and one of 50 does not. At 1e-4 a teacher that has learned what it can is gone within 20 steps, before any
mask; with the bias corrected it hardly notices (`experiments/RESULTS.md`).
"""

from __future__ import annotations

import argparse
from typing import Any

from uer.report.writer import Reports
from uer.squeeze.groups import MaskGroup, schedule_intervals, shared_w_step
from uer.squeeze.penalty import simulate_decay
from uer.training.optimizers import schedule

PUBLISHED: dict[str, Any] = {"w_step": 500, "penalty": "published", "l2_lambda": 20.0, "learning_rate": 2e-5,
                             "compactor_learning_rate": 5e-5, "bias_correction": False}
SCHEDULE = ("w_step", "mask_schedule_share", "penalty", "l2_lambda")  # options, each of which sets about a schedule
RATE, W_STEP = 1e-4, 31  # known to work: at a quarter of the rate less is learnt, at twice the rate the teacher is lost
TOO_FEW = 20  # steps between mask updates; with 12 nothing is kept
EARLY, TOO_HIGH = 20, 2e-5  # rate at that step, without bias correction, at which a teacher is lost
FAR_BELOW = 0.05  # of the usual rate: no choice, but one that was made for something else
SWING = 0.1  # share of its size by which a masked entry may overshoot zero before a run is warned


def settle(args: argparse.Namespace, groups: dict[str, MaskGroup], at_once: bool = False) -> str:
    """Fill in --w_step, --penalty, --l2_lambda and the rates where nothing was said of them.

    Who says nothing of the schedule gets one for --total_steps, with rates to match; who says something, the published
    values of the rest. Calibrated compactors have no masks, hence nothing to penalise. Where nothing published is
    repeated (a calibrated start, a plain student with a teacher), AdamW's bias is corrected. A folded student moves as
    its composed weights did; one that is folded `at_once` has no compactors, and --learning_rate is its own.

    Returns:
        the schedule that was worked out, in words; empty where there was nothing to work out.
    """
    said = {name for name in SCHEDULE if getattr(args, name) is not None}
    masked = args.weight_squeeze and args.compactor_init == "identity"
    weights = (args.soft_targets_weight, args.relation_weight, args.layer_weight)
    taught = args.objective not in (None, "mlm") or any(weights)
    chosen = {**PUBLISHED, "bias_correction": (args.weight_squeeze and not masked) or
              args.objective not in (None, "mlm")}
    if taught and not args.weight_squeeze:  # a student that goes on, as a folded one does
        chosen |= {"learning_rate": usual_rate(args.objective, bool(args.layer_weight)), "bias_correction": True}
    if args.mask_schedule_share is not None:
        chosen["w_step"] = shared_w_step(groups, args.total_steps, args.mask_schedule_share)
    if not said:
        chosen["penalty"] = "fade"
        if masked:
            chosen |= {"w_step": fitting_w_step(groups, args.total_steps), "learning_rate": RATE,
                       "compactor_learning_rate": RATE, "bias_correction": True}
    folds = args.weight_squeeze and args.after_squeeze == "student" and args.student_learning_rate is None
    rates = [rate for rate in (args.learning_rate, args.compactor_learning_rate) if rate is not None]
    if folds and (at_once or not rates):
        args.student_learning_rate = rates[0] if rates else usual_rate(args.objective, bool(args.layer_weight))
    if isinstance(args.bias_correction, str):
        args.bias_correction = args.bias_correction == "true"
    worked_out = "mask_schedule_share" in said or (masked and not said)
    for name, value in chosen.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if folds and args.student_learning_rate is None:
        args.student_learning_rate = max(args.learning_rate, args.compactor_learning_rate)
    return f"masks change every {args.w_step:,} steps (--w_step), --penalty {args.penalty}, rates " \
           f"{args.learning_rate:g} and {args.compactor_learning_rate:g} (compactors)" if worked_out else ""


def leaves_early(args: argparse.Namespace) -> bool:
    """Whether decayed dimensions leave before the last ones of their group: where what has decayed stays so, no one
    compiles the model anew for it, and the loss does not hang on the student's widths as relations and maps of layers
    do."""
    hangs = args.objective == "relations" or args.relation_weight or args.layer_weight
    return args.penalty == "fade" and not (args.compile or args.no_squeeze or hangs)


def usual_rate(objective: str | None, layers: bool = False) -> float:
    """A learning rate for a plain student and its --target (None: mlm); `layers`: with --layer_weight."""
    if objective == "logits" and layers:
        return 5e-4  # 1e-3 undoes what is calibrated before it learns
    return 1e-3 if layers or objective in ("states", "similarity", "relations") else 2e-4


def fitting_w_step(groups: dict[str, MaskGroup], total_steps: int) -> int:
    """Steps between mask updates: a quarter of the run for the schedule, half of a short one, at most the published."""
    half, quarter = (shared_w_step(groups, total_steps, share) for share in (0.5, 0.25))
    return min(PUBLISHED["w_step"], max(min(half, W_STEP), quarter))


def warn_of_rate(args: argparse.Namespace, reports: Reports) -> None:
    """Say so where a student that is folded at once takes a rate that was meant for the published start."""
    usual = usual_rate(args.objective, bool(args.layer_weight))
    if args.student_learning_rate < FAR_BELOW * usual:
        reports.say(f"warning: a calibrated student is trained by itself, at {args.student_learning_rate:g}; "
                    f"{usual:g} is usual for it. Rates of the published recipe are for its compactors: leave them out")


def warn_of_schedule(args: argparse.Namespace, groups: dict[str, MaskGroup], reports: Reports) -> None:
    """Say so when dimensions leave too late, too fast, or not at all."""
    intervals = schedule_intervals(groups)
    if not intervals:
        return
    last = intervals * args.w_step
    if last >= args.total_steps:
        reports.say(f"warning: the mask schedule ends at step {last:,}, the run at step {args.total_steps:,}; "
                    f"{_cure(args, intervals, args.total_steps // 2 // intervals)} would leave half of the run for the "
                    f"finished student")
        return
    factor = schedule(args.scheduler, args.total_steps, args.warmup)
    rates = [args.compactor_learning_rate * factor(t) for t in range(args.total_steps)]
    if args.w_step < TOO_FEW:
        reports.say(f"warning: dimensions leave faster than the others can take over, every {args.w_step:,} steps; "
                    f"{_cure(args, intervals, W_STEP)} would do, or --compactor_init calibrated, which needs no "
                    f"schedule")
    rate = max(args.learning_rate, args.compactor_learning_rate)
    if not args.bias_correction and rate * factor(EARLY) > TOO_HIGH:
        reports.say(f"warning: a warm-up this short at --learning_rate {args.learning_rate:g} and "
                    f"--compactor_learning_rate {args.compactor_learning_rate:g} loses what a well trained teacher "
                    f"knows before the first dimension leaves; --bias_correction true would do, with rates of "
                    f"{RATE:g}")
    if args.penalty == "published":
        _warn_of_decay(args, rates, last, reports)


def _cure(args: argparse.Namespace, intervals: int, w_step: int) -> str:
    """This --w_step, where it is not too small and the run long enough; else the steps of a run that is."""
    if w_step >= TOO_FEW and 2 * w_step * intervals <= args.total_steps:
        return f"a --w_step of {w_step}"
    return f"--total_steps of {2 * W_STEP * intervals:,} with a --w_step of {W_STEP}"


def _warn_of_decay(args: argparse.Namespace, rates: list[float], last: int, reports: Reports) -> None:
    """Say so when masked entries will not be gone at the end of the run, by running the update on one entry."""
    def path(begin: int, end: int | None) -> list[float]:
        return simulate_decay(rates[begin:end], args.l2_lambda, begin if args.bias_correction else None)

    swing, left = -min(path(args.w_step, last)), abs(path(last, None)[-1])
    product = f"--compactor_learning_rate {args.compactor_learning_rate:g} × --l2_lambda {args.l2_lambda:g}"
    if swing > SWING:
        reports.say(f"warning: {product} is past the stability limit of the published penalty: a masked entry "
                    f"overshoots zero by {100 * swing:.0f} % instead of fading (a product of 0.02 is about the limit); "
                    f"lower one of them, or take --penalty fade")
    elif left > args.squeeze_tolerance:
        reports.say(f"warning: with {product}, entries masked last are still at {left:.1e} of their size after the "
                    f"last step, above --squeeze_tolerance {args.squeeze_tolerance:g}, so their groups stay; "
                    f"more steps, a larger rate, or --penalty fade would do")
