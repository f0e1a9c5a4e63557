"""How well masks agree, from three counts of pixels: in both, in the prediction, in the truth."""

from __future__ import annotations

import numpy as np


def counts(prediction: np.ndarray, truth: np.ndarray, fov: np.ndarray | None = None) -> np.ndarray:
    """Counts the pixels of one mask.

    Args:
        prediction: Bool (H, W).
        truth: Bool (H, W).
        fov: Bool (H, W), which pixels count; None: all.

    Returns:
        int64 (3,): in both, in the prediction, in the truth.
    """
    if fov is not None:
        prediction, truth = prediction & fov, truth & fov
    return np.array(
        [np.count_nonzero(m) for m in (prediction & truth, prediction, truth)], np.int64
    )


def dice(table: np.ndarray) -> np.ndarray:
    """Returns Dice (= F1), twice the common pixels over the sum of both, 1 where both are empty.

    Args:
        table: int (..., 3) of `counts`; summed over images before, it gives the pooled figure.
    """
    both, predicted, truth = np.moveaxis(np.asarray(table, np.float64), -1, 0)
    return _ratio(2 * both, predicted + truth)


def jaccard(table: np.ndarray) -> np.ndarray:
    """Returns the common pixels over those of either mask, 1 where both are empty.

    Args:
        table: int (..., 3) of `counts`.
    """
    both, predicted, truth = np.moveaxis(np.asarray(table, np.float64), -1, 0)
    return _ratio(both, predicted + truth - both)


def both_empty(table: np.ndarray) -> int:
    """Returns of how many images (or sums) both masks are empty, so that their Dice is 1."""
    return int((np.asarray(table)[..., 1:].sum(-1) == 0).sum())


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.ones_like(top), where=bottom > 0)
