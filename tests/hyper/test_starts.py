"""Laws of the four starts on a tiny network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper import starts
from medinit_jax.hyper.hypernetwork import HyperInitializer, init_theta
from medinit_jax.hyper.initializer import graph_of, predict
from medinit_jax.models.network import Network, default_deviation, default_initializer

KEY = jax.random.key(3)
MODULE = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3), num_classes=4)


def tiny(classes=2):
    build = ProgramBuilder((8, 8, 3))
    b = BlockBuilder(1)
    y = b.conv(0, "conv", 8, 3, stride=2)
    b("relu", b("batch_norm", y, name="bn"))
    value = build(b.build(), (0,), "stem")
    b = BlockBuilder(1)
    b("dense", b("global_pool", 0), name="fc", features=classes, bias=True)
    build(b.build(), (value,), "head")
    return build.build()


@pytest.fixture(scope="module")
def theta():
    return init_theta(MODULE, jax.random.key(11))["params"]


@pytest.fixture(scope="module")
def own():
    images = jnp.zeros((1, 8, 8, 3))
    return Network(tiny()).init(KEY, images)["params"]


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_random_start_is_the_networks_own_init(own):
    same(starts.random_start(tiny(), KEY), own)


def test_hyper_start_predicts_all_but_the_head(theta, own):
    program = tiny()
    found = starts.hyper_start(MODULE, theta, program, KEY)
    same(found["head.fc"], own["head.fc"])
    graph = graph_of(MODULE, program)
    wanted = predict(MODULE, theta, graph, program.parameter_shapes(), include_head=False)
    same({name: leaves for name, leaves in found.items() if name != "head.fc"}, wanted)
    assert jax.tree.structure(found) == jax.tree.structure(own)


def test_head_is_predicted_when_asked_and_of_the_right_size(theta):
    found = starts.hyper_start(MODULE, theta, tiny(4), KEY, starts.Transfer(head=True))
    other = starts.hyper_start(MODULE, theta, tiny(4), jax.random.key(9), starts.Transfer(True))
    same(found, other)
    with pytest.raises(UsageError, match="classes"):
        starts.hyper_start(MODULE, theta, tiny(2), KEY, starts.Transfer(head=True))


def test_depth_fraction_takes_the_first_tensors(theta, own):
    program = tiny()
    none = starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(depth_fraction=0.0))
    same(none, own)
    whole = starts.hyper_start(MODULE, theta, program, KEY)
    # Kernel, scale and bias are predicted; a third of them is the kernel.
    part = starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(depth_fraction=1 / 3))
    same(part["stem.conv"], whole["stem.conv"])
    same(part["stem.bn"], own["stem.bn"])


def test_kinds_say_which_leaves_enter(theta, own):
    program = tiny()
    whole = starts.hyper_start(MODULE, theta, program, KEY)
    kernels = starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(kinds=("kernel",)))
    same(kernels["stem.conv"], whole["stem.conv"])
    same(kernels["stem.bn"], own["stem.bn"])
    with pytest.raises(UsageError, match="kinds names 'weight'"):
        starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(kinds=("weight",)))


def test_kernels_take_the_deviation_of_the_networks_own(theta):
    """That of He, fan-out: sqrt(2 / (3 * 3 * 8)); the direction of every kernel is kept."""
    program, scaled = tiny(), starts.Transfer(deviation="default")
    whole = starts.hyper_start(MODULE, theta, program, KEY)
    found = starts.hyper_start(MODULE, theta, program, KEY, scaled)
    before, after = (np.asarray(s["stem.conv"]["kernel"]) for s in (whole, found))
    assert after.std() == pytest.approx(1 / 6, rel=1e-5)
    np.testing.assert_allclose(after / after.std(), before / before.std(), rtol=1e-4)
    same(found["stem.bn"], whole["stem.bn"])
    with pytest.raises(UsageError, match="deviation names 'he'"):
        starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(deviation="he"))


@pytest.mark.parametrize(
    ("leaf", "shape"), [("kernel", (3, 3, 8, 64)), ("kernel", (200, 50)), ("embedding", (9, 500))]
)
def test_deviations_are_those_of_the_initializers(leaf, shape):
    drawn = default_initializer(leaf, shape)(KEY, shape)
    assert float(drawn.std()) == pytest.approx(default_deviation(leaf, shape), rel=0.05)
    assert default_deviation("scale", (8,)) == default_deviation("bias", (8,)) == 0


def test_matched_start_permutes_within_each_tensor(theta, own):
    program = tiny()
    hyper = starts.hyper_start(MODULE, theta, program, KEY)
    matched = starts.matched_start(MODULE, theta, program, KEY)
    for name in ("stem.conv", "stem.bn"):
        for leaf, value in hyper[name].items():
            a, b = np.ravel(value), np.ravel(matched[name][leaf])
            np.testing.assert_array_equal(np.sort(a), np.sort(b))
            assert (a != b).any()
    same(matched["head.fc"], own["head.fc"])
    same(matched, starts.matched_start(MODULE, theta, program, KEY))
    other = starts.matched_start(MODULE, theta, program, jax.random.key(4))
    assert (matched["stem.conv"]["kernel"] != other["stem.conv"]["kernel"]).any()


def test_matched_filters_are_orthogonal_where_predicted_ones_are(theta):
    program, transfer = tiny(), starts.Transfer(orthogonal=True)
    hyper = starts.hyper_start(MODULE, theta, program, KEY, transfer)["stem.conv"]["kernel"]
    found = starts.matched_start(MODULE, theta, program, KEY, transfer)["stem.conv"]["kernel"]
    for kernel in (hyper, found):
        flat = np.asarray(kernel, np.float64).reshape(-1, kernel.shape[-1])
        flat = flat / np.linalg.norm(flat, axis=0)
        np.testing.assert_allclose(flat.T @ flat, np.eye(flat.shape[1]), atol=1e-5)
    assert np.linalg.norm(found) == pytest.approx(float(np.linalg.norm(hyper)), rel=1e-5)
    assert np.abs(np.asarray(found - hyper)).max() > 0.1 * float(np.asarray(hyper).std())


def test_untrained_parameters_are_those_of_the_runs_first_step(theta):
    found = starts.untrained_theta(MODULE, 11)
    jax.tree.map(np.testing.assert_array_equal, found, theta)


def test_init_noise_is_relative_to_each_tensor(theta):
    program = tiny()
    plain = starts.hyper_start(MODULE, theta, program, KEY)["stem.conv"]["kernel"]
    noisy = starts.hyper_start(MODULE, theta, program, KEY, starts.Transfer(init_noise=0.1))
    difference = np.asarray(noisy["stem.conv"]["kernel"] - plain)
    assert difference.std() == pytest.approx(0.1 * float(plain.std()), rel=0.2)


@pytest.mark.parametrize("transfer", [starts.Transfer(False, 1.5), starts.Transfer(False, 1, -1)])
def test_options_out_of_range_are_named(theta, transfer):
    with pytest.raises(UsageError, match="depth_fraction|init_noise"):
        starts.hyper_start(MODULE, theta, tiny(), KEY, transfer)
