"""The schedule that a run takes where none is given, and what it says of one that cannot work."""

from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from uer.config import ModelConfig
from uer.opts import pretrain_parser
from uer.report.writer import Reports
from uer.squeeze.groups import build_groups
from uer.training.mask_schedule import settle, warn_of_rate, warn_of_schedule

GROUPS = build_groups(ModelConfig(16, 1, 2, 32, 16, dropout=0.0), 8, "dim")  # 16 intervals


def settled(*options: str):
    args = pretrain_parser().parse_args(["--weight_squeeze", *options])
    return args, settle(args, GROUPS, at_once=args.compactor_init == "calibrated")


def warnings_of(args, groups=GROUPS) -> list[str]:
    said: list[str] = []
    reports = Reports(leads=False)
    reports.say = said.append  # type: ignore[method-assign]
    warn_of_schedule(args, groups, reports)
    return said


@pytest.mark.parametrize(("total", "w_step"), [(1000, 31), (2000, 31), (4000, 62), (16000, 250), (32000, 500),
                                               (400000, 500), (300, 9), (5, 1)])
def test_a_run_that_says_nothing_gets_a_schedule_for_its_steps(total, w_step):
    args, said = settled("--total_steps", str(total))
    assert (args.w_step, args.penalty, args.learning_rate, args.compactor_learning_rate) == (w_step, "fade", 1e-4, 1e-4)
    assert f"every {w_step:,} steps" in said
    assert bool(warnings_of(args)) == (total < 1000)


def test_rates_that_are_given_stay():
    args, _ = settled("--total_steps", "4000", "--learning_rate", "3e-5")
    assert (args.w_step, args.learning_rate, args.compactor_learning_rate) == (62, 3e-5, 1e-4)


@pytest.mark.parametrize("given", [{"w_step": 70}, {"penalty": "published"}, {"l2_lambda": 3.0},
                                   {"mask_schedule_share": 0.5}])
def test_a_run_that_says_something_of_the_schedule_gets_the_published_rest(given):
    args, said = settled("--total_steps", "4000", *(word for name, value in given.items()
                                                    for word in (f"--{name}", str(value))))
    published = {"w_step": 500, "penalty": "published", "l2_lambda": 20.0, "learning_rate": 2e-5,
                 "compactor_learning_rate": 5e-5}
    share = {"w_step": 125} if "mask_schedule_share" in given else {}
    expected = {**published, **given, **share}
    assert {name: getattr(args, name) for name in expected} == expected
    assert bool(said) == bool(share)


def test_calibrated_compactors_and_plain_runs_keep_their_rates_and_are_not_pulled_to_zero():
    args, said = settled("--compactor_init", "calibrated")
    assert (args.penalty, args.learning_rate, args.compactor_learning_rate, said) == ("fade", 2e-5, 5e-5, "")
    plain = pretrain_parser().parse_args([])
    assert settle(plain, {}) == "" and plain.learning_rate == 2e-5
    folded = [settled("--compactor_init", "calibrated", "--train", "student", *more)[0].student_learning_rate
              for more in ([], ["--target", "relations"], ["--target", "logits"],
                           ["--target", "logits", "--layer_weight", "3"], ["--learning_rate", "1e-5"],
                           ["--learning_rate", "1e-5", "--compactor_learning_rate", "1e-3"],
                           ["--compactor_init", "identity"],
                           ["--compactor_init", "identity", "--learning_rate", "1e-5", "--w_step", "9"])]
    assert folded == [2e-4, 1e-3, 2e-4, 5e-4, 1e-5, 1e-5, 2e-4, 5e-5]
    assert args.bias_correction and not plain.bias_correction
    for words, rate in ((["--target", "states"], 1e-3), (["--target", "logits", "--layer_weight", "3"], 5e-4),
                        (["--soft_targets_weight", "0.5"], 2e-4), (["--target", "states", "--learning_rate", "3"], 3)):
        taught = pretrain_parser().parse_args(words)
        settle(taught, {})
        assert taught.bias_correction and taught.learning_rate == rate


def test_published_rates_of_a_calibrated_start_are_told():
    """Its student is folded at once, and --learning_rate is the student's."""
    for rate, told in (("1e-6", True), ("1e-5", False), ("2e-4", False)):
        args, _ = settled("--compactor_init", "calibrated", "--train", "student", "--learning_rate", rate,
                          "--compactor_learning_rate", "5e-5")
        said = []
        warn_of_rate(args, SimpleNamespace(say=said.append))
        assert [f"at {rate[0]}e-06; 0.0002 is usual" in line for line in said] == [True] * told


def test_a_schedule_that_is_too_fast_is_told_what_would_do_and_that_does():
    args, _ = settled("--total_steps", "2000", "--w_step", "12", "--penalty", "fade")
    line, = warnings_of(args)
    args.w_step = int(re.search(r"--w_step of (\d+)", line)[1])
    assert "faster" in line and args.w_step == 31 and not warnings_of(args)


def test_rates_that_lose_a_teacher_are_told_what_would_do():
    args, _ = settled("--total_steps", "2000", "--learning_rate", "1e-4")
    assert args.bias_correction and not warnings_of(args)
    args, _ = settled("--total_steps", "2000", "--w_step", "31", "--learning_rate", "1e-4", "--penalty", "fade",
                      "--warmup", "0.01")
    line, = warnings_of(args)
    assert "--learning_rate 0.0001 and --compactor_learning_rate 5e-05" in line and "--bias_correction true" in line
    args.bias_correction = True
    assert not warnings_of(args)
    slow, _ = settled("--total_steps", "400000", "--w_step", "500", "--learning_rate", "1e-4", "--warmup", "0.01")
    assert not slow.bias_correction and not any("warm-up" in line for line in warnings_of(slow))


def test_a_run_too_short_for_any_schedule_is_told_so():
    args, _ = settled("--total_steps", "300", "--scheduler", "constant")
    line, = warnings_of(args)
    assert "--total_steps of 992 with a --w_step of 31" in line and "calibrated" in line


@pytest.mark.parametrize("total", [2, 300, 700])
def test_a_schedule_that_ends_after_the_run_is_told_what_would_do_and_that_does(total):
    args, _ = settled("--total_steps", str(total), "--w_step", "60", "--penalty", "fade", "--learning_rate", "1e-5",
                      "--compactor_learning_rate", "1e-5")
    line, = warnings_of(args)
    assert "the mask schedule ends at step 960, the run at step" in line
    for name, value in re.findall(r"--(w_step|total_steps) of ([\d,]+)", line):
        setattr(args, name, int(value.replace(",", "")))
    assert args.w_step < 60 and warnings_of(args) == []


def test_where_nothing_leaves_there_is_no_schedule_to_warn_of():
    args, _ = settled("--total_steps", "2")
    assert warnings_of(args) and not warnings_of(args, build_groups(ModelConfig(16, 1, 2, 32, 16), 16, "dim"))


@pytest.mark.parametrize(("rate", "penalty", "total", "word"), [
    ("5e-3", "published", 2000, "stability limit"), ("5e-4", "published", 2000, None), ("5e-3", "fade", 2000, None),
    ("5e-5", "published", 2000, "still at"), ("5e-4", "published", 1000, "schedule ends")])
def test_a_run_is_warned_of_settings_that_cannot_work(rate, penalty, total, word):
    args, _ = settled("--w_step", "70", "--compactor_learning_rate", rate, "--total_steps", str(total),
                      "--scheduler", "constant", "--penalty", penalty)
    said = [line for line in warnings_of(args) if "warm-up" not in line]
    assert [word in line for line in said] == ([True] if word else [])
