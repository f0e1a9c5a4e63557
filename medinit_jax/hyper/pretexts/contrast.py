"""Instance contrast: two views of an image are alike, views of different images are not.

Source: Chen et al., SimCLR (arXiv 2002.05709): NT-Xent is the supervised contrastive loss without
labels. Views are compared within their group of batch statistics.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.task import Facts, Seen, divided
from medinit_jax.hyper.pretexts.warp import colored, random_boxes, warp
from medinit_jax.losses.supcon import supcon

_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class InstanceContrast:
    """Finds the other view of an image among all views of a group.

    A learned head of two layers maps pooled features to vectors of length 1. Chance is
    ln(group - 1) nats; the score is the share of views whose nearest other one is their twin.

    Attributes:
        area: Lowest and highest area of a view as a share of the image's.
        mirror: Probability that left and right are exchanged.
        brightness: Largest shift of all channels, in standard deviations.
        contrast: The factor of contrast is within 1 - contrast and 1 + contrast.
        color: Largest shift of one channel alone.
        temperature: Divides the cosines.
        hidden: Channels of the head.
        features: Channels that are compared.
    """

    area: tuple[float, float] = (0.3, 1.0)
    mirror: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    color: float = 0.2
    temperature: float = 0.2
    hidden: int = 128
    features: int = 64
    copies: int = 2
    classes: int = 0
    needs: tuple[str, ...] = ()

    def check(self, group: int) -> str:
        """Returns why groups of so many views cannot be made; "" if they can."""
        return divided(group, self.copies, 2)

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and score of vectors that are all the same."""
        return math.log(group - 1), 1 / (group - 1)

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, jax.Array]:
        """Cuts two views of each image; targets are the numbers of the images, int32 (2 B,)."""
        cut, color = jax.random.split(key)
        both = jnp.repeat(images, 2, axis=0)
        maps = random_boxes(cut, len(both), self.area, self.mirror)
        views = warp(both, maps, images.shape[1])
        views = colored(color, views, self.brightness, self.contrast, self.color)
        return views, jnp.repeat(jnp.arange(len(images), dtype=jnp.int32), 2)

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the projection."""
        return perceptron.draw(key, width, self.hidden, self.features)

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns the loss and the share of views whose nearest other one is their twin."""
        z = perceptron.project(seen.head, seen.features)
        columns = jnp.tile(jnp.arange(seen.group // 2, dtype=jnp.int32), len(z) // seen.group)
        return compared(z, columns[:, None], seen.group, self.temperature)


def compared(
    z: jax.Array, columns: jax.Array, group: int, temperature: float, match: str = "all"
) -> tuple[jax.Array, jax.Array]:
    """Returns the contrastive loss and the share of nearest views that are alike, within groups.

    Args:
        z: float (n, features) of length 1; two views of one thing follow each other.
        columns: int (n / 2, L), the labels of each thing, see `losses.supcon`.
        group: Views that are compared with each other; divides n.
        temperature: Divides the cosines.
        match: Which are alike.

    Returns:
        Means over the groups, float ().
    """
    pairs = z.reshape(-1, group // 2, 2, z.shape[-1])
    labels = columns.reshape(len(pairs), group // 2, -1)

    def of_group(pairs, labels):
        return supcon(pairs, labels, temperature=temperature, match=match, chunk=group)

    losses = jnp.stack([of_group(p, c) for p, c in zip(pairs, labels, strict=True)])
    rows = z.reshape(-1, group, z.shape[-1])
    cosines = jnp.einsum("gid,gjd->gij", rows, rows, precision=_HIGHEST)
    nearest = jnp.argmax(jnp.where(jnp.eye(group, dtype=bool), -2.0, cosines), -1)
    own = jnp.repeat(labels, 2, axis=1)
    other = jnp.take_along_axis(own, nearest[..., None], axis=1)
    equal = (own == other).all(-1) if match == "all" else (own == other).any(-1)
    return losses.mean(), equal.astype(z.dtype).mean()
