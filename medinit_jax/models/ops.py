"""Primitive operations of a block, each in the form that is fast on the platform it runs on.

Images are (batch, height, width, channels). What XLA runs slowly on a CPU has a form or a gradient
of its own; where another is better on other platforms (`models.convolution`, `models.attention`),
the platform decides. All forms compute the same function (tests/models/test_ops.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from medinit_jax.arch.program import EPSILON, Block, Step
from medinit_jax.models.attention import attend
from medinit_jax.models.convolution import convolution, product, readers, spread, taps

Parameters = Mapping[str, Mapping[str, jax.Array]]
Normalize = Callable[[Step, jax.Array, Mapping[str, jax.Array]], jax.Array]


def apply_block(
    block: Block,
    parameters: Parameters,
    inputs: tuple[jax.Array, ...],
    normalize: Normalize,
    drop: Callable[[Any, jax.Array], jax.Array] | None = None,
) -> jax.Array:
    """Runs a block.

    Args:
        block: The block.
        parameters: {name: {leaf: array}} with the block's local names.
        inputs: One array (batch, ...) per input.
        normalize: Batch normalization: (step, x, {"scale", "bias"}) -> array like x.
        drop: Dropout: (step, x) -> array like x; None leaves nothing out.

    Returns:
        The output of the last step, (batch, ...).
    """
    values = list(inputs)
    for step in block.steps:
        args = [values[i] for i in step.args]
        leaves = parameters[step.name] if step.name else {}
        if step.kind == "batch_norm":
            values.append(normalize(step, args[0], leaves))
        elif step.kind == "dropout":
            values.append(drop(step, args[0]) if drop else args[0])
        else:
            values.append(PRIMITIVES[step.kind](step, leaves, *args))
    return values[-1]


def pooled(features: jax.Array, token: bool = False) -> jax.Array:
    """Returns (batch, channels) of what a head reads, (batch, ..., channels).

    Args:
        features: A map, a sequence of tokens, or vectors already.
        token: Whether the first token stands for the sequence, instead of the mean.
    """
    return features[:, 0] if token else _spatial_mean(features)


def at_least_float32(dtype: Any) -> Any:
    """Returns the dtype in which statistics and losses of arrays of `dtype` are computed."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def batch_norm_over_groups(
    x: jax.Array, leaves: Mapping[str, jax.Array], group: int, epsilon: float = EPSILON
) -> jax.Array:
    """Normalizes with the statistics of consecutive groups of images.

    Groups make a step independent of the number of devices: a group never spans two of them.

    Args:
        x: (batch, height, width, channels).
        leaves: "scale" and "bias", (channels,).
        group: Images per group; divides the batch.
        epsilon: Added to the variance.

    Returns:
        Array like x.
    """
    wide = at_least_float32(x.dtype)
    scale, bias = (leaves[leaf].astype(wide) for leaf in ("scale", "bias"))
    return _batch_norm(x, scale, bias, group, epsilon)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(x, scale, bias, group, epsilon):
    return _batch_norm_forward(x, scale, bias, group, epsilon)[0]


def _batch_norm_forward(x, scale, bias, group, epsilon):
    grouped, axes = _grouped(x, group, scale.dtype)
    mean = grouped.mean(axes, keepdims=True)
    inverse = lax.rsqrt(jnp.square(grouped - mean).mean(axes, keepdims=True) + epsilon)
    factor = scale * inverse
    y = grouped * factor + (bias - mean * factor)
    return y.reshape(x.shape).astype(x.dtype), (x, scale, mean, inverse)


def _batch_norm_backward(group, epsilon, residuals, cotangent):
    """Reads its arrays twice; the derivative of the forward pass would five times."""
    x, scale, mean, inverse = residuals
    grouped, axes = _grouped(x, group, scale.dtype)
    cotangent, _ = _grouped(cotangent, group, scale.dtype)
    dbias = cotangent.sum(axes, keepdims=True)
    dscale = ((grouped - mean) * cotangent).sum(axes, keepdims=True) * inverse
    count, factor = x[:group, ..., 0].size, scale * inverse
    slope = -factor * inverse * dscale / count
    dx = cotangent * factor + grouped * slope - (factor * dbias / count + slope * mean)
    apart = tuple(range(grouped.ndim - 1))
    return dx.reshape(x.shape).astype(x.dtype), dscale.sum(apart), dbias.sum(apart)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _grouped(x, group, dtype):
    """Returns (groups, group, ..., channels) and the axes that share statistics.

    Not flat: of (1, n, channels) XLA's reductions on CPUs are ten times slower.
    """
    grouped = x.reshape(-1, group, *x.shape[1:]).astype(dtype)
    return grouped, tuple(range(1, grouped.ndim - 1))


