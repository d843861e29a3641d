"""What a run goes on as: what must stay, what may change and is said, what the command line leaves open."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from bench import CALIBRATED, options, run
from commands import call, pretrain_options

import uer.training.trainer
from uer.data.feed import WORDS
from uer.data.masking import MaskingOptions
from uer.errors import Stopped, UserError
from uer.made_from import differences
from uer.opts import pretrain_parser
from uer.squeeze.mask_file import read_masks
from uer.training.checkpoint import load_checkpoint, read_card
from uer.training.course import FREE, KEPT, MODEL, NEWER, OPTIMIZER, SCHEDULE, SHARE, check_card, compare_courses
from uer.training.judge import remedy
from uer.training.objective import mlm_objective

MASKED = ["--weight_squeeze", "--target_dim", "16", "--mask_path", "masks.txt"]
# Neither what is learnt nor in which order: where things are, what is reported, how it is computed.
NO_MATTER = {
    "help", "backend", "shard_master", "check_replicas_steps", "rendezvous_timeout", "local_rank", "master_ip",
    "gpu_ranks", "ddp_comm_hook", "pretrained_model_path", "config_path", "allow_missing_head", "dev_path",
    "compile", "weight_squeeze", "mask_path", "soft_targets_teacher", "calibration_path",
    "calibration_batches", "compactors_path", "output_model_path", "save_checkpoint_steps", "keep_checkpoints",
    "resume", "allow_changed_data", "report_steps", "eval_steps", "tb_path", "tb_histograms_steps", "log_path",
    "dryrun", "plan", "seq_length"}


def test_differences_in_words():
    words = {"a": "--a", "b": "the b", "c": "c", "d": "d"}
    digest = "0123456789abcdef" * 4
    assert differences({"a": 1, "b": {"x": 1, "y": 2}, "c": digest, "e": 1},
                       {"a": 2, "b": {"x": 1, "z": 3}, "c": None, "d": None, "e": 2}, words) == [
        "--a (1 there, 2 here)", "the b: y (2 there, None here)", "the b: z (None there, 3 here)",
        "c (0123456789ab… there, None here)"]


@pytest.fixture(scope="module")
def begun(bench, tmp_path_factory):
    """Folder of a run of two steps with masks that soft labels teach."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(options(bench, *MASKED, "--soft_targets_weight", "0.5", "--warmup", "0.3", "--comp_only", total_steps=2))
    return folder


def going_on(begun: Path, bench: Path, *more, **changed) -> dict:
    """The record of a run that goes on from there to step 3."""
    changed = {"total_steps": 3, **changed}
    run(options(bench, *MASKED, "--resume", str(begun / "model.bin-2"), *more, **changed))
    return json.loads(Path(f"model.bin-{changed['total_steps']}.json").read_text())["course"]


@pytest.fixture
def here(begun, tmp_path, monkeypatch):
    """A copy of the masks, which the run goes on with."""
    (tmp_path / "masks.txt").write_text((begun / "masks.txt").read_text())
    monkeypatch.chdir(tmp_path)


def test_what_is_left_open_stays_and_what_changes_is_said(begun, bench, here, capsys):
    was = json.loads((begun / "model.bin-2.json").read_text())["course"]
    assert was["warmup"] == 0.3 and was["comp_only"] and was["soft_targets_weight"] == 0.5
    assert was["w_step"] < 10 and was["penalty"] == "fade" and was["bias_correction"] is True
    assert going_on(begun, bench, total_steps=3, w_step=was["w_step"]) == {**was, "total_steps": 3}
    assert "note: not as before from step 3 on: --total_steps (2 there, 3 here)\n" in capsys.readouterr().out
    found = going_on(begun, bench, "--dropout", "0.2", learning_rate=1e-3, soft_targets_weight=0.0, total_steps=64)
    assert found == {**was, "total_steps": 64, "dropout": 0.2, "learning_rate": 1e-3, "soft_targets_weight": 0.0}
    said = re.search("note: not as before from step 3 on: (.*)\n", capsys.readouterr().out)[1]
    assert {part.split()[0] for part in said.split("; ")} == {"--total_steps", "--dropout", "--learning_rate",
                                                             "--soft_targets_weight"}


