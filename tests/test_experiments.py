"""The experiment's jobs, their order, tables and pictures; the scripts that jobs run have tests of their own."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.jobs import Commands, Job, Setting, bind, write
from experiments.methods import METHODS, UNTRAINED
from experiments.peers import peers_parser
from experiments.run import Queue, parser, students, tunings
from experiments.show import best_runs, collect, glue_table, mlm_table, read
from uer.config import load_config, parse_with_config
from uer.errors import UserError
from uer.opts import pretrain_parser
from uer.planning.cost import Step, plain_cost
from uer.pretraining import _problems

ROOT = Path(__file__).resolve().parents[1]
NAMED = {method.name: method for method in METHODS}
START = {"rows": 2, "seq": 8, "micro_steps": 1, "processes": 1, "bf16": False, "cuda": False, "distinct": None}


@pytest.fixture
def setting(tmp_path) -> Setting:
    (tmp_path / "vocab.txt").write_text("a\nb\nc\n")
    (tmp_path / "t_config.json").write_text((ROOT / "bert/tiny_config.json").read_text())
    return Setting(tmp_path / "work", str(tmp_path / "t.bin"), str(tmp_path / "vocab.txt"), "d", "e", False)


def arguments(*more):
    words = ["--work_path", "w", "--teacher", "t.bin", "--vocab_path", "v", "--dataset_path", "d", "--dev_path", "e",
             "--target_dim", "192", "96", "--steps", "3000", *more]
    return parser().parse_args([str(word) for word in words])


class Recorded(Commands):
    """Notes commands instead of running them."""

    def __init__(self):
        super().__init__()
        self.lines: list[list[str]] = []

    def run(self, folder, script, *options):
        self.lines.append([script, *map(str, options)])
        (folder / "times.jsonl").write_text('{"script": "", "elapsed": 2.0, "seconds": 3.0}\n')
        if script == "evaluate.py":
            figures = {"loss": 3.0, "accuracy": 0.25, "predicted": 9, "parameters": 1_500_000}
            (folder / "figures.json").write_text(json.dumps(figures))


# -- jobs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [method for method in METHODS if method is not UNTRAINED], ids=lambda m: m.name)
def test_every_method_is_a_run_that_its_script_would_take(method):
    teacher = ["--pretrained_model_path", "t.bin", "--target_dim", "192", "--mask_path", "m",
               "--compactor_mask_strategy", method.strategy]
    words = [*method.options(method.rates[0], "t.bin"), "--config_path", "bert/tiny_config.json",
             "--dataset_path", "d", "--vocab_path", "v", "--output_model_path", "o",
             *(["--student_path", "s"] if method.objective else []), *(teacher if method.ours else [])]
    parse = peers_parser if method.objective else pretrain_parser
    args, given = parse_with_config(parse, words)
    assert _problems(args, given - {"objective", "teacher_path", "student_path"}) == []


def curve_lines() -> list[dict]:
    model = {"parameters": {}, "kind": "model"}
    return [{**model, "step": 0, "operations": {"attention": 4, "MLM head": 1}, "composition": 5, "start": START},
            {"step": 50, "kind": "dev", "loss": 5.0, "accuracy": 0.1},
            {**model, "step": 100, "operations": {"attention": 2, "MLM head": 1}},
            {"step": 150, "kind": "dev", "loss": 4.0, "accuracy": 0.2}]


def logged(folder: Path, lines: list[dict]) -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "logs/metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_curve_counts_the_operations_of_every_phase(setting, tmp_path):
    folder = logged(tmp_path / "run", curve_lines())
    assert Job(setting, NAMED["calibrated"], 192, 150)._curve(folder) == [
        {"step": 50, "operations": 500.0, "loss": 5.0, "accuracy": 0.1},
        {"step": 150, "operations": 100 * 10 + 50 * 3, "loss": 4.0, "accuracy": 0.2}]


def test_a_teacher_that_runs_along_is_counted_and_an_mlm_head_that_does_not_run_is_not(setting, tmp_path):
    folder = logged(tmp_path / "run", curve_lines()[:1])
    cost = plain_cost(load_config(tmp_path / "t_config.json"), {"vocab": 3, "positions": 0, "segments": 0}, Step(2, 8))
    for name, own, theirs in (("picked by norm, soft labels", 10, cost.all_operations),
                              ("MiniLMv2, picked by norm", 9, cost.all_operations - cost.operations["MLM head"])):
        end = Job(setting, NAMED[name], 192, 30)._curve(folder)[-1]
        assert end["step"] == 30 and end["operations"] == pytest.approx(30 * (own + theirs / 3))


def test_an_interrupted_job_goes_on_and_a_finished_one_is_left_alone(setting):
    job, commands = Job(setting, NAMED["calibrated"], 192, 150, "1e-4"), Recorded()
    (logged(job.folder, curve_lines()) / "model-100").touch()
    job.run(commands)
    train, convert = commands.lines[:2]
    assert train[0] == "pretrain.py" and "--resume" in train and train[train.index("--total_steps") + 1] == "150"
    assert convert[:3] == ["convert.py", "--load_model_path", f"{job.folder}/model-150"]
    row = json.loads(job.row.read_text())
    assert (row["accuracy"], row["curve"][-1]["step"], row["elapsed"], row["rate"]) == (0.25, 150, 2.0, "1e-4")
    assert not job.folder.exists()
    job.run(commands)
    assert len(commands.lines) == 3
    write(job.row, {**row, "recipe": {**row["recipe"], "batch_size": 8}})
    with pytest.raises(UserError, match=r"150-steps.*made in another way: batch_size \(8 there, 16 here\); delete it"):
        job.run(commands)


def test_a_folder_of_results_is_of_one_teacher_and_one_text(setting, tmp_path):
    for name in ("t.bin", "d.pt", "e.pt"):
        torch.save({"x": torch.zeros(1)}, tmp_path / name)
    setting = replace(setting, dataset=str(tmp_path / "d.pt"), dev=str(tmp_path / "e.pt"))
    for more in ({"teacher_from": "abc"}, {}):  # not given again: nothing to compare
        bind(setting.work, {**setting.made_from(), **more})
    with pytest.raises(UserError, match=r"work: made in another way: teacher_from \(abc there, xyz here\)"):
        bind(setting.work, {**setting.made_from(), "teacher_from": "xyz"})
    for name, key in (("t.bin", "teacher"), ("d.pt", "dataset_path"), ("e.pt", "dev_path"), ("vocab.txt", "vocab_path"),
                      ("t_config.json", "teacher")):
        before = (tmp_path / name).read_bytes()
        if name.endswith("pt"):
            torch.save({"x": torch.ones(1)}, tmp_path / name)
        else:
            (tmp_path / name).write_bytes(before[:-1] + b"?")
        with pytest.raises(UserError, match=rf"another way: {key} \("):
            bind(setting.work, setting.made_from())
        (tmp_path / name).write_bytes(before)
    bind(setting.work, setting.made_from())


def test_two_stages_are_one_curve(setting):
    job, commands = Job(setting, NAMED["calibrated in two stages"], 64, 225), Recorded()
    first = job._wider()
    assert (first.target, first.steps) == (96, 75)  # of a teacher of 128
    first.row.parent.mkdir(parents=True)
    point = {"step": 75, "operations": 7.0, "loss": 6.0, "accuracy": 0.3}
    write(first.row, {"curve": [point], "seconds": 1.0, "elapsed": 1.0})
    (logged(job.folder, curve_lines()) / "model-100").touch()
    job.run(commands)
    assert commands.lines[0][commands.lines[0].index("--pretrained_model_path") + 1] == str(first.student)
    row = json.loads(job.row.read_text())
    assert [(point["step"], point["operations"]) for point in row["curve"]] == [(75, 7), (125, 507), (225, 1157)]
    assert row["elapsed"] == 3.0


# -- order -------------------------------------------------------------------------------------------------------------


def test_jobs_come_in_the_order_of_the_rows_and_second_rates_last():
    args = arguments("--rows", "picked by norm", "96: calibrated", "--rates", "2", "--seeds", 11, 12)
    made = students(args, Setting(Path("w"), "t", "v", "d", "e", False))
    assert [(job.target, job.method.name, job.rate, job.seed) for job in made[:4]] == [
        (192, "picked by norm", "3e-4", 11), (96, "picked by norm", "3e-4", 11), (96, "calibrated", "2e-4", 11),
        (192, "picked by norm", "3e-4", 12)]
    assert len(made) == 12 and made[6].rate == "6e-4"
    with pytest.raises(UserError, match=r"--rows: there is no '97: calibrated'; a row is one of these"):
        students(arguments("--rows", "97: calibrated"), Setting(Path("w"), "t", "v", "d", "e", False))


class Step_:
    def __init__(self, name: str, log: list[str], fails: bool = False):
        self.name, self.log, self.fails = name, log, fails

    def run(self, commands):
        self.log.append(self.name)
        if self.fails:
            raise UserError("no")


def test_a_task_waits_for_what_it_needs_and_is_left_out_where_that_fails(capsys):
    log: list[str] = []
    good, bad = Step_("good", log), Step_("bad", log, fails=True)
    queue = Queue([(Step_("of bad", log), bad), (Step_("of good", log), good), (bad, None), (good, None)], Commands())
    queue.work(1)
    assert log == ["bad", "good", "of good"]
    assert queue.failed == 1 and "bad: no" in capsys.readouterr().out


def test_several_tasks_run_at_once():
    meet = threading.Barrier(3, timeout=5)

    class Meeting:
        name = "meeting"

        def run(self, commands):
            meet.wait()

    Queue([(Meeting(), None) for _ in range(3)], Commands()).work(3)
    assert not meet.broken


def test_fine_tuning_goes_task_by_task_over_all_models(setting):
    args = arguments("--rows", "96: calibrated", "--glue_path", "g", "--tasks", "STS-B", "RTE")
    made = students(args, setting)
    found = tunings(args, setting, made)
    assert [(task.task, task.row, needed) for task, needed in found] == [
        ("STS-B", "teacher", None), ("STS-B", made[0].name, made[0]),
        ("RTE", "teacher", None), ("RTE", made[0].name, made[0])]


# -- tables ------------------------------------------------------------------------------------------------------------


def run(method: str, rate: str, seed: int, loss: float | None, accuracy: float | None) -> dict:
    return {"name": f"{method} {rate} {seed}", "method": method, "target": 96, "steps": 300, "rate": rate, "seed": seed,
            "loss": loss, "accuracy": accuracy, "parameters": 1_500_000, "elapsed": 120.0,
            "curve": [{"step": 300, "operations": 5e12, "loss": loss, "accuracy": accuracy}]}


RUNS = [{"name": "teacher", "loss": 2.0, "accuracy": 0.4, "parameters": 3_000_000},
        run("picked by norm", "3e-4", 11, 3.9, 0.10), run("calibrated", "2e-4", 11, 3.5, 0.30),
        run("calibrated", "1e-4", 11, 3.0, 0.20), run("calibrated", "1e-4", 12, 3.4, 0.30),
        run("calibrated", "2e-4", 12, 2.0, 0.40), run("MiniLMv2, picked by norm", "3e-4", 11, None, None)]


def test_the_table_has_the_rate_that_is_best_under_the_first_seed():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in mlm_table(RUNS).splitlines()]
    assert rows[2] == ["teacher", "", "", "", "3.0 M", "2.000", "40.0", "100", "", ""]
    assert rows[3] == ["96: calibrated", "300", "1e-4", "2", "1.5 M", "3.200", "25.0 (20.0 to 30.0)", "62.5", "5",
                       "120"]
    assert rows[4][:9] == ["96: MiniLMv2, picked by norm", "300", "3e-4", "1", "1.5 M", "", "", "", "5"]
    assert rows[5][0] == "96: picked by norm"


def tuned(name: str, task: str, *scores: float, rate: float = 2e-4) -> list[dict]:
    return [{"name": name, "task": task, "learning_rate": rate, "seed": seed, "score": score}
            for seed, score in enumerate(scores)]


def test_the_glue_table_has_medians_of_the_better_rate_and_means_of_what_all_have():
    name = best_runs(RUNS)[0][0]["name"]
    lines = [*tuned("teacher", "SST-2", 0.9, 0.8, 0.7), *tuned("teacher", "RTE", 0.6), *tuned("teacher", "CoLA", 0.2),
             *tuned(name, "SST-2", 0.4), *tuned(name, "SST-2", 0.6, rate=1e-4), *tuned(name, "RTE", 0.5)]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in glue_table(RUNS, lines).splitlines()]
    assert rows[0] == ["model", "SST-2", "CoLA", "RTE", "mean of SST-2, RTE", "of the teacher's %"]
    assert rows[2:] == [["teacher", "80.0 (70.0 to 90.0)", "20.0", "60.0", "70.0", "100.0"],
                        ["96: calibrated, 300", "60.0", "", "50.0", "55.0", "78.6"]]


def test_a_student_without_a_head_is_chosen_by_the_tasks_that_its_rates_share():
    runs = [run("calibrated, relations", rate, 11, None, None) for rate in ("1e-4", "2e-4", "3e-4")]
    lines = [*tuned(runs[0]["name"], "SST-2", 0.9), *tuned(runs[0]["name"], "RTE", 0.5),
             *tuned(runs[1]["name"], "RTE", 0.6)]
    assert best_runs(runs, lines) == [[runs[1]]]


def test_figures_of_several_work_folders_come_together(tmp_path):
    for work, accuracy in (("a", 0.1), ("b", 0.2)):
        (tmp_path / work / "rows").mkdir(parents=True)
        for name in ("teacher", work):
            write(tmp_path / work / "rows" / f"{name}.json", {"name": name, "accuracy": accuracy})
        found = tmp_path / work / "glue/RTE/x/x"
        found.mkdir(parents=True)
        run = {"learning_rate": 1e-4, "seed": 1, "score": accuracy, "figures": {}, "seconds": 1.0, "epochs": []}
        write(found / "RTE.bin.results.json", {"runs": [run]})
        collect(tmp_path / work, tmp_path / "results")
    assert [(line["name"], line["accuracy"]) for line in read(tmp_path / "results/runs.jsonl")] == [
        ("a", 0.1), ("teacher", 0.2), ("b", 0.2)]
    assert [(line["name"], line["task"], line["score"]) for line in read(tmp_path / "results/glue.jsonl")] == [
        ("x", "RTE", 0.2)]


def test_the_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    from experiments.figures import curves, glue

    curves(tmp_path / "curves.png", RUNS)
    glue(tmp_path / "glue.png", RUNS, tuned("teacher", "RTE", 0.6) + tuned(RUNS[1]["name"], "RTE", 0.5))
    for name in ("curves.png", "glue.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
