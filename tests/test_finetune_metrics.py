"""GLUE's and SQuAD's metrics: against other libraries on random cases, and by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from uer.finetuning.metrics import measure, ranks
from uer.finetuning.squad_metrics import best_threshold, figures, normalise, score


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_classification_like_scikit_learn(classes):
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(classes)
    for case in range(200):
        count = int(rng.integers(1, 40))
        given, labels = rng.integers(0, classes, count), rng.integers(0, classes, count)
        if case % 10 == 0:
            given[:] = given[0]
        if case % 15 == 0:
            labels[:] = labels[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = {"accuracy": metrics.accuracy_score(labels, given),
                      "matthews": metrics.matthews_corrcoef(labels, given),
                      "macro_f1": metrics.f1_score(labels, given, average="macro", zero_division=0)}
            if classes == 2:
                wanted["f1"] = metrics.f1_score(labels, given, zero_division=0)
        found = measure(list(wanted), given, labels)
        assert found == pytest.approx(wanted, abs=1e-12), (given, labels)


def test_regression_like_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    for case in range(200):
        count = int(rng.integers(3, 60))
        labels = rng.integers(0, 26, count) / 5  # many ties, as in STS-B
        given = (labels + rng.normal(0, 2, count)).astype(np.float32)
        given = given.round() if case % 3 == 0 else given
        if len(set(labels)) == 1 or len(set(given)) == 1:
            continue
        found = measure(["pearson", "spearman"], given, labels)
        assert found["pearson"] == pytest.approx(stats.pearsonr(given, labels)[0], abs=1e-9)
        assert found["spearman"] == pytest.approx(stats.spearmanr(given, labels)[0], abs=1e-12)


def test_by_hand():
    given, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])  # tp 2, fp 1, fn 1, tn 1
    assert measure(["accuracy", "f1", "matthews"], given, labels) == pytest.approx(
        {"accuracy": 3 / 5, "f1": 4 / 6, "matthews": (2 * 1 - 1 * 1) / (3 * 3 * 2 * 2) ** 0.5})
    assert ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    assert measure(["matthews", "pearson"], np.array([1, 1]), np.array([0, 1])) == {"matthews": 0, "pearson": 0}


# -- SQuAD -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "wanted"), [
    ("The  Cat's   Hat!", "cats hat"), ("an apple, a day", "apple day"), ("theory of a", "theory of"), ("  ", ""),
    ("U.S.", "us"), ("“quoted”", "“quoted”"), ("1,000.50", "100050")])
def test_what_counts_of_an_answer(text, wanted):
    assert normalise(text) == wanted


@pytest.mark.parametrize(("given", "right", "exact", "f1"), [
    ("the Cat", ["cat."], 1, 1),
    ("black cat", ["cat"], 0, 2 / 3),
    ("cat cat dog", ["cat dog"], 0, 4 / 5),
    ("cat", ["dog", "a cat"], 1, 1),
    ("bird", ["dog", "cat"], 0, 0),
    ("", [], 1, 1),
    ("cat", [], 0, 0),
    ("", ["cat"], 0, 0),
    ("the", ["a"], 1, 1),  # nothing of either counts
    ("", ["the"], 1, 1),
])
def test_scores(given, right, exact, f1):
    assert score(given, right) == pytest.approx((exact, f1))


def test_means_over_kinds_of_questions():
    given, right = {"1": "cat", "2": "", "3": "x"}, {"1": ["the cat"], "2": ["dog"], "3": []}
    assert figures(given, right) == pytest.approx({
        "exact match": 1 / 3, "F1": 1 / 3, "answerable exact match": 1 / 2, "answerable F1": 1 / 2,
        "unanswerable exact match": 0, "unanswerable F1": 0})
    assert set(figures({"1": "cat"}, {"1": ["cat"]})) == {"exact match", "F1"}


def test_the_threshold_is_the_best_there_is():
    rng = np.random.default_rng(4)
    for case in range(60):
        count = int(rng.integers(1, 12))
        right = {str(i): [] if rng.random() < 0.5 else ["a cat"] for i in range(count)}
        given = {key: rng.choice(["cat", "black cat", "dog"]) for key in right}
        odds = {key: float(rng.integers(-3, 4)) for key in right}

        def total(threshold, given=given, odds=odds, right=right):
            answers = {key: "" if odds[key] > threshold else given[key] for key in right}
            return sum(score(answers[key], right[key]).f1 for key in right)

        best = max(total(threshold) for threshold in np.arange(-5, 5, 0.5))
        assert total(best_threshold(given, odds, right)) == pytest.approx(best), case
