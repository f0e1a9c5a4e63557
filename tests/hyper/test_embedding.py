import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.embedding import (
    NodeEmbedding,
    channel_rows,
    shape_indices,
    shape_tables,
    spatial_rows,
)
from medinit_jax.hyper.initializer import HyperInitializer

TABLES = shape_tables(10, (64, 64, 11, 11))


def test_tables_and_lookups_equal_the_reference(oracle):
    np.testing.assert_array_equal(TABLES.channels, oracle["shape_enc/channels"])
    np.testing.assert_array_equal(TABLES.spatial, oracle["shape_enc/spatial"])
    sizes, rows = oracle["shape_enc/channels_lookup"].T
    np.testing.assert_array_equal(channel_rows(TABLES)[sizes], rows)
    sizes, rows = oracle["shape_enc/spatial_lookup"].T
    np.testing.assert_array_equal(spatial_rows(TABLES)[sizes], rows)


def test_ties_special_sizes_and_limits():
    def channel(size, classes=10):
        tables = shape_tables(classes, (64, 64, 11, 11))
        return tables.channels[channel_rows(tables)[size]]

    def kernel(size):
        return TABLES.spatial[spatial_rows(TABLES)[size]]

    assert [channel(size) for size in (2, 4, 7, 9, 12, 20, 28)] == [1, 8, 8, 8, 10, 16, 24]
    assert [kernel(size) for size in (2, 4, 12, 13, 15)] == [3, 3, 11, 14, 14]
    # The pretext's own number of classes is known exactly, whatever the rule for 4 to 7 says.
    assert [channel(size, classes=4) for size in (4, 5)] == [4, 8]
    assert len(shape_tables(4, (64, 64, 11, 11)).channels) == 391
    assert shape_tables(10, (64, 64, 16, 16)).spatial == (1, 3, 5, 7, 9, 11, 13, 14, 15, 16)
    shape = jnp.array([[0, 10**6, 0, 100], [8192, 1, 16, 1]])
    expected = [[391, 390, 8, 7], [390, 0, 7, 0]]
    np.testing.assert_array_equal(shape_indices(shape, TABLES), expected)


@pytest.mark.parametrize("place", ["arch/darts", "arch/vgg", "arch/vit", "arch/cse", "synth"])
def test_features_equal_the_reference(oracle, place):
    graph = oracle.graph(place)
    rows = shape_indices(jnp.asarray(graph.shape), TABLES)
    np.testing.assert_array_equal(rows, oracle[f"{place}/shape_ind"])
    module = NodeEmbedding(32, 15, TABLES)
    variables = {"params": oracle.theta["params"]["embedding"]}
    x = jax.jit(module.apply)(variables, graph.node_type, graph.shape)
    np.testing.assert_allclose(x, oracle[f"{place}/x0"], rtol=0, atol=1e-6)


def test_without_shape_encoding_only_the_type_counts():
    module = NodeEmbedding(6, 3, TABLES, shape_encoding=False)
    shape = jnp.ones((2, 4), jnp.int32)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.array([0, 1]), shape)
    assert set(variables["params"]) == {"type"}
    x = module.apply(variables, jnp.array([2, 0]), shape * 7)
    np.testing.assert_array_equal(x, variables["params"]["type"][jnp.array([2, 0])])


def test_gradient_reaches_each_used_row_once_per_use():
    module = NodeEmbedding(8, 3, TABLES)
    node_type, shape = jnp.array([1, 1]), jnp.array([[3, 3, 1, 0], [16, 3, 1, 1]])
    variables = jax.jit(module.init)(jax.random.key(0), node_type, shape)
    total = jax.jit(jax.grad(lambda v: module.apply(v, node_type, shape).sum()))(variables)
    uses = jax.tree.map(lambda leaf: leaf[:, 0], total["params"])
    np.testing.assert_array_equal(uses["type"], [0, 2, 0])
    assert {int(i): float(uses["channels"][i]) for i in np.flatnonzero(uses["channels"])} == {
        TABLES.channels.index(3): 3.0,
        TABLES.channels.index(16): 1.0,
    }
    assert (float(uses["spatial"][0]), float(uses["spatial"][8])) == (3.0, 1.0)


@pytest.mark.parametrize("deviation", [None, 0.125])
def test_initial_spread(deviation):
    module, one = NodeEmbedding(64, 15, TABLES, deviation=deviation), jnp.ones((1, 4), jnp.int32)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros(1, jnp.int32), one)
    spread = float(variables["params"]["channels"].std())
    assert spread == pytest.approx(deviation or 1, rel=0.03)


def test_width_must_be_divisible_by_four():
    with pytest.raises(UsageError, match="divisible by 4"):
        module = NodeEmbedding(30, 15, TABLES)
        jax.jit(module.init)(
            jax.random.key(0), jnp.zeros(1, jnp.int32), jnp.ones((1, 4), jnp.int32)
        )


def test_tables_can_be_given_to_the_initializer():
    module = HyperInitializer(num_classes=10)
    assert module.known_sizes == TABLES
    assert HyperInitializer(num_classes=4, tables=TABLES).known_sizes == TABLES
