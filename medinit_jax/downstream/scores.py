"""All figures of a fine-tuned network on one set of images, the task's metric first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from medinit_jax.downstream import figures, intervals, metrics, overlap, ranking
from medinit_jax.downstream.figures import Arrays, Weighed, check_metric
from medinit_jax.downstream.heads import UNKNOWN, Head

# Why a figure of a class divides by nothing; F1 does so only where recall and precision do.
_UNDEFINED = {
    "recall": "no image has this class",
    "precision": "no image was taken for this class",
    "specificity": "every image has this class",
}


def value_of(metric: str, heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> float:
    """Returns a metric of the images whose labels are known.

    Args:
        metric: A key of `figures.CLASSIFICATION`.
        heads: What is predicted.
        labels: {head: int (n,)}, or (n, classes) for a sigmoid; `UNKNOWN` does not count.
        probabilities: {head: float (n, classes)}.

    Returns:
        The figure, NaN where it is not defined (an area with one class).

    Raises:
        UsageError: As `figures.weighed`.
    """
    figure, counted = figures.weighed(metric, heads, labels, probabilities)
    return figure(np.ones(int(counted.sum())))


def value_of_counts(metric: str, heads: Sequence[Head], counts: Arrays) -> float:
    """Returns the mean over structures and images of Dice.

    Args:
        metric: One of `figures.SEGMENTATION`.
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
        labels: {head: int (n,) or (n, classes)}; an `UNKNOWN` is left out of the figures of its
            own head, of a sigmoid of those of its own finding.
        probabilities: {head: float (n, classes)}.
        metric: A key of `figures.CLASSIFICATION`.
        patients: Of every image; whole patients are drawn.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        "metric", "low", "high", "resamples", "valid_resamples" (those that hold every class that
        the metric is of), "images" that the metric is of, and figures per head, as JSON: None where
        one is not defined, with the "reason".

    Raises:
        UsageError: As `figures.weighed`.
    """
    figure, counted = figures.weighed(metric, heads, labels, probabilities)
    names = None if patients is None else np.asarray(patients)[counted]
    softmax = [head for head in heads if head.kind == "softmax"]
    return {
        **_interval(figure, int(counted.sum()), names, resamples, seed),
        "joint_accuracy": _joint(softmax, labels, probabilities),
        "heads": {head.name: _head_scores(head, labels, probabilities) for head in heads},
    }


def _interval(
    figure: Weighed,
    count: int,
    patients: Sequence[str] | np.ndarray | None,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Returns a figure of images and its interval, as JSON."""
    value = figure(np.ones(count))
    found = intervals.bootstrap(figure, count, patients, resamples=resamples, seed=seed)
    row: dict[str, Any] = {
        "metric": _number(value),
        "low": _number(found.low),
        "high": _number(found.high),
        "resamples": resamples,
        "valid_resamples": found.valid,
        "images": count,
    }
    if row["metric"] is None:
        row["reason"] = "the images hold too few classes for this metric"
    elif row["low"] is None and resamples:
        row["reason"] = (
            f"only {found.valid} of {resamples} resamples hold every class, too few for an interval"
        )
    return row


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _joint(heads: Sequence[Head], labels: Arrays, probabilities: Arrays) -> float | None:
    """Returns the share of fully labeled images that are right throughout; None: there are none."""
    if not heads or not np.all([figures.known_images(h, labels) for h in heads], 0).any():
        return None
    return value_of("joint accuracy", heads, labels, probabilities)


def _head_scores(head: Head, labels: Arrays, probabilities: Arrays) -> dict[str, Any]:
    """Returns the figures of a head on the images with a known label of it."""
    known = figures.known_images(head, labels)
    if not known.any():
        return {"images": 0, "reason": "no image has a known label"}
    label = np.asarray(labels[head.name])[known]
    probability = np.asarray(probabilities[head.name])[known]
    questions = figures.one_against_rest(head, {head.name: label}, {head.name: probability})
    found: dict[str, Any] = {
        "images": len(label),
        "auc": _mean_of(ranking.roc_auc, questions),
        "auc_200_thresholds": _mean_of(ranking.binned_roc_auc, questions),
        "auprc": _mean_of(ranking.average_precision, questions),
    }
    if head.kind == "sigmoid":
        hits = (probability >= 0.5) == (label == 1)
        return {**found, "accuracy": float(hits[label != UNKNOWN].mean())}
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
        "classes": {name: _class_scores(rows, k) for k, name in enumerate(head.classes)},
        "absent": [n for n, c in zip(head.classes, rows["support"], strict=True) if c == 0],
    }


def _class_scores(rows: Arrays, k: int) -> dict[str, Any]:
    """Returns the figures of a class; None where one is not defined, and why."""
    found: dict[str, Any] = {name: _number(values[k]) for name, values in rows.items()}
    why = [reason for name, reason in _UNDEFINED.items() if found[name] is None]
    return {**found, "reason": "; ".join(why)} if why else found


def _mean_of(figure: Callable[..., float], questions) -> float | None:
    """Returns the mean over classes that are both present and absent; None if there is none."""
    values = [figure(t, s) for _, t, s in questions if len(np.unique(t)) == 2]
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
        metric: One of `figures.SEGMENTATION`.
        patients: Of every image; whole patients are drawn.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        "metric", "low", "high", "resamples", "valid_resamples", "images", and figures per head, as
        JSON.
    """
    per_image = np.mean([overlap.dice(counts[head.name]) for head in heads], axis=0)
    return {
        **_interval(
            lambda weights: float(np.average(per_image, weights=weights)),
            len(per_image),
            patients,
            resamples,
            seed,
        ),
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
