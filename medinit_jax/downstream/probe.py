"""A linear probe of frozen features: ridge regression in closed form."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.ranking import roc_auc

# Penalty per sample on standardized features, whose correlation matrix has trace d: the grid
# runs from nearly none to the point where only the class means decide.
PENALTIES: tuple[float, ...] = tuple(float(f"{p:.6g}") for p in np.logspace(-5, 4, 19))


def ridge_path(x: ArrayLike, y: ArrayLike, penalties: ArrayLike = PENALTIES) -> np.ndarray:
    """Weights that minimize mean squared error + penalty * |w|^2, for every penalty at once.

    One eigendecomposition serves all penalties. With fewer samples than features it is taken
    of the n x n Gram matrix (dual form), otherwise of the d x d one; the weights are equal.

    Args:
        x: (n, d) floats, columns centered by the caller when an intercept is wanted.
        y: (n,) or (n, k) floats.
        penalties: (p,) positive floats.

    Returns:
        float64 weights (p, d) or (p, d, k).

    Source: Hoerl and Kennard, Technometrics 12 (1970); dual form: Saunders et al., ICML 1998.
    """
    features, targets = np.asarray(x, np.float64), np.asarray(y, np.float64)
    n, d = features.shape
    columns = targets.reshape(n, -1)
    shrink = np.asarray(penalties, np.float64)[:, None, None]
    if n < d:
        values, basis = np.linalg.eigh(features @ features.T / n)
        rotated = (basis.T @ columns) / n
        weights = (features.T @ basis) @ (rotated / (np.maximum(values, 0)[:, None] + shrink))
    else:
        values, basis = np.linalg.eigh(features.T @ features / n)
        rotated = basis.T @ (features.T @ columns) / n
        weights = basis @ (rotated / (np.maximum(values, 0)[:, None] + shrink))
    return weights.reshape(len(shrink), d, *targets.shape[1:])


def ridge_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    val_x: ArrayLike,
    val_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    penalties: ArrayLike = PENALTIES,
) -> dict[str, Any]:
    """ROC area of a ridge classifier on frozen features, its penalty chosen on validation.

    Features are standardized with the training set's mean and deviation (a constant column
    becomes 0). The classifier is fitted on the training set alone; the test set is scored once.

    Args:
        train_x: (n, d) floats, pooled features of the labeled images.
        train_y: (n,) labels 0 or 1.
        val_x: (v, d) floats.
        val_y: (v,) labels.
        test_x: (t, d) floats.
        test_y: (t,) labels.
        penalties: grid; of equally good penalties the largest is taken.

    Returns:
        "auc" (test), "val_auc", "train_auc", "penalty", "val_auc_per_penalty" (list),
        "form" ("primal" or "dual") and "scores" ((t,) float64 test scores).

    Raises:
        UsageError: features are not finite, or a set lacks a class.
    """
    x, v, t = (_finite(a, s) for a, s in ((train_x, "train"), (val_x, "val"), (test_x, "test")))
    labels = np.asarray(train_y, np.float64)
    mean, deviation = x.mean(axis=0), x.std(axis=0)
    # Rounding leaves a constant column with a deviation near machine precision, not 0.
    flat = deviation <= 1e-12 * np.maximum(np.abs(mean), 1e-300)
    scale = np.where(flat, 0.0, 1 / np.where(flat, 1.0, deviation))
    x, v, t = ((a - mean) * scale for a in (x, v, t))
    grid = np.sort(np.asarray(penalties, np.float64))
    weights = ridge_path(x, labels - labels.mean(), grid)
    per_penalty = [roc_auc(val_y, v @ w) for w in weights]
    best = len(grid) - 1 - int(np.argmax(per_penalty[::-1]))
    scores = t @ weights[best] + labels.mean()
    return {
        "auc": roc_auc(test_y, scores),
        "val_auc": per_penalty[best],
        "train_auc": roc_auc(train_y, x @ weights[best]),
        "penalty": float(grid[best]),
        "val_auc_per_penalty": per_penalty,
        "form": "dual" if x.shape[0] < x.shape[1] else "primal",
        "scores": scores,
    }


def _finite(features: ArrayLike, name: str) -> np.ndarray:
    array = np.asarray(features, np.float64)
    if array.ndim != 2 or len(array) == 0:
        raise UsageError(f"The probe's {name} features must be (images, features): {array.shape}.")
    bad = int((~np.isfinite(array).all(axis=1)).sum())
    if bad:
        raise UsageError(
            f"The probe's {name} features of {bad} of {len(array)} images are not finite: "
            "re-estimate the BatchNorm statistics or leave this network out by name."
        )
    return array
