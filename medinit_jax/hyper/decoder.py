"""Node features -> raw tiles: the learned half of writing parameters (`finish.py` is the other)."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.gated_gnn import draw_affine

Windows = dict[str, dict[str, tuple[slice, ...]]]


def kernel_windows(
    max_shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    out_channels: int,
    in_channels: int,
    crop: str = "corner",
    rank: int = 0,
) -> Windows:
    """Tells which part of the decoder's parameters a kernel is written from.

    Args:
        max_shape: (out, in, height, width) of the whole tile.
        kernel: Height and width; larger ones than those of `max_shape` are cut to them.
        out_channels: Output channels O', at most max_shape[0].
        in_channels: Input channels I' per group, at most max_shape[1].
        crop: See `Decoder`.
        rank: See `Decoder`.

    Returns:
        {layer: {leaf: index}}.
    """
    places = []
    for wanted, length in zip(kernel, max_shape[2:], strict=True):
        size = min(wanted, length)
        start = (length - size) // 2 if crop == "center" else 0
        places.append(slice(start, start + size))
    every, inputs, outputs = slice(None), slice(in_channels), slice(out_channels)
    if rank:
        last = {"left": (inputs, every), "right": (every, outputs)}
    else:
        last = {"tile": (inputs, outputs)}
    return {
        "hidden_0": {"kernel": (every, *places), "bias": (*places,)},
        "hidden_1": {"kernel": (every,), "bias": (every,)},
        **{name: {"kernel": (every, *part), "bias": part} for name, part in last.items()},
    }


def cut(parameters: Mapping[str, Mapping[str, jax.Array]], windows: Windows) -> dict:
    """Returns the parts of the parameters that windows name, as {layer: {leaf: array}}."""
    return {
        name: {leaf: parameters[name][leaf][window] for leaf, window in leaves.items()}
        for name, leaves in windows.items()
    }


def write_kernels(parts: Mapping[str, Mapping[str, jax.Array]], x: jax.Array) -> jax.Array:
    """Writes raw kernels from the part of the decoder that they need.

    Args:
        parts: From `cut` and `kernel_windows`.
        x: (n, d), node features.

    Returns:
        (n, height, width, I', O').
    """
    first, second = parts["hidden_0"], parts["hidden_1"]
    hidden = nn.relu(jnp.tensordot(x, first["kernel"], axes=1) + first["bias"])
    hidden = nn.relu(hidden @ second["kernel"] + second["bias"])
    if "tile" in parts:
        return _affine(parts["tile"], hidden)
    return _affine(parts["left"], hidden) @ _affine(parts["right"], hidden)


def _affine(layer: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    """Maps the last axis of x to all axes of the layer's bias."""
    # As matrices: the gradient of a contraction over two axes is twice as slow on CPUs.
    inputs = len(layer["kernel"])
    y = matmul(x.reshape(-1, inputs), layer["kernel"].reshape(inputs, -1))
    return y.reshape(*x.shape[:-1], *layer["bias"].shape) + layer["bias"]


def resized(tile: jax.Array, kernel: tuple[int, int]) -> jax.Array:
    """Returns a tile (n, height, width, I', O') at the size of a kernel larger than the whole."""
    shape = (len(tile), *kernel, *tile.shape[3:])
    return tile if tile.shape == shape else jax.image.resize(tile, shape, "linear")


