"""Relative position: tell where a patch lies as seen from another one.

Source: Doersch et al., Unsupervised Visual Representation Learning by Context Prediction
(arXiv 1505.05192). Gaps, jitter and colors of their own keep edges and hues from telling.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.task import Facts, Seen, divided
from medinit_jax.hyper.pretexts.warp import boxes, colored, warp

# (x, y) of the eight neighbors, in reading order.
NEIGHBORS = np.array([(-1, -1), (0, -1), (1, -1), (-1, 0), (1, 0), (-1, 1), (0, 1), (1, 1)])


@dataclasses.dataclass(frozen=True)
class RelativePosition:
    """Tells at which of eight places around the first patch the second one lies.

    A learned head of two layers reads the pooled features of both patches side by side. Chance is
    ln 8 nats.

    Attributes:
        side: Side of a patch as a share of the image's.
        spacing: Distance of neighboring centers as a share of the image's side.
        jitter: Largest shift of every patch, horizontally and vertically, as such a share.
        brightness: Of each patch alone, see `warp.colored`.
        contrast: As brightness.
        color: As brightness.
        hidden: Channels of the head.
    """

    side: float = 0.28
    spacing: float = 0.32
    jitter: float = 0.03
    brightness: float = 0.3
    contrast: float = 0.3
    color: float = 0.2
    hidden: int = 128
    copies: int = 2
    classes: int = 0
    needs: tuple[str, ...] = ()

    def check(self, group: int) -> str:
        """Returns why groups of so many views cannot be made; "" if they can."""
        if self.spacing + self.jitter + self.side / 2 > 0.5:
            return (
                "its patches reach beyond the image; lower config.pretext.relative_position.side, "
                "spacing or jitter until spacing + jitter + side / 2 <= 0.5"
            )
        return divided(group, self.copies, 1)

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and accuracy of guessing."""
        return math.log(len(NEIGHBORS)), 1 / len(NEIGHBORS)

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, jax.Array]:
        """Cuts the middle of each image and a neighbor; targets int32 (2 B,) name the place."""
        count = len(images)
        drawn, moved, color = jax.random.split(key, 3)
        place = jax.random.randint(drawn, (count,), 0, len(NEIGHBORS), dtype=jnp.int32)
        offset = jnp.asarray(NEIGHBORS, images.dtype)[place] * (2 * self.spacing)
        centers = jnp.stack([jnp.zeros_like(offset), offset], 1).reshape(2 * count, 2)
        shift = 2 * jax.random.uniform(moved, centers.shape, images.dtype) - 1
        centers += 2 * self.jitter * shift
        half = jnp.full(2 * count, self.side, images.dtype)
        maps = boxes(centers[:, 0], centers[:, 1], half)
        views = warp(jnp.repeat(images, 2, axis=0), maps, images.shape[1])
        views = colored(color, views, self.brightness, self.contrast, self.color)
        return views, jnp.repeat(place, 2)

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the head on two patches."""
        return perceptron.draw(key, 2 * width, self.hidden, len(NEIGHBORS))

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropy and accuracy."""
        both = seen.features.reshape(len(seen.features) // 2, -1)
        losses, right = perceptron.classified(perceptron.apply(seen.head, both), seen.targets[::2])
        return losses.mean(), right.mean()
