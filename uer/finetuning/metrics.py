"""GLUE's metrics from their definitions, in float64; a metric that is 0/0 is 0.

    matthews   (tp·tn − fp·fn) / √((tp+fp)(tp+fn)(tn+fp)(tn+fn))     (for more classes: Gorodkin 2004)
    f1         2·tp / (2·tp + fp + fn)   of class 1;   macro_f1: the mean over the classes
    pearson    Cov[x, y] / √(Var[x] Var[y]);   spearman: the same of the ranks, ties at their mean rank
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def accuracy(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Share of right predictions."""
    return float((predicted == labels).mean())


def matthews(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Correlation of predicted and true classes, from −1 to 1."""
    classes = int(max(predicted.max(), labels.max())) + 1
    counts = np.bincount(labels * classes + predicted, minlength=classes**2).astype(np.float64)
    counts = counts.reshape(classes, classes)  # row = label, column = prediction
    total, right = counts.sum(), np.trace(counts)
    true, given = counts.sum(1), counts.sum(0)
    scale = (total**2 - given @ given) * (total**2 - true @ true)
    return float((right * total - true @ given) / np.sqrt(scale)) if scale > 0 else 0.0


def f1_of(predicted: np.ndarray, labels: np.ndarray, which: int) -> float:
    """F1 of one class."""
    hits = int(((predicted == which) & (labels == which)).sum())
    both = int((predicted == which).sum() + (labels == which).sum())
    return 2 * hits / both if both else 0.0


def f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """F1 of class 1."""
    return f1_of(predicted, labels, 1)


def macro_f1(predicted: np.ndarray, labels: np.ndarray) -> float:
    """Mean F1 of the classes that occur."""
    return float(np.mean([f1_of(predicted, labels, which) for which in np.union1d(predicted, labels)]))


def pearson(predicted: np.ndarray, scores: np.ndarray) -> float:
    """Linear correlation."""
    x, y = predicted.astype(np.float64), scores.astype(np.float64)
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else 0.0


def spearman(predicted: np.ndarray, scores: np.ndarray) -> float:
    """Rank correlation."""
    return pearson(ranks(predicted), ranks(scores))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy, "matthews": matthews, "f1": f1, "macro_f1": macro_f1, "pearson": pearson,
    "spearman": spearman}


def measure(names: Sequence[str], predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metric -> value of predictions [n] (class numbers or scores) against labels [n]."""
    return {name: METRICS[name](predicted, labels) for name in names}
