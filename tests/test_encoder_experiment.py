"""The experiment with sentence encoders: its starts, its jobs and its table; the scripts have tests of their own."""

from __future__ import annotations

import json

import pytest
import torch
from commands import call, refused
from test_calibration import batches
from test_experiments import Recorded
from test_targets import headed, said

from experiments.encoders import FOLDED, ROWS, Setting, Start, Student, parser, table, tasks
from experiments.starts import fitted, moments_of, projection, start
from uer.config import parse_with_config
from uer.evaluation.ranking import read_beir
from uer.models.bert import from_weights
from uer.opts import pretrain_parser
from uer.pretraining import _problems


def mapped(way: str, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the teacher says of other texts, what the start does, and the map's weight."""
    config, weights = headed("states", "mean", 24)
    student, shape = start(way, weights, config, width, seed=3)
    student = {name: tensor.double() for name, tensor in student.items()}
    data = batches(40)
    moments = moments_of(from_weights(config, weights).eval(), from_weights(shape, student).eval(), data)
    student |= projection(moments, width) if way == "pca" else fitted(moments)
    fresh = batches(2, seed=99)
    wanted, given = (torch.cat([said(*pair, x.src, x.seg) for x in fresh]) for pair in (
        (config, weights), (shape, student)))
    return wanted, given, student["target.output_layer.weight"]


@pytest.mark.parametrize("way", ["norm", "pca"])
def test_with_all_dimensions_the_map_gives_the_teachers_vectors_back(way):
    wanted, given, _ = mapped(way, 24)
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("way", "width"), [("norm", 12), ("random", 12), ("layers", 24), ("pca", 6)])
def test_a_smaller_start_is_mapped_near_the_teacher(way, width):
    wanted, given, weight = mapped(way, width)
    error = (given - wanted).pow(2).mean() / (wanted - wanted.mean(0)).pow(2).mean()
    assert 1e-3 < error < 1.2 and weight.shape == (24, 24 if way == "pca" else width)
    assert torch.linalg.matrix_rank(weight) <= width


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(tmp_path / "work", "t", "v", "d", "s", "e", ("--batch_size", "8", "--bf16"))


def test_jobs_wait_for_their_starts_and_rates_come_one_after_another(setting):
    words = ["--work_path", "w", "--teacher", "t", "--sts_path", "s", "--widths", "96", "5x88/4", "--steps", "5",
             "--rates", "1", "2", "--rows", "calibrated", "layers", "pca", "--more", "--similarity_weight", "1"]
    args = parser().parse_args(words)
    assert args.more == ["--similarity_weight", "1"]
    jobs = tasks(args, setting)
    trained = [job for job, needed in jobs if isinstance(job, Student) and job.steps]
    assert [(job.start.row, job.start.shape, job.rate) for job in trained] == [
        (*start, rate) for rate in "12" for start in (("calibrated", "96"), ("calibrated", "5x88/4"), ("layers", ""))]
    assert all(needed == job.start for job, needed in jobs if isinstance(job, Student) and job.start.row != "teacher")
    assert len({job.name for job, _ in jobs}) == len(jobs) == 4 + 6 + 5


def test_a_student_that_is_folded_at_half_waits_for_the_one_that_is_not(setting):
    args = parser().parse_args(["--work_path", "w", "--teacher", "t", "--sts_path", "s", "--widths", "96", "--rates",
                                "1", "--rows", "half"])
    needed = {job: other for job, other in tasks(args, setting) if isinstance(job, Student) and job.steps}
    half, whole = sorted(needed, key=lambda job: job.fold != "half")
    assert (needed[half], needed[whole], whole.fold) == (whole, whole.start, "compactors")
    assert whole.start.row == half.start.row == "calibrated"


