"""Masked patches: tell from what is left of an image which patch was taken out.

Source: the idea of Pathak et al., Context Encoders (arXiv 1604.07379), asked as a choice as in van
den Oord et al., Contrastive Predictive Coding (arXiv 1807.03748): pooled features cannot paint a
patch, but they can tell it from those of other images.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from medinit_jax.hyper.pretexts import perceptron
from medinit_jax.hyper.pretexts.task import Facts, Seen
from medinit_jax.losses.vectors import unit


@dataclasses.dataclass(frozen=True)
class MaskedPatches:
    """Finds the patch that was cut out of an image among those of its group.

    All images of a group lose the same cell of a grid. A learned head maps pooled features, with a
    learned vector per cell added, and a learned matrix maps the patch, 4x4 means of pixels brought
    to mean 0 and deviation 1 each, so that neither place nor brightness tells. Chance is ln(group)
    nats.

    Attributes:
        cells: Cells along each side of the grid; those at the border are not cut out.
        temperature: Divides the cosines.
        hidden: Channels of the head.
        features: Channels that are compared.
    """

    cells: int = 4
    temperature: float = 0.2
    hidden: int = 128
    features: int = 64
    copies: int = 1
    classes: int = 0
    needs: tuple[str, ...] = ()

    def check(self, group: int) -> str:
        """Returns why there are no such patches; "" if there are."""
        if self.cells < 3:
            return f"config.pretext.masked.cells={self.cells} leaves no cell inside; give 3 or more"
        if group < 2:
            return f"config.train.bn_group={group} leaves no other patch to choose; give 2 or more"
        return ""

    def chance(self, group: int) -> tuple[float, float]:
        """Returns loss and accuracy of guessing."""
        return math.log(group), 1 / group

    def views(
        self, images: jax.Array, key: jax.Array, facts: Facts, group: int
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Cuts a cell out of each image; targets are "cell" int32 (B,) and "patch" (B, 16 C)."""
        count, size, _, channels = images.shape
        inner = self.cells - 2
        drawn = jax.random.randint(key, (-(-count // group),), 0, inner**2, dtype=jnp.int32)
        cell = jnp.repeat(drawn, group)[:count]
        row, column = 1 + cell // inner, 1 + cell % inner
        side = size // self.cells
        first = jnp.arange(size, dtype=jnp.int32)

        def within(place):
            start = (place * side)[:, None]
            return (first >= start) & (first < start + side)

        hidden = within(row)[:, :, None] & within(column)[:, None, :]
        patch = jax.vmap(
            lambda image, r, c: jax.lax.dynamic_slice(
                image, (r * side, c * side, jnp.int32(0)), (side, side, channels)
            )
        )(images, row, column)
        small = jax.image.resize(patch, (count, 4, 4, channels), "linear").reshape(count, -1)
        small -= small.mean(1, keepdims=True)
        small *= jax.lax.rsqrt(jnp.square(small).mean(1, keepdims=True) + 1e-6)
        return jnp.where(hidden[..., None], 0, images), {"cell": cell, "patch": small}

    def head(self, key: jax.Array, width: int) -> dict:
        """Draws the head, a vector per cell and the matrix of patches (of three channels)."""
        first, second = jax.random.split(key)
        return {
            **perceptron.draw(first, width, self.hidden, self.features),
            "cells": jnp.zeros(((self.cells - 2) ** 2, width), jnp.float32),
            "patch": jax.random.normal(second, (48, self.features), jnp.float32) / 7,
        }

    def judge(self, seen: Seen) -> tuple[jax.Array, jax.Array]:
        """Returns cross-entropy and accuracy of the choice."""
        dtype = seen.features.dtype
        asked = seen.features + seen.head["cells"].astype(dtype)[seen.targets["cell"]]
        found = perceptron.project(seen.head, asked)
        known = unit(seen.targets["patch"].astype(dtype) @ seen.head["patch"].astype(dtype))
        found, known = (x.reshape(-1, seen.group, x.shape[-1]) for x in (found, known))
        logits = jnp.einsum("gid,gjd->gij", found, known) / self.temperature
        targets = jnp.tile(jnp.arange(seen.group, dtype=jnp.int32), len(logits))
        losses, right = perceptron.classified(logits.reshape(-1, seen.group), targets)
        return losses.mean(), right.mean()
