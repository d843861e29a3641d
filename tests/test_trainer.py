"""The trainer through pretrain.py's own entry: resume, several processes, reports, what is trained and what is not."""

import functools
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from bench import CONFIG, ROOT, WID, assert_same, options, reports, run
from commands import free_port
from corpora import TOKENS

from uer.errors import UserError
from uer.formats.export import write_uer
from uer.models.bert import from_scratch
from uer.report.log import current, read_lines
from uer.squeeze.mask_file import read_masks
from uer.training.checkpoint import load_checkpoint

# -- resume ------------------------------------------------------------------------------------------------------------

RUNS = {  # options; where to go on
    # masks at 3, 6, … 48; groups leave for good in several steps until about 50
    "fade": ([*WID, "--penalty", "fade", "--mask_scores", "taylor", "--mask_schedule_share", "0.8", "--total_steps",
              "60"], (2, 20, 32, 54)),
    "published": ([*WID, "--w_step", "2", "--total_steps", "30", "--compactor_mask_strategy", "head"], (10, 25)),
    "calibrated": ([*WID, "--compactor_init", "calibrated", "--calibration_batches", "2", "--total_steps", "10",
                    "--train", "compactors"], (5,)),
    "student": ([*WID[:-2], "--compactor_init", "calibrated", "--calibration_batches", "2", "--total_steps", "10"],
                (5,)),
    # groups leave until 36
    "folded": ([*WID, "--penalty", "fade", "--w_step", "2", "--after_squeeze", "student", "--max_grad_norm", "0.5",
                "--total_steps", "40", "--soft_targets_weight", "0.5"], (36, 37, 38, 39)),
    "soft labels": ([*WID, "--penalty", "fade", "--total_steps", "10", "--soft_targets_weight", "0.5"], (5,)),
    "plain": (["--total_steps", "10", "--learning_rate", "1e-3"], (5,)),
    "muon": (["--total_steps", "10", "--learning_rate", "1e-3", "--optimizer", "muon"], (5,)),
}

SCORING = "encoder.transformer.0.self_attn.left_compactor.2"  # of the residual stream


def command(bench, kind: str) -> list[str]:
    """Checkpoints and reports wherever a resume begins, at least."""
    more, steps = RUNS[kind]
    often = math.gcd(*steps)
    return options(bench, *more, accumulation_steps=2, save_checkpoint_steps=often, report_steps=often, tb_path="logs")


@pytest.fixture(scope="module")
def whole(bench, tmp_path_factory):
    """The folder of an uninterrupted run of a kind, made once."""
    @functools.cache
    def folder(kind: str) -> Path:
        made = tmp_path_factory.mktemp("whole")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(made)
            run(command(bench, kind))
        return made
    return folder


@pytest.mark.parametrize("kind", RUNS)
def test_resume_equals_the_uninterrupted_run(bench, whole, tmp_path, monkeypatch, kind):
    more, steps = RUNS[kind]
    total = int(more[more.index("--total_steps") + 1])
    expected = load_checkpoint(whole(kind) / f"model.bin-{total}")
    losses = {entry["step"]: entry["loss"] for entry in reports(whole(kind) / "logs", "train")}
    masks = whole(kind) / "masks.txt"
    for step in steps:
        (tmp_path / f"from{step}").mkdir()
        monkeypatch.chdir(tmp_path / f"from{step}")
        for ending in ("", ".json", ".resume"):
            shutil.copy(whole(kind) / f"model.bin-{step}{ending}", ".")
        if masks.exists():
            shutil.copy(masks, ".")
        run([*command(bench, kind), "--resume"])
        assert_same(load_checkpoint(Path(f"model.bin-{total}")), expected)
        again = {entry["step"]: entry["loss"] for entry in reports(Path("logs"), "train")}
        assert again == {at: loss for at, loss in losses.items() if at > step}
        if masks.exists():
            assert Path("masks.txt").read_text() == masks.read_text()


