"""The merged student, a plain BERT on its own, is the model that was trained."""

from __future__ import annotations

import pytest
import torch
from oracle import Oracle
from small import PROJECTED, THREE_BY_8, Product, Shape, batch, micro_batches, plain_bert, teacher

from uer.conversion.merge import groups_for, merge
from uer.conversion.sandwich import Sandwich
from uer.squeeze.groups import build_groups
from uer.squeeze.master import Master

CASES = [pytest.param(THREE_BY_8, "dim", 12, id="3x8-dim"), pytest.param(THREE_BY_8, "head", 16, id="3x8-head"),
         pytest.param(Shape(hidden=64, heads=2, feedforward=96), "dim", 16, id="2x32-dim"),
         pytest.param(Shape(hidden=64, heads=2, feedforward=96), "head", 32, id="2x32-head")]


def mid_training(shape: Shape, strategy: str, target: int) -> tuple[Product, Oracle]:
    """At the end of the schedule: masks complete, dropped entries far from zero, all parameters moved. And an oracle
    with the same parameters and masks."""
    method = {"target_dim": target, "strategy": strategy, "w_step": 1, "l2_lambda": 20.0, "learning_rate": 1e-3,
              "compactor_learning_rate": 1e-3}
    product = Product(shape, teacher(shape), load=PROJECTED, **method)
    for step in range(1, 21):
        product.step(micro_batches(shape, step, 1))
    for group in product.groups.values():
        assert group.kept == group.target and product.master.largest_dropped(group) > 0.01
    oracle = Oracle(product.master.state_dict(), heads=shape.heads, **method)
    oracle.dropped = product.dropped()
    return product, oracle


def merged(product: Product) -> dict[str, torch.Tensor]:
    """Squeeze every group and compose the student that stands alone."""
    for group in product.groups.values():
        product.master.squeeze(group)
    product.master.multiply_out()
    return {name: tensor.detach() for name, tensor in product.master.compose().items()}


def real_logits(logits: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
    """Those of real tokens: [n, vocab]."""
    return logits.reshape(-1, logits.shape[-1])[seg.flatten() > 0]


@pytest.mark.parametrize(("shape", "strategy", "target"), CASES)
def test_student_alone_is_the_sparse_model(shape: Shape, strategy: str, target: int):
    product, oracle = mid_training(shape, strategy, target)
    weights = merged(product)
    config = product.config.student(target, strategy)
    assert (config.hidden_size, config.feedforward_size) == (target, target * shape.feedforward // shape.hidden)
    assert config.heads_num == (shape.heads if strategy == "dim" else target * shape.heads // shape.hidden)
    src, _, seg = batch(shape, 31, rows=8)
    oracle.zero_dropped()
    with torch.no_grad():
        expected = real_logits(oracle.logits(src, seg), seg)
        exact = real_logits(plain_bert(shape, config, weights)(src, seg), seg)
        single = plain_bert(shape, config, {name: tensor.float() for name, tensor in weights.items()})
        close = real_logits(single(src, seg), seg).double()
    assert expected.std() > 0.1
    torch.testing.assert_close(exact, expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(close, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "strategy", "target"), CASES[:2])
def test_merging_the_student_again_changes_nothing(shape: Shape, strategy: str, target: int):
    product, _ = mid_training(shape, strategy, target)
    weights = merged(product)
    for name, tensor in merged(product).items():
        assert torch.equal(tensor, weights[name]), name
    config = product.config.student(target, strategy)
    again = Master(config, weights, build_groups(config, target, strategy))
    for group in again.groups.values():
        group.set_keep(group.choose(again.scores(group), 16))
        again.squeeze(group)
    for name, tensor in again.compose().items():
        torch.testing.assert_close(tensor.detach(), weights[name], rtol=0, atol=0, msg=name)


def test_the_query_carries_the_attention_scale():
    """Heads of 8 become heads of 4: q is multiplied by √(4 / 8), for `dim` alone, and not before they are narrow."""
    for strategy, target, factor in (("dim", 12, 0.5**0.5), ("head", 16, 1.0)):
        product, oracle = mid_training(THREE_BY_8, strategy, target)
        query = "encoder.transformer.1.self_attn.linear_layers.0"
        rows = oracle.p["encoder.transformer.1.self_attn.right_compactor.0.weight"]
        columns = oracle.p["encoder.transformer.1.self_attn.left_compactor.0.weight"]
        weight, bias = rows @ oracle.p[f"{query}.weight"] @ columns, rows @ oracle.p[f"{query}.bias"]
        before = product.master.compose()
        torch.testing.assert_close(before[f"{query}.weight"], weight)
        after = merged(product)
        kept_rows, kept_columns = (product.groups[name].kept_index() for name in ("attention.1", "hidden"))
        torch.testing.assert_close(after[f"{query}.weight"], weight[kept_rows][:, kept_columns] * factor)
        torch.testing.assert_close(after[f"{query}.bias"], bias[kept_rows] * factor)


@pytest.mark.parametrize("squeezed", [[], ["attention.0", "mlm"], ["hidden", "ffn.1"]])
@pytest.mark.parametrize(("strategy", "target"), [("dim", 12), ("head", 16)])
def test_the_package_s_own_sandwich_is_the_oracle(strategy: str, target: int, squeezed: list[str]):
    product, oracle = mid_training(THREE_BY_8, strategy, target)
    src, _, seg = batch(THREE_BY_8, 32)
    if squeezed:
        oracle.zero_dropped()
        for name in squeezed:
            product.master.squeeze(product.groups[name])
    sandwich = Sandwich(product.master, zero_dropped=bool(squeezed))
    with torch.no_grad():
        expected = real_logits(oracle.logits(src, seg), seg)
    torch.testing.assert_close(real_logits(sandwich.logits(src, seg), seg), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("wide", [None, 24])
def test_groups_with_nothing_to_drop_need_no_masks(wide: int | None):
    """A student as wide as its teacher throughout, or in its MLM head alone."""
    config, target = THREE_BY_8.config(), 24 if wide is None else 12
    groups = build_groups(config, target, "dim", wide)
    master = Master(config, teacher(THREE_BY_8), groups)
    for group in groups.values():
        if group.target < group.size:
            group.set_keep(group.choose(torch.arange(group.size, dtype=torch.float64), group.last_interval))
            master.squeeze(group)
    weights = merge(master).weights
    assert len(weights["target.mlm_linear_1.bias"]) == 24
    if wide is not None:
        found, _ = groups_for(master.state_dict(), config, "dim", {}, "here", wide)
        assert found["mlm"].keep is not None and found["mlm"].keep.all()
    else:
        src, _, seg = batch(THREE_BY_8, 31, rows=8)
        model = plain_bert(THREE_BY_8, config, weights)
        expected = plain_bert(THREE_BY_8, config, teacher(THREE_BY_8))
        with torch.no_grad():
            torch.testing.assert_close(model(src, seg), expected(src, seg), rtol=0, atol=1e-10)