def normalize_with(
    x: jax.Array,
    mean: jax.Array,
    variance: jax.Array,
    leaves: Mapping[str, jax.Array],
    epsilon: float = EPSILON,
) -> jax.Array:
    """Normalizes (batch, height, width, channels) with given statistics, (channels,) each."""
    wide = x.astype(at_least_float32(x.dtype))
    return _affine(wide, mean, variance, leaves, epsilon).astype(x.dtype)


def _affine(x, mean, variance, leaves, epsilon):
    scale = leaves["scale"].astype(x.dtype) * lax.rsqrt(variance + epsilon)
    return (x - mean) * scale + leaves["bias"].astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
    return _max_pool_forward(x, window)[0]


def _max_pool_forward(x, window):
    best, winner = None, None
    for index, (_, tap) in enumerate(taps(x, window, -jnp.inf)):
        if best is None or winner is None:
            best, winner = tap, jnp.zeros(tap.shape, jnp.uint8)
        else:
            winner = jnp.where(tap > best, jnp.uint8(index), winner)
            best = jnp.maximum(best, tap)
    shape_like = jnp.zeros((0, *x.shape[1:]), x.dtype)
    return best, (winner, shape_like)


def _max_pool_backward(window, residuals, cotangent):
    winner, shape_like = residuals
    (rows, columns), *_ = window
    shape = shape_like.shape
    winners = readers(spread(winner, shape, window, rows * columns), shape, window)
    cotangents = readers(spread(cotangent, shape, window), shape, window)
    parts = [
        jnp.where(winner == i * columns + j, part, jnp.zeros((), part.dtype))
        for ((i, j), winner), (_, part) in zip(winners, cotangents, strict=True)
    ]
    # Fused into what follows, XLA would compute it again in every reduction.
    return (lax.optimization_barrier(functools.reduce(jnp.add, parts)),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@jax.custom_vjp
def _relu(x):
    """Keeps its input for the gradient, which a block has anyway, and nothing else."""
    return jnp.maximum(x, 0)


_relu.defvjp(
    lambda x: (jnp.maximum(x, 0), x),
    lambda x, cotangent: (jnp.where(x > 0, cotangent, jnp.zeros((), x.dtype)),),
)


def _conv(step, leaves, x):
    kernel = leaves["kernel"]
    if step.standardized:
        kernel = standardized(kernel, step.epsilon)
    y = convolution(x, kernel.astype(x.dtype), step)
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def standardized(kernel: jax.Array, epsilon: float) -> jax.Array:
    """Brings a kernel (..., in, out) to mean 0 and variance 1 per output.

    Source: Qiao et al., Weight Standardization, 2019.
    """
    axes = tuple(range(kernel.ndim - 1))
    centered = kernel - kernel.mean(axes)
    return centered * lax.rsqrt(jnp.square(centered).mean(axes) + epsilon)


def _conv_t(step, leaves, x):
    batch, height, width, _ = x.shape
    (down, right), kernel = step.kernel, leaves["kernel"].astype(x.dtype)
    y = jnp.einsum("bhwi,yxio->bhywxo", x, kernel)
    y = y.reshape(batch, height * down, width * right, step.features)
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def _dense(step, leaves, x):
    y = product(x, leaves["kernel"].astype(x.dtype))
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def _layer_norm(step, leaves, x):
    wide = x.astype(at_least_float32(x.dtype))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return _affine(wide, mean, variance, leaves, step.epsilon).astype(x.dtype)


def _group_norm(step, leaves, x):
    wide = x.astype(at_least_float32(x.dtype))
    batch, places, channels = len(x), tuple(range(1, x.ndim - 1)), x.shape[-1]

    def of_groups(by_channel):
        # Channels first, then groups of them: XLA compiles that sooner than groups at once.
        grouped = by_channel.reshape(batch, step.groups, -1)
        spread = jnp.broadcast_to(grouped.mean(-1, keepdims=True), grouped.shape)
        return spread.reshape(batch, *(1 for _ in places), channels)

    mean = of_groups(wide.mean(places))
    variance = of_groups(jnp.square(wide - mean).mean(places))
    return _affine(wide, mean, variance, leaves, step.epsilon).astype(x.dtype)


def _adaptive_pool(step, leaves, x):
    rows, columns = (
        jnp.asarray(_averaging(have, made), x.dtype)
        for have, made in zip(x.shape[1:3], step.size, strict=True)
    )
    return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns)


