"""Figures of merit for binary tasks, and the spread they are reported with."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from medinit_jax.core.errors import UsageError

# Resamples are weighed in blocks of about this many numbers, so that memory stays flat.
_BLOCK = 4_000_000


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive outscores a negative, ties half.

    Args:
        labels: (n,) integers or booleans, 1 for the positive class and 0 for the negative.
        scores: (n,) floats, larger for the positive class.

    Returns:
        The area, exact for any number of ties.

    Raises:
        UsageError: one class is absent, a score is not finite or the lengths differ.

    Source: Hanley and McNeil, Radiology 143 (1982), checked against scikit-learn.
    """
    y, s = _checked(labels, scores)
    order, starts = _score_order(s)
    return float(_weighted_auc(y[order], np.ones((1, len(y))), starts)[0])


def auc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: Sequence | np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the ROC area.

    Args:
        labels: (n,) integers, 1 positive and 0 negative.
        scores: (n,) floats.
        groups: (n,) names such as patient ids; whole groups are drawn when given, because two
            eyes of one patient are not two observations. Without groups, positives and
            negatives are drawn separately, so that no resample lacks a class.
        level: coverage aimed at, in (0, 1).
        resamples: number of bootstrap resamples.
        seed: seed of the resampling; equal seeds give equal intervals.

    Returns:
        Lower and upper end.

    Raises:
        UsageError: as `roc_auc`, or hardly any resample of the groups holds both classes.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    y, s = _checked(labels, scores)
    order, starts = _score_order(s)
    y = y[order]
    member = None
    if groups is not None:
        if len(groups) != len(y):
            raise UsageError(f"groups has {len(groups)} names for {len(y)} labels.")
        member = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()[order]
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(y))
    areas = []
    for first in range(0, resamples, block):
        weights = _draw(rng, min(block, resamples - first), y, member)
        areas.append(_weighted_auc(y, weights, starts))
    values = np.concatenate(areas)
    values = values[np.isfinite(values)]
    if len(values) < max(2, resamples // 2):
        raise UsageError("Most resamples of the groups hold one class: too few groups to resample.")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of predictions that equal their label.

    Args:
        labels: (n,) integers.
        predictions: (n,) integers, or (n, classes) scores of which the largest counts.

    Returns:
        A number in [0, 1].

    Raises:
        UsageError: there are no labels or the lengths differ.
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    if p.ndim == 2:
        p = p.argmax(axis=1)
    if y.shape != p.shape or y.size == 0:
        raise UsageError(f"accuracy needs as many predictions as labels: {p.shape}, {y.shape}.")
    return float(np.mean(y == p))


def weighted_roc_auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike) -> float:
    """Area under the ROC curve of weighted samples, ties half; NaN where a class has no weight.

    Args:
        labels: (n,) integers, 1 positive and 0 negative.
        scores: (n,) floats.
        weights: (n,) floats, at least 0.
    """
    s = np.asarray(scores, np.float64)
    order, starts = _score_order(s)
    positive = (np.asarray(labels)[order] == 1).astype(np.float64)
    return float(_weighted_auc(positive, np.asarray(weights, np.float64)[None, order], starts)[0])


