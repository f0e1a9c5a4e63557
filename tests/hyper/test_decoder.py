import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.decoder import Decoder, cut, kernel_windows, matmul, write_kernels

SMALL = {"features": 4, "max_shape": (6, 5, 5, 5), "num_classes": 3}


def _init(**options):
    module = Decoder(**{**SMALL, **options})
    x = jax.random.normal(jax.random.key(0), (2, 4))
    variables = jax.jit(lambda key: module.init(key, x, method="decode_1d"))(jax.random.key(1))
    return module, variables, x


def _calls(oracle):
    for name, net in oracle.meta["arch"].items():
        for call in net["dec_calls"]:
            place = f"arch/{name}/dec/{call['i']}"
            if f"{place}/x" in oracle.arrays:
                yield call, oracle[f"{place}/x"], oracle[f"{place}/out"]


def test_raw_tiles_equal_the_reference(oracle):
    module = oracle.module
    kinds = set()
    for call, x, out in _calls(oracle):
        if call["class_pred"]:
            tile = module.apply(oracle.theta, x, method="decode_head_kernel")
            expected = out.transpose(0, 2, 1)
        else:
            outputs, inputs, height, width = call["key"]
            tile = module.apply(
                oracle.theta, x, (height, width), outputs, inputs, method="decode_kernel"
            )
            expected = out.transpose(0, 3, 4, 2, 1)
        assert tile.shape == expected.shape
        np.testing.assert_allclose(tile, expected, rtol=1e-4, atol=1e-6)
        kinds.add(call["class_pred"])
    assert kinds == {True, False}


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("crop", ["corner", "center"])
def test_a_part_equals_the_same_part_of_the_whole(crop, rank):
    module, variables, x = _init(crop=crop, rank=rank)
    decode = jax.jit(
        lambda kernel, out, in_: module.apply(
            variables, x, kernel, out, in_, method="decode_kernel"
        ),
        static_argnums=(0, 1, 2),
    )
    whole = decode((5, 5), 6, 5)
    assert whole.shape == (2, 5, 5, 5, 6)
    for kernel, out, in_ in [((1, 3), 4, 1), ((3, 2), 6, 5), ((4, 5), 1, 5)]:
        height, width = kernel
        top, left = ((5 - height) // 2, (5 - width) // 2) if crop == "center" else (0, 0)
        expected = whole[:, top : top + height, left : left + width, :in_, :out]
        np.testing.assert_allclose(decode(kernel, out, in_), expected, rtol=1e-6, atol=1e-7)


def test_a_kernel_beyond_the_tile_is_resized():
    module, variables, x = _init()
    decode = lambda *size: module.apply(variables, x, size, 2, 2, method="decode_kernel")  # noqa: E731
    whole, tall = decode(5, 5), decode(10, 3)
    assert tall.shape == (2, 10, 3, 2, 2)
    # Twice the height with pixel centers at (i + 1/2) / 2: weights 3/4 and 1/4 of the two nearest.
    rows = whole[:, :, :3]
    np.testing.assert_allclose(tall[:, 0], rows[:, 0], rtol=1e-5)
    np.testing.assert_allclose(tall[:, 3], 0.75 * rows[:, 1] + 0.25 * rows[:, 2], rtol=1e-5)
    np.testing.assert_allclose(tall[:, 4], 0.25 * rows[:, 1] + 0.75 * rows[:, 2], rtol=1e-5)
    np.testing.assert_allclose(tall[:, 9], rows[:, 4], rtol=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("crop", ["corner", "center"])
def test_a_kernel_needs_no_more_than_its_windows(crop, rank):
    module, variables, x = _init(crop=crop, rank=rank)
    windows = kernel_windows(module.max_shape, (3, 2), 4, 3, crop, rank)
    parts = cut(variables["params"], windows)
    assert parts["hidden_0"]["kernel"].shape[1:3] == parts["hidden_0"]["bias"].shape[:2] == (3, 2)
    last = {"left": (3, 2), "right": (2, 4)} if rank else {"tile": (3, 4)}
    assert parts.keys() == {"hidden_0", "hidden_1", *last}
    for name, shape in last.items():
        assert parts[name]["kernel"].shape[1:] == parts[name]["bias"].shape == shape
    whole = module.apply(variables, x, (3, 2), 4, 3, method="decode_kernel")
    np.testing.assert_array_equal(write_kernels(parts, x), whole)


def test_tiles_of_low_rank_from_the_rule_in_float64():
    with jax.enable_x64(True):
        module, variables, x = _init(rank=2, max_shape=(4, 3, 3, 2))
        variables, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (variables, x))
        tiles = module.apply(variables, x, (3, 2), 4, 3, method="decode_kernel")
    p, x = jax.tree.map(np.asarray, (variables["params"], x))
    assert tiles.shape == (2, 3, 2, 3, 4) and tiles.dtype == np.float64

    def affine(layer, x, place):
        kernel, bias = p[layer]["kernel"], p[layer]["bias"]
        return sum(x[j] * kernel[(j, *place)] for j in range(len(x))) + bias[place]

    for n, top, left, i, o in np.ndindex(tiles.shape):
        h = [max(affine("hidden_0", x[n], (top, left, j)), 0) for j in range(16)]
        h = [max(affine("hidden_1", h, (j,)), 0) for j in range(32)]
        value = sum(affine("left", h, (i, k)) * affine("right", h, (k, o)) for k in range(2))
        np.testing.assert_allclose(tiles[n, top, left, i, o], value, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("centered", [False, True])
def test_filters_of_low_rank_differ_and_vary_as_whole_tiles_do(centered):
    def tiles(rank):
        options = {"features": 32, "max_shape": (48, 40, 3, 3), "centered": centered, "rank": rank}
        module = Decoder(**options)
        x = jax.nn.standardize(jax.random.normal(jax.random.key(0), (4, 32)))
        variables = jax.jit(lambda key: module.init(key, x, method="decode_1d"))(jax.random.key(1))
        size = sum(
            variables["params"][n]["kernel"].size
            for n in ("left", "right", "tile")
            if n in variables["params"]
        )
        return np.asarray(module.apply(variables, x, (3, 3), 48, 40, method="decode_kernel")), size

    (whole, many), (low, few) = tiles(0), tiles(8)
    assert (many, few) == (256 * 48 * 40, 256 * 8 * (48 + 40))
    assert low.std() == pytest.approx(whole.std(), rel=0.25)
    ranks = np.linalg.matrix_rank(low, rtol=1e-5)
    assert ranks.shape == (4, 3, 3) and (ranks == 8).all()
    assert (np.linalg.matrix_rank(whole, rtol=1e-5) > 8).all()
    filters = low.reshape(4, -1, 48)
    gaps = np.linalg.norm(filters[..., :, None] - filters[..., None, :], axis=1)
    gaps[:, np.arange(48), np.arange(48)] = np.inf
    assert (gaps.min(-1) > 0.5 * np.linalg.norm(filters, axis=1)).all()


def test_a_centered_decoder_does_not_start_with_a_blur():
    def blur(**options):
        """Share of the energy of 5x5 kernels that their mean over positions holds."""
        module = Decoder(features=16, max_shape=(16, 16, 5, 5), num_classes=3, **options)
        x = jax.random.normal(jax.random.key(0), (4, 16))
        variables = jax.jit(lambda key: module.init(key, x, method="decode_1d"))(jax.random.key(1))
        tiles = module.apply(variables, x, (5, 5), 16, 16, method="decode_kernel")
        return 25 * (tiles.mean((1, 2)) ** 2).sum() / (tiles**2).sum()

    assert blur(centered=False) > 0.4
    # 1/25 is what independent values have.
    assert blur(centered=True) < 0.08


def test_the_gradient_of_matmul():
    x, weight = jax.random.normal(jax.random.key(0), (5, 3)), jnp.arange(12.0).reshape(3, 4)
    found = jax.jit(jax.grad(lambda *a: jnp.sin(matmul(*a)).sum(), (0, 1)))(x, weight)
    expected = jax.grad(lambda *a: jnp.sin(a[0] @ a[1]).sum(), (0, 1))(x, weight)
    for mine, plain in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, plain, rtol=1e-5)


def test_vectors_and_head_from_the_rule():
    module, variables, x = _init()
    p = jax.tree.map(np.asarray, variables["params"])

    def affine(name, x):
        return np.tensordot(x, p[name]["kernel"], axes=1) + p[name]["bias"]

    vectors = module.apply(variables, x, method="decode_1d")
    expected = affine("vector_1", np.maximum(affine("vector_0", x), 0))
    assert vectors.shape == (2, 2, 6)
    np.testing.assert_allclose(vectors, expected, rtol=1e-5, atol=1e-6)

    bias = module.apply(variables, x, method="decode_head_bias")
    np.testing.assert_allclose(
        bias, affine("class_bias", np.maximum(expected[:, 1], 0)), rtol=1e-5, atol=1e-6
    )
    tile = module.apply(variables, x, (1, 1), 6, 5, method="decode_kernel")[:, 0, 0]
    kernel = module.apply(variables, x, method="decode_head_kernel")
    assert kernel.shape == (2, 5, 3)
    np.testing.assert_allclose(
        kernel, affine("class_kernel", np.maximum(tile, 0)), rtol=1e-5, atol=1e-6
    )


def test_initial_scale_of_last_layers():
    plain, scaled = (_init(scale=scale)[1]["params"] for scale in (1.0, 0.2))
    for name in plain:
        last = name in ("tile", "vector_1", "class_kernel", "class_bias")
        factor = 0.2 if last else 1.0
        np.testing.assert_allclose(
            scaled[name]["kernel"], factor * plain[name]["kernel"], rtol=1e-6, atol=0
        )
        assert bool((scaled[name]["bias"] == 0).all()) == last
        assert float(jnp.abs(plain[name]["bias"]).min()) > 0


def test_initial_scale_of_tiles_of_low_rank():
    plain, scaled = (_init(scale=scale, rank=2)[1]["params"] for scale in (1.0, 0.25))
    for name in ("left", "right"):
        np.testing.assert_allclose(scaled[name]["kernel"], plain[name]["kernel"] / 2, rtol=1e-6)
        assert not scaled[name]["bias"].any() and plain[name]["bias"].all()


@pytest.mark.parametrize("rank", [0, 2])
def test_gradient_in_float64(rank):
    with jax.enable_x64(True):
        module, variables, x = _init(rank=rank)
        variables, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (variables, x))

        def loss(variables, x):
            tile = module.apply(variables, x, (2, 7), 3, 4, method="decode_kernel")
            head = module.apply(variables, x, method="decode_head_kernel")
            bias = module.apply(variables, x, method="decode_head_bias")
            assert tile.dtype == head.dtype == bias.dtype == jnp.float64
            return jnp.sin(tile).sum() + jnp.sin(head).sum() + jnp.sin(bias).sum()

        check_grads(jax.jit(loss), (variables, x), order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


@pytest.mark.parametrize("rank", [-1, 6, 2.0, True, "2"])
def test_a_bad_rank_is_a_sentence(rank):
    with pytest.raises(UsageError, match="decoder_rank must be an integer from 0 .* to 5.*, not"):
        _init(rank=rank)


def test_a_scale_that_two_factors_cannot_share_is_a_sentence():
    with pytest.raises(UsageError, match="decoder_scale must be positive where decoder_rank is"):
        _init(rank=2, scale=0.0)


def test_unknown_crop_is_a_sentence():
    with pytest.raises(UsageError, match="crop must be"):
        _init(crop="middle")
