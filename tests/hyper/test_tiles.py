import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medinit_jax.hyper.tiles import channel_bucket, finish, shift, tile_shape

CASES = [
    ("kernel", (3, 3, 16, 10), (3, 3, 16, 10)),
    ("kernel", (3, 3, 3, 24), (3, 3, 4, 64)),
    ("kernel", (5, 5, 1, 48), (5, 5, 1, 64)),
    ("kernel", (1, 7, 130, 96), (1, 7, 64, 64)),
    ("kernel", (16, 16, 3, 200), (16, 16, 4, 64)),
    ("kernel", (2048, 64), (1, 1, 64, 64)),
    ("kernel", (9, 200), (1, 1, 12, 64)),
    ("kernel", (64, 192), (1, 1, 64, 64)),
    ("embedding", (1, 11, 11, 64), (11, 11, 64, 1)),
    ("embedding", (1, 14, 14, 160), (14, 14, 64, 1)),
    ("embedding", (1, 197, 96), (14, 14, 64, 1)),
    ("scale", (200,), (64,)),
    ("bias", (10,), (64,)),
    ("head_kernel", (512, 4), (64, 4)),
    ("head_kernel", (1, 1, 40, 4), (64, 4)),
    ("head_bias", (4,), (4,)),
]


def _raw(shape):
    return jax.random.normal(jax.random.key(0), shape)


def _slow(raw, target, kind):
    """The rule, entry by entry: copies of the tile side by side, then one factor or function."""
    raw, out = np.asarray(raw, np.float64), np.zeros(target)
    if kind == "head_kernel":
        raw = raw[None, None]
    if kind in ("scale", "bias", "head_bias"):
        # `target` channels are taken from a tile cut to the target where the tile is larger.
        cut = raw[: target[0]]
        for c in range(target[0]):
            p = cut[c % len(cut)]
            out[c] = 2 / (1 + math.exp(-0.5 * p)) if kind == "scale" else math.tanh(0.2 * p)
        return out
    if kind == "embedding":
        grid = raw[..., 0][..., : target[-1]]
        flat = grid.reshape(-1, grid.shape[-1])
        for index in np.ndindex(target):
            place = index[1] * target[2] + index[2] if len(target) == 4 else index[1]
            out[index] = flat[place % len(flat), index[-1] % flat.shape[1]]
        return out
    cut = raw[:, :, : target[-2], : target[-1]]
    oihw = (target[-1], target[-2], *(target[:2] if len(target) == 4 else ()))
    no_relu = len(oihw) == 4 and (oihw[1] == 1 or oihw[2] < oihw[3]) and kind == "kernel"
    factor = math.sqrt((1 if no_relu else 2) / math.prod(oihw[1:]))
    for index in np.ndindex(target):
        spatial = index[:2] if len(target) == 4 else (0, 0)
        out[index] = factor * cut[*spatial, index[-2] % cut.shape[2], index[-1] % cut.shape[3]]
    return out


def _finish_all(raws, cases):
    return [finish(raw, target, kind) for raw, (kind, target, _) in zip(raws, cases, strict=True)]


def test_tile_and_parameter_follow_the_rule():
    raws = [_raw(tile) for _, _, tile in CASES]
    finished = jax.jit(lambda raws: _finish_all(raws, CASES))(raws)
    for (kind, target, tile), raw, done in zip(CASES, raws, finished, strict=True):
        assert tile_shape(target, kind) == tile
        assert (done.shape, done.dtype) == (target, jnp.float32)
        expected = _slow(raw, target, kind)
        np.testing.assert_allclose(done, expected, 1e-5, 1e-7, err_msg=f"{kind} {target}")


def test_bucket():
    sizes = (1, 2, 3, 4, 6, 8, 9, 10, 12, 16, 18, 24, 31, 32, 48, 64, 100)
    expected = (1, 2, 4, 4, 8, 8, 12, 10, 16, 16, 24, 64, 31, 64, 64, 64, 64)
    assert tuple(channel_bucket(size, 64) for size in sizes) == expected
    assert all(channel_bucket(n, 64) >= min(n, 64) for n in range(1, 300))
    assert all(channel_bucket(n, 32) <= 32 for n in range(1, 300))


def test_bucket_equals_the_keys_of_the_reference(oracle):
    checked = 0
    for name, net in oracle.meta["arch"].items():
        shapes = oracle.parameters(name)
        for row in net["node_info"]:
            if row["key"] is None or row["last_weight"] or row["last_bias"]:
                continue
            if len(row["key"]) == 4:
                module = row["target"].rsplit(".", 1)[0]
                ((leaf, value),) = ((k, v) for k, v in shapes[module].items() if k != "bias")
                height, width, in_, out = tile_shape(value.shape, leaf)
                assert [out, in_, height, width] == row["key"]
                checked += 1
    assert checked > 80