def binned_roc_auc(labels: ArrayLike, scores: ArrayLike, thresholds: int = 200) -> float:
    """Area under the ROC curve by the trapezoidal rule over equally spaced thresholds.

    Args:
        labels: (n,) integers, 1 positive and 0 negative.
        scores: (n,) floats in [0, 1].
        thresholds: how many, from just below 0 to just above 1.

    Returns:
        The area; it differs from `roc_auc` by the coarseness of the thresholds.

    Raises:
        UsageError: as `roc_auc`.

    Source: the metric of SWCL's code (Keras' AUC), which the SWCL paper reports.
    """
    y, s = _checked(labels, scores)
    inner = np.arange(1, thresholds - 1) / (thresholds - 1)
    cuts = np.concatenate([[-1e-7], inner, [1 + 1e-7]])
    above = s[None] > cuts[:, None]
    hits = (above * y).sum(1) / y.sum()
    alarms = (above * (1 - y)).sum(1) / (1 - y).sum()
    return float(np.sum((alarms[:-1] - alarms[1:]) * (hits[:-1] + hits[1:]) / 2))


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve as a step function.

    Args:
        labels: (n,) integers, 1 positive and 0 negative.
        scores: (n,) floats.

    Returns:
        Sum over score levels of the gain in recall times the precision there.

    Raises:
        UsageError: as `roc_auc`.

    Source: checked against scikit-learn's average_precision_score.
    """
    y, s = _checked(labels, scores)
    order = np.argsort(-s, kind="stable")
    ends = np.flatnonzero(np.r_[s[order][1:] != s[order][:-1], True])
    hits = np.cumsum(y[order])[ends]
    gains = np.diff(np.r_[0, hits]) / y.sum()
    return float(np.sum(gains * hits / (ends + 1)))


def confusion(
    labels: ArrayLike, predictions: ArrayLike, classes: int, weights: ArrayLike | None = None
) -> np.ndarray:
    """Weight of every pair of label (rows) and prediction (columns).

    Args:
        labels: (n,) integers from 0.
        predictions: (n,) integers from 0.
        classes: number of classes.
        weights: (n,) floats; None: 1 each.

    Returns:
        float64 (classes, classes).

    Raises:
        UsageError: a value is no class, or the lengths differ.
    """
    y, p = np.asarray(labels), np.asarray(predictions)
    if y.shape != p.shape or y.ndim != 1:
        raise UsageError(f"A confusion table needs one prediction per label: {p.shape}, {y.shape}.")
    for values in (y, p):
        if values.size and not 0 <= values.min() <= values.max() < classes:
            raise UsageError(
                f"Classes go from 0 to {classes - 1}, but {values.min()} to {values.max()} occur."
            )
    counted = np.bincount(
        y.astype(np.int64) * classes + p,
        None if weights is None else np.asarray(weights, np.float64),
        classes * classes,
    )
    return counted.reshape(classes, classes).astype(np.float64)


def quadratic_kappa(
    labels: ArrayLike, predictions: ArrayLike, classes: int, weights: ArrayLike | None = None
) -> float:
    """Cohen's kappa with quadratic weights: agreement of grades beyond chance.

    Args:
        labels: (n,) integers from 0.
        predictions: (n,) integers from 0.
        classes: number of grades.
        weights: (n,) floats of the samples; None: 1 each.

    Returns:
        At most 1; 0 is chance. Where all labels and predictions are one and the same grade, chance
        leaves nothing to disagree on and the figure is 0.

    Source: Cohen, Psychological Bulletin 70 (1968), checked against scikit-learn.
    """
    table = confusion(labels, predictions, classes, weights)
    grades = np.arange(classes)
    cost = np.square(grades[:, None] - grades[None])
    chance = np.outer(table.sum(1), table.sum(0)) / max(table.sum(), 1e-300)
    expected = float((cost * chance).sum())
    return 1 - float((cost * table).sum()) / expected if expected else 0.0


def per_class(labels: ArrayLike, predictions: ArrayLike, classes: int) -> dict[str, np.ndarray]:
    """Precision, recall, F1, specificity and support of every class against the rest.

    Args:
        labels: (n,) integers from 0.
        predictions: (n,) integers from 0.
        classes: number of classes.

    Returns:
        Arrays float64 (classes,); NaN where a figure divides by nothing (the recall of a class that
        is absent, the precision of one that was never predicted).
    """
    table = confusion(labels, predictions, classes)
    hits, support, predicted = table.diagonal(), table.sum(1), table.sum(0)
    rejected = table.sum() - support - predicted + hits

    def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
        return np.divide(top, bottom, out=np.full(classes, np.nan), where=bottom > 0)

    return {
        "precision": ratio(hits, predicted),
        "recall": ratio(hits, support),
        "f1": ratio(2 * hits, support + predicted),
        "specificity": ratio(rejected, table.sum() - support),
        "support": support,
    }


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error of the likeliest class.

    Args:
        labels: (n,) integers from 0.
        probabilities: (n, classes) floats, in sum 1.
        bins: number of equal intervals of confidence in (0, 1].

    Returns:
        Mean over images of the distance between confidence and accuracy within their interval.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017.
    """
    p = np.asarray(probabilities, np.float64)
    confidence, right = p.max(1), p.argmax(1) == np.asarray(labels)
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, right, bins) - np.bincount(place, confidence, bins)
    return float(np.abs(gaps).sum() / len(p))


