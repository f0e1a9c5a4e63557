"""Primitive operations of a block, each in the form that is fast on the platform it runs on.

Images are (batch, height, width, channels). Convolutions and pools that XLA runs slowly on a CPU
have their own forward and backward; on other platforms the plain `lax` forms are used. Both forms
compute the same function (tests/models/test_ops.py).
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

# Height times width up to which XLA's 3x3 convolution on CPUs is slower than a product of patches.
TINY_MAP = 16
Parameters = Mapping[str, Mapping[str, jax.Array]]
Normalize = Callable[[Step, jax.Array, Mapping[str, jax.Array]], jax.Array]


def apply_block(
    block: Block, parameters: Parameters, inputs: tuple[jax.Array, ...], normalize: Normalize
) -> jax.Array:
    """Runs a block.

    Args:
        block: The block.
        parameters: {name: {leaf: array}} with the block's local names.
        inputs: One array (batch, ...) per input.
        normalize: Batch normalization: (step, x, {"scale", "bias"}) -> array like x.

    Returns:
        The output of the last step, (batch, ...).
    """
    values = list(inputs)
    for step in block.steps:
        args = [values[i] for i in step.args]
        leaves = parameters[step.name] if step.name else {}
        if step.kind == "batch_norm":
            values.append(normalize(step, args[0], leaves))
        else:
            values.append(PRIMITIVES[step.kind](step, leaves, *args))
    return values[-1]


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
    grouped = x.reshape(-1, group, *x.shape[1:]).astype(at_least_float32(x.dtype))
    axes = tuple(range(1, grouped.ndim - 1))
    mean = grouped.mean(axes, keepdims=True)
    variance = jnp.square(grouped - mean).mean(axes, keepdims=True)
    return _affine(grouped, mean, variance, leaves, epsilon).reshape(x.shape).astype(x.dtype)


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


def convolution(x: jax.Array, kernel: jax.Array, step: Step) -> jax.Array:
    """Convolves (batch, height, width, in) with an HWIO kernel as `step` says."""
    channels = x.shape[-1]
    if step.groups == 1 and step.kernel == (1, 1) and step.padding == (0, 0):
        x = x[:, :: step.stride[0], :: step.stride[1]]
        return jnp.tensordot(x, kernel[0, 0], 1)
    window = (step.kernel, step.stride, step.padding, step.dilation)
    if step.groups == 1 and channels <= 4:
        return _few_channels(x, kernel, window)
    if step.groups == channels == step.features:
        return _depthwise(x, kernel, window)
    tiny = step.kernel == (3, 3) and x.shape[1] * x.shape[2] <= TINY_MAP
    if step.groups > 1 or tiny:
        return _by_patches(x, kernel, window)
    return _lax_convolution(x, kernel, window)


def _lax_convolution(x, kernel, window):
    _, stride, padding, dilation = window
    return lax.conv_general_dilated(
        x,
        kernel,
        stride,
        [(p, p) for p in padding],
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def _taps(x, window, fill=0.0):
    """Yields ((i, j), the view of x that kernel position (i, j) reads), all of output size."""
    (rows, columns), (down, right), (top, left), dilation = window
    x = jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)), constant_values=fill)
    height = (x.shape[1] - dilation * (rows - 1) - 1) // down + 1
    width = (x.shape[2] - dilation * (columns - 1) - 1) // right + 1
    for i in range(rows):
        for j in range(columns):
            y, z = i * dilation, j * dilation
            rows_read = slice(y, y + down * (height - 1) + 1, down)
            columns_read = slice(z, z + right * (width - 1) + 1, right)
            yield (i, j), x[:, rows_read, columns_read]


def _untap(parts, shape, window):
    """Adds up `parts` = [((i, j), array of output size)] at the input positions they came from."""
    (_, _), (down, right), (top, left), dilation = window
    spread = []
    for (i, j), part in parts:
        low = (i * dilation, j * dilation)
        high = (
            shape[1] + 2 * top - low[0] - down * (part.shape[1] - 1) - 1,
            shape[2] + 2 * left - low[1] - right * (part.shape[2] - 1) - 1,
        )
        zero = jnp.zeros((), part.dtype)
        config = (
            (0, 0, 0),
            (low[0] - top, high[0] - top, down - 1),
            (low[1] - left, high[1] - left, right - 1),
            (0, 0, 0),
        )
        spread.append(lax.pad(part, zero, config))
    return functools.reduce(jnp.add, spread)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _few_channels(x, kernel, window):
    return _lax_convolution(x, kernel, window)


def _few_channels_forward(x, kernel, window):
    return _lax_convolution(x, kernel, window), (x, kernel)


def _few_channels_backward(window, residuals, cotangent):
    x, kernel = residuals

    def by_patches(x, cotangent):
        patches = jnp.concatenate([tap for _, tap in _taps(x, window)], -1)
        rows = patches.reshape(-1, patches.shape[-1])
        return (rows.T @ cotangent.reshape(len(rows), -1)).reshape(kernel.shape)

    def by_lax(x, cotangent):
        return jax.vjp(lambda w: _lax_convolution(x, w, window), kernel)[1](cotangent)[0]

    (dx,) = jax.vjp(lambda x: _lax_convolution(x, kernel, window), x)[1](cotangent)
    return dx, lax.platform_dependent(x, cotangent, cpu=by_patches, default=by_lax)


_few_channels.defvjp(_few_channels_forward, _few_channels_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, window):
    def by_taps(x, kernel):
        return functools.reduce(
            jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in _taps(x, window))
        )

    def by_lax(x, kernel):
        return _lax_convolution(x, kernel, window)

    return lax.platform_dependent(x, kernel, cpu=by_taps, default=by_lax)


def _depthwise_forward(x, kernel, window):
    return _depthwise(x, kernel, window), (x, kernel)


def _depthwise_backward(window, residuals, cotangent):
    x, kernel = residuals

    def by_taps(x, kernel, cotangent):
        positions = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]

        def add_image(total, pair):
            image, gradient = pair
            products = [(tap[0] * gradient).sum((0, 1)) for _, tap in _taps(image[None], window)]
            parts = [((i, j), gradient[None] * kernel[i, j, 0]) for i, j in positions]
            return total + jnp.stack(products), _untap(parts, (1, *image.shape), window)[0]

        start = jnp.zeros((len(positions), x.shape[-1]), x.dtype)
        dkernel, dx = lax.scan(add_image, start, (x, cotangent))
        return dx, dkernel.reshape(kernel.shape)

    def by_lax(x, kernel, cotangent):
        def run(x, kernel):
            return _lax_convolution(x, kernel, window)

        return jax.vjp(run, x, kernel)[1](cotangent)

    return lax.platform_dependent(x, kernel, cotangent, cpu=by_taps, default=by_lax)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _by_platform(cpu):
    """Returns a convolution (x, kernel, window) that is `cpu` on CPUs and `lax`'s elsewhere.

    Each platform differentiates its own form: a choice inside what is differentiated would keep the
    residuals of both.
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
    def run(x, kernel, window):
        cpu_form, default = (functools.partial(f, window=window) for f in (cpu, _lax_convolution))
        return lax.platform_dependent(x, kernel, cpu=cpu_form, default=default)

    def backward(window, residuals, cotangent):
        def pull(form):
            return lambda x, kernel, cotangent: jax.vjp(
                functools.partial(form, window=window), x, kernel
            )[1](cotangent)

        return lax.platform_dependent(
            *residuals, cotangent, cpu=pull(cpu), default=pull(_lax_convolution)
        )

    run.defvjp(lambda x, kernel, window: (run(x, kernel, window), (x, kernel)), backward)
    return run


