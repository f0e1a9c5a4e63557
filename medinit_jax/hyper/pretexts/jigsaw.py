"""Jigsaw: tell in which order the tiles of an image were laid.

Source: Noroozi and Favaro, Unsupervised Learning of Visual Representations by Solving Jigsaw
Puzzles (arXiv 1603.09246), with the puzzle laid in one image, so that the network runs once and
not once per tile; tiles are cut with gaps, so that edges do not fit.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.task import Facts, Seen
from medinit_jax.hyper.pretexts.warp import boxes, warp


@dataclasses.dataclass(frozen=True)
class Jigsaw:
    """Tells which permutation of a small set the tiles of an image follow.

    A learned head of two layers reads the pooled features. Chance is ln(permutations) nats.

    Attributes:
        tiles: Tiles along each side, 2 or 3.
        permutations: Size of the set; its members differ in as many tiles as possible.
        kept: Side of what is shown of a tile, as a share of the tile's.
        hidden: Channels of the head.
    """

    tiles: int = 2
    permutations: int = 8
    kept: float = 0.8
    hidden: int = 128
    copies: int = 1
    classes: int = 0
    needs: tuple[str, ...] = ()

    def check(self, group: int) -> str:
        """Returns why there is no such puzzle; "" if there is."""
        if self.tiles not in (2, 3):
            return f"config.pretext.jigsaw.tiles={self.tiles} is neither 2 nor 3"
        most = math.factorial(self.tiles**2)
        if not 2 <= self.permutations <= min(most, 100):
            return (
                f"config.pretext.jigsaw.permutations={self.permutations} does not lie between 2 "
                f"and {min(most, 100)}"
            )
        return ""

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and accuracy of guessing."""
        return math.log(self.permutations), 1 / self.permutations

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, jax.Array]:
        """Lays the tiles of each image in a drawn order; targets int32 (B,) name the order."""
        count, size, tiles = len(images), images.shape[1], self.tiles
        drawn, moved = jax.random.split(key)
        number = jax.random.randint(drawn, (count,), 0, self.permutations, dtype=jnp.int32)
        order = jnp.asarray(permutations(tiles**2, self.permutations), jnp.int32)[number]
        free = (1 - self.kept) / tiles
        shift = free * (2 * jax.random.uniform(moved, (count, tiles**2, 2), images.dtype) - 1)
        half = jnp.full(count, self.kept / tiles, images.dtype)
        side = size // tiles
        rows = []
        for row in range(tiles):
            laid = []
            for column in range(tiles):
                tile = order[:, row * tiles + column]
                center = (2 * jnp.stack([tile % tiles, tile // tiles], -1) + 1) / tiles - 1
                center = center.astype(images.dtype) + shift[:, row * tiles + column]
                laid.append(warp(images, boxes(center[:, 0], center[:, 1], half), side))
            rows.append(jnp.concatenate(laid, 2))
        left = size - side * tiles
        return jnp.pad(jnp.concatenate(rows, 1), ((0, 0), (0, left), (0, left), (0, 0))), number

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the classifier."""
        return perceptron.draw(key, width, self.hidden, self.permutations)

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropy and accuracy."""
        losses, right = perceptron.classified(
            perceptron.apply(seen.head, seen.features), seen.targets
        )
        return losses.mean(), right.mean()


@functools.cache
def permutations(tiles: int, count: int) -> np.ndarray:
    """Returns `count` permutations of `tiles` numbers that are far from each other.

    The first is the identity; each further one differs from those before in as many places as
    possible (the least difference decides, then the sum, then the order of counting), chosen among
    all, or among 5,000 drawn ones of nine tiles.

    Returns:
        int (count, tiles).
    """
    if math.factorial(tiles) <= 5000:
        known = np.array(list(itertools.permutations(range(tiles))))
    else:
        rng = np.random.default_rng(0)
        known = np.array([np.arange(tiles), *(rng.permutation(tiles) for _ in range(5000))])
    chosen = [0]
    distance = (known != known[0]).sum(1)
    total = distance.copy()
    while len(chosen) < count:
        best = int(np.lexsort((-total, -distance))[0])
        chosen.append(best)
        apart = (known != known[best]).sum(1)
        distance, total = np.minimum(distance, apart), total + apart
    return known[chosen]