def test_another_schedule_and_another_teacher_of_the_labels_are_refused(begun, bench, here):
    with pytest.raises(UserError, match=r"within another mask schedule: --w_step \(\d+ there, 400 here\)"):
        going_on(begun, bench, w_step=400)
    with pytest.raises(UserError, match=r"moments of another optimizer: --bias_correction \(True there, False here\)"):
        going_on(begun, bench, bias_correction="false")
    weights = torch.load(bench / "teacher.bin", weights_only=True)
    torch.save({name: tensor + 1e-3 for name, tensor in weights.items()}, "other.bin")
    Path("other_config.json").write_text((bench / "config.json").read_text())
    with pytest.raises(UserError, match=r"from another run: --soft_targets_teacher \(\w{12}… there, \w{12}… here\)"):
        going_on(begun, bench, soft_targets_teacher="other.bin")
    assert not list(Path().glob("model.bin*"))


def cut_short(monkeypatch, words: list[str]) -> None:
    """The first two steps of a run: SIGTERM comes in the first."""
    signals = iter([signal.SIGTERM])

    def hit(*more):
        for number in signals:
            signal.raise_signal(number)
        return mlm_objective(*more)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(uer.training.trainer, "mlm_objective", hit)
        run(words)


def test_a_share_of_the_steps_for_the_schedule_is_of_the_run_as_it_began(bench, tmp_path, monkeypatch):
    """Said again, or as the w_step that came of it, it goes on, over more steps as well; another one is refused."""
    monkeypatch.chdir(tmp_path)
    share = ["--mask_schedule_share", "0.5"]
    cut_short(monkeypatch, options(bench, *MASKED, *share, total_steps=64, dataset="static.pt"))
    for step, more in enumerate(([], share, ["--w_step", "2"]), 3):
        run(options(bench, *MASKED, *more, "--resume", total_steps=step, dataset="static.pt"))
        assert read_card(Path(f"model.bin-{step}"))["course"]["w_step"] == 2
    with pytest.raises(UserError, match=r"within another mask schedule: --w_step \(2 there, 1 here\)"):
        run(options(bench, *MASKED, "--mask_schedule_share", "0.25", "--resume", total_steps=64, dataset="static.pt"))


def test_of_older_checkpoints_the_share_is_not_known(bench, tmp_path, monkeypatch, capsys):
    """Nor is their JSON sealed, nor the sizes of layers in it."""
    monkeypatch.chdir(tmp_path)
    share = ["--mask_schedule_share", "0.5"]
    run(options(bench, *MASKED, *share, "--save_checkpoint_steps", "2", total_steps=2, dataset="static.pt"))
    card = json.loads(Path("model.bin-2.json").read_text())
    for key in ("layer_sizes", "masks_complete", "card_sha256"):
        del card[key]
    del card["course"]["mask_schedule_share"]
    Path("model.bin-2.json").write_text(json.dumps(card))
    call("pretrain.py", *options(bench, *MASKED, *share, "--resume", total_steps=2, dataset="static.pt"))
    assert "--output_format uer huggingface" in capsys.readouterr().out
    cut_short(monkeypatch, options(bench, *MASKED, *share, "--resume", total_steps=96, dataset="static.pt"))
    assert read_card(Path("model.bin-4"))["course"]["w_step"] == 1


@pytest.mark.parametrize("output", ["model.bin", "branch.bin"])
def test_the_masks_of_checkpoints_that_a_run_goes_back_behind_are_kept(bench, tmp_path, monkeypatch, output):
    monkeypatch.chdir(tmp_path)
    words = [*MASKED, "--w_step", "1", "--save_checkpoint_steps", "1", "--compactor_learning_rate"]
    run(options(bench, *words, "1e-5", total_steps=3))
    before = read_masks("masks.txt", 3)
    run(options(bench, *words, "1e-1", "--resume", "model.bin-1", total_steps=3, output_model_path=output))
    assert read_masks("masks.txt", 3) != before == read_masks("masks.txt.old", 3)
    run(options(bench, *words, "1e-1", "--resume", total_steps=4, output_model_path=output))
    assert not Path("masks.txt.old2").exists()


