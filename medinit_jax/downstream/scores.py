"""All figures of a fine-tuned network on one set of images, the task's metric first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream import intervals, metrics, overlap
from medinit_jax.downstream.heads import UNKNOWN, Head

Arrays = Mapping[str, np.ndarray]
# (heads, labels, probabilities, weight of every image) -> figure.
Figure = Callable[[Sequence[Head], Arrays, Arrays, np.ndarray], float]


def _kappa(heads, labels, probabilities, weights) -> float:
    name = heads[0].name
    predicted = probabilities[name].argmax(1)
    return metrics.quadratic_kappa(labels[name], predicted, len(heads[0].classes), weights)


def _joint_accuracy(heads, labels, probabilities, weights) -> float:
    right = [probabilities[h.name].argmax(1) == labels[h.name] for h in heads]
    return float(np.average(np.all(right, axis=0), weights=weights))


def _balanced_accuracy(heads, labels, probabilities, weights) -> float:
    name, classes = heads[0].name, len(heads[0].classes)
    table = metrics.confusion(labels[name], probabilities[name].argmax(1), classes, weights)
    present = table.sum(1) > 0
    return float(np.mean(table.diagonal()[present] / table.sum(1)[present]))


def _auc(heads, labels, probabilities, weights) -> float:
    """Of class 1 of two; the mean over classes of one against the rest, and over sigmoids."""
    truth, scores = _one_against_rest(heads[0], labels, probabilities)
    areas = [metrics.weighted_roc_auc(t, s, weights) for t, s in zip(truth, scores, strict=True)]
    known = [area for area in areas if np.isfinite(area)]
    return float(np.mean(known)) if known else float("nan")


def _one_against_rest(head: Head, labels: Arrays, probabilities: Arrays):
    truth, scores = labels[head.name], probabilities[head.name]
    if head.kind == "sigmoid":
        return list(truth.T), list(scores.T)
    if len(head.classes) == 2:
        return [truth], [scores[:, 1]]
    return [(truth == k).astype(int) for k in range(len(head.classes))], list(scores.T)


CLASSIFICATION: dict[str, Figure] = {
    "quadratic weighted kappa": _kappa,
    "AUC": _auc,
    "macro AUC": _auc,
    "joint accuracy": _joint_accuracy,
    "joint accuracy, 5 folds": _joint_accuracy,
    "accuracy": _joint_accuracy,
    "balanced accuracy": _balanced_accuracy,
}
# All are the mean over structures of the mean over images of Dice.
SEGMENTATION = (
    "Dice, mean of disc and cup",
    "Dice (= F1) of vessels",
    "F1 of vessels",
    "F1, mean of disc and cup",
    "Dice",
)


def check_metric(metric: str, kind: str, heads: Sequence[Head] = ()) -> None:
    """Raises UsageError unless there is such a metric of such heads.

    Args:
        metric: Its name.
        kind: "classification" or "segmentation".
        heads: What is predicted.
    """
    if CLASSIFICATION.get(metric, _auc) is not _auc and any(h.kind == "sigmoid" for h in heads):
        raise UsageError(
            f"The metric {metric!r} is of classes, of which one holds, but findings are predicted; "
            "set config.metric=macro AUC."
        )
    known = tuple(CLASSIFICATION) if kind == "classification" else SEGMENTATION
    if metric not in known:
        raise UsageError(
            f"There is no metric {metric!r} for {kind}; set config.metric to one of: "
            f"{', '.join(known)}."
        )


def value_of(metric: str, heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> float:
    """Returns a metric of images whose labels are all known.

    Args:
        metric: A key of `CLASSIFICATION`.
        heads: What is predicted.
        labels: {head: int (n,)}, or (n, classes) for a sigmoid.
        probabilities: {head: float (n, classes)}.

    Returns:
        The figure, NaN where it is not defined (an area with one class).
    """
    labels, probabilities, known = _known(heads, labels, probabilities)
    return CLASSIFICATION[metric](heads, labels, probabilities, np.ones(int(known.sum())))


def value_of_counts(metric: str, heads: Sequence[Head], counts: Arrays) -> float:
    """Returns the mean over structures and images of Dice.

    Args:
        metric: One of `SEGMENTATION`.
        heads: What is predicted.
        counts: {head: int (n, 3)} of `overlap.counts`.
    """
    check_metric(metric, "segmentation")
    return float(np.mean([overlap.dice(counts[head.name]) for head in heads]))


def classification_scores(
    heads: Sequence[Head],
    labels: Arrays,
    probabilities: Arrays,
    metric: str,
    patients: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the metric, its bootstrap interval and all other figures.

    Args:
        heads: What is predicted.
        labels: {head: int (n,) or (n, classes)}; images with an `UNKNOWN` are left out.
        probabilities: {head: float (n, classes)}.
        metric: A key of `CLASSIFICATION`.
        patients: Of every image; whole patients are drawn.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        "metric", "low", "high", "images", and figures per head, as JSON.
    """
    labels, probabilities, known = _known(heads, labels, probabilities)
    names = None if patients is None else np.asarray(patients)[known]
    figure = CLASSIFICATION[metric]
    count = int(known.sum())
    found: dict[str, Any] = {
        "metric": figure(heads, labels, probabilities, np.ones(count)),
        "images": count,
        "joint_accuracy": _joint_accuracy(
            [h for h in heads if h.kind == "softmax"], labels, probabilities, np.ones(count)
        )
        if any(h.kind == "softmax" for h in heads)
        else None,
    }
    found["low"], found["high"] = intervals.bootstrap(
        lambda weights: figure(heads, labels, probabilities, weights),
        count,
        names,
        resamples=resamples,
        seed=seed,
    )
    found["heads"] = {h.name: _head_scores(h, labels, probabilities) for h in heads}
    return found


