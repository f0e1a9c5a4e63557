"""How well scores rank the images of a class above all others: areas under curves."""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

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


def ranked_roc_auc(labels: ArrayLike, scores: ArrayLike) -> Callable[[np.ndarray], float]:
    """Ranks samples once, for many areas under their ROC curve with other weights.

    Args:
        labels: (n,) integers, 1 positive and 0 negative.
        scores: (n,) floats.

    Returns:
        Weights float64 (n,), at least 0 -> area, ties half; NaN where a class has no weight.
    """
    s, positive = np.asarray(scores, np.float64), np.asarray(labels) == 1
    won, lost = np.flatnonzero(positive), np.flatnonzero(~positive)
    lost = lost[np.argsort(s[lost], kind="stable")]
    # How many negatives score below each positive, and how many no more than it.
    below = np.searchsorted(s[lost], s[won], "left")
    up_to = np.searchsorted(s[lost], s[won], "right")
    tied = bool((below != up_to).any())

    def area(weights: np.ndarray) -> float:
        positives = weights[won]
        heavier = np.concatenate([[0.0], np.cumsum(weights[lost])])
        beaten = (heavier[below] + heavier[up_to]) / 2 if tied else heavier[below]
        pairs = positives.sum() * heavier[-1]
        return float(positives @ beaten / pairs) if pairs > 0 else float("nan")

    return area


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
