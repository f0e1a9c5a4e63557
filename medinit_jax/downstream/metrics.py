"""Figures of predicted classes and their probabilities, and the spread they are reported with."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from medinit_jax.core.errors import UsageError


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