def _head_scores(head: Head, labels: Arrays, probabilities: Arrays) -> dict[str, Any]:
    truth, scores = _one_against_rest(head, labels, probabilities)
    ones = np.ones(len(truth[0]))
    found: dict[str, Any] = {
        "auc": _mean_of(metrics.weighted_roc_auc, truth, scores, ones),
        "auc_200_thresholds": _mean_of(metrics.binned_roc_auc, truth, scores),
        "auprc": _mean_of(metrics.average_precision, truth, scores),
    }
    if head.kind == "sigmoid":
        hits = (probabilities[head.name] >= 0.5) == (labels[head.name] == 1)
        return {**found, "accuracy": float(hits.mean())}
    label, probability = labels[head.name], probabilities[head.name]
    predicted, classes = probability.argmax(1), len(head.classes)
    rows = metrics.per_class(label, predicted, classes)
    return {
        **found,
        "accuracy": metrics.accuracy(label, predicted),
        "quadratic_weighted_kappa": metrics.quadratic_kappa(label, predicted, classes),
        "calibration_error": metrics.calibration_error(label, probability),
        "macro": {
            name: float(np.nanmean(values)) if np.isfinite(values).any() else None
            for name, values in rows.items()
            if name != "support"
        },
        "classes": {
            name: {key: float(values[k]) for key, values in rows.items()}
            for k, name in enumerate(head.classes)
        },
        "absent": [n for n, c in zip(head.classes, rows["support"], strict=True) if c == 0],
    }


def _mean_of(figure: Callable[..., float], truth, scores, *more) -> float | None:
    """Returns the mean over classes that are both present and absent; None if there is none."""
    values = [
        figure(t, s, *more) for t, s in zip(truth, scores, strict=True) if len(np.unique(t)) == 2
    ]
    return float(np.mean(values)) if values else None


def segmentation_scores(
    heads: Sequence[Head],
    counts: Arrays,
    metric: str,
    patients: Sequence[str] | None = None,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Returns the metric, its bootstrap interval and all other figures of masks.

    Args:
        heads: What is predicted.
        counts: {head: int (n, 3)} of `overlap.counts`.
        metric: One of `SEGMENTATION`.
        patients: Of every image; whole patients are drawn.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        "metric", "low", "high", "images", and figures per head, as JSON.
    """
    per_image = np.mean([overlap.dice(counts[head.name]) for head in heads], axis=0)
    low, high = intervals.bootstrap(
        lambda weights: float(np.average(per_image, weights=weights)),
        len(per_image),
        patients,
        resamples=resamples,
        seed=seed,
    )
    return {
        "metric": value_of_counts(metric, heads, counts),
        "low": low,
        "high": high,
        "images": len(per_image),
        "heads": {
            head.name: {
                "dice": float(overlap.dice(counts[head.name]).mean()),
                "dice_pooled": float(overlap.dice(counts[head.name].sum(0))),
                "jaccard": float(overlap.jaccard(counts[head.name]).mean()),
                "jaccard_pooled": float(overlap.jaccard(counts[head.name].sum(0))),
                "both_empty": overlap.both_empty(counts[head.name]),
            }
            for head in heads
        },
    }


def _known(heads: Sequence[Head], labels: Arrays, probabilities: Arrays):
    """Leaves out the images of which a label is not known."""
    known = np.ones(len(labels[heads[0].name]), bool)
    for head in heads:
        here = np.asarray(labels[head.name]) != UNKNOWN
        known &= here if here.ndim == 1 else here.all(1)
    if not known.any():
        raise UsageError("No image has known labels, so nothing can be scored; check the split.")
    return (
        {h.name: np.asarray(labels[h.name])[known] for h in heads},
        {h.name: np.asarray(probabilities[h.name])[known] for h in heads},
        known,
    )
