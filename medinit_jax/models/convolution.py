"""Convolution in the forms that are fast on CPUs; where they differ from `lax`'s, those elsewhere.

All forms compute the same function (tests/models/test_ops.py).
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from medinit_jax.arch.program import Step

# Height times width up to which XLA's 3x3 convolution on CPUs is slower than a product of patches.
TINY_MAP = 16
# Height times width per group from which on the groups are faster one by one than as patches.
MAP_PER_GROUP = 4


def convolution(x: jax.Array, kernel: jax.Array, step: Step) -> jax.Array:
    """Convolves (batch, height, width, in) with an HWIO kernel as `step` says."""
    channels = x.shape[-1]
    if step.groups == 1 and step.kernel == (1, 1) and step.padding == (0, 0):
        return product(x[:, :: step.stride[0], :: step.stride[1]], kernel[0, 0])
    window = (step.kernel, step.stride, step.padding, step.dilation)
    if step.groups == channels == step.features:
        return _depthwise(x, kernel, window)
    places = x.shape[1] * x.shape[2]
    if step.groups > 1:
        apart = places > TINY_MAP and places >= MAP_PER_GROUP * step.groups
        return (_by_group if apart else _by_patches)(x, kernel, window)
    tiny = step.kernel == (3, 3) and places <= TINY_MAP
    return (_by_patches if tiny else _lax_convolution)(x, kernel, window)


def product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns x (..., in) @ kernel (in, out), flat: over several axes the gradient is slower."""
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


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


def taps(x, window, fill=0.0):
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


def spread(x, shape, window, fill=0):
    """Places outputs (batch, height, width, channels) where their windows begin, for `readers`.

    Args:
        x: What belongs to the outputs, as their cotangents.
        shape: Of the input that the windows read.
        window: As `taps` has it.
        fill: What stands between and around them.
    """
    (rows, columns), (down, right), (top, left), dilation = window
    low = (dilation * (rows - 1) - top, dilation * (columns - 1) - left)
    high = (
        shape[1] + top - down * (x.shape[1] - 1) - 1,
        shape[2] + left - right * (x.shape[2] - 1) - 1,
    )
    config = ((0, 0, 0), (low[0], high[0], down - 1), (low[1], high[1], right - 1), (0, 0, 0))
    return lax.pad(x, jnp.asarray(fill, x.dtype), config)


def readers(x, shape, window):
    """Yields ((i, j), the view of `spread`'s x whose windows read an input position at (i, j))."""
    (rows, columns), _, _, dilation = window
    for i in range(rows):
        for j in range(columns):
            y, z = dilation * (rows - 1 - i), dilation * (columns - 1 - j)
            yield (i, j), x[:, y : y + shape[1], z : z + shape[2]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _depthwise(x, kernel, window):
    def by_taps(x, kernel):
        return functools.reduce(jnp.add, (tap * kernel[i, j, 0] for (i, j), tap in taps(x, window)))

    def by_lax(x, kernel):
        return _lax_convolution(x, kernel, window)

    return lax.platform_dependent(x, kernel, cpu=by_taps, default=by_lax)


def _depthwise_forward(x, kernel, window):
    return _depthwise(x, kernel, window), (x, kernel)


def _depthwise_backward(window, residuals, cotangent):
    x, kernel = residuals

    def by_taps(x, kernel, cotangent):
        def add_image(total, pair):
            image, gradient = pair
            products = [(tap[0] * gradient).sum((0, 1)) for _, tap in taps(image[None], window)]
            return total + jnp.stack(products), None

        start = jnp.zeros((kernel.shape[0] * kernel.shape[1], x.shape[-1]), x.dtype)
        dkernel, _ = lax.scan(add_image, start, (x, cotangent))
        dx = _depthwise_input_gradient(cotangent, kernel, x.shape, window)
        return dx, dkernel.reshape(kernel.shape)

    def by_lax(x, kernel, cotangent):
        def run(x, kernel):
            return _lax_convolution(x, kernel, window)

        return jax.vjp(run, x, kernel)[1](cotangent)

    return lax.platform_dependent(x, kernel, cotangent, cpu=by_taps, default=by_lax)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _depthwise_input_gradient(cotangent, kernel, shape, window):
    """Gathers, for every input position, from the outputs that read it: one loop, no additions.

    Scattering every tap to where it came from would write the whole map once for each.
    """
    # Fused into the sum, the padding would be worked out again for every tap.
    around = lax.optimization_barrier(spread(cotangent, shape, window))
    return functools.reduce(
        jnp.add, (view * kernel[i, j, 0] for (i, j), view in readers(around, shape, window))
    )


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
    views = [tap for _, tap in taps(x, window)]
    # A patch lists taps, then the channels of its group, as a kernel does.
    patches = jnp.concatenate([tap.reshape(-1, groups, depth) for tap in views], -1)
    columns = kernel.reshape(height * width * depth, groups, -1)
    products = jnp.einsum("pgc,cgo->pgo", patches, columns)
    return products.reshape(*views[0].shape[:3], features)


@_by_platform
def _by_group(x, kernel, window):
    """Convolves every group by itself."""
    groups = x.shape[-1] // kernel.shape[2]
    parts = zip(jnp.split(x, groups, -1), jnp.split(kernel, groups, -1), strict=True)
    return jnp.concatenate([_lax_convolution(*part, window) for part in parts], -1)
