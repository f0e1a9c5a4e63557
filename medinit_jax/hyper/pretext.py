"""Self-supervised tasks: images become views and targets, and logits become a loss.

Rotation (Gidaris et al., 2018): tell by which of four right angles an image was turned. On upright
medical images a thumbnail solves that linearly, so the augmentation before it shifts, tilts and
mirrors, and the views are cut to the inscribed circle; `ridge_accuracy` says how much a thumbnail
still gives away.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

THUMBNAIL = 8
THUMBNAIL_RADIUS = 0.74


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Tells by which of the angles 0, 90, 180 and 270 degrees an image was turned.

    Attributes:
        mode: "four" shows every image at all four angles, "one" at one random angle.
        circle: Whether everything outside the inscribed circle is set to zero.
        label_smoothing: Share of the target spread over all classes.
        name: Key in `PRETEXTS`.
        num_targets: Number of classes.
    """

    mode: Literal["four", "one"] = "four"
    circle: bool = True
    label_smoothing: float = 0.0
    name: str = "rotation"
    num_targets: int = 4

    @property
    def copies(self) -> int:
        """Number of views made of each image."""
        return 4 if self.mode == "four" else 1

    def views(self, images: jax.Array | np.ndarray, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Turns images.

        The four views of an image follow each other, so that any consecutive group of views whose
        length is a multiple of four holds all angles equally.

        Args:
            images: float (B, S, S, C).
            key: Random key; unused in mode "four".

        Returns:
            Views (copies * B, S, S, C) and targets int32 (copies * B,), the number of
            counter-clockwise quarter turns.
        """
        if self.circle:
            images = images * inscribed_circle(images.shape[1]).astype(images.dtype)[..., None]
        turned = jnp.stack([jnp.rot90(images, k, axes=(1, 2)) for k in range(4)], axis=1)
        count = images.shape[0]
        if self.mode == "four":
            targets = jnp.tile(jnp.arange(4, dtype=jnp.int32), count)
            return turned.reshape(4 * count, *images.shape[1:]), targets
        targets = jax.random.randint(key, (count,), 0, 4, dtype=jnp.int32)
        return turned[jnp.arange(count), targets], targets

    def loss(self, logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Scores predictions.

        Args:
            logits: float (B, num_targets).
            targets: int32 (B,).

        Returns:
            Mean cross-entropy in nats and accuracy, scalars.
        """
        wanted = jax.nn.one_hot(targets, self.num_targets, dtype=logits.dtype)
        smooth = optax.smooth_labels(wanted, self.label_smoothing)
        found = jnp.argmax(logits, axis=-1).astype(targets.dtype)
        accuracy = jnp.mean((found == targets).astype(logits.dtype))
        return jnp.mean(optax.softmax_cross_entropy(logits, smooth)), accuracy


PRETEXTS: dict[str, Callable[..., Rotation]] = {"rotation": Rotation}


def inscribed_circle(size: int, radius: float = 1.0) -> np.ndarray:
    """Returns bool (size, size), true within `radius` times half the side of the center."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2


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
