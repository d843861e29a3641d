"""Targets without labels: what their losses are, and that runs with them resume, squeeze and merge like any other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import TEACHER, call, pretrain_options
from corpora import TOKENS
from test_calibration import batches
from test_targets import encoder_file, headed

from uer.data.loader import MlmBatch
from uer.evaluation.agreement import agreement, of_text, rightness
from uer.formats import load_model
from uer.formats.export import write_uer
from uer.formats.file_target import SPAN_LABELS, outputs_apart
from uer.models.bert import Bert, from_scratch, from_weights
from uer.training.relations import RelationTargets, common_heads
from uer.training.teaching import LogitTargets, StateTargets


def unmasked() -> list:
    return [replace(batch, masked=False) for batch in batches(2, rows=5)]


def pair(target: str, outputs: int, labels: tuple[str, ...] = ()) -> tuple[Bert, Bert]:
    """A teacher and another model of its size, in evaluation mode."""
    models = (headed(target, "mean", outputs, seed=seed) for seed in (1, 2))
    return tuple(from_weights(replace(config, labels=labels), weights).eval() for config, weights in models)


@pytest.mark.parametrize("distance", ["cosine", "squared"])
@pytest.mark.parametrize("per_token", [False, True])
def test_the_loss_of_states(distance, per_token):
    teacher, student = pair("states", 24)
    student.target.output_layer.weight.data += 0.1
    batch = unmasked()[0]
    loss, report = StateTargets(teacher, distance=distance, per_token=per_token)(student, batch)
    x, z = (model.hidden_states(batch.src, batch.seg) for model in (teacher, student))
    wanted = 0.0
    for row in range(len(batch.src)):
        length = int((batch.seg[row] > 0).sum())
        ours = student.target(z[row, :length])
        theirs = x[row, :length]
        if not per_token:
            ours, theirs = ours.mean(0, keepdim=True), theirs.mean(0, keepdim=True)
        apart = [1 - F.cosine_similarity(a, b, dim=0) if distance == "cosine" else (a - b).pow(2).mean()
                 for a, b in zip(ours, theirs)]
        wanted += (sum(apart) / len(apart)).detach()
    assert loss.item() == pytest.approx(float(wanted), rel=1e-5) and report[0] == loss and float(wanted) > 0.01
    assert StateTargets(teacher, distance=distance, per_token=per_token)(teacher, batch)[0].abs() < 1e-5


def test_the_loss_of_similarities():
    teacher, student = pair("states", 24)
    batch = unmasked()[0]
    x, z = (F.normalize(model.pooled(batch.src, batch.seg).float(), dim=1) for model in (teacher, student))
    wanted = ((x @ x.T - z @ z.T) ** 2).sum() / (len(x) - 1)
    loss, _ = StateTargets(teacher, states=0.0, similarity=1.0)(student, batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    student.target.output_layer.weight.data += 0.1
    y = F.normalize(student.target(student.pooled(batch.src, batch.seg)).float(), dim=1)
    wanted = wanted + ((y @ x.T - x @ x.T) ** 2).sum() / (len(x) - 1)
    parts = [StateTargets(teacher, similarity=weight)(student, batch)[0].item() for weight in (0.0, 1.0)]
    assert parts[1] - parts[0] == pytest.approx(wanted.item(), rel=1e-4)


def test_similarities_are_of_the_vectors_that_each_model_gives():
    """With a map of their own (a Dense module), of what this makes of the pooled states."""
    teacher, student = pair("states", 24)
    teacher.target.output_layer.weight.data[:12] *= 5
    batch = unmasked()[0]
    for mapped in ((False, False), (True, True)):
        assert StateTargets(teacher, states=0.0, similarity=1.0, mapped=mapped)(teacher, batch)[0].abs() < 1e-6
    x = F.normalize(teacher.target(teacher.pooled(batch.src, batch.seg)).float(), dim=1)
    z = F.normalize(student.pooled(batch.src, batch.seg).float(), dim=1)
    loss, _ = StateTargets(teacher, states=0.0, similarity=1.0, mapped=(True, False))(student, batch)
    assert loss.item() == pytest.approx((((x @ x.T - z @ z.T) ** 2).sum() / (len(x) - 1)).item(), rel=1e-4)


@pytest.mark.parametrize(("target", "outputs"), [("cls", 3), ("cls", 1), ("tokens", 5)])
def test_the_loss_of_logits(target, outputs):
    teacher, student = pair(target, outputs)
    batch = unmasked()[0]
    loss, report = LogitTargets(teacher, temperature=2.0)(student, batch)
    q, p = (model(batch.src, batch.seg).float() for model in (student, teacher))
    if outputs == 1:
        wanted = (q - p).pow(2).sum()
    else:
        rows = 4 * (F.softmax(p / 2, 1) * (F.log_softmax(p / 2, 1) - F.log_softmax(q / 2, 1))).sum(1)
        if target == "tokens":
            real = (batch.seg > 0)
            rows = (rows.view_as(real) * real).sum(1) / real.sum(1)
        wanted = rows.sum()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4) and 0 <= report[1] <= len(batch.src)
    assert LogitTargets(teacher)(teacher, batch)[0].abs() < 1e-6


def test_labels_that_may_hold_together_are_learnt_one_by_one():
    """A number added to all logits of a text is another answer."""
    models = pair("cls", 3)
    for model in models:
        model.config = replace(model.config, multi_label=True)
    (teacher, student), batch = models, unmasked()[0]
    loss, report = LogitTargets(teacher, temperature=2.0)(student, batch)
    q, p = (model(batch.src, batch.seg).float() for model in (student, teacher))
    theirs, wanted = p.div(2).sigmoid(), 0.0
    for share, sign in ((theirs, 1), (1 - theirs, -1)):
        wanted = wanted + 4 * (share * (F.logsigmoid(sign * p / 2) - F.logsigmoid(sign * q / 2))).sum()
    equal = ((q > 0) == (p > 0)).all(1).sum().item()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4) and report[1] == equal
    found = agreement(teacher, student, [batch], torch.device("cpu"))
    assert found["equal predictions"] == pytest.approx(equal / len(batch.src))
    assert rightness(torch.tensor([[0, 1, 0], [1, 1, 0]]), np.array([1, 0])) == 0.5  # another holds as well


def test_a_taggers_predictions_are_those_for_the_texts_tokens():
    """[CLS] 2 and [SEP] 3 count for nothing, in pairs and before padding; what both models say there is the same."""
    teacher, student = pair("tokens", 5)
    src = torch.tensor([[2, 7, 8, 9, 3, 0], [2, 7, 3, 3, 8, 3], [2, 9, 3, 0, 0, 0]])
    seg = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    real = seg > 0
    inside = of_text(src, real)
    assert inside.tolist() == [[False, True, True, True, False, False], [False, True, False, False, True, False],
                               [False, True, False, False, False, False]]
    none = torch.zeros(0, dtype=torch.long)
    batch = MlmBatch(src, seg, none, none, int(real.sum()), masked=False)
    same = [model(src, seg).argmax(-1).view_as(src) for model in (teacher, student)]
    wanted = (same[0] == same[1])[inside].double().mean().item()
    found = agreement(teacher, student, [batch], torch.device("cpu"))
    assert found["equal predictions"] == pytest.approx(wanted) and wanted != (same[0] == same[1])[real].double().mean()


def test_a_reader_finds_the_spans_that_its_teacher_finds():
    """A text's tokens compete for start and end; a number added to both logits of a token is another span."""
    teacher, student = pair("tokens", 2, SPAN_LABELS)
    batch = unmasked()[0]
    loss, report = LogitTargets(teacher, temperature=2.0)(student, batch)
    q, p = (model(batch.src, batch.seg).float().view(*batch.src.shape, 2) for model in (student, teacher))
    wanted, equal = 0.0, 0
    for row, length in enumerate((batch.seg > 0).sum(1).tolist()):
        ours, theirs = q[row, :length], p[row, :length]
        parts = F.softmax(theirs / 2, 0) * (F.log_softmax(theirs / 2, 0) - F.log_softmax(ours / 2, 0))
        wanted, equal = wanted + 4 * parts.sum(), equal + torch.equal(ours.argmax(0), theirs.argmax(0))
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4) and report[1] == equal < len(batch.src)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in student.parameters())
    found = agreement(teacher, student, [batch], torch.device("cpu"))
    assert found["equal predictions"] == pytest.approx(equal / len(batch.src))
    assert outputs_apart(teacher.config, pair("tokens", 2)[0].config).startswith("2 outputs of a reader, the model has")
    assert LogitTargets(teacher)(teacher, batch)[0].abs() < 1e-6


