"""The contrastive loss: against the reference code, a plain formula, laws and other devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import AXIS, Parallel
from medinit_jax.losses.supcon import collapse, contrastive_figures, gathered_supcon, supcon

SCHEMES = ("position", "abnormality", "patient", "position-abnormality", "position-patient")
SCHEMES += ("abnormality-patient", "all")
CASES = ("simclr", *[f"scheme_{name}" for name in SCHEMES], "allsame", "unnormalised", "base007")
CASES += ("oneview_partial", "oneview_nopos", "threeviews", "mode_one")
MATCHES = ("all", "any", "jaccard")


def batch(images=8, views=2, columns=3, seed=0, dtype=np.float32, length=6):
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(images, views, length))
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    return jnp.asarray(z, dtype), jnp.asarray(rng.integers(0, 3, (images, columns)), jnp.int32)


def plain(
    z,
    labels=None,
    temperature=0.1,
    base=None,
    match="all",
    reduction="mean",
    drop_empty=False,
    contrast="all",
):
    """The formula with whole matrices, for autodiff."""
    images, views, _ = z.shape
    columns = np.arange(images)[:, None] if labels is None else np.asarray(labels)
    columns = np.tile(columns, (views, 1))
    equal = (columns[:, None] == columns[None]).mean(-1)
    weight = {"all": equal == 1, "any": equal > 0, "jaccard": equal / (2 - equal)}[match]
    other = ~np.eye(len(columns), dtype=bool)
    weight = np.asarray(weight, float) * other
    flat = jnp.concatenate([z[:, v] for v in range(views)])
    logits = flat @ flat.T / temperature
    log = logits - jax.nn.logsumexp(logits, axis=1, where=other, keepdims=True)
    filled = weight.sum(1) > 0
    share = weight / np.where(filled, weight.sum(1), 1)[:, None]
    rows = -(jnp.asarray(share, z.dtype) * log).sum(1)
    anchors = images if contrast == "one" else images * views
    rows, filled = rows[:anchors], filled[:anchors]
    factor = temperature / (base or temperature)
    if reduction == "sum":
        return factor * rows.sum()
    return factor * rows.sum() / float(max(filled.sum(), 1) if drop_empty else anchors)


def pull(loss, *args, **options):
    return jax.jit(jax.value_and_grad(functools.partial(loss, **options)))(*args)


def agree(found, wanted, rtol):
    """Values relative to themselves, gradients relative to their largest entry."""
    np.testing.assert_allclose(found[0], wanted[0], rtol)
    np.testing.assert_allclose(found[1], wanted[1], 0, rtol * float(jnp.abs(wanted[1]).max()))


@pytest.mark.parametrize("chunk", (512, 5), ids=("whole", "chunks"))
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_references(case, chunk):
    held = {name: swcl().get(f"sc_{case}_{name}") for name in ("feat", "labels", "tau", "base")}
    labels = None if held["labels"] is None else held["labels"].astype(np.int32)
    value, gradient = pull(
        supcon,
        held["feat"],
        labels,
        temperature=float(held["tau"]),
        base_temperature=float(held["base"]),
        contrast="one" if case == "mode_one" else "all",
        chunk=chunk,
    )
    np.testing.assert_allclose(value, swcl()[f"sc_{case}_loss_head"], 1e-5)
    np.testing.assert_allclose(gradient, swcl()[f"sc_{case}_grad_head"], 1e-5, 1e-6)
    # The pinned revision divides by the number of positives, 0 for some anchors of single views.
    pinned = swcl()[f"sc_{case}_loss_pinned"]
    assert np.isnan(pinned) if case.startswith("oneview") else np.isclose(value, pinned, 1e-5)


def test_several_columns_are_the_references_mask():
    held = swcl()
    z, labels = held["sc_multi_feat"], held["sc_multi_labels3"].astype(np.int32)
    value, gradient = pull(supcon, z, labels)
    np.testing.assert_allclose(value, held["sc_multi_loss"], 1e-5)
    np.testing.assert_allclose(gradient, held["sc_multi_grad"], 1e-5, 1e-6)
    total = supcon(z, labels, reduction="sum")
    np.testing.assert_allclose(total, held["sc_multi_loss_papersum"], 1e-5)


def test_two_processes_of_the_reference():
    held = swcl()
    z, labels = held["gather_feat"], held["gather_labels"].astype(np.int32)
    loss = Parallel(jax.devices()[:2]).sharded(gathered_supcon)
    value, gradient = pull(loss, z.reshape(12, 2, 8), labels.reshape(12))
    np.testing.assert_allclose(value, held["gather_loss"], 1e-5)
    np.testing.assert_allclose(gradient.reshape(z.shape), held["gather_localgrads"], 1e-5, 1e-6)
    np.testing.assert_allclose(value, held["gather_single_loss"], 1e-5)
    np.testing.assert_allclose(gradient.reshape(z.shape), held["gather_single_grad"], 1e-5, 1e-6)


@pytest.mark.parametrize("views, columns", ((1, 3), (2, 1), (3, 2)))
@pytest.mark.parametrize("match", MATCHES)
def test_plain_formula(match, columns, views):
    with jax.enable_x64(True):
        z, labels = batch(7, views, columns, seed=views, dtype=np.float64)
        options = {"match": match, "temperature": 0.3}
        for more in ({}, {"reduction": "sum", "contrast": "one"}, {"drop_empty": True}):
            found = pull(supcon, z, labels, chunk=4, **options, **more)
            assert found[0].dtype == found[1].dtype == np.float64
            agree(found, pull(plain, z, **options, **more, labels=labels), 1e-10)


def test_jaccard_by_hand():
    """One view each; two of three columns equal weigh 1/2, one weighs 1/5, none nothing."""
    labels = jnp.array([[0, 0, 0], [0, 0, 1], [0, 2, 2], [3, 3, 3]], jnp.int32)
    z = jnp.array([[1.0, 0], [0, 1], [0.6, 0.8], [-1, 0]])[:, None]
    found = supcon(z, labels, match="jaccard", temperature=1.0, reduction="sum")
    logits = {(0, 1): 0.0, (0, 2): 0.6, (0, 3): -1.0, (1, 2): 0.8, (1, 3): 0.0, (2, 3): -0.6}
    wanted = 0.0
    for i, pairs in enumerate(({1: 0.5, 2: 0.2}, {0: 0.5, 2: 0.2}, {0: 0.2, 1: 0.2})):
        row = {j: logits[min(i, j), max(i, j)] for j in range(4) if j != i}
        norm = np.log(np.exp(list(row.values())).sum())
        wanted += sum(w * (norm - row[j]) for j, w in pairs.items()) / sum(pairs.values())
    np.testing.assert_allclose(found, wanted, 1e-6)


def test_anchors_without_positives_add_nothing_and_may_leave_the_mean():
    z, _ = batch(5, 1)
    labels = jnp.array([0, 0, 1, 2, 3], jnp.int32)
    total = supcon(z, labels, reduction="sum")
    np.testing.assert_allclose(supcon(z, labels), total / 5, 1e-6)
    np.testing.assert_allclose(supcon(z, labels, drop_empty=True), total / 2, 1e-6)
    for rows in (z, z[:1]):
        alone = pull(supcon, rows, jnp.arange(len(rows)), drop_empty=True)
        assert float(alone[0]) == 0 and not np.any(alone[1])


@pytest.mark.parametrize("match", MATCHES)
def test_order_of_images_and_of_views_does_not_matter(match):
    z, labels = batch(views=3)
    order = np.random.default_rng(1).permutation(len(z))
    value, gradient = pull(supcon, z, labels, match=match)
    moved = pull(supcon, z[order][:, ::-1], labels[order], match=match)
    agree(moved, (value, gradient[order][:, ::-1]), 1e-6)


def test_only_equality_of_labels_matters():
    z, labels = batch()
    large = jnp.array([2**31 - 1, -(2**31), 77], jnp.int32)[labels]
    assert float(supcon(z, large)) == pytest.approx(float(supcon(z, labels)), rel=1e-6)


def test_without_labels_an_images_views_are_its_positives():
    z, _ = batch()
    agree(pull(supcon, z), pull(supcon, z, jnp.arange(8)), 1e-7)
    assert float(supcon(z)) != pytest.approx(float(supcon(z, jnp.zeros(8, jnp.int32))))


@pytest.mark.parametrize("chunk", (1, 7, 16, 100))
def test_chunks_change_rounding_only(chunk):
    z, labels = batch()
    agree(pull(supcon, z, labels, chunk=chunk), pull(supcon, z, labels), 1e-6)


def test_chunks_never_hold_the_whole_matrix():
    z, labels = batch(256)
    compiled = {}
    for chunk in (32, 512):
        loss = functools.partial(supcon, chunk=chunk)
        compiled[chunk] = jax.jit(jax.value_and_grad(loss)).lower(z, labels).compile()
    whole = re.compile(r"\[512,512\]")
    assert whole.search(compiled[512].as_text()) and not whole.search(compiled[32].as_text())
    few, all_ = (compiled[c].memory_analysis().temp_size_in_bytes for c in (32, 512))
    assert few < all_ / 4


def test_temperatures_scale():
    z, labels = batch()
    np.testing.assert_allclose(
        supcon(z, labels, base_temperature=0.07), supcon(z, labels) * 0.1 / 0.07, 1e-6
    )

    def learned(loss):
        return jax.grad(lambda t: loss(z, labels, temperature=t))(0.2)

    np.testing.assert_allclose(learned(supcon), learned(plain), 1e-4)


def test_normalize_scales_to_the_unit_sphere():
    z, labels = batch()
    lengths = jnp.linspace(0.1, 50, 16).reshape(8, 2, 1)
    np.testing.assert_allclose(supcon(z * lengths, labels, normalize=True), supcon(z, labels), 1e-5)
    _, gradient = pull(supcon, jnp.zeros_like(z), labels, normalize=True)
    assert np.isfinite(gradient).all()


def test_long_vectors_do_not_overflow():
    """The anchor's own logit is 1e5 above the others; subtracting it would leave log 0."""
    z, labels = batch()
    value, gradient = pull(supcon, 100 * z, labels)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    with jax.enable_x64(True):
        wanted = plain(jnp.asarray(100 * z, np.float64), labels)
    np.testing.assert_allclose(value, wanted, 1e-5)


