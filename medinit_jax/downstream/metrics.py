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