def test_before_all_masks_are_there_what_comes_next_is_to_go_on(files, tmp_path, capsys):
    """Run as it stands, it ends with masks that are whole, and then with a student."""
    command = ["pretrain.py", *pretrain_options(files, tmp_path / "m.bin", *MASKED[:2], 64, "--w_step", 1, "--penalty",
                                                "fade", "--mask_path", tmp_path / "masks.txt")]
    for script in ("pretrain", "convert", "evaluate"):
        call(*command)
        said = capsys.readouterr().out
        command = shlex.split(said[said.rindex("\nnext  "):])[2:]
        assert Path(command[0]).stem == script and ("no student before all masks are there, at step 16" in said) == (
            script == "pretrain")


@pytest.mark.parametrize(("card", "refused"), [
    ({"kind": "wid", "compactor_init": "identity"}, True), ({"kind": "wid", "compactor_init": "calibrated"}, False),
    ({"kind": "plain", "compactor_init": "identity"}, False)])
def test_a_schedule_binds_where_there_is_one(card, refused):
    was = {"w_step": 5, "mask_scores": "taylor", "penalty": "fade"}
    now = {"w_step": 6, "mask_scores": "norm", "penalty": "published", "optimizer": "adamw"}
    with pytest.raises(UserError, match=r"w_step \(5 there, 6 here\); --mask_scores \(taylor there, norm here\)") \
            if refused else nullcontext():
        assert compare_courses({**card, "course": was}, now, Path("m")) == ""  # nor is the penalty of anything
    assert compare_courses(card, now, Path("m")) == ""  # an older checkpoint does not say


def test_the_target_and_the_layers_stay():
    """A card that says no target is of masked words."""
    cards = [{"teacher": {}}, {"teacher": {}, "objective": "relations"}]
    for found, wanted in itertools.product(cards, cards):
        with nullcontext() if found is wanted else pytest.raises(UserError, match=r"objective \(\w+ there, \w+ here\)"):
            check_card(found, {**wanted, "teacher": {"dropout": 0.1}}, Path("m"))
    with pytest.raises(UserError, match=r"of other layers: --keep_layers \(\[0, 1\] there, \[0, 2\] here\)"):
        compare_courses({"kind": "plain", "course": {"keep_layers": [0, 1]}},
                        {"keep_layers": [0, 2], "optimizer": "adamw"}, Path("m"))


@pytest.mark.parametrize(("card", "refused"), [
    ({"kind": "plain", "course": {"optimizer": "muon"}}, True), ({"kind": "plain"}, True),  # an older one is AdamW's
    ({"kind": "wid", "course": {"optimizer": "muon"}}, False)])
def test_the_optimizer_stays_where_there_are_its_moments(card, refused):
    """A master has AdamW's, whatever its student will have."""
    now = {"optimizer": "adamw" if "course" in card else "muon"}
    with pytest.raises(UserError, match="--optimizer") if refused else nullcontext():
        compare_courses(card, now, Path("m"))


def test_a_run_before_its_fold_goes_on_with_its_compactors(bench, tmp_path, monkeypatch):
    """The optimizer of a student that there will not be binds nobody."""
    monkeypatch.chdir(tmp_path)
    words = [*CALIBRATED, "--train", "compactors"]
    run(options(bench, *words, total_steps=2, save_checkpoint_steps=1))
    run(options(bench, *words[:-1], "student", "--optimizer", "muon", "--resume", "model.bin-1", total_steps=2))
    card = json.loads(Path("model.bin-2.json").read_text())
    assert (card["kind"], card["course"]["optimizer"]) == ("wid", "muon")
    run(options(bench, *words, "--resume", total_steps=3))
    card = json.loads(Path("model.bin-3.json").read_text())
    assert (card["kind"], card["course"]["optimizer"]) == ("wid", "adamw")


