"""The teacher's pooler through the squeeze: what the student's pooler computes is what the formula says."""

from __future__ import annotations

import pytest
import torch
from checkpoints import trained
from commands import TEACHER, call, pretrain_options
from small import THREE_BY_8, batch, plain_bert, teacher
from test_convert import convert
from test_merge import CASES, merged, mid_training
from tuning import pooler

from uer.calibration.pooler import shift_pooler, squeeze_pooler
from uer.conversion.merge import merge
from uer.finetuning.heads import build_classifier, load_encoder
from uer.formats import load_model, shapes
from uer.formats.export import write_uer
from uer.squeeze.wiring import state_columns

WEIGHT, BIAS = shapes.POOLER
COLUMNS = state_columns("mlm")


def rows_of(student: dict[str, torch.Tensor], whole: dict[str, torch.Tensor]) -> list[int]:
    """Which of the teacher's outputs a student has, told by the bias."""
    return [int((whole[BIAS] == bias).nonzero()) for bias in student[BIAS]]


def states_of(oracle, src: torch.Tensor, seg: torch.Tensor) -> torch.Tensor:
    """The oracle's encoder output [batch, seq, d]: found by leaving the MLM head's first linear as its only part."""
    seen = []
    whole = oracle.linear

    def spy(x, name, left, right):
        if name == "target.mlm_linear_1":
            seen.append(x)
        return whole(x, name, left, right)

    oracle.linear = spy
    oracle.logits(src, seg)
    return seen[0]


@pytest.mark.parametrize(("shape", "strategy", "target"), CASES)
def test_the_students_pooler_reads_what_the_sparse_model_has(shape, strategy, target):
    product, oracle = mid_training(shape, strategy, target)
    whole = {name: tensor.double() for name, tensor in pooler(shape.hidden).items()}
    found = merge(product.master, pooler=whole).extras
    oracle.zero_dropped()
    src, _, seg = batch(shape, 31, rows=8)
    with torch.no_grad():
        states = states_of(oracle, src, seg)[:, 0] @ oracle.p[COLUMNS].T
        wanted = torch.tanh(states @ whole[WEIGHT].T + whole[BIAS])[:, rows_of(found, whole)]
        student = plain_bert(shape, product.config.student(target, strategy), merged(product))
        given = torch.tanh(student.hidden_states(src, seg)[:, 0] @ found[WEIGHT].T + found[BIAS])
    assert found[WEIGHT].shape == (target, target) and wanted.std() > 0.1
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-10)


