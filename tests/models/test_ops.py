"""Every fast form against the plain one: values and gradients, in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from medinit_jax.arch.cell_blocks import (
    OPS,
    factorized_reduce,
    head_block,
    imagenet_stem,
    patch_stem,
    simple_stem,
)
from medinit_jax.arch.program import BlockBuilder, Step, block_layout, output_shape
from medinit_jax.models import attention, bit, convnext, deeplab, mobilenet, ops, regnet, unet, vit
from medinit_jax.models.ops import PRIMITIVES, apply_block, batch_norm_over_groups, normalize_with

FORMS = ("cpu", "default")


@pytest.fixture(autouse=True)
def wide():
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=FORMS)
def form(request, monkeypatch):
    """Runs the form of one platform, whatever the platform."""

    def choose(*args, **forms):
        return forms[request.param](*args)

    monkeypatch.setattr(lax, "platform_dependent", choose)
    return request.param


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def plain_convolution(x, kernel, step):
    """The definition that XLA has: one call, groups and dilation included."""
    return lax.conv_general_dilated(
        x,
        kernel,
        step.stride,
        [(p, p) for p in step.padding],
        rhs_dilation=(step.dilation, step.dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=step.groups,
    )


def assert_same_value_and_gradients(function, reference, *args):
    """Compares outputs, and the pullbacks of one cotangent, to 1e-12 of the largest entry."""
    value, pull = jax.vjp(jax.jit(function), *args)
    expected, pull_expected = jax.vjp(jax.jit(reference), *args)
    cotangent = normal(*expected.shape, seed=9)
    pairs = [
        (value, expected),
        *zip(pull(cotangent), pull_expected(cotangent), strict=True),
    ]
    for own, other in pairs:
        assert own.dtype == other.dtype == jnp.float64
        np.testing.assert_allclose(own, other, rtol=0, atol=1e-12 * float(jnp.abs(other).max()))


@pytest.mark.parametrize(
    ("size", "stride", "dilation", "image"),
    [(3, 1, 1, (6, 7)), (5, 2, 1, (8, 7)), (3, 2, 2, (7, 8)), (5, 1, 2, (9, 6)), (5, 2, 2, (8, 8))],
)
def test_depthwise_convolution(form, size, stride, dilation, image):
    padding = (size - 1) * dilation // 2
    step = Step(
        "conv", (0,), "c", 4, (size, size), (stride, stride), (padding, padding), dilation, 4
    )
    x, kernel = normal(3, *image, 4), normal(size, size, 1, 4, seed=1)
    assert ops.convolution(x, kernel, step).shape == (
        3,
        -(-image[0] // stride),
        -(-image[1] // stride),
        4,
    )
    assert_same_value_and_gradients(
        lambda x, k: ops.convolution(x, k, step),
        lambda x, k: plain_convolution(x, k, step),
        x,
        kernel,
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "channels", "image"),
    [
        ((3, 3), (1, 1), 1, 3, (6, 6)),
        ((5, 5), (2, 2), 1, 3, (9, 8)),
        ((7, 7), (4, 4), 1, 1, (16, 16)),
        ((1, 7), (1, 2), 1, 4, (5, 9)),
        ((3, 3), (3, 3), 1, 3, (8, 8)),
        ((1, 7), (1, 2), 1, 8, (5, 9)),
        ((7, 1), (2, 1), 1, 8, (9, 5)),
        ((3, 1), (1, 1), 2, 8, (7, 6)),
        ((3, 3), (2, 2), 1, 64, (7, 6)),
        ((3, 5), (2, 1), 2, 64, (9, 11)),
    ],
)
def test_convolution(form, kernel, stride, dilation, channels, image):
    padding = (kernel[0] // 2 * dilation, kernel[1] // 2 * dilation)
    step = Step("conv", (0,), "c", 6, kernel, stride, padding, dilation)
    assert_same_value_and_gradients(
        lambda x, k: ops.convolution(x, k, step), lambda x, k: plain_convolution(x, k, step),
        normal(2, *image, channels), normal(*kernel, channels, 6, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (1, 2)])
@pytest.mark.parametrize("channels", [3, 8])
def test_pointwise_convolution(stride, channels):
    step = Step("conv", (0,), "c", 5, (1, 1), stride)
    assert_same_value_and_gradients(
        lambda x, k: ops.convolution(x, k, step), lambda x, k: plain_convolution(x, k, step),
        normal(2, 7, 6, channels), normal(1, 1, channels, 5, seed=1),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("groups", "size", "stride", "dilation", "image"),
    [
        (2, 3, 1, 1, (6, 7)),
        (3, 3, 2, 1, (7, 5)),
        (3, 5, 1, 2, (9, 8)),
        (2, 1, 2, 1, (5, 4)),
        # Few groups for so large a map, and many.
        (6, 3, 1, 1, (6, 6)),
        (6, 3, 1, 1, (4, 5)),
        (2, 3, 2, 1, (9, 8)),
        # Not grouped, but tiny.
        (1, 3, 1, 1, (4, 4)),
        (1, 3, 2, 1, (3, 5)),
        (1, 3, 1, 2, (2, 2)),
    ],
)
def test_convolution_of_patches(form, groups, size, stride, dilation, image):
    padding = (size // 2 * dilation,) * 2
    step = Step(
        "conv", (0,), "c", 6, (size, size), (stride, stride), padding, dilation, groups
    )  # fmt: skip
    x, kernel = normal(2, *image, 12), normal(size, size, 12 // groups, 6, seed=1)
    assert_same_value_and_gradients(
        lambda x, k: ops.convolution(x, k, step), lambda x, k: plain_convolution(x, k, step),
        x, kernel,
    )  # fmt: skip


def test_convolution_adds_its_bias():
    for groups in (1, 2):
        step = Step("conv", (0,), "c", 6, (3, 3), (2, 2), (1, 1), 1, groups, bias=True)
        x, kernel = normal(2, 6, 6, 8), normal(3, 3, 8 // groups, 6, seed=1)
        leaves = {"kernel": kernel, "bias": normal(6, seed=2)}
        expected = plain_convolution(x, kernel, step) + leaves["bias"]
        np.testing.assert_allclose(PRIMITIVES["conv"](step, leaves, x), expected, atol=1e-12)


def test_standardized_kernels_have_mean_0_and_variance_1():
    step = Step("conv", (0,), "c", 4, (3, 3), padding=(1, 1), epsilon=0.1, standardized=True)
    x, kernel = normal(2, 6, 6, 5), 3 * normal(3, 3, 5, 4, seed=1) + 2
    rows = np.asarray(kernel).reshape(-1, 4)
    rows = (rows - rows.mean(0)) / np.sqrt(rows.var(0) + 0.1)
    expected = plain_convolution(x, jnp.asarray(rows.reshape(kernel.shape)), step)
    np.testing.assert_allclose(
        PRIMITIVES["conv"](step, {"kernel": kernel}, x), expected, atol=1e-12
    )


def test_transposed_convolution_writes_a_window_per_pixel():
    step = Step("conv_t", (0,), "up", 4, (2, 3), (2, 3), bias=True)
    x, kernel, bias = normal(2, 3, 4, 5), normal(2, 3, 5, 4, seed=1), normal(4, seed=2)
    expected = np.zeros((2, 6, 12, 4))
    for y, z in np.ndindex(3, 4):
        for i, j in np.ndindex(2, 3):
            expected[:, 2 * y + i, 3 * z + j] = x[:, y, z] @ kernel[i, j] + bias
    leaves = {"kernel": kernel, "bias": bias}
    np.testing.assert_allclose(PRIMITIVES["conv_t"](step, leaves, x), expected, atol=1e-12)
    with pytest.raises(ValueError, match="kernel is its stride"):
        output_shape(Step("conv_t", (0,), "up", 4, (3, 3), (2, 2)), [(3, 4, 5)])


def max_pool_by_loop(x, cotangent, stride):
    """3x3, padding 1; the gradient goes to the first of equal maxima, row by row."""
    batch, height, width, channels = x.shape
    out = np.empty_like(cotangent)
    dx = np.zeros_like(x)
    for b, i, j, c in np.ndindex(out.shape):
        best, place = -np.inf, None
        for y in range(i * stride - 1, i * stride + 2):
            for z in range(j * stride - 1, j * stride + 2):
                if 0 <= y < height and 0 <= z < width and x[b, y, z, c] > best:
                    best, place = x[b, y, z, c], (b, y, z, c)
        out[b, i, j, c] = best
        dx[place] += cotangent[b, i, j, c]
    return out, dx


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(6, 6), (7, 5)])
def test_max_pool_gives_ties_to_the_first(stride, image):
    step = Step("max_pool", (0,), "", 0, (3, 3), (stride, stride), (1, 1))
    # Few different values, negative ones too, make ties common; padding must never win.
    x = jnp.asarray(np.random.default_rng(0).integers(-4, -1, (2, *image, 3)).astype(float))
    value, pull = jax.vjp(jax.jit(lambda x: PRIMITIVES["max_pool"](step, {}, x)), x)
    cotangent = normal(*value.shape)
    expected, dx = max_pool_by_loop(np.asarray(x), np.asarray(cotangent), stride)
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_allclose(pull(cotangent)[0], dx, atol=1e-14)


def test_max_pool_equals_xlas_without_ties():
    for stride in (1, 2):
        step = Step("max_pool", (0,), "", 0, (3, 3), (stride, stride), (1, 1))

        def reference(x, stride=stride):
            return lax.reduce_window(
                x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, stride, stride, 1),
                ((0, 0), (1, 1), (1, 1), (0, 0)),
            )  # fmt: skip

        assert_same_value_and_gradients(
            lambda x, step=step: PRIMITIVES["max_pool"](step, {}, x), reference, normal(2, 7, 6, 3)
        )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("image", [(6, 6), (7, 5)])
def test_avg_pool_does_not_count_padding(stride, image):
    step = Step("avg_pool", (0,), "", 0, (3, 3), (stride, stride), (1, 1))
    x = normal(2, *image, 3)
    value, pull = jax.vjp(jax.jit(lambda x: PRIMITIVES["avg_pool"](step, {}, x)), x)
    cotangent = np.asarray(normal(*value.shape, seed=1))
    expected, dx = np.empty(value.shape), np.zeros(x.shape)
    for i in range(value.shape[1]):
        for j in range(value.shape[2]):
            rows = slice(max(i * stride - 1, 0), i * stride + 2)
            columns = slice(max(j * stride - 1, 0), j * stride + 2)
            window = np.asarray(x)[:, rows, columns]
            expected[:, i, j] = window.mean((1, 2))
            count = window.shape[1] * window.shape[2]
            dx[:, rows, columns] += cotangent[:, i, j][:, None, None] / count
    np.testing.assert_allclose(value, expected, atol=1e-14)
    np.testing.assert_allclose(pull(jnp.asarray(cotangent))[0], dx, atol=1e-14)


@pytest.mark.parametrize("image", [(6, 6), (7, 5), (4, 7)])
@pytest.mark.parametrize("offset", [0, 1])
def test_subsample_reads_zero_beyond_the_image(image, offset):
    """Odd sizes: the shifted half of a factorized reduction needs one row that is not there."""
    step = Step("subsample", (0,), "", stride=(2, 2), offset=offset)
    x = np.asarray(normal(2, *image, 3))
    expected = np.zeros((2, -(-image[0] // 2), -(-image[1] // 2), 3))
    for i, j in np.ndindex(expected.shape[1:3]):
        y, z = 2 * i + offset, 2 * j + offset
        if y < image[0] and z < image[1]:
            expected[:, i, j] = x[:, y, z]
    np.testing.assert_array_equal(PRIMITIVES["subsample"](step, {}, jnp.asarray(x)), expected)


def test_batch_norm_of_groups():
    random = np.random.default_rng(0)
    x = 100 + 3 * random.normal(size=(6, 3, 4, 5))
    scale, bias = random.normal(size=(2, 5))
    leaves = {"scale": jnp.asarray(scale), "bias": jnp.asarray(bias)}

    def by_numpy(part):
        mean, variance = part.mean((0, 1, 2)), part.var((0, 1, 2))
        return (part - mean) / np.sqrt(variance + 1e-5) * scale + bias

    for group in (1, 2, 3, 6):
        expected = np.concatenate([by_numpy(x[i : i + group]) for i in range(0, 6, group)])
        own = batch_norm_over_groups(jnp.asarray(x), leaves, group)
        np.testing.assert_allclose(own, expected, atol=1e-10)
    mean, variance = jnp.asarray(x.mean((0, 1, 2))), jnp.asarray(x.var((0, 1, 2)))
    own = normalize_with(jnp.asarray(x), mean, variance, leaves)
    np.testing.assert_allclose(own, by_numpy(x), atol=1e-10)


@pytest.mark.parametrize("group", [2, 6])
@pytest.mark.parametrize("shape", [(6, 3, 4, 5), (6, 5)], ids=str)
def test_gradient_of_batch_norm(group, shape):
    """By hand, against the derivative of the definition."""

    def plain(x, scale, bias):
        grouped = x.reshape(-1, group, *shape[1:])
        axes = tuple(range(1, grouped.ndim - 1))
        centered = grouped - grouped.mean(axes, keepdims=True)
        deviation = jnp.sqrt(jnp.square(centered).mean(axes, keepdims=True) + 0.1)
        return (centered / deviation * scale + bias).reshape(shape)

    def own(x, scale, bias):
        return batch_norm_over_groups(x, {"scale": scale, "bias": bias}, group, 0.1)

    assert_same_value_and_gradients(
        own, plain, 3 + 2 * normal(*shape), normal(5, seed=1), normal(5, seed=2)
    )


def test_batch_norm_of_a_shifted_map_keeps_its_digits_in_float32():
    x = 1000 + normal(8, 8, 8, 2)
    leaves = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}
    exact = batch_norm_over_groups(x, leaves, 8)
    narrow = jax.tree.map(lambda a: a.astype(jnp.float32), (x, leaves))
    np.testing.assert_allclose(batch_norm_over_groups(*narrow, 8), exact, atol=1e-3)


def test_layer_norm():
    x, scale, bias = normal(2, 3, 3, 8) * 2 + 5, normal(8, seed=1), normal(8, seed=2)
    flat = np.asarray(x).reshape(-1, 8)
    expected = np.stack([(row - row.mean()) / math.sqrt(row.var() + 1e-5) for row in flat])
    expected = (expected * np.asarray(scale) + np.asarray(bias)).reshape(x.shape)
    own = PRIMITIVES["layer_norm"](Step("layer_norm", (0,), "n"), {"scale": scale, "bias": bias}, x)
    np.testing.assert_allclose(own, expected, atol=1e-12)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_group_norm(groups):
    x, scale, bias = normal(2, 3, 5, 6) * 2 + 5, normal(6, seed=1), normal(6, seed=2)
    expected = np.empty(x.shape)
    for image, group in np.ndindex(2, groups):
        own = slice(group * 6 // groups, (group + 1) * 6 // groups)
        part = np.asarray(x)[image, ..., own]
        expected[image, ..., own] = (part - part.mean()) / np.sqrt(part.var() + 0.5)
    expected = expected * np.asarray(scale) + np.asarray(bias)
    step = Step("group_norm", (0,), "n", groups=groups, epsilon=0.5)
    own = PRIMITIVES["group_norm"](step, {"scale": scale, "bias": bias}, x)
    np.testing.assert_allclose(own, expected, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 7), (9, 8)])
def test_adaptive_pool_averages_windows_that_cover_the_map(size):
    x = np.asarray(normal(2, 6, 7, 3))
    expected = np.empty((2, *size, 3))
    for i, j in np.ndindex(size):
        rows = slice(math.floor(i * 6 / size[0]), math.ceil((i + 1) * 6 / size[0]))
        columns = slice(math.floor(j * 7 / size[1]), math.ceil((j + 1) * 7 / size[1]))
        expected[:, i, j] = x[:, rows, columns].mean((1, 2))
    step = Step("adaptive_pool", (0,), size=size)
    np.testing.assert_allclose(
        PRIMITIVES["adaptive_pool"](step, {}, jnp.asarray(x)), expected, atol=1e-12
    )


def test_upsampling():
    """Pixels are squares: new centers lie at 1/4 and 3/4 between old ones, or beyond the last."""
    row = np.asarray(normal(3))
    x = jnp.asarray(np.broadcast_to(row[None, None, :, None], (2, 4, 3, 5)))
    double = Step("bilinear", (0,), size=(8, 6))
    line = [
        row[0],
        *(p * row[i] + (1 - p) * row[i + 1] for i in (0, 1) for p in (0.75, 0.25)),
        row[2],
    ]
    expected = np.broadcast_to(np.asarray(line)[None, None, :, None], (2, 8, 6, 5))
    np.testing.assert_allclose(PRIMITIVES["bilinear"](double, {}, x), expected, atol=1e-6)
    nearest = Step("nearest", (0,), size=(8, 6))
    expected = np.repeat(np.repeat(x, 2, 1), 2, 2)
    np.testing.assert_array_equal(PRIMITIVES["nearest"](nearest, {}, x), expected)


def test_tokens():
    x, token = normal(2, 3, 4, 5), normal(1, 5, seed=1)
    step = Step("tokens", (0,))
    tokens = PRIMITIVES["tokens"](step, {}, x)
    assert tokens.shape == (2, 12, 5) and output_shape(step, [(3, 4, 5)]) == (12, 5)
    np.testing.assert_array_equal(tokens[:, 4 * 2 + 1], x[:, 2, 1])
    longer = PRIMITIVES["class_token"](step, {"token": token}, tokens)
    np.testing.assert_array_equal(longer[:, 1:], tokens)
    first = PRIMITIVES["first_token"](step, {}, longer)
    np.testing.assert_array_equal(first, np.repeat(token, 2, 0))
    mean = PRIMITIVES["global_pool"](step, {}, tokens)
    np.testing.assert_allclose(mean, np.asarray(x).mean((1, 2)), atol=1e-12)
    padded = PRIMITIVES["pad"](Step("pad", (0,), padding=(1, 2)), {}, x)
    np.testing.assert_array_equal(padded[:, 1:-1, 2:-2], x)
    assert padded.shape == (2, 5, 8, 5) and float(jnp.abs(padded[:, 0]).max()) == 0


def test_activations():
    x = np.linspace(-8, 8, 33)
    expected = {
        "relu": np.maximum(x, 0),
        "gelu": [v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in x],
        "relu6": np.clip(x, 0, 6),
        "silu": x / (1 + np.exp(-x)),
        "hard_sigmoid": np.clip(x / 6 + 0.5, 0, 1),
        "hard_swish": x * np.clip(x / 6 + 0.5, 0, 1),
    }
    for kind, values in expected.items():
        own = PRIMITIVES[kind](Step(kind, (0,)), {}, jnp.asarray(x))
        np.testing.assert_allclose(own, values, atol=1e-12)


def test_attention():
    """Channels hold queries, keys and values, each divided into heads."""
    batch, height, width, heads, size = 2, 2, 3, 4, 3
    x = np.asarray(normal(batch, height, width, 3 * heads * size))
    tokens = x.reshape(batch, height * width, 3 * heads * size)
    expected = np.zeros((batch, height * width, heads * size))
    for b in range(batch):
        for head in range(heads):
            own = slice(head * size, (head + 1) * size)
            query, key, value = (tokens[b, :, k * heads * size :][:, own] for k in range(3))
            for position in range(height * width):
                scores = [float(query[position] @ k) / math.sqrt(size) for k in key]
                weights = np.exp(scores) / np.exp(scores).sum()
                expected[b, position, own] = weights @ value
    step = Step("attention", (0,), heads=heads)
    own = PRIMITIVES["attention"](step, {}, jnp.asarray(x))
    np.testing.assert_allclose(own, expected.reshape(batch, height, width, -1), atol=1e-12)
    # A sequence of the same tokens attends in the same way.
    own = PRIMITIVES["attention"](step, {}, jnp.asarray(tokens))
    np.testing.assert_allclose(own, expected, atol=1e-12)


@pytest.mark.parametrize("cache", [1, 2**11, 2**19], ids=["a head", "an image", "all"])
def test_gradient_of_attention(form, cache, monkeypatch):
    """The weights are computed anew for it; against the derivative of the plain formula."""
    monkeypatch.setattr(attention, "CACHE", cache)
    step, (batch, tokens, heads, size) = Step("attention", (0,), heads=3), (4, 7, 3, 2)

    def plain(x):
        query, key, value = jnp.moveaxis(x.reshape(batch, tokens, 3, heads, size), 2, 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(size)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), value)
        return mixed.reshape(batch, tokens, heads * size)

    x = 2 * normal(batch, tokens, 3 * heads * size)
    assert_same_value_and_gradients(lambda x: PRIMITIVES["attention"](step, {}, x), plain, x)


def test_relu_is_flat_at_zero():
    step = Step("relu", (0,))
    slope = jax.vmap(jax.grad(lambda x: PRIMITIVES["relu"](step, {}, x)))
    np.testing.assert_array_equal(slope(jnp.asarray([-1.0, 0.0, 2.0])), [0, 0, 1])


@pytest.mark.parametrize("kind", ["batch_norm", "layer_norm", "attention"])
def test_bfloat16_keeps_its_dtype_and_is_reduced_in_float32(kind):
    """Values are 256 or 258, neighbors in bfloat16: a mean or variance kept there would be lost."""
    channels = 6
    leaves = {name: jnp.full(channels, v, jnp.float32) for name, v in (("scale", 1), ("bias", 0))}
    even = np.indices((8, 8, 8, channels)).sum(0) % 2 == 0
    x = jnp.where(even, 256.0, 258.0) if kind != "attention" else normal(1, 16, 16, channels)

    @jax.jit
    def run(x):
        def output(x):
            if kind == "batch_norm":
                return batch_norm_over_groups(x, leaves, 4)
            return PRIMITIVES[kind](Step(kind, (0,), heads=2), leaves, x)

        value, pull = jax.vjp(output, x)
        return value, *pull(jnp.ones_like(value))

    own, gradient = run(x.astype(jnp.bfloat16))
    exact, _ = run(x.astype(jnp.bfloat16).astype(jnp.float32))
    assert own.dtype == gradient.dtype == jnp.bfloat16 and exact.dtype == jnp.float32
    np.testing.assert_allclose(own.astype(jnp.float32), exact, atol=1e-2)
    if kind != "attention":
        np.testing.assert_array_equal(jnp.sign(exact), np.where(even, -1, 1))
        np.testing.assert_allclose(jnp.abs(exact), 1, atol=1e-4)


def inner(program, before_last=1):
    """Returns the last block before the head, or one further up."""
    return program.calls[-1 - before_last].block


BLOCKS = {f"{op}-2": OPS[op](16, 2, True) for op in OPS} | {
    f"{op}-1": OPS[op](16, 1, True)
    for op in ("max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "conv_7x1_1x7", "conv_3x3", "msa")
}
BLOCKS |= {
    "sep_conv_3x3-bnfree": OPS["sep_conv_3x3"](16, 1, False),
    "factorized-bnfree": factorized_reduce(8, norm=False),
    "pool_head": head_block(True, 0, 4),
    "flat_head": head_block(False, 8, 4),
}
BLOCKS |= {
    "regnet": inner(regnet.regnet(regnet.Variant(2, 16, 1.0, 2.0, 8, 0.25), (8, 8, 3))),
    "bit": inner(bit.bit(bit.Variant((2,), 4), (8, 8, 3), stem="small"), 2),
    "convnext": inner(convnext.convnext(convnext.Variant((1,), (16,), 1), (8, 8, 3))),
    "vit": inner(vit.vit(vit.Variant(16, 1, 2, 1), (8, 8, 3)), 2),
    "mobilenet": mobilenet.inverted_residual(
        16, mobilenet.Row(3, 24, 16, 1, "hard_swish", 8), mobilenet.V3_STYLE
    ),
    "unet": unet._decoder_step(4, unet.CLASSIC, 16, (), "gn", 1),
    "aligned unet": unet._decoder_step(4, unet.SWCL, 16, (9, 12), "gn", 1),
    "deeplab": deeplab._pyramid(4, (1, 2), (5, 6), "ln", 0.1),
}
STEMS = {
    "patch_stem": patch_stem(16, False),
    "simple_stem": simple_stem(8, 5, False, True, True),
    "imagenet_stem": imagenet_stem(16, 3, False, True)[0],
}


@pytest.mark.parametrize("name", [*BLOCKS, *STEMS])
def test_every_block_is_differentiable_under_jit(name):
    """The slope along a random direction against a central difference."""
    block = {**BLOCKS, **STEMS}[name]
    shape = (5, 6, 3) if name in STEMS else (5, 6, 16)
    layout = block_layout(block, (shape,))
    random = np.random.default_rng(0)

    def draw():
        leaves = {
            module: {leaf: jnp.asarray(random.normal(size=s)) for leaf, s in shapes.items()}
            for module, shapes in layout.parameters.items()
        }
        return leaves, jnp.asarray(random.normal(size=(4, *shape)))

    point, way = draw(), draw()
    weights = jnp.asarray(random.normal(size=(4, *layout.outputs[-1])))

    @jax.jit
    @jax.value_and_grad
    def run(arguments):
        leaves, x = arguments
        y = apply_block(block, leaves, (x,), lambda _, x, p: batch_norm_over_groups(x, p, 2))
        return (weights * y).sum()

    step = 1e-6
    ahead, behind = (
        run(jax.tree.map(lambda a, b, s=sign: a + s * step * b, point, way))[0] for sign in (1, -1)
    )
    slopes = jax.tree.map(lambda a, b: float((a * b).sum()), run(point)[1], way)
    expected = float(ahead - behind) / (2 * step)
    assert sum(jax.tree.leaves(slopes)) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    assert all(slope != 0 for slope in jax.tree.leaves(slopes))


def test_aligned_interpolation_keeps_corners_and_equals_a_loop():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 5, 2)).astype(np.float32)
    b = BlockBuilder(1)
    b("bilinear", 0, size=(6, 9), aligned=True)
    found = np.asarray(apply_block(b.build(), {}, (jnp.asarray(x),), batch_norm_over_groups))
    for row in range(6):
        for column in range(9):
            y, z = row * 2 / 5, column * 4 / 8
            top, left = min(int(y), 1), min(int(z), 3)
            v, w = y - top, z - left
            expected = (
                (1 - v) * (1 - w) * x[:, top, left]
                + (1 - v) * w * x[:, top, left + 1]
                + v * (1 - w) * x[:, top + 1, left]
                + v * w * x[:, top + 1, left + 1]
            )
            np.testing.assert_allclose(found[:, row, column], expected, rtol=1e-5, atol=1e-6)