def test_narrow_floats_are_scored_in_32_bits():
    z, labels = batch()
    narrow = z.astype(jnp.bfloat16)
    value, gradient = pull(supcon, narrow, labels)
    wanted, slope = pull(supcon, narrow.astype(jnp.float32), labels)
    assert value.dtype == jnp.float32 and gradient.dtype == jnp.bfloat16
    assert float(value) == float(wanted)
    np.testing.assert_array_equal(gradient, slope.astype(jnp.bfloat16))


@pytest.mark.parametrize("chunk", (512, 3))
def test_gradient_of_the_gradient(chunk):
    with jax.enable_x64(True):
        z, labels = batch(4, dtype=np.float64)

        def steepness(loss):
            return jax.jit(jax.grad(lambda z: (jax.grad(loss)(z, labels) ** 2).sum()))(z)

        ours = steepness(functools.partial(supcon, chunk=chunk))
        np.testing.assert_allclose(ours, steepness(plain), 1e-8, 1e-10)


DEVICES = pytest.mark.parametrize("devices", (1, 2, 4))
VARIANTS = pytest.mark.parametrize(
    "options",
    ({}, {"match": "jaccard", "chunk": 3}, {"contrast": "one", "drop_empty": True}),
    ids=("plain", "jaccard", "one"),
)


