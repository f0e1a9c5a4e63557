"""What features are like: how many directions they use, and how alike those of two networks are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def effective_rank(features: ArrayLike) -> float:
    """Returns exp of the entropy of the singular values' shares: 1 for one direction, d for d.

    Args:
        features: (n, d) floats; the mean over images is taken away first.

    Returns:
        Between 1 and min(n, d); 0 for features that are all the same.

    Source: Roy and Vetterli, The Effective Rank, EUSIPCO 2007.
    """
    array = np.asarray(features, np.float64)
    values = np.linalg.svd(array - array.mean(axis=0), compute_uv=False)
    # What rounding leaves of constant features is no direction.
    values = values[values > 1e-10 * max(np.abs(array).max(initial=0.0), 1e-300) * len(array)]
    if not len(values):
        return 0.0
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def linear_cka(first: ArrayLike, second: ArrayLike) -> float:
    """Returns how alike the features of two networks on the same images are, 0 to 1.

    Args:
        first: (n, d) floats.
        second: (n, e) floats of the same images.

    Returns:
        1 for features that are equal up to rotation, shift and scale; NaN if one is constant.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited
    (arXiv 1905.00414), Eq. 4 with linear kernels.
    """
    x, y = (np.asarray(a, np.float64) for a in (first, second))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    cross = np.square(x.T @ y).sum()
    own = np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y)
    # Rounding may lead beyond 1.
    return min(float(cross / own), 1.0) if own > 0 else float("nan")
