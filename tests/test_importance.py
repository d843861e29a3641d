"""Mask scores: Taylor importance against its definition, and what the options that set them refuse."""

import pytest
import torch
from bench import WID, options, reports, run
from small import FOUR_BY_32, Product, micro_batches, teacher

from uer.errors import UserError
from uer.squeeze.importance import MEMORY

METHOD = {"target_dim": 32, "strategy": "dim", "w_step": 3, "l2_lambda": 20, "learning_rate": 1e-4,
          "compactor_learning_rate": 1e-3}


def gradients(product: Product, batches) -> dict[str, torch.Tensor]:
    """d loss / d compactor of every group's scoring compactor, by plain autograd through the composition."""
    master = product.master
    composed = master.compose()
    student = product.learner.student
    predicted = sum(int((tgt > 0).sum()) for _, tgt, _ in batches)
    loss = 0.0
    for src, tgt, seg in batches:
        positions = (tgt.flatten() > 0).nonzero().flatten()
        arguments = (src, seg, positions)
        logits = torch.func.functional_call(student, composed, arguments)
        loss = loss + torch.nn.functional.cross_entropy(logits, tgt.flatten()[positions], reduction="sum") / predicted
    names = {name: f"{group.scored_by}.weight" for name, group in master.groups.items()}
    found = torch.autograd.grad(loss, [master.parameters[name] for name in names.values()])
    return dict(zip(names, found))


@pytest.mark.parametrize("penalty", ["published", "fade"])
def test_taylor_scores_are_the_running_mean_of_gradient_times_value(penalty):
    product = Product(FOUR_BY_32, teacher(FOUR_BY_32), scores="taylor", penalty=penalty, **METHOD)
    expected = {name: torch.zeros(group.size, dtype=torch.float64) for name, group in product.groups.items()}
    for step in range(1, 8):  # masks from step 3 on: dropped columns are observed like the others
        batches = micro_batches(FOUR_BY_32, step, 2)
        if step % 3 == 0:
            wanted = {name: group.choose(expected[name], step // 3) for name, group in product.groups.items()}
        for name, gradient in gradients(product, batches).items():
            compactor = product.master.parameters[f"{product.groups[name].scored_by}.weight"]
            expected[name] = MEMORY * expected[name] + (1 - MEMORY) * (gradient * compactor).abs().sum(0).detach()
        product.step(batches)
        for name, group in product.groups.items():
            torch.testing.assert_close(product.learner.scores.of(group), expected[name], rtol=1e-8, atol=0)
            if step % 3 == 0:
                assert torch.equal(group.keep, wanted[name])
    dropped = product.groups["ffn.0"].dropped
    assert len(dropped) and (expected["ffn.0"][dropped] > 0).all()


def test_taylor_and_norms_choose_differently():
    products = [Product(FOUR_BY_32, teacher(FOUR_BY_32), scores=scores, **METHOD) for scores in ("norm", "taylor")]
    for step in range(1, 7):
        for product in products:
            product.step(micro_batches(FOUR_BY_32, step, 1))
    norm, taylor = (product.dropped() for product in products)
    assert norm != taylor and {name: len(x) for name, x in norm.items()} == {name: len(x) for name, x in taylor.items()}


def test_resume_refuses_a_checkpoint_without_scores(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, total_steps=1))
    with pytest.raises(UserError, match=r"no Taylor scores for hidden, .*another --mask_scores"):
        run(options(bench, *WID, "--resume", total_steps=2, mask_scores="taylor"))


@pytest.mark.parametrize(("more", "message"), [
    (["--w_step", "5", "--mask_schedule_share", "0.5"], "give one of them"),
    (["--mask_schedule_share", "1.5"], "--mask_schedule_share is 1.5"),
    (["--mask_scores", "taylor", "--compactor_init", "calibrated"], "--mask_scores does nothing")])
def test_options_that_contradict_each_other(bench, tmp_path, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        run(options(bench, *WID, *more, total_steps=1))


def test_the_schedule_takes_its_share_of_the_steps(bench, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(options(bench, *WID, total_steps=70, mask_schedule_share=0.5, report_steps=1, tb_path="logs"))
    kept = {entry["step"]: entry["kept/ffn.0"] for entry in reports(tmp_path / "logs", "train")}
    assert [kept[step] for step in (1, 2, 4, 30, 31, 32, 70)] == [64, 62, 60, 34, 34, 32, 32]
