"""Raw tile -> parameter: slice, tile and normalize by rule, without anything learned."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax

Shape = tuple[int, ...]
MAX_SHAPE = (64, 64, 11, 11)
TILINGS = ("repeat", "shift")
KINDS = ("kernel", "head_kernel", "head_bias", "scale", "bias", "embedding")


def channel_bucket(size: int, largest: int) -> int:
    """Rounds a channel count up, so that few different tiles are decoded.

    Args:
        size: Channels of the parameter.
        largest: Channels of the whole tile.

    Returns:
        At least min(size, largest): multiples of 3 become multiples of 4, and from half of the
        whole tile on it is the whole.
    """
    size = min(size, largest)
    if size % 3 == 0:
        size = size // 3 * 4
    return largest if 2 * size >= largest else size


def tile_shape(
    target_shape: Sequence[int], kind: str, max_shape: Sequence[int] = MAX_SHAPE
) -> Shape:
    """Tells which raw tile a parameter is cut from.

    Args:
        target_shape: Shape of the parameter, see `finish`.
        kind: One of `KINDS`.
        max_shape: (out, in, height, width) of the whole tile.

    Returns:
        "kernel" and "embedding": (height, width, I', O'), the arguments of
        `Decoder.decode_kernel`; "scale" and "bias": (max_shape[0],); "head_kernel":
        (max_shape[1], classes); "head_bias": (classes,).

    Raises:
        ValueError: If no parameter of that kind has such a shape.
    """
    largest_out, largest_in = max_shape[:2]
    match kind, tuple(target_shape):
        case "kernel", (height, width, in_, out):
            tile = (height, width, in_, out)
        case "kernel", (in_, out):
            tile = (1, 1, in_, out)
        case "embedding", (1, height, width, channels):
            tile = (height, width, channels, 1)
        case "embedding", (1, positions, channels):
            tile = (math.isqrt(positions), math.isqrt(positions), channels, 1)
        case (("scale" | "bias"), (_,)):
            return (largest_out,)
        case "head_kernel", ((1, 1, _, classes) | (_, classes)):
            return (largest_in, classes)
        case "head_bias", (classes,):
            return (classes,)
        case _:
            raise ValueError(f"no rule for a parameter of kind {kind!r} and shape {target_shape}")
    height, width, in_, out = tile
    in_, out = channel_bucket(in_, largest_in), channel_bucket(out, largest_out)
    return height, width, in_, out


def repeat(values: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Brings an array to a size: cut where it is too large, whole copies side by side elsewhere."""
    values = values[tuple(slice(size) for size in sizes)]
    copies = [-(-size // have) for size, have in zip(sizes, values.shape, strict=True)]
    if max(copies) > 1:
        tile = values.__array_namespace__().tile
        values = tile(values, copies)[tuple(slice(size) for size in sizes)]
    return values


def shift(values: jax.Array, inputs: int, outputs: int) -> jax.Array:
    """Brings a kernel (height, width, I', O') to a size by copies that all differ.

    Equal copies make equal channels: of 256 features that repeat a tile of 64 there are only 64.
    Copy (i, o) is shifted by o input channels and by i output channels, around the edge. Depthwise
    kernels (I' = 1) have equal copies, which read channels that differ.

    Args:
        values: The tile; what exceeds the size is cut.
        inputs: Input channels.
        outputs: Output channels.

    Returns:
        (height, width, inputs, outputs).
    """
    values = values[:, :, :inputs, :outputs]
    copies = -(-inputs // values.shape[2]), -(-outputs // values.shape[3])
    if max(copies) == 1:
        return values
    roll, stack = values.__array_namespace__().roll, values.__array_namespace__().stack
    height, width, rows, columns = values.shape
    # Axis by axis: copies over both need no shift of their own each.
    values = stack([roll(values, copy, 2) for copy in range(copies[1])], 3)
    values = stack([roll(values, copy, 4) for copy in range(copies[0])], 2)
    values = values.reshape(height, width, copies[0] * rows, copies[1] * columns)
    return values[:, :, :inputs, :outputs]


def finish(
    raw: jax.Array,
    target_shape: Sequence[int],
    kind: str,
    normalize: bool = True,
    tiling: str = "repeat",
) -> jax.Array:
    """Writes a parameter from its raw tile: slice, tile, then normalize for the final shape.

    Kernels are scaled to a variance of beta / fan-in per predicted unit: beta is 1 for depthwise
    kernels and for the first half of a factorized pair (height < width), which no ReLU follows, and
    2 otherwise, dense layers and the classifier included. Position encodings stay as they are.

    Args:
        raw: Tile as `tile_shape` describes it, or a larger one, of JAX or NumPy; "scale" and "bias"
            take row 0 and row 1 of `Decoder.decode_1d`.
        target_shape: "kernel": convolution (height, width, in per group, out) or dense (in, out);
            "embedding": (1, height, width, channels) or (1, positions, channels); "scale" and
            "bias": (channels,); "head_kernel": (in, classes) or (1, 1, in, classes);
            "head_bias": (classes,).
        kind: One of `KINDS`.
        normalize: Whether to normalize.
        tiling: How kernels are made that are larger than their tile: "repeat" (GHN-2) or "shift",
            see `shift`.

    Returns:
        Parameter of `target_shape`, an array of the library and dtype of `raw`.

    Raises:
        ValueError: If the tile does not belong to a parameter of that kind and shape.

    Source: GHN-2 (Knyazev et al. 2021), section 3.2 and its code, checked against `ghn.npz`.
    """
    target = tuple(target_shape)
    needed = tile_shape(target, kind)
    fixed = 2 if kind in ("kernel", "embedding") else 0
    if raw.ndim != len(needed) or raw.shape[:fixed] != needed[:fixed]:
        raise ValueError(f"a tile of shape {raw.shape} does not make a {kind} of shape {target}")
    if kind in ("head_kernel", "head_bias") and raw.shape[-1] != target[-1]:
        raise ValueError(
            f"the hyper-initializer predicts a head of {raw.shape[-1]} classes, not {target[-1]}"
        )
    tanh = raw.__array_namespace__().tanh
    if kind == "scale":
        values = repeat(raw, target)
        return 1 + tanh(0.25 * values) if normalize else values
    if kind in ("bias", "head_bias"):
        values = repeat(raw, target)
        return tanh(0.2 * values) if normalize else values
    if kind == "embedding":
        return _embedding(raw[..., 0], target)
    if kind == "head_kernel":
        values = repeat(raw, target[-2:])
    elif tiling == "shift":
        values = shift(raw, *target[-2:])
    else:
        values = repeat(raw, (*raw.shape[:2], *target[-2:]))
    if normalize:
        convolution = kind == "kernel" and len(target) == 4
        depthwise, first_half = target[-2] == 1, target[0] < target[1]
        beta = 1 if convolution and (depthwise or first_half) else 2
        values = values * math.sqrt(beta / math.prod(target[:-1]))
    return values.reshape(target)


def _embedding(raw: jax.Array, target: Shape) -> jax.Array:
    """Repeats (height, width, channels) over the channels, and over the positions of a sequence."""
    if len(target) == 4:
        return repeat(raw, (*raw.shape[:2], target[3]))[None]
    return repeat(raw.reshape(-1, raw.shape[-1]), target[1:])[None]