@pytest.mark.parametrize("row", [row for row in ROWS if ROWS[row][1]])
def test_every_row_is_trained_by_one_command_which_goes_on(setting, row):
    class Judged(Recorded):
        def run(self, folder, script, *options):
            super().run(folder, script, *options)
            (folder / "times.jsonl").write_text('{"script": "pretrain.py", "elapsed": 2.0, "seconds": 3.0}\n')
            if script == "evaluate.py":
                (folder / "figures.json").write_text(json.dumps({"spearman": 0.5, "cosine": 0.25}))

    fold = row if row in FOLDED else "calibrated"
    job, commands = Student(Start(setting, "calibrated" if row in FOLDED else row, 96), 7, "1e-3", fold=fold), Judged()
    folder = job.unfolded.half if job.unfolded else setting.work / "running" / job.name
    folder.mkdir(parents=True)
    (folder / "model-3").touch()
    job.run(commands)
    folder = setting.work / "running" / job.name
    assert (job.half / "model-3").exists() == (fold == "compactors")
    assert [line[0] for line in commands.lines] == ["pretrain.py", "convert.py", *["evaluate.py"] * 3]
    args, given = parse_with_config(pretrain_parser, commands.lines[0][1:])
    assert _problems(args, given) == [] and (args.objective, args.batch_size, args.bf16) == ("states", 8, True)
    assert args.resume and args.pretrained_model_path == str(job.start.file if fold == "calibrated" else "t")
    assert (args.after_squeeze == "student") == (fold == "half")
    found = json.loads(job.row.read_text())
    assert found["row"] == row
    assert (found["spearman"], found["cosine"], found["elapsed"]) == (0.5, 0.25, 2.0) and not folder.exists()
    job.run(commands)
    assert len(commands.lines) == 5


def test_the_table_has_every_row_at_its_best_rate():
    def line(row, width, steps, rate, seed, spearman):
        return {"row": row, "width": width, "shape": str(width or ""), "steps": steps, "rate": rate,
                "seed": seed, "spearman": spearman, "mapped": 0.5, "training": "--bf16" if steps else "",
                "elapsed": 60.0}

    rows = [line("calibrated", 96, 9, "1e-3", 1, 0.6), line("calibrated", 96, 9, "1e-4", 1, 0.7),
            line("calibrated", 96, 9, "1e-4", 2, 0.8), line("calibrated", 96, 9, "1e-3", 2, 0.9),
            line("layers", None, 0, "", 1, 0.3), line("random", 192, 0, "", 1, 0.2)]
    cells = [[cell.strip() for cell in text.strip("|").split("|")] for text in table(rows).splitlines()[2:]]
    assert cells[0][:6] == ["every second layer", "0", "", "", "30.0", "50.0"] and cells[1][0] == "192: random weights"
    assert cells[2] == ["96: calibrated", "9", "1e-4", "2", "75.0 (70.0 to 80.0)", "50.0 (50.0 to 50.0)", "", "", "60",
                        "--bf16"]


def test_questions_on_paragraphs_become_a_retrieval_set(tmp_path):
    squad = {"data": [{"paragraphs": [
        {"context": f"the river {name}", "qas": [{"question": f"{name} {i}?", "id": "x"} for i in range(2)]}
        for name in "ab"]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    (tmp_path / "text.txt").write_text("\n".join(["short", *(f"{i} " + 200 * "x" for i in range(9))]))
    call("experiments/retrieval_set.py", "--squad_path", tmp_path / "squad.json", "--output_path", tmp_path / "set",
         "--distractors", tmp_path / "text.txt", 3)
    corpus, queries, grades = read_beir(tmp_path / "set")
    assert [text[:11] for text in corpus.values()][:3] == ["the river a", "the river b", "0 xxxxxxxxx"]
    assert len(corpus) == 5 and list(queries.values()) == ["a 0?", "a 1?", "b 0?", "b 1?"]
    assert grades == {"q0": {"d0": 1}, "q1": {"d0": 1}, "q2": {"d1": 1}, "q3": {"d1": 1}}


def test_questions_are_split_by_article(tmp_path, capsys):
    articles = [{"paragraphs": [{"context": f"{name}\tb", "qas": [
        {"id": name, "question": f"{name}?", "answers": [{"text": "b", "answer_start": 2}]}]}]} for name in "abc"]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "1.1", "data": articles}))
    given = ["--squad_path", tmp_path / "squad.json", "--output_path", tmp_path / "out", "--articles"]
    call("experiments/squad_split.py", *given, 2)
    train, dev = (json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("train", "dev"))
    assert (train, dev) == tuple({"version": "1.1", "data": part} for part in (articles[:2], articles[2:]))
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert pairs == [{"question": f"{name}?", "context": f"{name}\tb"} for name in "ab"]
    for wrong in (0, 3):
        assert f"--articles {wrong}: the file has 3" in refused(capsys, tmp_path, "experiments/squad_split.py", *given,
                                                                wrong)
