"""Node type and parameter shape -> node features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.core.errors import UsageError


class ShapeTables(NamedTuple):
    """The sizes that have a learned vector each; stored with a checkpoint, as rows depend on it.

    Attributes:
        channels: Known channel counts, ascending.
        spatial: Known kernel heights and widths, ascending.
    """

    channels: tuple[int, ...]
    spatial: tuple[int, ...]


def shape_tables(num_classes: int, max_shape: Sequence[int]) -> ShapeTables:
    """Builds the tables of known sizes.

    Args:
        num_classes: Classes of the pretext task, so that the classifier's size is known exactly.
        max_shape: (out, in, height, width) of the largest tile that the decoder predicts.

    Returns:
        The tables: 391 channel counts for 10 classes, 8 kernel sizes for 11 x 11 tiles.

    Source: ShapeEncoder of GHN-2 (Knyazev et al. 2021), checked against `ghn.npz`.
    """
    channels = {1, 3, num_classes, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)}
    spatial = {*range(1, max(11, *max_shape[2:]) + 1, 2), 14, 16}
    return ShapeTables(tuple(sorted(channels)), tuple(sorted(spatial)))


def lookup(sizes: Sequence[int], special: dict[int, int] | None = None) -> np.ndarray:
    """Builds the table from a size to its row.

    Args:
        sizes: Known sizes, ascending.
        special: Sizes that take the row of another size although a nearer one may be known.

    Returns:
        int32 (largest + 1,): row of the nearest known size, the smaller one on ties; size 0, which
        means no size, takes the row after the last. Sizes above the largest take its row.
    """
    known = np.asarray(sizes)
    size = np.arange(known[-1] + 1)
    rows = np.abs(size[:, None] - known[None]).argmin(axis=1).astype(np.int32)
    for source, target in (special or {}).items():
        if source not in sizes:
            rows[source] = sizes.index(target)
    rows[0] = len(known)
    return rows


def channel_rows(tables: ShapeTables) -> np.ndarray:
    """Returns the row of each channel count: 4 to 7 count as 8 unless they are known themselves."""
    return lookup(tables.channels, {size: 8 for size in range(4, 8)})


def spatial_rows(tables: ShapeTables) -> np.ndarray:
    """Returns the row of each kernel size: 2 counts as 3."""
    return lookup(tables.spatial, {2: 3})


def shape_indices(shape: jax.Array, tables: ShapeTables) -> jax.Array:
    """Finds the rows that describe the shapes of nodes.

    Args:
        shape: int32 (N, 4), parameter sizes (out, in, height, width), 0 = none.
        tables: Known sizes.

    Returns:
        int32 (N, 4): rows of the channel table twice, then of the kernel-size table twice.
    """
    channels, spatial = channel_rows(tables), spatial_rows(tables)
    out_in = jnp.asarray(channels)[jnp.clip(shape[:, :2], 0, len(channels) - 1)]
    height_width = jnp.asarray(spatial)[jnp.clip(shape[:, 2:], 0, len(spatial) - 1)]
    return jnp.concatenate([out_in, height_width], axis=1)


class NodeEmbedding(nn.Module):
    """Learned features of a node: its type, plus its parameter's shape.

    Attributes:
        features: Width d, divisible by 4 with shape encoding.
        node_types: Number of known node types.
        tables: Known sizes.
        shape_encoding: Whether the shape counts.
        deviation: Standard deviation of the initial vectors, which are normal and cut at +-2 (as in
            GHN-3); None = 1, not cut (GHN-2).
    """

    features: int
    node_types: int
    tables: ShapeTables
    shape_encoding: bool = True
    deviation: float | None = None

    def _draw(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        # One flat draw: XLA compiles random bits of many axes several times more slowly.
        size = (shape[0] * shape[1],)
        if self.deviation is None:
            return jax.random.normal(key, size).reshape(shape)
        cut = 2 / self.deviation
        values = jax.random.truncated_normal(key, -cut, cut, size)
        return self.deviation * values.reshape(shape)

    @nn.compact
    def __call__(self, node_type: jax.Array, shape: jax.Array) -> jax.Array:
        """Embeds nodes.

        Args:
            node_type: int32 (N,).
            shape: int32 (N, 4), see `shape_indices`.

        Returns:
            (N, features) in the dtype of the parameters.
        """
        init = self._draw
        types = self.param("type", init, (self.node_types, self.features))
        x = types[node_type]
        if not self.shape_encoding:
            return x
        if self.features % 4:
            raise UsageError(f"hidden must be divisible by 4 to encode shapes, not {self.features}")
        width = self.features // 4
        channels = self.param("channels", init, (len(self.tables.channels) + 1, width))
        spatial = self.param("spatial", init, (len(self.tables.spatial) + 1, width))
        rows = shape_indices(shape, self.tables)
        described = [channels[rows[:, :2]], spatial[rows[:, 2:]]]
        return x + jnp.concatenate(described, axis=1).reshape(-1, self.features)
