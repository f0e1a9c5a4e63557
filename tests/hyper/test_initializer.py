import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.embedding import ShapeTables
from medinit_jax.hyper.initializer import (
    HyperInitializer,
    from_config,
    hide_head,
    init_theta,
    parameter_slots,
    predict,
)

NETS = ("darts", "vgg", "vit", "cse")


def _shapes(tree):
    return {name: {leaf: v.shape for leaf, v in leaves.items()} for name, leaves in tree.items()}


@pytest.fixture(scope="module")
def small():
    """A small hypernetwork of 10 classes and its variables."""
    module = HyperInitializer(hidden=8, max_shape=(8, 8, 3, 3), num_classes=10)
    return module, init_theta(module, jax.random.key(0))


@pytest.mark.parametrize("name", NETS)
def test_every_tensor_equals_the_reference(oracle, name):
    expected = oracle.parameters(name)
    graph = oracle.graph(f"arch/{name}")
    predicted = predict(oracle.module, oracle.theta, graph, _shapes(expected))
    assert _shapes(predicted) == _shapes(expected)
    for module, leaves in expected.items():
        for leaf, value in leaves.items():
            done = np.asarray(predicted[module][leaf])
            assert done.dtype == np.float32
            error = np.linalg.norm(done - value) / np.linalg.norm(value)
            assert error < 1e-4, (module, leaf)
            np.testing.assert_allclose(done, value, rtol=1e-4, atol=1e-4 * np.abs(value).max())


def test_number_of_parameters(oracle):
    theta = init_theta(HyperInitializer(num_classes=10), jax.random.key(0))
    shape = lambda tree: jax.tree.map(np.shape, tree)  # noqa: E731
    assert shape(theta) == shape(oracle.theta)
    assert sum(leaf.size for leaf in jax.tree.leaves(theta)) == 1_620_764
    assert {leaf.dtype for leaf in jax.tree.leaves(theta)} == {jnp.dtype("float32")}


def test_initial_values_are_spread_as_in_the_reference(oracle):
    """The reference was drawn from PyTorch's defaults: the same bounds layer by layer."""
    theta = init_theta(oracle.module, jax.random.key(0))
    spread = lambda tree: jax.tree.map(lambda leaf: float(np.std(leaf)), tree)  # noqa: E731
    size = jax.tree.map(np.size, oracle.theta)
    pairs = jax.tree.map(lambda *all: all, spread(theta), spread(oracle.theta), size)
    compared = 0
    for own, reference, count in jax.tree.leaves(pairs, is_leaf=lambda x: isinstance(x, tuple)):
        if count >= 400:
            assert own == pytest.approx(reference, rel=0.1)
            compared += 1
    assert compared > 10


def test_without_the_head(oracle):
    expected = oracle.parameters("cse")
    graph = oracle.graph("arch/cse")
    shapes = _shapes(expected)
    # The head of another task: not predicted, and shown to the network as its own.
    other = graph._replace(
        shape=np.where(graph.head[:, None] & (graph.shape == 10), 7, graph.shape)
    )
    shapes["classifier.0"] = {"kernel": (48, 7), "bias": (7,)}
    with pytest.raises(UsageError, match="7 classes.*made for 10"):
        predict(oracle.module, oracle.theta, other, shapes)
    predicted = predict(oracle.module, oracle.theta, other, shapes, include_head=False)
    assert set(predicted) == set(expected) - {"classifier.0"}
    for module, leaves in predicted.items():
        for leaf, value in leaves.items():
            np.testing.assert_allclose(value, expected[module][leaf], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(hide_head(oracle.module, other).shape, graph.shape)

    blind = oracle.module.clone(encode_own_classes=False)
    changed = predict(blind, oracle.theta, other, shapes, include_head=False)
    name = "stem.0"
    assert float(jnp.abs(changed[name]["kernel"] - predicted[name]["kernel"]).max()) > 1e-4


def test_a_part_of_a_network(oracle, small):
    module, theta = small
    graph, shapes = oracle.graph("arch/vit"), _shapes(oracle.parameters("vit"))
    whole = predict(module, theta, graph, shapes)
    assert list(whole) == list(shapes)
    part = {name: shapes[name] for name in ("pos_enc", "stem0", "cells.0._ops.1.ln1")}
    predicted = predict(module, theta, graph, part)
    assert _shapes(predicted) == part
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        predicted,
        {name: whole[name] for name in part},
    )
    with pytest.raises(UsageError, match="no node of the graph holds the parameter gate/kernel"):
        predict(module, theta, graph, {"gate": {"kernel": (3, 3)}})


