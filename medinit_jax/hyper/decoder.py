"""Node features -> raw tiles: the learned half of writing parameters (`finish.py` is the other)."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.gated_gnn import draw_affine


def crop_window(values: jax.Array, axis: int, size: int, center: bool) -> jax.Array:
    """Keeps the first or the middle `size` entries of an axis (all if there are fewer)."""
    length = values.shape[axis]
    size = min(size, length)
    start = (length - size) // 2 if center else 0
    return jax.lax.slice_in_dim(values, start, start + size, axis=axis)


class Decoder(nn.Module):
    """Shared decoder of all nodes; computes only the part of a tile that is asked for.

    Kernels are stored in the order of Flax, so that no tile has to be transposed: `hidden_0` maps
    features to (height, width, 4d), `hidden_1` to 8d, `tile` to (in, out).

    Attributes:
        features: Width d of node features.
        max_shape: (out, in, height, width) of the whole tile.
        num_classes: Classes of the predicted head.
        crop: Which part of the whole tile is a smaller kernel: its "corner" (GHN-2) or "center"
            (GHN-3).
        scale: Factor on the initial weights of the last layers, 1/5 in GHN-3; unless it is 1, their
            biases start at 0.
    """

    features: int
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    num_classes: int = 4
    crop: str = "corner"
    scale: float = 1.0

    def setup(self) -> None:
        """Creates the parameters of all branches."""
        if self.crop not in ("corner", "center"):
            raise UsageError(f"crop must be 'corner' or 'center', not {self.crop!r}")
        d = self.features
        out, in_, height, width = self.max_shape
        self.hidden_0 = self._affine("hidden_0", d, (height, width, 4 * d))
        self.hidden_1 = self._affine("hidden_1", 4 * d, (8 * d,))
        self.tile = self._affine("tile", 8 * d, (in_, out), last=True)
        self.class_kernel = self._affine("class_kernel", out, (self.num_classes,), last=True)
        self.vector_0 = self._affine("vector_0", d, (2 * d,))
        self.vector_1 = self._affine("vector_1", 2 * d, (2, out), last=True)
        self.class_bias = self._affine("class_bias", out, (self.num_classes,), last=True)

    def _affine(
        self, name: str, inputs: int, outputs: tuple[int, ...], last: bool = False
    ) -> dict[str, jax.Array]:
        """Declares {"kernel": (inputs, *outputs), "bias": outputs}."""

        def init(key: jax.Array) -> dict[str, jax.Array]:
            layer = draw_affine(key, inputs, outputs)
            if last and self.scale != 1.0:
                zeros = jnp.zeros_like(layer["bias"])
                return {"kernel": layer["kernel"] * self.scale, "bias": zeros}
            return layer

        return self.param(name, init)

    def kernel_hidden(self, x: jax.Array, kernel: tuple[int, int]) -> jax.Array:
        """Computes the last hidden layer at the kernel positions that are needed.

        Args:
            x: (n, d).
            kernel: Height and width, at most those of `max_shape`; larger ones are cut to them.

        Returns:
            (n, height, width, 8d).
        """
        center = self.crop == "center"
        weight, bias = self.hidden_0["kernel"], self.hidden_0["bias"]
        for axis, size in enumerate(kernel):
            weight = crop_window(weight, axis + 1, size, center)
            bias = crop_window(bias, axis, size, center)
        hidden = nn.relu(jnp.tensordot(x, weight, axes=1) + bias)
        return nn.relu(hidden @ self.hidden_1["kernel"] + self.hidden_1["bias"])

    def kernel_tile(self, hidden: jax.Array, out_channels: int, in_channels: int) -> jax.Array:
        """Maps hidden positions to the channels that are needed.

        Args:
            hidden: (..., 8d).
            out_channels: Output channels O', at most max_shape[0].
            in_channels: Input channels I' per group, at most max_shape[1].

        Returns:
            (..., I', O').
        """
        weight = self.tile["kernel"][:, :in_channels, :out_channels]
        return (
            jnp.tensordot(hidden, weight, axes=1) + self.tile["bias"][:in_channels, :out_channels]
        )

    def decode_kernel(
        self, x: jax.Array, kernel: tuple[int, int], out_channels: int, in_channels: int
    ) -> jax.Array:
        """Decodes raw kernels of convolutions, dense layers (1 x 1) and position encodings.

        Args:
            x: (n, d).
            kernel: Height and width; beyond those of `max_shape`, the whole tile is resized.
            out_channels: Output channels O', at most max_shape[0].
            in_channels: Input channels I' per group, at most max_shape[1].

        Returns:
            (n, height, width, I', O').
        """
        tile = self.kernel_tile(self.kernel_hidden(x, kernel), out_channels, in_channels)
        shape = (x.shape[0], *kernel, in_channels, out_channels)
        return tile if tile.shape == shape else jax.image.resize(tile, shape, "linear")

    def decode_1d(self, x: jax.Array) -> jax.Array:
        """Decodes raw scales and biases.

        Args:
            x: (n, d).

        Returns:
            (n, 2, max_shape[0]): row 0 is the scale, row 1 the bias.
        """
        hidden = nn.relu(x @ self.vector_0["kernel"] + self.vector_0["bias"])
        return jnp.tensordot(hidden, self.vector_1["kernel"], axes=1) + self.vector_1["bias"]

    def decode_head_kernel(self, x: jax.Array) -> jax.Array:
        """Decodes raw classifier weights: a 1 x 1 tile whose output channels are mixed to classes.

        Args:
            x: (n, d).

        Returns:
            (n, max_shape[1], num_classes).
        """
        out, in_ = self.max_shape[:2]
        tile = nn.relu(self.decode_kernel(x, (1, 1), out, in_)[:, 0, 0])
        return tile @ self.class_kernel["kernel"] + self.class_kernel["bias"]

    def decode_head_bias(self, x: jax.Array) -> jax.Array:
        """Decodes raw classifier biases.

        Args:
            x: (n, d).

        Returns:
            (n, num_classes).
        """
        hidden = nn.relu(self.decode_1d(x)[:, 1])
        return hidden @ self.class_bias["kernel"] + self.class_bias["bias"]
