"""The fold: the loss stays, the moments are those of the student's gradients, the run goes on as a plain one."""

from pathlib import Path

import pytest
import torch
from bench import CALIBRATED, WID, assert_same, options, reports, run
from small import THREE_BY_8, Product, batch, micro_batches, plain_bert, teacher

from uer.cli.convert import parser as convert_parser
from uer.conversion.stage1 import student_source
from uer.errors import UserError
from uer.squeeze.fold import fold
from uer.training.checkpoint import load_checkpoint
from uer.training.choose_learner import GATHERED
from uer.training.learner import PlainLearner
from uer.training.optimizers import BETAS, EPS, AdamW, parameter_groups
from uer.training.wid_learner import Folding

FADING = [*WID, "--penalty", "fade", "--w_step", "1"]
WAIT, RATE = 3, 1e-3


def ready(strategy: str, target: int) -> tuple[Product, list[dict[str, torch.Tensor]]]:
    """A product that is about to fold, and the student's gradients since everything has left."""
    product = Product(THREE_BY_8, teacher(THREE_BY_8), target_dim=target, strategy=strategy, w_step=1, l2_lambda=20.0,
                      learning_rate=1e-4, compactor_learning_rate=1e-3, penalty="fade", load=(1, 1))
    learner = product.learner
    learner.squeeze_tolerance = 1e-2

    def student_of(master):
        model = plain_bert(THREE_BY_8, *fold(master)).train()
        return PlainLearner(model, AdamW(parameter_groups(model.named_parameters(), RATE))), {}

    learner.folding = Folding(WAIT, student_of)
    gradients: list[dict[str, torch.Tensor]] = []
    while not learner.ready_to_fold():
        assert product.step_number < 60
        learner.prepare()
        product.loss(micro_batches(THREE_BY_8, product.step_number, 1), backward=True)
        if product.master.has_left:
            gradients.append({name: p.grad.clone() for name, p in learner.student.named_parameters()})
        product.step_number += 1
        learner.finish(product.step_number, 1.0)
        leaving = learner.ready_to_leave(product.step_number)
        if leaving:
            learner.squeeze(leaving)
    return product, gradients


@pytest.mark.parametrize(("strategy", "target"), [("dim", 12), ("head", 16)])
def test_the_student_computes_what_the_master_did_and_goes_on_with_its_moments(strategy: str, target: int):
    product, gradients = ready(strategy, target)
    src, tgt, seg = batch(THREE_BY_8, 77, rows=6)
    product.learner.prepare()
    with torch.no_grad():
        before = product.learner.student(src, seg)
    learner, _ = product.learner.fold()
    with torch.no_grad():
        after = learner.student(src, seg)
    assert before.std() > 0.1
    torch.testing.assert_close(after, before, rtol=0, atol=1e-12)
    assert len(gradients) == WAIT

    def moments(name: str) -> list[torch.Tensor]:
        weights = [[(1 - beta) * beta**age / (1 - beta**WAIT) for age in reversed(range(WAIT))] for beta in BETAS]
        return [sum(w * found[name]**power for w, found in zip(weights[power - 1], gradients)) for power in (1, 2)]

    old = {name: parameter.detach().clone() for name, parameter in learner.named_parameters()}
    positions = (tgt.flatten() > 0).nonzero().flatten()
    learner.prepare()
    learner.student.loss(src, seg, positions, tgt.flatten()[positions])[0].backward()
    found = {name: parameter.grad.clone() for name, parameter in learner.named_parameters()}
    learner.finish(product.step_number + 1, 1.0)
    for name, parameter in learner.named_parameters():
        first, second = (beta * mean + (1 - beta) * found[name]**power
                         for power, (beta, mean) in enumerate(zip(BETAS, moments(name)), 1))
        expected = old[name] - RATE * first / (second.sqrt() + EPS)
        expected -= 0 if name.endswith(("bias", "gamma", "beta")) else RATE * 0.01 * expected
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-10, atol=1e-12, msg=name)