def _averaging(have, made):
    """Returns the (made, have) matrix that averages windows which together cover the input."""
    matrix = np.zeros((made, have))
    for row in range(made):
        first, end = row * have // made, -(-(row + 1) * have // made)
        matrix[row, first:end] = 1 / (end - first)
    return matrix


def _resize(step, leaves, x):
    if step.aligned:
        rows, columns = (
            jnp.asarray(aligned_interpolation(have, made), x.dtype)
            for have, made in zip(x.shape[1:3], step.size, strict=True)
        )
        return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns)
    method = "linear" if step.kind == "bilinear" else "nearest"
    shape = (len(x), *step.size, x.shape[-1])
    return jax.image.resize(x, shape, method, antialias=False)


def aligned_interpolation(have: int, made: int) -> np.ndarray:
    """Returns the matrix (made, have) that interpolates from the first to the last value."""
    places = np.linspace(0, have - 1, made) if made > 1 else np.zeros(1)
    low = np.minimum(places.astype(int), max(have - 2, 0))
    matrix = np.zeros((made, have))
    matrix[np.arange(made), low] = 1 - (places - low)
    matrix[np.arange(made), np.minimum(low + 1, have - 1)] += places - low
    return matrix


def _spatial_mean(x):
    """Also of no place at all: vectors stay what they are."""
    return x.mean(tuple(range(1, x.ndim - 1)))


def _pad(step, leaves, x):
    (top, left) = step.padding
    return jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))


def _class_token(step, leaves, x):
    token = leaves["token"].astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (len(x), *token.shape)), x], 1)


def _avg_pool(step, leaves, x):
    window = (step.kernel, step.stride, step.padding, 1)
    total = functools.reduce(jnp.add, (tap for _, tap in taps(x, window)))
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    count = functools.reduce(jnp.add, (tap for _, tap in taps(ones, window)))
    return total / count


def _subsample(step, leaves, x):
    (height, width), (down, right) = x.shape[1:3], step.stride
    if step.offset:
        x = jnp.pad(x, ((0, 0), (0, step.offset), (0, step.offset), (0, 0)))
        x = x[:, step.offset :, step.offset :]
    return x[:, ::down, ::right][:, : -(-height // down), : -(-width // right)]


def _attention(step, leaves, x):
    batch, *places, channels = x.shape
    mixed: Any = attend(x.reshape(batch, -1, channels), step.heads)
    return mixed.reshape(batch, *places, channels // 3)


PRIMITIVES: dict[str, Callable[..., jax.Array]] = {
    "conv": _conv,
    "conv_t": _conv_t,
    "dense": _dense,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "layer_scale": lambda step, leaves, x: x * leaves["gamma"].astype(x.dtype),
    "class_token": _class_token,
    "tokens": lambda step, leaves, x: x.reshape(x.shape[0], -1, x.shape[-1]),
    "first_token": lambda step, leaves, x: x[:, 0],
    "bilinear": _resize,
    "nearest": _resize,
    "pad": _pad,
    "relu": lambda step, leaves, x: _relu(x),
    "relu6": lambda step, leaves, x: jnp.clip(x, 0, 6),
    "silu": lambda step, leaves, x: jax.nn.silu(x),
    "hard_sigmoid": lambda step, leaves, x: jax.nn.hard_sigmoid(x),
    # As PyTorch writes it; by `erfc`, as JAX does, it takes ten times as long on CPUs.
    "gelu": lambda step, leaves, x: x * (0.5 + 0.5 * lax.erf(x * math.sqrt(0.5))),
    "hard_swish": lambda step, leaves, x: jax.nn.hard_swish(x),
    "sigmoid": lambda step, leaves, x: jax.nn.sigmoid(x),
    "max_pool": lambda step, leaves, x: _max_pool(x, (step.kernel, step.stride, step.padding, 1)),
    "avg_pool": _avg_pool,
    "adaptive_pool": _adaptive_pool,
    "global_pool": lambda step, leaves, x: _spatial_mean(x),
    "squeeze": lambda step, leaves, x: _spatial_mean(x),
    "flatten": lambda step, leaves, x: x.reshape(x.shape[0], -1),
    "subsample": _subsample,
    "zeros": lambda step, leaves, x: jnp.zeros_like(x),
    "add": lambda step, leaves, *xs: functools.reduce(jnp.add, xs),
    "concat": lambda step, leaves, *xs: jnp.concatenate(xs, -1),
    "gate": lambda step, leaves, x, gate: x * gate[:, None, None],
    "attention": _attention,
    "position": lambda step, leaves, x: x + leaves["embedding"].astype(x.dtype),
}