def test_slots(oracle, small):
    graph, shapes = oracle.graph("arch/vgg"), _shapes(oracle.parameters("vgg"))
    slots = {(s.module, s.leaf): s for s in parameter_slots(small[0], graph, shapes)}
    kernel = slots["classifier.3", "kernel"]
    assert (kernel.node, kernel.kind, kernel.tile) == (31, "head_kernel", (8, 10))
    assert slots["classifier.3", "bias"].kind == "head_bias"
    assert slots["classifier.0", "bias"][2:] == (30, "bias", (64,), (8,))
    assert slots["stem.0", "kernel"].tile == (3, 3, 8, 8)
    assert len(parameter_slots(small[0], graph, shapes, include_head=False)) == len(slots) - 2


def test_a_shared_module_is_predicted_from_its_first_node(oracle, small):
    module, theta = small
    graph, shapes = oracle.graph("arch/vit"), _shapes(oracle.parameters("vit"))
    shared = list(graph.parameters)
    shared[12] = shared[10]
    twice = graph._replace(parameters=tuple(shared))
    name, leaf = shared[10]
    part = {name: {leaf: shapes[name][leaf]}}
    once = predict(module, theta, graph, part)
    np.testing.assert_array_equal(predict(module, theta, twice, part)[name][leaf], once[name][leaf])


def test_gradient_through_prediction_in_float64(oracle, small):
    module, theta = small
    graph, shapes = oracle.graph("arch/vit"), _shapes(oracle.parameters("vit"))
    with jax.enable_x64(True):
        theta = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), theta)

        def loss(theta):
            predicted = predict(module, theta, graph, shapes)
            leaves = jax.tree.leaves(predicted)
            assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float64")}
            return sum((jnp.sin(3 * leaf)).sum() for leaf in leaves)

        loss = jax.jit(loss)
        gradient = jax.jit(jax.grad(loss))(theta)
        keys = jax.random.split(jax.random.key(1), len(jax.tree.leaves(theta)))
        leaves, tree = jax.tree.flatten(theta)
        way = jax.tree.unflatten(
            tree,
            [jax.random.normal(k, v.shape, v.dtype) for k, v in zip(keys, leaves, strict=True)],
        )
        step = 1e-6
        ahead, behind = (
            loss(jax.tree.map(lambda a, b, s=sign: a + s * step * b, theta, way))
            for sign in (1, -1)
        )
        slope = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), gradient, way)))
        assert float((ahead - behind) / (2 * step)) == pytest.approx(float(slope), rel=1e-5)
        silent = [
            jax.tree_util.keystr(path)
            for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
            if float(jnp.abs(leaf).max()) == 0
        ]
        assert silent == []


def test_theta_may_come_without_its_collection(oracle, small):
    module, theta = small
    graph, shapes = oracle.graph("arch/vit"), {"stem0": {"kernel": (3, 3, 3, 64)}}
    a = predict(module, theta, graph, shapes)
    b = predict(module, theta["params"], graph, shapes)
    np.testing.assert_array_equal(a["stem0"]["kernel"], b["stem0"]["kernel"])


def test_an_unknown_node_type_is_a_sentence(oracle, small):
    graph = oracle.graph("arch/vit")
    graph = graph._replace(node_type=graph.node_type + 10)
    with pytest.raises(UsageError, match="nodes of type .*first 15 types.*does not know"):
        predict(*small, graph, {})


def test_from_config():
    options = {
        "hidden": 16,
        "max_shape": [8, 8, 5, 5],
        "tables": [[1, 3, 8], [1, 3]],
        "mode": "sync",
    }
    module = from_config(options)
    assert module == HyperInitializer(
        hidden=16, max_shape=(8, 8, 5, 5), tables=ShapeTables((1, 3, 8), (1, 3)), mode="sync"
    )
    assert hash(module) == hash(from_config(options))
    with pytest.raises(UsageError, match="no key 'hiden'"):
        from_config({"hiden": 3})
    for key in ("init_scheme", "crop", "mode", "direction"):
        with pytest.raises(UsageError, match="must be"):
            init_theta(from_config({**options, key: "best"}), jax.random.key(0))


@pytest.mark.parametrize("options", [{"mode": "sync", "layers": 2}, {"layer_norm": False}], ids=str)
def test_other_options_predict_finite_values(oracle, options):
    module = HyperInitializer(
        hidden=8, max_shape=(8, 8, 3, 3), num_classes=10, init_scheme="ghn3", crop="center",
        decoder_scale=0.2, normalize=False, shape_encoding=False, **options,
    )  # fmt: skip
    theta = init_theta(module, jax.random.key(0))
    assert ("norm" in theta["params"]) == module.layer_norm
    shapes = _shapes(oracle.parameters("cse"))
    predicted = predict(module, theta, oracle.graph("arch/cse"), shapes)
    assert _shapes(predicted) == shapes
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(predicted))