def test_the_loss_of_relations_head_by_head_where_text_is():
    teacher, batch = pair("states", 24)[0], unmasked()[0]
    student = from_weights(*headed("states", "mean", 24, seed=2)).eval()
    heads, total = common_heads(5, 24, 24), 0.0
    assert heads == 4 and batch.tokens < batch.seg.numel()
    for number in range(3):
        x, y = (model.encoder.layers()[-1].self_attn.linears()[number](
            model.encoder.below(model.embedding(batch.src, batch.seg), (batch.seg > 0)[:, None, None])).double()
            for model in (teacher, student))
        for row, length in enumerate((batch.seg > 0).sum(1).tolist()):
            for one, other in zip(x[row, :length].chunk(heads, 1), y[row, :length].chunk(heads, 1)):
                p, q = (F.softmax(part @ part.T / part.shape[1] ** 0.5, 1) for part in (one, other))
                total = total + (p * (p / q).log()).sum() / (heads * length)
    loss, report = RelationTargets(teacher, heads=5)(student, batch)
    assert loss.item() == pytest.approx(total.item(), rel=1e-4) and loss.item() > 1e-3
    assert report[1].item() == pytest.approx(len(batch.src) * 2.718281828 ** (-loss.item() / 3 / len(batch.src)))
    parameters = dict(student.named_parameters())
    trained = {name for name in parameters if name.startswith(("embedding.", "encoder.transformer.0."))}
    query = "encoder.transformer.1.self_attn.linear_layers.0.weight"
    ours, wanted = (torch.autograd.grad(x, [parameters[name] for name in sorted(trained | {query})], retain_graph=True)
                    for x in (loss, total))
    for one, other in zip(ours, wanted):
        torch.testing.assert_close(one.double(), other.double(), rtol=1e-3, atol=1e-5)
    assert RelationTargets(teacher)(teacher, batch)[0].abs() < 1e-4