def test_a_model_from_scratch_learns_from_soft_labels(bench, tmp_path, monkeypatch):
    """With all of the weight on them, the teacher's labels decide: another teacher, other weights."""
    monkeypatch.chdir(tmp_path)
    made = []
    for seed in (1, 2):
        write_uer(Path("other.bin"), from_scratch(CONFIG, len(TOKENS), seed=seed).state_dict())
        Path("other_config.json").write_text(CONFIG.to_json())
        run(options(bench, "--soft_targets_weight", "1", "--soft_targets_teacher", "other.bin", "--learning_rate",
                    "1e-3", teacher=False, total_steps=2))
        made.append(load_checkpoint(Path("model.bin-2"))[0])
    assert not torch.equal(*(weights["embedding.word_embedding.weight"] for weights in made))


def test_the_run_with_fade_covers_every_phase(whole):
    """Before the schedule, inside it, between squeezes, after the last: what the resumes above rest on."""
    squeezes = reports(whole("fade") / "logs", "squeeze")
    left = [entry["step"] for entry in squeezes]
    kept = {entry["step"]: entry["kept/hidden"] for entry in reports(whole("fade") / "logs", "train")}
    before, inside, between, after = RUNS["fade"][1]
    assert kept[before] == 32 > kept[inside] > kept[between] == 16
    assert inside < left[0] <= between < left[-1] <= after
    for entry in squeezes:
        assert entry["loss_after"] == pytest.approx(entry["loss_before"], rel=1e-3)


def test_decayed_dimensions_leave_before_their_group(whole):
    """As checkpoints, the operations of a step and the parameters tell."""
    there = {step: load_checkpoint(whole("fade") / f"model.bin-{step}")[2]["there"] for step in RUNS["fade"][1]}
    before, inside, between, after = there
    assert not there[before] and not there[after]
    assert 16 < len(there[inside]["hidden"]) < 32 and "hidden" not in there[between] and len(there[between]["mlm"]) < 32
    lines = {entry["step"]: sum(entry["operations"].values()) for entry in reports(whole("fade") / "logs", "model")}
    first = reports(whole("fade") / "logs", "squeeze")[0]["step"]
    assert len([step for step in lines if step < first]) > 3
    assert [*lines.values()] == sorted(lines.values(), reverse=True)


def test_resume_refuses_another_run(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, total_steps=1))
    with pytest.raises(UserError, match=r"target_dim .16 there, 8 here"):
        run(options(bench, *[word.replace("16", "8") for word in WID], "--resume", total_steps=2))
    with pytest.raises(UserError, match=r"strategy .dim there, head here"):
        run(options(bench, *WID, "--resume", total_steps=2, compactor_mask_strategy="head"))


def test_a_resumed_calibrated_run_records_the_same_masks(bench, tmp_path, monkeypatch):
    """Calibration keeps single dimensions of the residual stream, where `head` would record whole blocks."""
    monkeypatch.chdir(tmp_path)
    more = [*WID, "--compactor_init", "calibrated", "--compactor_mask_strategy", "head", "--train", "compactors"]
    run(options(bench, *more, total_steps=2, save_checkpoint_steps=1))
    whole = Path("masks.txt").read_bytes()
    run(options(bench, *more, total_steps=2, resume="model.bin-1"))
    assert Path("masks.txt").read_bytes() == whole and len(read_masks("masks.txt", 2)[SCORING]) == 16


