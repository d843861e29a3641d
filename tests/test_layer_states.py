"""The losses of layers through least squares: their numbers, their gradients, processes, runs and refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench import reports
from commands import call, pretrain_options
from test_padding import short
from test_targets import encoder_file
from test_teaching import COMMON, pair, unmasked
from workers import processes

from uer.cpu.padding import real_tokens
from uer.errors import UserError
from uer.training.layer_states import EARLY, EVERY, KEPT, RIDGE, LayerTargets, LeastSquares, with_one
from uer.training.objective import TaughtMlm
from uer.training.teaching import LogitTargets, StateTargets


def told(z: torch.Tensor, x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Σ w |C z + c − x|² / var(x) by lstsq, C and c without a gradient; the ridge as rows of their own."""
    root = weights.sqrt()[:, None]
    rows = (root * with_one(z)).detach()
    ridge = RIDGE * rows[:, :-1].pow(2).sum() / z.shape[1]
    rows = torch.cat([rows, ridge.sqrt() * torch.eye(*rows.shape[1:] * 2, dtype=rows.dtype)[:-1]])
    map_ = torch.linalg.lstsq(rows, torch.cat([root * x, x.new_zeros(z.shape[1], x.shape[1])])).solution
    mean = (weights[:, None] * x).sum(0) / weights.sum()
    variance = (weights * (x - mean).pow(2).sum(1)).sum() / weights.sum()
    return (weights * (with_one(z) @ map_ - x).pow(2).sum(1)).sum() / variance


def heard(model, batch, layer: int, signal: str) -> torch.Tensor:
    """What a part of a layer puts out for the real tokens, [n, hidden]."""
    part = model.encoder.layers()[layer]
    part = {"output": part, "attention": part.self_attn, "feedforward": part.feed_forward}[signal]
    kept = []
    with part.register_forward_hook(lambda module, given, out: kept.append(out)):
        model.hidden_states(batch.src, batch.seg)
    real = real_tokens(batch.seg)
    return (kept[0] if real is None else real.unpack(kept[0]))[batch.seg > 0]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("signals", [("output",), ("attention", "feedforward")])
def test_the_loss_of_layers(signals, packed):
    teacher, student = (model.double() for model in pair("states", 24))
    batch, inner = replace(short(), masked=False) if packed else unmasked()[0], StateTargets(teacher)
    assert (real_tokens(batch.seg) is not None) == packed
    real = batch.seg > 0
    weights = (real / real.sum(1, keepdim=True))[real].double()
    alone, _ = inner(student, batch)
    student.train()
    loss, sums = LayerTargets(inner, 3.0, signals)(student, batch)
    assert torch.equal(sums, inner(student, batch)[1])
    parts = [told(heard(student, batch, layer, signal), heard(teacher, batch, layer, signal), weights)
             for layer in range(len(student.encoder.layers())) for signal in signals]
    wanted = alone + 3.0 * torch.stack(parts).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6) and loss > alone + 1e-3
    parameters = list(student.encoder.parameters())
    for one, other in zip(*(torch.autograd.grad(value, parameters) for value in (loss, wanted))):
        assert (one - other).norm() <= 1e-4 * other.norm() + 1e-12
    itself = LayerTargets(inner, 3.0, signals)
    teacher.train()
    assert itself(teacher, batch)[0] < 0.02


def test_chosen_layers_and_a_shallower_student_at_the_same_height():
    teacher, student = pair("states", 24)
    batch = unmasked()[0]
    student.train()
    student.encoder.transformer = student.encoder.transformer[:1]
    heights = LayerTargets(StateTargets(teacher))
    heights(student, batch)
    assert list(heights.maps) == ["0 output"]
    top, found = heard(teacher, batch, 1, "output"), heights.maps["0 output"]
    real = batch.seg > 0
    weights = (real / real.sum(1, keepdim=True))[real]
    torch.testing.assert_close(found.moments[2], (weights * top.pow(2).sum(1)).sum())
    one = LayerTargets(StateTargets(teacher), layers=[1])
    one(pair("states", 24)[1].train(), batch)
    assert list(one.maps) == ["1 output"]


def test_states_of_some_positions_and_classifiers():
    """Masked tokens alone leave the last layer; a text counts 1 there too."""
    from test_calibration import batches

    teacher, student = (model.train() for model in pair("mlm", 0))
    batch = batches(1, rows=5)[0]
    targets = LayerTargets(TaughtMlm(teacher), 1.0)
    loss, sums = targets(student, batch)
    assert targets.maps["1 output"].moments[0][-1, -1].item() == pytest.approx(len(batch.src), rel=1e-5)
    assert not hasattr(targets, "figure") and loss > sums[0]
    teacher, student = (model.train() for model in pair("cls", 3))
    targets = LayerTargets(LogitTargets(teacher))
    loss, sums = targets(student, batch)
    assert targets.figure == "equal predictions" and loss > sums[0]
    teacher.config = replace(teacher.config, pooling="first")
    with pytest.raises(UserError, match="pool in ways"):
        LayerTargets(LogitTargets(teacher))(student, batch)
    LayerTargets(LogitTargets(teacher), layers=[0])(student, batch)