def mean_sd(values: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sample standard deviation (n - 1) over seeds.

    Args:
        values: floats, the seeds along `axis`.
        axis: the axis to reduce.

    Returns:
        Mean and standard deviation; the deviation of a single seed is NaN, not 0, because
        one seed tells nothing about spread.
    """
    array = np.asarray(values, np.float64)
    mean = array.mean(axis=axis)
    if array.shape[axis] < 2:
        return mean, np.full_like(mean, np.nan)
    return mean, array.std(axis=axis, ddof=1)


class Difference(NamedTuple):
    """A paired difference over seeds.

    Attributes:
        mean: mean of first minus second.
        sd: standard deviation of the differences, NaN for one seed.
        low: lower end of the interval of the mean, NaN for one seed.
        high: upper end.
        count: number of pairs.
    """

    mean: float
    sd: float
    low: float
    high: float
    count: int


def paired_difference(first: ArrayLike, second: ArrayLike, level: float = 0.95) -> Difference:
    """Mean difference of paired values with its Student-t interval.

    Args:
        first: (n,) floats, one per seed.
        second: (n,) floats of the same seeds in the same order.
        level: coverage of the interval.

    Returns:
        A `Difference`.

    Raises:
        UsageError: there are no pairs or the lengths differ.

    Source: Student, Biometrika 6 (1908); with n seeds the quantile has n - 1 degrees.
    """
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if a.ndim != 1 or a.shape != b.shape or a.size == 0:
        raise UsageError(f"Paired values need equal, non-empty lists: {a.shape} and {b.shape}.")
    mean, sd = (float(v) for v in mean_sd(a - b))
    half = float(stdtrit(len(a) - 1, (1 + level) / 2)) * sd / len(a) ** 0.5 if len(a) > 1 else sd
    return Difference(mean, sd, mean - half, mean + half, len(a))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    y, s = np.asarray(labels), np.asarray(scores, np.float64)
    if y.ndim != 1 or y.shape != s.shape:
        raise UsageError(f"The ROC area needs one score per label: {s.shape} for {y.shape}.")
    if not np.isfinite(s).all():
        raise UsageError(f"The ROC area needs finite scores: {(~np.isfinite(s)).sum()} are not.")
    if not np.isin(y, (0, 1)).all():
        raise UsageError(f"The ROC area needs labels 0 and 1, got {np.unique(y)[:5].tolist()}.")
    positive = y.astype(np.float64)
    if len(np.unique(positive)) < 2:
        raise UsageError(
            f"The ROC area needs both classes, but all {len(y)} labels are the same: "
            "take a larger label fraction or a larger validation split."
        )
    return positive, s


def _score_order(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ascending order of the scores, and where each run of equal scores starts in it."""
    order = np.argsort(scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    return order, starts


def _weighted_auc(y: np.ndarray, weights: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Areas (b,) of weighted samples sorted by score; NaN where a class has no weight."""
    positive = np.add.reduceat(weights * y, starts, axis=1)
    negative = np.add.reduceat(weights * (1 - y), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative
    wins = np.sum(positive * (below + 0.5 * negative), axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)


def _draw(
    rng: np.random.Generator, resamples: int, y: np.ndarray, member: np.ndarray | None
) -> np.ndarray:
    """How often each sample (columns) is drawn in each resample (rows), float64."""
    if member is not None:
        count = int(member.max()) + 1
        return rng.multinomial(count, np.full(count, 1 / count), resamples)[:, member].astype(float)
    weights = np.empty((resamples, len(y)))
    for value in (0, 1):
        index = np.flatnonzero(y == value)
        weights[:, index] = rng.multinomial(
            len(index), np.full(len(index), 1 / len(index)), resamples
        )
    return weights