@DEVICES
@VARIANTS
@pytest.mark.parametrize("dtype, rtol", ((np.float32, 1e-6), (np.float64, 1e-8)))
def test_devices_share_the_work_of_one(devices, options, dtype, rtol):
    loss = Parallel(jax.devices()[:devices]).sharded(functools.partial(gathered_supcon, **options))
    with jax.enable_x64(dtype == np.float64):
        z, labels = batch(dtype=dtype, columns=2)
        agree(pull(loss, z, labels), pull(supcon, z, labels, **options), rtol)
        agree(pull(loss, z, None), pull(supcon, z, **options), rtol)


@DEVICES
def test_anchors_without_positives_are_counted_over_all_devices(devices):
    z, _ = batch(8, 1)
    labels = jnp.array([0, 1, 2, 3, 0, 4, 5, 5], jnp.int32)
    loss = functools.partial(gathered_supcon, drop_empty=True)
    sharded = Parallel(jax.devices()[:devices]).sharded(loss)
    agree(pull(sharded, z, labels), pull(supcon, z, labels, drop_empty=True), 1e-6)


@DEVICES
def test_a_device_may_ask_for_its_own_gradient(devices):
    mesh, spec = Parallel(jax.devices()[:devices]).mesh, PartitionSpec(AXIS)
    local = jax.shard_map(
        jax.value_and_grad(gathered_supcon),
        mesh=mesh,
        in_specs=spec,
        out_specs=(PartitionSpec(), spec),
    )
    z, labels = batch()
    agree(jax.jit(local)(z, labels), pull(supcon, z, labels), 1e-6)