@jax.custom_vjp
def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns x @ weight; its gradient transposes x beforehand, which is faster on CPUs."""
    return x @ weight


matmul.defvjp(
    lambda x, weight: (x @ weight, (x, weight)),
    lambda saved, g: (g @ saved[1].T, jax.lax.optimization_barrier(saved[0].T) @ g),
)


class Decoder(nn.Module):
    """Shared decoder of all nodes; computes only the part of a tile that is asked for.

    Kernels are stored in the order of Flax, so that no tile has to be transposed: `hidden_0` maps
    features to (height, width, 4d), `hidden_1` to 8d, `tile` to (in, out).

    With a `rank` r, two layers take the place of `tile`: `left` maps the same 8d inputs to (in, r),
    `right` to (r, out), and the tile at a position is the product of the two matrices. They have
    8d r (in + out) weights where `tile` has 8d in out, so that `max_shape` can cover the channels
    of wide layers, whose filters then differ, where a small tile would be repeated. In exchange
    the matrix of a position has no more than rank r. Initial tiles vary about as much as without.

    Attributes:
        features: Width d of node features.
        max_shape: (out, in, height, width) of the whole tile.
        num_classes: Classes of the predicted head.
        crop: Which part of the whole tile is a smaller kernel: its "corner" (GHN-2) or "center"
            (GHN-3).
        scale: Factor on the initial weights of the last layers, 1/5 in GHN-3; unless it is 1, their
            biases start at 0. `left` and `right` take its square root each.
        centered: Whether `hidden_1` and `tile` (`left`, `right`) start with kernels of mean 0 over
            their inputs, and without biases. What they read comes out of a ReLU and is positive
            everywhere; drawn plainly, its mean is the larger part of every kernel, equal at all
            positions, and untrained kernels blur (the mean over positions holds 57 % of their
            energy, of a random 3x3 kernel 11 %).
        rank: Rank r, at most the smaller number of channels of `max_shape`; 0 = `tile`.

    Source: GHN-2 (Knyazev et al. 2021); two factors in place of the tile as in LoGAH (Zhou et al.
    2024), there of the whole kernel, here of each position, so that a smaller kernel stays a part
    of the whole tile.
    """

    features: int
    max_shape: tuple[int, int, int, int] = (64, 64, 11, 11)
    num_classes: int = 4
    crop: str = "corner"
    scale: float = 1.0
    centered: bool = False
    rank: int = 0

    def setup(self) -> None:
        """Creates the parameters of all branches."""
        if self.crop not in ("corner", "center"):
            raise UsageError(f"crop must be 'corner' or 'center', not {self.crop!r}")
        d = self.features
        out, in_, height, width = self.max_shape
        if type(self.rank) is not int or not 0 <= self.rank <= min(out, in_):
            raise UsageError(
                f"decoder_rank must be an integer from 0 (the whole tile) to {min(out, in_)}, the "
                f"smaller number of channels of max_shape, not {self.rank!r}"
            )
        if self.rank and self.scale <= 0:
            raise UsageError(
                f"decoder_scale must be positive where decoder_rank is, not {self.scale!r}: "
                "two factors of 0 have no gradient"
            )
        self.hidden_0 = self._affine("hidden_0", d, (height, width, 4 * d))
        self.hidden_1 = self._affine("hidden_1", 4 * d, (8 * d,), center=True)
        if self.rank:
            # The variance of `tile`, which the product shall have: a layer leaves a third of the
            # mean square it reads, a ReLU a half, or where the mean is left out a half - 1 / 2pi.
            variance = (0.5 - 0.5 / math.pi if self.centered else 0.5) ** 2 / 27
            factor = functools.partial(
                self._affine,
                inputs=8 * d,
                scale=math.sqrt(self.scale),
                gain=(self.rank * variance) ** -0.25,
                center=True,
            )
            self.left = factor("left", outputs=(in_, self.rank))
            self.right = factor("right", outputs=(self.rank, out))
        else:
            self.tile = self._affine("tile", 8 * d, (in_, out), self.scale, center=True)
        self.class_kernel = self._affine("class_kernel", out, (self.num_classes,), self.scale)
        self.vector_0 = self._affine("vector_0", d, (2 * d,))
        self.vector_1 = self._affine("vector_1", 2 * d, (2, out), self.scale)
        self.class_bias = self._affine("class_bias", out, (self.num_classes,), self.scale)

    def _affine(
        self,
        name: str,
        inputs: int,
        outputs: tuple[int, ...],
        scale: float = 1.0,
        gain: float = 1.0,
        center: bool = False,
    ) -> dict[str, jax.Array]:
        """Declares {"kernel": (inputs, *outputs), "bias": outputs}."""

        def init(key: jax.Array) -> dict[str, jax.Array]:
            layer = draw_affine(key, inputs, outputs)
            kernel, bias = gain * layer["kernel"], gain * layer["bias"]
            if center and self.centered:
                kernel, bias = kernel - kernel.mean(0), jnp.zeros_like(bias)
            if scale != 1.0:
                kernel, bias = kernel * scale, jnp.zeros_like(bias)
            return {"kernel": kernel, "bias": bias}

        return self.param(name, init)

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
        windows = kernel_windows(
            self.max_shape, kernel, out_channels, in_channels, self.crop, self.rank
        )
        tile = write_kernels(cut({name: getattr(self, name) for name in windows}, windows), x)
        return resized(tile, kernel)

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
