"""Intervals of any figure over images, and whether two starts differ on the same images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from medinit_jax.core.errors import UsageError


class Interval(NamedTuple):
    """A bootstrap interval.

    Attributes:
        low: Lower end, NaN where fewer than half of the resamples define the figure.
        high: Upper end, NaN likewise.
        valid: Number of resamples that define the figure.
    """

    low: float
    high: float
    valid: int


def bootstrap(
    figure: Callable[[np.ndarray], float],
    count: int,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a figure of weighted images.

    Args:
        figure: Weights float64 (n,), how often each image is drawn -> figure; NaN where a resample
            does not define it (one class), which is left out.
        count: Number of images n.
        groups: (n,) names such as patients; whole groups are drawn. None: single images.
        level: Coverage aimed at, in (0, 1).
        resamples: Number of resamples; 0 gives NaN.
        seed: Of the resampling.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    values = np.array([figure(weights) for weights in _draws(count, groups, resamples, seed)])
    values = values[np.isfinite(values)] if len(values) else values
    if not len(values) or len(values) < resamples // 2:
        return Interval(float("nan"), float("nan"), len(values))
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(values))


class PairedTest(NamedTuple):
    """Two starts on the same images.

    Attributes:
        difference: Figure of the first minus that of the second.
        low: Lower end of the bootstrap interval of the difference.
        high: Upper end.
        p: Two-sided: twice the smaller share of resamples on either side of 0, but not 0.
    """

    difference: float
    low: float
    high: float
    p: float


def paired_test(
    first: Callable[[np.ndarray], float],
    second: Callable[[np.ndarray], float],
    count: int,
    groups: Sequence[str] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> PairedTest:
    """Paired bootstrap of the difference of two figures on the same images.

    Args:
        first: As `figure` of `bootstrap`, of the first network's answers.
        second: The same of the second's.
        count: Number of images.
        groups: As in `bootstrap`.
        level: Coverage of the interval.
        resamples: Number of resamples.
        seed: Of the resampling.

    Source: Efron and Tibshirani (1993), chapter 16: the achieved significance level by inverting
    the percentile interval.
    """
    drawn = np.array(
        [first(weights) - second(weights) for weights in _draws(count, groups, resamples, seed)]
    )
    drawn = drawn[np.isfinite(drawn)]
    if not len(drawn) or len(drawn) < resamples // 2:
        raise UsageError("Too few resamples define both figures; more test images are needed.")
    ones = np.ones(count)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    below, above = np.mean(drawn <= 0), np.mean(drawn >= 0)
    p = min(1.0, max(2 * min(below, above), 1 / len(drawn)))
    return PairedTest(first(ones) - second(ones), float(low), float(high), float(p))


def _draws(
    count: int, groups: Sequence[str] | np.ndarray | None, resamples: int, seed: int
) -> Iterator[np.ndarray]:
    """Yields how often every image is drawn."""
    if groups is not None and len(groups) != count:
        raise UsageError(f"{len(groups)} groups were given for {count} images; give one for each.")
    rng = np.random.default_rng(seed)
    member = np.arange(count)
    if groups is not None:
        member = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    number = int(member.max()) + 1 if count else 0
    for _ in range(resamples if number else 0):
        chosen = rng.integers(0, number, number)
        yield np.bincount(chosen, minlength=number)[member].astype(np.float64)
