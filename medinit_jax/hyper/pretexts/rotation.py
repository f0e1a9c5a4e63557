"""Rotation: tell by which of four right angles an image was turned.

Source: Gidaris et al., Unsupervised Representation Learning by Predicting Image Rotations
(arXiv 1803.07728). On upright medical images a thumbnail solves that linearly, so images are
shifted, tilted and mirrored before: by the augmentation of the data for `Rotation`, by draws of its
own for `HardRotation`. Views are cut to the inscribed circle.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from medinit_jax.hyper.pretexts.task import Facts, Seen, divided
from medinit_jax.hyper.pretexts.warp import random_affine, warp


@dataclasses.dataclass(frozen=True)
class Rotation:
    """Tells by which of the angles 0, 90, 180 and 270 degrees an image was turned.

    The answer is that of the predicted classifier; there is no learned head.

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

    @property
    def classes(self) -> int:
        """Number of classes of the predicted classifier."""
        return self.num_targets

    @property
    def needs(self) -> tuple[str, ...]:
        """Nothing but images."""
        return ()

    def check(self, group: int) -> str:
        """Returns why groups of so many views cannot be made; "" if they can."""
        return divided(group, self.copies, 1)

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and accuracy of guessing."""
        return math.log(self.num_targets), 1 / self.num_targets

    def views(
        self,
        images: jax.Array | np.ndarray,
        key: jax.Array,
        facts: Facts | None = None,
        group: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Turns images.

        The four views of an image follow each other, so that any consecutive group of views whose
        length is a multiple of four holds all angles equally.

        Args:
            images: float (B, S, S, C).
            key: Random key; unused in mode "four".
            facts: Unused.
            group: Unused.

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

    def head(self, key: jax.Array, width: int) -> dict:
        """Returns no parameters."""
        return {}

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

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns loss and accuracy of the predicted classifier."""
        return self.loss(seen.logits, seen.targets)


@dataclasses.dataclass(frozen=True)
class HardRotation(Rotation):
    """Rotation of images that are shifted, tilted and mirrored by draws of its own.

    The draws are those of the hard task whatever `config.data.augment` holds, so that other
    pretexts beside it may see images as they are.

    Attributes:
        translate: Largest shift as a share of the side.
        tilt: Standard deviation of a rotation in degrees.
        mirror: Probability that left and right are exchanged.
    """

    translate: float = 0.2
    tilt: float = 10.0
    mirror: float = 0.5
    name: str = "hard_rotation"

    def views(
        self,
        images: jax.Array | np.ndarray,
        key: jax.Array,
        facts: Facts | None = None,
        group: int = 0,
    ) -> tuple[jax.Array, jax.Array]:
        """Moves and turns images; arguments and results are those of `Rotation.views`."""
        drawn, turned = jax.random.split(key)
        maps = random_affine(drawn, len(images), self.translate, self.tilt, self.mirror)
        moved = warp(jnp.asarray(images), maps, images.shape[1])
        return super().views(moved, turned)


def inscribed_circle(size: int, radius: float = 1.0) -> np.ndarray:
    """Returns bool (size, size), true within `radius` times half the side of the center."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return axis[:, None] ** 2 + axis[None, :] ** 2 <= radius**2
