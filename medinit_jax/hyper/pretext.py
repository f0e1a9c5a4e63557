"""The self-supervised tasks by name, and how much of rotation a thumbnail gives away.

On upright medical images a thumbnail solves rotation linearly, so the augmentation before it
shifts, tilts and mirrors, and views are cut to the inscribed circle; `ridge_accuracy` says what a
thumbnail still tells.
"""

from collections.abc import Callable

import numpy as np

from medinit_jax.hyper.pretexts.contrast import InstanceContrast
from medinit_jax.hyper.pretexts.jigsaw import Jigsaw
from medinit_jax.hyper.pretexts.masked import MaskedPatches
from medinit_jax.hyper.pretexts.patches import PatchContrast
from medinit_jax.hyper.pretexts.position import RelativePosition
from medinit_jax.hyper.pretexts.rotation import HardRotation, Rotation, inscribed_circle
from medinit_jax.hyper.pretexts.task import Pretext
from medinit_jax.hyper.pretexts.weak import WeakLabels

THUMBNAIL = 8
THUMBNAIL_RADIUS = 0.74

PRETEXTS: dict[str, Callable[..., Pretext]] = {
    "rotation": Rotation,
    "hard_rotation": HardRotation,
    "contrast": InstanceContrast,
    "relative_position": RelativePosition,
    "jigsaw": Jigsaw,
    "masked": MaskedPatches,
    "weak_labels": WeakLabels,
    "patches": PatchContrast,
}


def thumbnails(views: np.ndarray) -> np.ndarray:
    """Reduces views to 8x8 averages of what lies within 0.74 of the radius.

    Args:
        views: float or uint8 (B, S, S, C) of any S.

    Returns:
        float64 (B, 64 * C).
    """
    size = views.shape[1]
    edges = np.linspace(0, size, THUMBNAIL + 1)
    pixel = np.arange(size)
    # Row i holds how much of every pixel falls into cell i: exact area averaging for any size.
    share = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    share = np.maximum(share, 0) / (size / THUMBNAIL)
    inside = views * inscribed_circle(size, THUMBNAIL_RADIUS)[None, ..., None]
    small = np.einsum("ih,bhwc,jw->bijc", share, inside.astype(np.float64), share, optimize=True)
    return small.reshape(len(views), -1)


def ridge_accuracy(
    train_views: np.ndarray,
    train_targets: np.ndarray,
    test_views: np.ndarray,
    test_targets: np.ndarray,
) -> float:
    """Measures how well ridge regression on thumbnails solves the task.

    The penalty is chosen on the last fifth of the training views; views of one image must follow
    each other, as those of `Rotation.views` do, so that no image is on both sides.

    Args:
        train_views: (N, S, S, C).
        train_targets: int (N,).
        test_views: (M, S, S, C).
        test_targets: int (M,).

    Returns:
        Accuracy on the test views.
    """
    train, test = thumbnails(train_views), thumbnails(test_views)
    mean, sd = train.mean(axis=0), train.std(axis=0) + 1e-8
    train, test = (train - mean) / sd, (test - mean) / sd
    targets = np.asarray(train_targets)
    wanted = np.eye(int(targets.max()) + 1)[targets]
    cut = len(train) - len(train) // 5
    candidates = 10.0 ** np.arange(-4, 3)
    scores = []
    for weights in _ridge(train[:cut], wanted[:cut], candidates):
        guess = _predict(train[cut:], weights)
        scores.append(np.mean(guess == targets[cut:]))
    best = candidates[int(np.argmax(scores))]
    (weights,) = _ridge(train, wanted, np.array([best]))
    return float(np.mean(_predict(test, weights) == np.asarray(test_targets)))


def _ridge(features: np.ndarray, wanted: np.ndarray, penalties: np.ndarray) -> list[np.ndarray]:
    """Solves ridge regression with intercept; penalties are relative to the number of rows."""
    rows = np.concatenate([features, np.ones((len(features), 1))], axis=1)
    gram, moment = rows.T @ rows, rows.T @ wanted
    free = np.eye(rows.shape[1])
    free[-1, -1] = 0.0
    return [np.linalg.solve(gram + p * len(rows) * free, moment) for p in penalties]


def _predict(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.argmax(features @ weights[:-1] + weights[-1], axis=1)