@_by_platform
def _by_patches(x, kernel, window):
    """Convolves by one product of patches per group."""
    height, width, depth, features = kernel.shape
    groups = x.shape[-1] // depth
    taps = [tap for _, tap in _taps(x, window)]
    # A patch lists taps, then the channels of its group, as a kernel does.
    patches = jnp.concatenate([tap.reshape(-1, groups, depth) for tap in taps], -1)
    columns = kernel.reshape(height * width * depth, groups, -1)
    products = jnp.einsum("pgc,cgo->pgo", patches, columns)
    return products.reshape(*taps[0].shape[:3], features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_pool(x, window):
    return _max_pool_forward(x, window)[0]


def _max_pool_forward(x, window):
    best, winner = None, None
    for index, (_, tap) in enumerate(_taps(x, window, -jnp.inf)):
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
    zero = jnp.zeros((), cotangent.dtype)

    def one_image(pair):
        winner, cotangent = pair
        parts = [
            ((i, j), jnp.where(winner == i * columns + j, cotangent, zero)[None])
            for i in range(rows)
            for j in range(columns)
        ]
        return _untap(parts, shape_like.shape, window)[0]

    # Image by image: fused into what follows, XLA would compute it again in every reduction.
    return (lax.map(one_image, (winner, cotangent)),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _conv(step, leaves, x):
    kernel = leaves["kernel"]
    if step.standardized:
        kernel = _standardized(kernel, step.epsilon)
    y = convolution(x, kernel.astype(x.dtype), step)
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def _standardized(kernel, epsilon):
    centered = kernel - kernel.mean((0, 1, 2))
    return centered * lax.rsqrt(jnp.square(centered).mean((0, 1, 2)) + epsilon)


def _conv_t(step, leaves, x):
    batch, height, width, _ = x.shape
    (down, right), kernel = step.kernel, leaves["kernel"].astype(x.dtype)
    y = jnp.einsum("bhwi,yxio->bhywxo", x, kernel)
    y = y.reshape(batch, height * down, width * right, step.features)
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def _dense(step, leaves, x):
    y = jnp.tensordot(x, leaves["kernel"].astype(x.dtype), 1)
    return y + leaves["bias"].astype(x.dtype) if step.bias else y


def _layer_norm(step, leaves, x):
    wide = x.astype(at_least_float32(x.dtype))
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.square(wide - mean).mean(-1, keepdims=True)
    return _affine(wide, mean, variance, leaves, step.epsilon).astype(x.dtype)


def _group_norm(step, leaves, x):
    wide = x.astype(at_least_float32(x.dtype))
    grouped = wide.reshape(len(x), -1, step.groups, x.shape[-1] // step.groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = jnp.square(grouped - mean).mean((1, 3), keepdims=True)
    own = {leaf: value.reshape(step.groups, -1) for leaf, value in leaves.items()}
    return _affine(grouped, mean, variance, own, step.epsilon).reshape(x.shape).astype(x.dtype)


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
    method = "linear" if step.kind == "bilinear" else "nearest"
    shape = (len(x), *step.size, x.shape[-1])
    return jax.image.resize(x, shape, method, antialias=False)


def _spatial_mean(x):
    return x.mean(tuple(range(1, x.ndim - 1)))


def _pad(step, leaves, x):
    (top, left) = step.padding
    return jnp.pad(x, ((0, 0), (top, top), (left, left), (0, 0)))


def _class_token(step, leaves, x):
    token = leaves["token"].astype(x.dtype)
    return jnp.concatenate([jnp.broadcast_to(token, (len(x), *token.shape)), x], 1)


def _avg_pool(step, leaves, x):
    window = (step.kernel, step.stride, step.padding, 1)
    total = functools.reduce(jnp.add, (tap for _, tap in _taps(x, window)))
    ones = jnp.ones((1, *x.shape[1:3], 1), x.dtype)
    count = functools.reduce(jnp.add, (tap for _, tap in _taps(ones, window)))
    return total / count


def _subsample(step, leaves, x):
    (height, width), (down, right) = x.shape[1:3], step.stride
    if step.offset:
        x = jnp.pad(x, ((0, 0), (0, step.offset), (0, step.offset), (0, 0)))
        x = x[:, step.offset :, step.offset :]
    return x[:, ::down, ::right][:, : -(-height // down), : -(-width // right)]


def _attention(step, leaves, x):
    batch, *places, channels = x.shape
    size = channels // 3 // step.heads
    query, key, value = x.reshape(batch, -1, 3, step.heads, size).transpose(2, 0, 3, 1, 4)
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / math.sqrt(size)
    weights = jax.nn.softmax(scores.astype(at_least_float32(x.dtype)), -1)
    mixed = jnp.einsum("bhqk,bhkd->bqhd", weights.astype(x.dtype), value)
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
    "relu": lambda step, leaves, x: jnp.maximum(x, 0),
    "relu6": lambda step, leaves, x: jnp.clip(x, 0, 6),
    "silu": lambda step, leaves, x: jax.nn.silu(x),
    "hard_sigmoid": lambda step, leaves, x: jax.nn.hard_sigmoid(x),
    "gelu": lambda step, leaves, x: jax.nn.gelu(x, approximate=False),
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