def test_resuming_leaves_other_runs_records_alone(bench, tmp_path, monkeypatch):
    """Two runs in one folder of logs, the first one killed in the middle of a line."""
    monkeypatch.chdir(tmp_path)
    more = {"report_steps": 1, "tb_path": "logs"}
    run(options(bench, total_steps=3, **more, output_model_path="first.bin"))
    with open("logs/metrics.jsonl", "a") as log:
        log.write('{"step": 4, "kind": "tr')
    run(options(bench, total_steps=4, save_checkpoint_steps=2, **more))
    run(options(bench, "--resume", "model.bin-2", total_steps=4, **more))
    assert [entry["step"] for entry in reports(Path("logs"), "train")] == [1, 2, 3, 1, 2, 3, 4]
    run(options(bench, "--resume", total_steps=5, **more, output_model_path="first.bin"))
    assert [entry["step"] for entry in reports(Path("logs"), "train")] == [1, 2, 3, 1, 2, 3, 4, 4, 5]
    lines = current(read_lines(Path("logs/metrics.jsonl")))
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5]
    assert {line["start"]["output"] for line in lines if "start" in line} == {"first.bin"}


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.long  # test_distributed.py compares such runs in float64 every time
@pytest.mark.parametrize("more", [[*WID, "--penalty", "fade", "--w_step", "1"]])
def test_two_processes_equal_one_with_twice_the_batch(bench, tmp_path, monkeypatch, more):
    monkeypatch.chdir(tmp_path)
    more = [*more, "--total_steps", "24", "--report_steps", "4", "--tb_path"]
    run(options(bench, *more, "one", dataset="static.pt", batch_size=8, dropout=0))
    words = options(bench, *more, "two", "--gpu_ranks", "0", "1", dataset="static.pt", batch_size=4, dropout=0,
                    world_size=2, master_ip=f"tcp://localhost:{free_port()}", output_model_path="two.bin")
    done = subprocess.run([sys.executable, str(ROOT / "pretrain.py"), *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for one, two in zip(reports(Path("one"), "train"), reports(Path("two"), "train"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-6) and two["accuracy"] == one["accuracy"]
    one, two = load_checkpoint(Path("model.bin-24")), load_checkpoint(Path("two.bin-24"))
    assert two[1]["squeezed"] == one[1]["squeezed"]
    assert_same(two[2]["keep"], one[2]["keep"])


# -- what is trained, what is told -------------------------------------------------------------------------------------


def test_comp_only_leaves_the_teacher_alone(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, "--comp_only", total_steps=3, w_step=1))
    teacher = torch.load(bench / "teacher.bin", weights_only=True)
    trained, _, _ = load_checkpoint(Path("model.bin-3"))
    assert_same({name: trained[name] for name in teacher}, teacher)
    compactors = [tensor for name, tensor in trained.items() if "compactor" in name]
    assert compactors and all(not torch.equal(tensor, torch.eye(len(tensor))) for tensor in compactors)


def test_a_plain_run_from_scratch_learns_and_reports(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(options(bench, teacher=False, total_steps=60, learning_rate=3e-3, batch_size=16, report_steps=10, eval_steps=20,
                dev_path=bench / "dev.pt", tb_path="logs", log_path="log/run.log"))
    train, dev = reports(Path("logs"), "train"), reports(Path("logs"), "dev")
    assert [entry["step"] for entry in train] == [10, 20, 30, 40, 50, 60] and [e["step"] for e in dev] == [20, 40, 60]
    assert train[-1]["loss"] < train[0]["loss"] - 0.5 and dev[-1]["loss"] < dev[0]["loss"]
    assert all(entry["tokens_per_second"] > 0 and 0 <= entry["accuracy"] <= 1 for entry in train)
    printed = capsys.readouterr().out
    assert "from scratch" in printed and f"held-out loss {dev[-1]['loss']:.4f}" in printed
    log = Path("log/run.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in log] == printed.splitlines()


def test_tensorboard_gets_every_number(bench, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID[:-1], "2.5e-4", total_steps=4, w_step=2, report_steps=2, dev_path=bench / "dev.pt",
                tb_path="logs"))
    board = EventAccumulator("logs").Reload()
    assert {"train/loss", "train/accuracy", "train/learning_rate", "train/compactor_learning_rate",
            "train/kept/hidden", "train/kept/attention.0", "train/kept/ffn.1", "train/kept/mlm",
            "train/tokens_per_second", "train/largest_dropped", "dev/loss",
            "dev/accuracy"} <= set(board.Tags()["scalars"])
    last = reports(Path("logs"), "train")[-1]
    assert last["learning_rate"] == 4 * last["compactor_learning_rate"] > 0
    kept = [(event.step, int(event.value)) for event in board.Scalars("train/kept/ffn.1")]
    assert kept == [(entry["step"], entry["kept/ffn.1"]) for entry in reports(Path("logs"), "train")]


@pytest.mark.parametrize("saves", [1, 50])
def test_a_loss_that_is_no_number_ends_the_run(bench, tmp_path, monkeypatch, saves):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"(loss is (nan|inf)|weights are no finite numbers).* at step \d+; a smaller "):
        run(options(bench, total_steps=20, learning_rate=1e30, warmup=0, save_checkpoint_steps=saves))
    for path in tmp_path.glob("model.bin-*"):
        if path.suffix not in (".json", ".resume"):
            load_checkpoint(path)  # a checkpoint that is there can be used