def test_stock_transformers_pool_the_same(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    case, whole = trained(tmp_path, "dim"), pooler(128)
    torch.save({**torch.load(case.checkpoint, weights_only=True), **whole}, case.checkpoint)
    convert(monkeypatch, *case.options(tmp_path / "s.bin", "--output_format", "uer", "huggingface"))
    src = torch.randint(5, 60, (3, 9), generator=torch.Generator().manual_seed(1))
    loaded = load_encoder(str(tmp_path / "s.bin"), None)
    model = build_classifier(loaded, 2, "pooler", 1).eval()
    stock = transformers.AutoModel.from_pretrained(str(tmp_path / "s")).eval()
    with torch.no_grad():
        ours = torch.tanh(model.target.output_layer_1(model.hidden_states(src, torch.ones_like(src))[:, 0]))
        torch.testing.assert_close(ours, stock(src).pooler_output, rtol=0, atol=2e-5)
    assert ours.std() > 0.1


def test_nothing_dropped_is_the_teachers_pooler():
    whole = pooler(24)
    same = squeeze_pooler(whole, torch.eye(24), torch.rand(24) + 0.5)
    assert all(torch.equal(same[name], whole[name]) for name in whole)
    assert squeeze_pooler({}, torch.eye(24), torch.ones(24)) == {} == shift_pooler({}, torch.zeros(24))


def test_rows_carry_all_that_can_be_carried():
    """From the picked outputs' inputs to tanh, all others' can be rebuilt."""
    generator = torch.Generator().manual_seed(5)
    whole = {name: tensor.double() for name, tensor in pooler(24).items()}
    columns = torch.randn(24, 8, generator=generator, dtype=torch.float64)
    found = squeeze_pooler(whole, columns, torch.ones(8))
    everything = whole[WEIGHT] @ columns
    rebuilt = everything @ torch.linalg.pinv(found[WEIGHT]) @ found[WEIGHT]
    torch.testing.assert_close(rebuilt, everything, rtol=0, atol=1e-9)
    assert torch.linalg.cond(found[WEIGHT]) < 100


@pytest.mark.parametrize("squeezed", [(), ("hidden", "ffn.1"), ("all",)])
def test_convert_writes_the_pooler_into_every_format(tmp_path, monkeypatch, squeezed):
    case = trained(tmp_path, "dim", squeezed=squeezed)
    whole = pooler(128)
    torch.save({**torch.load(case.checkpoint, weights_only=True), **whole}, case.checkpoint)
    convert(monkeypatch, *case.options(tmp_path / "s.bin", "--output_format", "uer", "uer-py", "huggingface"))
    columns = case.state[COLUMNS].double()
    columns = columns if squeezed else columns[:, case.groups["hidden"].kept_index()]
    found = [load_model(path, config=None, vocab_size=None).extras
             for path in (tmp_path / "s.bin", tmp_path / "s-uer-py.bin", tmp_path / "s")]
    for extras in found:
        rows = rows_of(extras, whole)
        assert sorted(set(rows)) == rows and len(rows) == 64
        torch.testing.assert_close(extras[WEIGHT].double(), (whole[WEIGHT].double() @ columns)[rows], rtol=0, atol=1e-5)
        assert torch.equal(extras[WEIGHT], found[0][WEIGHT])


@pytest.mark.parametrize("target", [32, TEACHER.hidden_size])
def test_calibrated_students_have_a_pooler(files, tmp_path, target):
    """calibrate.py, and pretrain.py with rates of 0 in both kinds of training, then convert.py: the same pooler."""
    tensors, whole = torch.load(files / "teacher.bin", weights_only=True), pooler(TEACHER.hidden_size)
    write_uer(tmp_path / "teacher.bin", {**tensors, **whole})
    common = ["--pretrained_model_path", tmp_path / "teacher.bin", "--config_path", files / "config.json"]
    call("calibrate.py", *common, "--dataset_path", files / "data.pt", "--vocab_path", files / "vocab.txt",
         "--target_dim", target, "--output_model_path", tmp_path / "calibrated.bin")
    found = [load_model(tmp_path / "calibrated.bin", config=None, vocab_size=None).extras]
    for train in ("compactors", "student") if target < TEACHER.hidden_size else ("student",):
        masks = ["--mask_path", tmp_path / "masks.txt"] if train == "compactors" else []
        call("pretrain.py", *pretrain_options(
            files, tmp_path / f"{train}.bin", "--weight_squeeze", "--target_dim", target, "--compactor_init",
            "calibrated", "--train", train, *masks, total_steps=1, learning_rate=0, compactor_learning_rate=0,
            pretrained_model_path=tmp_path / "teacher.bin"))
        call("convert.py", "--load_model_path", tmp_path / f"{train}.bin-1", "--output_model_path",
             tmp_path / f"{train}-student.bin", "--hidden_size", TEACHER.hidden_size)
        found.append(load_model(tmp_path / f"{train}-student.bin", config=None, vocab_size=None).extras)
    for extras in found:
        torch.testing.assert_close(extras[WEIGHT], found[0][WEIGHT], rtol=0, atol=1e-5)
        torch.testing.assert_close(extras[BIAS], found[0][BIAS], rtol=0, atol=1e-5)
        assert extras[WEIGHT].shape == (target, target)
    if target == TEACHER.hidden_size:
        torch.testing.assert_close(found[0][WEIGHT], whole[WEIGHT], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[0][BIAS], whole[BIAS], rtol=0, atol=1e-5)


def test_the_offset_goes_into_the_bias():
    """tanh(W (C z + c) + b): with c in the bias, the pooler needs C z alone."""
    whole, offset = pooler(24), torch.randn(24, generator=torch.Generator().manual_seed(2))
    shifted = shift_pooler(whole, offset)
    states = torch.randn(5, 24, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(states @ shifted[WEIGHT].T + shifted[BIAS],
                               (states + offset) @ whole[WEIGHT].T + whole[BIAS])


def test_resume_carries_the_pooler_on(files, tmp_path):
    tensors, whole = torch.load(files / "teacher.bin", weights_only=True), pooler(TEACHER.hidden_size)
    write_uer(tmp_path / "teacher.bin", {**tensors, **whole})
    options = {"pretrained_model_path": tmp_path / "teacher.bin", "save_checkpoint_steps": 1}
    call("pretrain.py", *pretrain_options(files, tmp_path / "run.bin", total_steps=1, **options))
    call("pretrain.py", *pretrain_options(files, tmp_path / "run.bin", "--resume", total_steps=2, **options))
    again = load_model(tmp_path / "run.bin-2", config=None, vocab_size=None)
    assert all(torch.equal(again.extras[name], whole[name]) for name in whole)


def test_fine_tuning_starts_from_it(tmp_path):
    shape, whole = THREE_BY_8, pooler(24)
    weights = {name: tensor.float() for name, tensor in teacher(shape).items()}
    write_uer(tmp_path / "m.bin", {**weights, **whole})
    (tmp_path / "m_config.json").write_text(shape.config().to_json())
    model = build_classifier(load_encoder(str(tmp_path / "m.bin"), None), 2, "pooler", seed=1).eval()
    src, _, seg = batch(shape, 3)
    plain = plain_bert(shape, shape.config(), weights)
    with torch.no_grad():
        pooled = torch.tanh(plain.hidden_states(src, seg)[:, 0] @ whole[WEIGHT].T + whole[BIAS])
        wanted = pooled @ model.target.output_layer_2.weight.T + model.target.output_layer_2.bias
        torch.testing.assert_close(model(src, seg), wanted)
