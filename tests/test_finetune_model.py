"""Fine-tuning without its scripts: models, poolings, the steps of a run, and which epoch is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from corpora import TOKENS
from tuning import CONFIG

from uer.errors import UserError
from uer.finetuning.batches import Instance
from uer.finetuning.classify import decisions, predict
from uer.finetuning.heads import build_classifier, load_encoder
from uer.finetuning.options import POOLINGS
from uer.finetuning.tasks import GLUE
from uer.finetuning.tuning import Combination, Evaluation, Settings, tune
from uer.report.writer import Reports
from uer.targets.pooling import pooled
from uer.training.optimizers import AdamW, parameter_groups


@pytest.mark.parametrize("pooling", POOLINGS)
def test_uer_file_and_hugging_face_folder_are_the_same_model(tuned, pooling):
    src = torch.randint(5, len(TOKENS), (3, 12), generator=torch.Generator().manual_seed(1))
    seg = torch.tensor([[1] * 12, [1] * 5 + [2] * 4 + [0] * 3, [1] + [0] * 11])
    logits = []
    for name in ("uer.bin", "hf"):
        model = build_classifier(load_encoder(str(tuned / name), None), 3, pooling, seed=5).eval()
        with torch.no_grad():
            logits.append(model(src, seg))
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-5)
    assert logits[0].std() > 1e-3


def test_training_steps_are_those_of_stock_transformers(tuned):
    """Same head, same batches, no dropout, float64: the losses of ten steps, AdamW and cut gradients included.

    LayerNorm's gammas stay: ours are √(n / (n − 1)) times theirs, so that Adam's steps on them are not the same.
    """
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(
        str(tuned / "hf"), num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0).double().train()
    ours = build_classifier(load_encoder(str(tuned / "hf"), None, dropout=0.0), 3, "pooler", 1).double().train()
    ours.target.output_layer_2.load_state_dict(theirs.classifier.state_dict())
    for name, parameter in (*ours.named_parameters(), *theirs.named_parameters()):
        parameter.requires_grad_(not name.endswith(("gamma", "LayerNorm.weight")))
    mine = AdamW(parameter_groups(ours.named_parameters(), 3e-3), bias_correction=True)
    named = [(name.endswith("bias"), parameter) for name, parameter in theirs.named_parameters()]
    other = torch.optim.AdamW([{"params": [p for bias, p in named if not bias], "weight_decay": 0.01},
                               {"params": [p for bias, p in named if bias], "weight_decay": 0.0}], lr=3e-3, eps=1e-6)
    generator = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(10):
        src = torch.randint(5, len(TOKENS), (6, 12), generator=generator)
        seg, labels = torch.ones_like(src), torch.arange(6) % 3
        seg[:, 6:], seg[2, 8:] = 2, 0
        first = torch.nn.functional.cross_entropy(ours(src, seg), labels)
        second = theirs(src, attention_mask=(seg > 0).long(), token_type_ids=(seg - 1).clamp(min=0), labels=labels).loss
        losses.append((first.item(), second.item()))
        for model, optimizer, loss in ((ours, mine, first), (theirs, other, second)):
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
    table = np.array(losses)
    assert table[:, 0].std() > 0.01
    np.testing.assert_allclose(table[:, 0], table[:, 1], atol=2e-6)


def test_poolings():
    hidden = torch.tensor([[[1.0, 9.0], [3.0, 4.0], [5.0, -2.0]], [[1.0, 2.0], [7.0, 0.0], [100.0, 100.0]]])
    seg = torch.tensor([[1, 1, 2], [1, 1, 0]])
    wanted = {"first": [[1, 9], [1, 2]], "pooler": [[1, 9], [1, 2]], "last": [[5, -2], [7, 0]],
              "max": [[5, 9], [7, 2]], "mean": [[3, 11 / 3], [4, 1]]}
    for name in POOLINGS:
        torch.testing.assert_close(pooled(hidden, seg, name), torch.tensor(wanted[name], dtype=torch.float32))


def test_a_model_without_mlm_head_or_pooler(tuned, tmp_path):
    weights = {name: tensor for name, tensor in torch.load(tuned / "uer.bin", weights_only=True).items()
               if not name.startswith("target.")}
    torch.save(weights, tmp_path / "bare.bin")
    (tmp_path / "bare_config.json").write_text(CONFIG.to_json())
    loaded = load_encoder(str(tmp_path / "bare.bin"), None)
    assert not loaded.extras and build_classifier(loaded, 2, "first", 1)
    with pytest.raises(UserError, match=r"--pooling pooler: the model has no pooler; take first"):
        build_classifier(loaded, 2, "pooler", 1)
    del weights["embedding.word_embedding.weight"]
    torch.save(weights, tmp_path / "bare.bin")
    with pytest.raises(UserError, match=r"missing: embedding\.word_embedding\.weight$"):
        load_encoder(str(tmp_path / "bare.bin"), None)


def test_padding_and_order_change_nothing(tuned):
    model = build_classifier(load_encoder(str(tuned / "hf"), None), 2, "pooler", 1).eval()
    rng = np.random.default_rng(1)
    instances = [Instance(rng.integers(5, len(TOKENS), n).astype(np.int32), n // 2 + 1, None) for n in (3, 20, 9, 14)]
    together = predict(model, instances, 0, torch.device("cpu"), batch_size=3)
    alone = np.concatenate([predict(model, [instance], 0, torch.device("cpu")) for instance in instances])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_dropout_of_the_options_goes_before_the_configs(tuned):
    assert load_encoder(str(tuned / "hf"), None, dropout=0.3).config == replace(CONFIG, dropout=0.3,
                                                                               layernorm="huggingface",
                                                                               layernorm_eps=1e-12)


def test_the_best_epoch_is_kept():
    """Scores of a made-up problem rise and fall; the weights kept are those of the highest."""
    class MadeUp:
        scores = iter([0.3, 0.9, 0.9, 0.1])

        def batches(self, batch_size, seed, epoch, grouped):
            return [epoch, epoch]

        def loss(self, model, batch):
            return (model.weight - 10 * batch).square().sum()

        def evaluate(self, model):
            seen.append(model.weight.item())
            return Evaluation(next(self.scores), {"x": 0.5})

    seen: list[float] = []
    model = torch.nn.Linear(1, 1, bias=False)
    found = tune(model, MadeUp(), Combination(0.1, 1, 1), Settings(epochs=4), torch.device("cpu"), Reports(False))
    assert found.best_epoch == 2 and found.score == 0.9 and len(found.epochs) == 4
    assert found.weights["weight"].item() == seen[1] != seen[3]


@pytest.mark.parametrize("corrected", [True, False])
def test_adamw_with_and_without_bias_correction(corrected):
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    gradients = [torch.tensor([0.1, 3.0]), torch.tensor([1.0, 0.0])]
    parameter = torch.nn.Parameter(start.clone())
    optimizer = AdamW(parameter_groups([("x.weight", parameter)], 0.1), bias_correction=corrected)
    m = v = torch.zeros(2, dtype=torch.float64)
    p = start.clone()
    for t, gradient in enumerate(gradients, 1):
        parameter.grad = gradient.double()
        optimizer.set_factor(0.5)
        optimizer.step()
        m, v = 0.9 * m + 0.1 * parameter.grad, 0.999 * v + 0.001 * parameter.grad**2
        first, second = (1 - 0.9**t, 1 - 0.999**t) if corrected else (1, 1)
        p = p - 0.05 * (m / first) / ((v / second).sqrt() + 1e-6)
        p = p - 0.05 * 0.01 * p
    torch.testing.assert_close(parameter.detach(), p, rtol=1e-6, atol=1e-6)


def test_regression_decides_by_its_number():
    assert decisions(GLUE["STS-B"], np.array([[1.5], [2.5]])).tolist() == [1.5, 2.5]
    assert decisions(GLUE["MNLI"], np.array([[1, 3, 2.0]])).tolist() == [1]