def test_a_point_for_everything_is_recognized():
    z = jnp.broadcast_to(jnp.array([0.6, 0.8]), (5, 2, 2))
    loss = supcon(z)
    np.testing.assert_allclose(loss, np.log(9), 1e-6)
    np.testing.assert_allclose(collapse(loss, 10), 0, 0, 1e-5)
    np.testing.assert_allclose(collapse(jnp.float32(1.0), 3), 1 - np.log(2), 1e-6)


def test_figures_by_hand():
    """Two images on a circle: views of the first a right angle apart, of the second together."""
    z = 3 * jnp.array([[[1.0, 0], [0, 1]], [[-1, 0], [-1, 0]]])
    figures = jax.jit(contrastive_figures)(z)
    # Squared distances: 2, 0 for positives; 4, 4, 2, 2 for the other pairs.
    np.testing.assert_allclose(figures["alignment"], 1, 1e-6)
    pairs = np.array([2, 0, 4, 4, 2, 2])
    np.testing.assert_allclose(figures["uniformity"], np.log(np.exp(-2 * pairs).mean()), 1e-6)
    assert float(figures["positives"]) == 1
    assert float(contrastive_figures(z, jnp.zeros(2, jnp.int32))["positives"]) == 3
    columns = jnp.array([[0, 1], [0, 2]], jnp.int32)
    assert float(contrastive_figures(z, columns, "any")["positives"]) == 3
    weighted = contrastive_figures(z, columns, "jaccard")
    np.testing.assert_allclose(weighted["positives"], 1 + 2 / 3, 1e-6)
    np.testing.assert_allclose(weighted["alignment"], (2 + 12 / 3) / (2 + 4 / 3), 1e-6)


@pytest.mark.parametrize(
    "options, words",
    (
        ({"match": "most"}, "no match='most'; choose from all, any, jaccard"),
        ({"reduction": "none"}, "choose from mean, sum"),
        ({"contrast": "two"}, "choose from all, one"),
        ({"chunk": 0}, "give at least 1"),
        ({"labels": jnp.zeros(3, jnp.int32)}, r"labels of shape \(3,\); it needs \(images, views"),
    ),
)
def test_errors_say_what_to_do(options, words):
    with pytest.raises(UsageError, match=words):
        supcon(batch()[0], **options)
    with pytest.raises(UsageError, match="z of shape"):
        supcon(jnp.zeros((4, 2)))
