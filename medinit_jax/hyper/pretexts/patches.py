"""Patch contrast: SWCL's multi-label contrastive loss in the bilevel loss, the two routes in one.

Source: SWCL (arXiv 2108.02122), Eq. 1 and Table III.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.contrast import compared
from medinit_jax.hyper.pretexts.task import Facts, Seen, divided
from medinit_jax.hyper.pretexts.warp import boxes, colored, warp
from medinit_jax.losses.labels import SCHEMES
from medinit_jax.losses.supcon import MATCHES

# (x, y) of the centers of the four corner patches, as shares of the free way.
CORNERS = np.array([(-1, -1), (1, -1), (-1, 1), (1, 1)])


@dataclasses.dataclass(frozen=True)
class PatchContrast:
    """Holds patches with the same labels alike: position, patient, abnormality.

    Each image gives its four corner patches, each twice, moved and colored differently. A learned
    head of two layers maps pooled features to vectors of length 1. Chance is ln(group - 1) nats;
    the score is the share of patches whose nearest other one is alike.

    Attributes:
        scheme: Which columns are compared, see `losses.labels.SCHEMES`; those with "abnormality"
            need labels (0 is normal, above is not, unknown is a kind of its own), those with
            "patient" need patients.
        match: Which patches are alike, see `losses.supcon.supcon`.
        side: Side of a patch as a share of the image's.
        jitter: Largest shift of every patch, as a share of the image's side.
        brightness: Of each patch alone, see `warp.colored`.
        contrast: As brightness.
        color: As brightness.
        temperature: Divides the cosines.
        hidden: Channels of the head.
        features: Channels that are compared.
    """

    scheme: str = "position-patient"
    match: str = "all"
    side: float = 0.5
    jitter: float = 0.05
    brightness: float = 0.3
    contrast: float = 0.3
    color: float = 0.2
    temperature: float = 0.2
    hidden: int = 128
    features: int = 64
    copies: int = 2 * len(CORNERS)
    classes: int = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """What the columns of the scheme are made of."""
        columns = SCHEMES.get(self.scheme, ())
        facts = {"abnormality": "label", "patient": "patient"}
        return tuple(facts[column] for column in columns if column in facts)

    def check(self, group: int) -> str:
        """Returns what is wrong with the options; "" if nothing is."""
        for key, value, known in (
            ("scheme", self.scheme, SCHEMES),
            ("match", self.match, MATCHES),
        ):
            if value not in known:
                return f"config.pretext.patches.{key}={value!r} is none of {', '.join(known)}"
        return divided(group, self.copies, 2)

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and score of vectors that are all the same."""
        return math.log(group - 1), 1 / (group - 1)

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, jax.Array]:
        """Cuts patches; targets int32 (8 B, L) are the columns of the scheme."""
        count, dtype = len(images), images.dtype
        moved, color = jax.random.split(key)
        free = 1 - self.side - 2 * self.jitter
        centers = jnp.tile(jnp.repeat(jnp.asarray(CORNERS * free, dtype), 2, axis=0), (count, 1))
        shift = 2 * jax.random.uniform(moved, centers.shape, dtype) - 1
        centers += 2 * self.jitter * shift
        half = jnp.full(len(centers), self.side, dtype)
        maps = boxes(centers[:, 0], centers[:, 1], half)
        views = warp(jnp.repeat(images, self.copies, axis=0), maps, images.shape[1])
        views = colored(color, views, self.brightness, self.contrast, self.color)
        given = {"position": jnp.tile(jnp.repeat(jnp.arange(4, dtype=jnp.int32), 2), count)}
        for name, fact in (("abnormality", "label"), ("patient", "patient")):
            if fact in facts:
                value = jnp.minimum(facts[fact], 1) if fact == "label" else facts[fact]
                given[name] = jnp.repeat(value, self.copies)
        return views, jnp.stack([given[name] for name in SCHEMES[self.scheme]], 1)

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the projection."""
        return perceptron.draw(key, width, self.hidden, self.features)

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns the loss and the share of patches whose nearest other one is alike."""
        z = perceptron.project(seen.head, seen.features)
        return compared(z, seen.targets[::2], seen.group, self.temperature, self.match)