COMMON = ["--weight_squeeze", "--target_dim", 32, "--warmup", 0, "--dropout", 0, "--learning_rate", "1e-3"]


@pytest.mark.parametrize("more", [
    ["--compactor_init", "calibrated", "--train", "student", "--similarity_weight", 1, "--augment_texts", 0.5],
    ["--compactor_init", "calibrated", "--state_tokens", "--state_distance", "squared", "--fix_state_map"],
    ["--compactor_init", "calibrated", "--train", "student", "--target", "relations", "--relation_heads", 4],
    ["--penalty", "fade", "--w_step", 1, "--mask_path", "masks.txt", "--compactor_learning_rate", "1e-3"]])
def test_a_run_learns_its_teachers_states_resumes_and_merges(files, tmp_path, monkeypatch, capsys, more):
    monkeypatch.chdir(tmp_path)
    path, _ = encoder_file(tmp_path)
    squeezes = "--mask_path" in more

    def run(output, *extra):
        call("pretrain.py", *pretrain_options(files, output, *COMMON, *more, *extra, total_steps=40,
                                              pretrained_model_path=path, dev_path=files / "data.pt", report_steps=10,
                                              save_checkpoint_steps=20))

    run("whole.bin")
    said = capsys.readouterr().out
    lines = [line for line in said.splitlines() if "| loss" in line]
    losses = [float(line.split("loss ")[1].split()[0]) for line in lines]
    assert ("likeness" if "relations" in more else "cosine") in lines[0] and "held-out accuracy" not in said
    assert ("squeezed" in said) if squeezes else losses[-1] < losses[0]
    (tmp_path / "parts.bin-20").write_bytes((tmp_path / "whole.bin-20").read_bytes())
    for suffix in (".json", ".resume"):
        (tmp_path / f"parts.bin-20{suffix}").write_bytes((tmp_path / f"whole.bin-20{suffix}").read_bytes())
    run("parts.bin", "--resume")
    whole, parts = (torch.load(f"{name}.bin-40", weights_only=True) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    call("convert.py", "--load_model_path", "whole.bin-40", "--output_model_path", "student.bin",
         *(["--mask_path", "masks.txt", "--mask_step", 40] if squeezes else []))
    student = load_model("student.bin", config=None, vocab_size=None, target=None).config
    assert (student.target, student.hidden_size, student.outputs) == ("states", 32, 128)


@pytest.mark.parametrize(("target", "head"), [("mlm", "MLM head"), ("cls", "classifier")])
def test_a_model_whose_head_does_not_follow_says_so(files, tmp_path, capsys, target, head):
    told, path = f"its {head} does not follow: fine-tune it", tmp_path / "teacher.bin"
    config = replace(TEACHER, target=target, outputs=0 if target == "mlm" else 3, pooling="first")
    write_uer(path, from_scratch(config, len(TOKENS), 1).state_dict())
    (tmp_path / "config.json").write_text(config.to_json())
    call("pretrain.py", *pretrain_options(files, tmp_path / "run", "--weight_squeeze", "--target_dim", 48, "--target",
                                          "relations", "--compactor_init", "calibrated", "--train", "student",
                                          total_steps=2, warmup=0, pretrained_model_path=path,
                                          config_path=tmp_path / "config.json"))
    assert told in capsys.readouterr().out
    call("convert.py", "--load_model_path", tmp_path / "run-2", "--output_model_path", tmp_path / "student.bin",
         "--output_format", "huggingface", "--vocab_path", files / "vocab.txt")
    said = capsys.readouterr().out
    assert told in said and "run_glue.py --data_dir" in said.splitlines()[-1]
    assert told in (tmp_path / "student" / "README.md").read_text()


@pytest.mark.parametrize(("more", "word"), [
    (["--target", "logits"], "states or similarity or relations would do"),
    (["--target", "states", "--relation_weight", 1], "--relation_weight goes with --target mlm"),
    (["--target", "mlm"], "has no MLM head"),
    (["--target", "similarity", "--batch_size", 1], "--batch_size 1: similarities are of the texts within a micro"),
    (["--similarity_weight", 1, "--batch_size", 1], "--batch_size 1: similarities are of the texts within a micro"),
    (["--fix_state_map", "--compactor_init", "identity", "--mask_path", "masks.txt"], "--fix_state_map needs"),
    (["--target", "similarity", "--state_tokens"], "--state_tokens goes with --target states"),
    (["--relation_weight", 1], "--relation_weight goes with --target mlm"),
    (["--augment_texts", 2], "--augment_texts is 2.0, a number from 0 to 1 is needed"),
    (["--target", "states", "similarity"], "one target is needed")])
def test_targets_that_do_not_fit(files, tmp_path, capsys, more, word):
    path, _ = encoder_file(tmp_path)
    with pytest.raises(SystemExit) as end:
        call("pretrain.py", *pretrain_options(files, tmp_path / "out.bin", *COMMON, "--compactor_init", "calibrated",
                                              *more, pretrained_model_path=path))
    assert end.value.code == 2 and word in capsys.readouterr().err


@pytest.mark.parametrize(("more", "word"), [
    (["--augment_texts", 0.5], "--augment_texts goes with --target states or similarity or logits"),
    (["--soft_targets_temperature", 2], "--soft_targets_temperature does nothing without --soft_targets_weight"),
    (["--soft_targets_top_k", 5], "--soft_targets_top_k does nothing without --soft_targets_weight"),
    (["--relation_heads", 7], "--relation_heads does nothing without --relation_weight"),
    (["--weight_squeeze", "--target_dim", 64, "--compactor_init", "calibrated", "--train", "compactors",
      "--head_learning_rate", 1e-3], "--head_learning_rate is of a plain model")])
def test_what_a_masked_language_model_has_no_use_for(files, tmp_path, capsys, more, word):
    with pytest.raises(SystemExit):
        call("pretrain.py", *pretrain_options(files, tmp_path / "out.bin", *more))
    assert word in capsys.readouterr().err


@pytest.mark.parametrize(("target", "word"), [
    ("relations", "--target relations needs a teacher"), ("states", "a model from scratch has nothing to compare so"),
    ("logits", "mlm or relations would do")])
def test_a_model_from_scratch_does_not_teach_itself(files, tmp_path, capsys, target, word):
    with pytest.raises(SystemExit):
        call("pretrain.py", *pretrain_options(files, tmp_path / "out.bin", "--target", target,
                                              pretrained_model_path=None))
    assert word in capsys.readouterr().err