def test_every_option_has_its_place():
    """A new option of pretrain.py is one that a run must keep, or whose change is said, or one that does not matter."""
    options = {action.dest for action in pretrain_parser()._actions if not action.dest.startswith("uer_")}
    elsewhere = {*WORDS, "dataset_path", "compactor_mask_strategy", *MODEL, *NEWER, *vars(MaskingOptions()),
                 "vocab_path", "tokenizer", "merges_path", "spm_model_path", "do_lower_case"}  # the text, its masks
    assert options <= {*FREE, *KEPT, *SCHEDULE, SHARE, *OPTIMIZER, *NO_MATTER, *elsewhere}
    assert {*FREE, *KEPT, *SCHEDULE, *NO_MATTER} <= options


def test_rates_that_are_given_are_those_of_a_folded_student(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*CALIBRATED, "--train", "student"]
    run(options(bench, *words, "--scheduler", "constant", total_steps=1, learning_rate=1e-6, eval_steps=1,
                dev_path=bench / "dev.pt"))
    learners = []
    monkeypatch.setattr("uer.training.build_trainer.describe", lambda learner, *_: learners.append(learner) or "")
    weights = []
    for more in ({}, {"learning_rate": 0.1}):
        capsys.readouterr()
        run(options(bench, *words, "--resume", "model.bin-1", total_steps=2, **more))
        tensors, card, _ = load_checkpoint(Path("model.bin-2"))
        weights.append(tensors["target.mlm_linear_2.weight"])
        assert {group["base_lr"] for group in learners[-1].optimizer.param_groups} == {more.get("learning_rate", 1e-6)}
        assert ("--student_learning_rate (1e-06 there, 0.1 here)" in capsys.readouterr().out) == bool(more)
    assert (weights[1] - weights[0]).abs().max() > 0.05
    assert remedy(learners[-1]).startswith("a smaller --student_learning_rate, or")
    assert card["folded"] == 0 and not {"dev_loss", "dev_accuracy"} & card.keys()  # of step 1
    assert "--learning_rate (" not in compare_courses(card, {**card["course"], "learning_rate": 9.0}, Path("m"))


def test_figures_are_those_of_their_step_and_text(bench, tmp_path, monkeypatch):
    """Held-out figures stand in the cards of steps that were evaluated; the teacher's are of the same text."""
    monkeypatch.chdir(tmp_path)

    def cards(*steps: int, **more) -> list[dict]:
        run(options(bench, *CALIBRATED, "--save_checkpoint_steps", "1", *["--resume"] * (steps[0] > 1), **more,
                    total_steps=steps[-1], batch_size=16))
        return [read_card(Path(f"model.bin-{step}")) for step in steps]

    first, *later = cards(1, 2, 3, dev_path=bench / "dev.pt", eval_steps=2)
    assert ["dev_loss" in card for card in (first, *later)] == [False, True, True]
    [without] = cards(4)
    assert "dev_loss" not in without and without["teacher_loss"] == first["teacher_loss"]
    [same], [other] = cards(5, dev_path=bench / "dev.pt"), cards(6, dev_path=bench / "static.pt")
    assert same["teacher_loss"] == first["teacher_loss"] != other["teacher_loss"]
    assert "dev_loss" in same and other["dev_sha256"] != same["dev_sha256"] == first["dev_sha256"]


def test_dropout_is_the_runs_and_the_models_own_stays(bench, tmp_path, monkeypatch):
    """None for a calibrated student, folded or not; the teacher's where the published start is trained; as given."""
    monkeypatch.chdir(tmp_path)
    own = json.loads((bench / "config.json").read_text()).get("dropout", 0.1)
    for more, wanted in (([*CALIBRATED, "--train", "compactors"], 0.0), (CALIBRATED, 0.0), (MASKED, own), ([], own),
                         ([*CALIBRATED, "--dropout", "0.3"], 0.3)):
        run(options(bench, *more, total_steps=1))
        card = json.loads(Path("model.bin-1.json").read_text())
        assert card["course"]["dropout"] == wanted and card["teacher"]["dropout"] == own > 0, more
    run(options(bench, *CALIBRATED, "--resume", total_steps=2))
    assert json.loads(Path("model.bin-2.json").read_text())["course"]["dropout"] == 0.3
    call("convert.py", "--load_model_path", "model.bin-2", "--output_model_path", "student.bin")
    assert json.loads(Path("student_config.json").read_text())["dropout"] == own