def test_a_run_folds_says_so_and_ends_as_a_plain_model(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *FADING, "--after_squeeze", "student", "--student_learning_rate", "2e-3", total_steps=22,
                report_steps=1, scheduler="constant", tb_path="logs"))
    [entry] = reports(Path("logs"), "fold")
    last = max(line["step"] for line in reports(Path("logs"), "squeeze"))
    assert entry["step"] == last + 1
    assert entry["loss_after"] == pytest.approx(entry["loss_before"], rel=1e-6)
    assert f"step {entry['step']}: folded into the plain student; loss of a batch" in capsys.readouterr().out
    rates = {line["step"]: (line["learning_rate"], "compactor_learning_rate" in line)
             for line in reports(Path("logs"), "train")}
    assert rates[last] == (1e-3, True) and rates[entry["step"]] == (2e-3, False)
    models = reports(Path("logs"), "model")
    assert models[-1]["step"] == entry["step"] and "composition" not in models[-1]
    assert models[-1]["trained"] < models[-2]["trained"]
    tensors, card, _ = load_checkpoint(Path("model.bin-22"))
    assert not any("compactor" in name for name in tensors)
    assert card["kind"] == "plain" and card["folded"] == entry["step"]
    assert card["teacher"]["hidden_size"] == 16 and card["origin"]["hidden_size"] == 32
    convert = convert_parser().parse_args(["--load_model_path", "model.bin-22", "--output_model_path", "student.bin",
                                           "--layers_num", "2", "--hidden_size", "32", "--mask_path", "masks.txt",
                                           "--mask_step", "22"])
    source = student_source(convert, "convert.py", lambda line: None)
    assert source.config.hidden_size == 16 and source.card.teacher.hidden_size == 32
    assert (f"compactors trained for {entry['step']} steps" in source.card.how
            and source.card.how.endswith("and trained on by itself to step 22."))
    assert_same(dict(source.weights), tensors)


def test_a_run_with_compactors_may_fold_when_it_goes_on_and_not_the_other_way(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    more = [*FADING, "--total_steps", "24", "--save_checkpoint_steps", "1"]
    run(options(bench, *more))
    assert load_checkpoint(Path("model.bin-24"))[1]["kind"] == "wid"
    run(options(bench, *more, "--resume", "model.bin-21", "--after_squeeze", "student"))
    assert load_checkpoint(Path("model.bin-24"))[1]["folded"] == 22
    with pytest.raises(UserError, match="folded into its plain student at step 22; --after_squeeze student goes on"):
        run(options(bench, *more, "--resume", "model.bin-23", "--after_squeeze", "compactors"))
    run(options(bench, *more, "--resume", "model.bin-23"))  # left open, that stays
    assert load_checkpoint(Path("model.bin-24"))[1]["folded"] == 22


def test_under_torchrun_one_process_says_what_is_not_used(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("uer.pretraining.launch", lambda work, args: True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, times in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        run(options(bench, *CALIBRATED, "--l2_lambda=2"))
        assert capsys.readouterr().out.count("note: --l2_lambda: not used") == times


def test_a_calibrated_run_folds_on_the_way_whatever_the_interval_of_masks(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [*CALIBRATED, "--save_checkpoint_steps", "1"]
    run(options(bench, *words, "--train", "compactors", "--w_step", "3", "--l2_lambda=2", total_steps=1))
    assert "note: --l2_lambda, --w_step: not used, as with --compactor_init calibrated nothing is masked\n" in \
        capsys.readouterr().out
    run(options(bench, *words, "--mask_path", "masks.txt", total_steps=1, output_model_path="at_once.bin"))
    assert "note: --mask_path: not used, as masks are of compactors, and" in capsys.readouterr().out
    assert not Path("masks.txt").exists()  # an older one is not emptied
    run(options(bench, *words, "--resume", "--after_squeeze", "student", total_steps=GATHERED))
    said = f"the run ends at step {GATHERED}, and at step {1 + GATHERED} is the earliest that it could fold"
    assert said in capsys.readouterr().out
    run(options(bench, *words, "--resume", "--after_squeeze", "student", total_steps=2 + GATHERED))
    assert "earliest" not in capsys.readouterr().out
    assert load_checkpoint(Path(f"model.bin-{2 + GATHERED}"))[1]["folded"] == 1 + GATHERED


@pytest.mark.parametrize(("more", "words"), [
    (["--after_squeeze", "student", "--no_squeeze"], "with --no_squeeze nothing does"),
    (["--optimizer", "muon"], "--optimizer muon trains a plain model"),
    (["--student_learning_rate", "1e-4"], "--student_learning_rate does nothing without --after_squeeze student")])
def test_options_that_contradict_each_other(bench, more, words):
    with pytest.raises(UserError, match=words):
        run(options(bench, *FADING, *more))