def test_maps_follow_and_forget():
    squares, generator = LeastSquares(torch.zeros(1, 3), torch.zeros(1, 4)), torch.Generator().manual_seed(1)
    z, first, later = (torch.randn(*shape, generator=generator) for shape in ((50, 3), (3, 4), (3, 4)))
    weights = torch.full((50,), 0.5)
    for step in range(1, EARLY + EVERY + 1):
        squares.see(z, z @ first, weights)
        renewed = min(step, EARLY) + max(0, step - EARLY) // EVERY
        assert squares.moments[0][-1, -1].item() == pytest.approx(25 * (1 - KEPT**renewed) / (1 - KEPT), rel=1e-4)
    torch.testing.assert_close(squares.map[:3], first, rtol=0, atol=1e-3)
    for _ in range(30 * EVERY):
        squares.see(z, z @ later + 1, weights)
    torch.testing.assert_close(squares.map[:3], later, rtol=0, atol=1e-2)
    torch.testing.assert_close(squares.map[3], torch.ones(4), rtol=0, atol=1e-2)
    again = LeastSquares.restored(squares.state(), torch.device("cpu"))
    again.see(z, z @ first, weights)
    squares.see(z, z @ first, weights)
    assert torch.equal(again.map, squares.map)


def see_a_share(place, args) -> None:
    z, x = torch.load(args.folder / "tokens.pt", weights_only=True)
    squares = LeastSquares(z, x)
    mine = slice(place.rank, None, 2)
    squares.see(z[mine], x[mine], torch.ones(len(z[mine])))
    torch.save(squares.map, args.folder / f"{place.rank}.pt")


def test_processes_find_the_maps_of_all_their_tokens(tmp_path):
    z, x = torch.randn(60, 5), torch.randn(60, 3)
    torch.save((z, x), tmp_path / "tokens.pt")
    processes(see_a_share, 2, folder=tmp_path)
    whole = LeastSquares(z, x)
    whole.see(z, x, torch.ones(60))
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), whole.map)


@pytest.mark.parametrize("more", [
    ["--compactor_init", "calibrated", "--train", "student", "--target_layers", 1, "--layer_signals", "output",
     "feedforward"],
    ["--penalty", "fade", "--w_step", 1, "--mask_path", "masks.txt", "--compactor_learning_rate", "1e-3",
     "--layer_numbers", 1]])
def test_a_run_resumes_bit_for_bit(files, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    path, _ = encoder_file(tmp_path)

    def run(output, *extra):
        call("pretrain.py", *pretrain_options(files, output, *COMMON, *more, "--layer_weight", 1, *extra,
                                              total_steps=40, pretrained_model_path=path, save_checkpoint_steps=23))

    run("whole.bin", "--tb_path", "logs")
    told = [entry["layers_told"] for entry in reports(tmp_path / "logs", "train")]
    assert told and all(0 < share < 1 for share in told)
    assert ("squeezed" in capsys.readouterr().out) == ("--mask_path" in more)
    for suffix in ("", ".json", ".resume"):
        (tmp_path / f"parts.bin-23{suffix}").write_bytes((tmp_path / f"whole.bin-23{suffix}").read_bytes())
    run("parts.bin", "--resume")
    whole, parts = (torch.load(f"{name}.bin-40", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    run("other.bin", "--layer_weight", 0.5)
    assert any(not torch.equal(whole[name], tensor)
               for name, tensor in torch.load("other.bin-40", weights_only=True).items())


@pytest.mark.parametrize(("more", "word"), [
    (["--layer_weight", 1, "--layer_numbers", 1, 2, 5], "--layer_numbers 2, 5: the student's layers are 0 to 1"),
    (["--layer_weight", -1], "--layer_weight is -1.0, a number from 0 is needed"),
    (["--layer_signals", "attention"], "--layer_signals goes with --layer_weight"),
    (["--layer_weight", 1, "--soft_targets_teacher", "shallow.bin"], "the teacher has 1 layers and the student 2"),
    (["--layer_weight", 1, "--compile"], "--compile makes one piece of them")])
def test_wishes_that_cannot_be(files, tmp_path, monkeypatch, capsys, more, word):
    path, _ = encoder_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    if "shallow.bin" in more:
        call("calibrate.py", "--pretrained_model_path", path, "--dataset_path", files / "data.pt", "--vocab_path",
             files / "vocab.txt", "--target_layers", 1, "--output_model_path", "shallow.bin", "--skip_evaluation")
    with pytest.raises(SystemExit) as end:
        call("pretrain.py", *pretrain_options(files, tmp_path / "out.bin", *COMMON, "--compactor_init", "calibrated",
                                              *more, pretrained_model_path=path))
    assert end.value.code == 2 and word in capsys.readouterr().err


def test_a_loss_of_layers_that_is_no_number_ends_the_run_in_its_step(files, tmp_path, capsys):
    path, _ = encoder_file(tmp_path)
    with pytest.raises(SystemExit):
        call("pretrain.py", *pretrain_options(files, tmp_path / "out.bin", *COMMON, "--compactor_init", "calibrated",
                                              "--layer_weight", "1e39", pretrained_model_path=path))
    assert "the loss is inf at step 1; " in capsys.readouterr().err