def test_a_larger_tile_gives_the_same_parameter():
    raw = _raw((3, 3, 64, 64))
    for target in [(3, 3, 3, 16), (3, 3, 1, 40)]:
        small = raw[:, :, : target[2], : target[3]]
        np.testing.assert_array_equal(
            finish(raw, target, "kernel"), finish(small, target, "kernel")
        )


def test_betas():
    ones = {k: jnp.ones((*k, 64, 64)) for k in [(1, 1), (3, 3), (1, 7), (7, 1)]}

    def factor(target):
        kernel = target[:2] if len(target) == 4 else (1, 1)
        return float(finish(ones[kernel], target, "kernel").ravel()[0])

    assert factor((3, 3, 8, 16)) == pytest.approx((2 / 72) ** 0.5)
    assert factor((3, 3, 1, 16)) == pytest.approx((1 / 9) ** 0.5)  # depthwise
    assert factor((1, 7, 8, 16)) == pytest.approx((1 / 56) ** 0.5)  # first of a pair
    assert factor((7, 1, 8, 16)) == pytest.approx((2 / 56) ** 0.5)  # second of a pair
    assert factor((128, 384)) == pytest.approx((2 / 128) ** 0.5)  # queries, keys, values
    assert factor((1, 16)) == pytest.approx(2**0.5)  # a dense layer has no depthwise form
    head = finish(jnp.ones((64, 4)), (512, 4), "head_kernel")
    np.testing.assert_allclose(head, np.full((512, 4), (2 / 512) ** 0.5), rtol=1e-6)


def test_without_normalization_values_are_only_copied():
    for kind, target, tile in CASES:
        raw = _raw(tile)
        done = finish(raw, target, kind, normalize=False)
        assert done.shape == target
        assert np.isin(np.asarray(done), np.asarray(raw)).all()


def test_shifted_copies_are_the_tile_and_all_differ():
    tile = np.asarray(_raw((1, 3, 4, 6)))
    whole = shift(tile, 10, 15)
    assert whole.shape == (1, 3, 10, 15)
    blocks = set()
    for place in np.ndindex(10, 15):
        (i, o), (copy_i, copy_o) = np.mod(place, (4, 6)), np.floor_divide(place, (4, 6))
        expected = tile[:, :, (i - copy_o) % 4, (o - copy_i) % 6]
        np.testing.assert_array_equal(whole[:, :, *place], expected)
    for i, o in np.ndindex(2, 2):
        blocks.add(whole[:, :, 4 * i : 4 * i + 4, 6 * o : 6 * o + 6].tobytes())
    assert len(blocks) == 4
    np.testing.assert_array_equal(whole, shift(jnp.asarray(tile), 10, 15))
    np.testing.assert_array_equal(shift(tile, 3, 6), tile[:, :, :3])


def test_features_of_a_wide_layer_differ_where_copies_are_shifted():
    """64 channels to 256 and on to 64: the rank of what repeats is that of one tile."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 64))
    ranks = {}
    for tiling in ("repeat", "shift"):
        kernel = finish(rng.normal(size=(1, 1, 64, 64)), (64, 256), "kernel", tiling=tiling)
        ranks[tiling] = np.linalg.matrix_rank(np.maximum(x @ kernel, 0))
    assert ranks == {"repeat": 64, "shift": 256}


def test_gradient_in_float64():
    cases = [case for case in CASES if math.prod(case[1]) < 2500]
    with jax.enable_x64(True):
        raws = [_raw(tile).astype(jnp.float64) for _, _, tile in cases]

        def loss(raws):
            finished = _finish_all(raws, cases)
            assert {done.dtype for done in finished} == {jnp.dtype("float64")}
            return sum(jnp.sin(3 * done).sum() for done in finished)

        check_grads(jax.jit(loss), (raws,), order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


def test_wrong_shapes_are_errors():
    with pytest.raises(ValueError, match="no rule for a parameter of kind 'kernel'"):
        tile_shape((3, 8, 16), "kernel")
    with pytest.raises(ValueError, match="no rule"):
        tile_shape((8,), "gamma")
    with pytest.raises(ValueError, match="does not make a kernel"):
        finish(jnp.ones((3, 3, 64, 64)), (5, 5, 64, 64), "kernel")
    with pytest.raises(ValueError, match="a head of 4 classes, not 5"):
        finish(jnp.ones((64, 4)), (64, 5), "head_kernel")
