import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from medinit_jax.arch.batching import to_jraph
from medinit_jax.arch.graph import ArchGraph
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.gated_gnn import GatedGNN
from medinit_jax.hyper.initializer import HyperInitializer

PLACES = ["arch/darts", "arch/vgg", "arch/vit", "arch/cse", "synth"]
# Every combination of options that changes which messages flow.
OPTIONS = [
    {"mode": "sequential"},
    {"mode": "sequential", "rounds": 2, "max_distance": 3},
    {"mode": "sequential", "virtual_edges": False},
    {"mode": "sequential", "include_1hop": False, "activation": "gelu"},
    {"mode": "sync", "layers": 3},
    {"mode": "sync", "layers": 2, "include_1hop": True, "max_distance": 2},
    {"mode": "sync", "layers": 2, "virtual_edges": False, "activation": "none"},
    {"mode": "sync", "layers": 3, "direction": "alternating"},
    {"mode": "sync", "layers": 2, "direction": "both"},
]


def _features(seed, nodes, width=8):
    return jax.random.normal(jax.random.key(seed), (nodes, width))


def _setup(graph, options, width=8, nodes=None):
    """Returns (jitted apply, variables, features, batch)."""
    module = GatedGNN(width, **options)
    batch = to_jraph([graph], nodes or len(graph.node_type), 200)
    x = _features(0, batch.nodes["mask"].shape[0], width)
    variables = jax.jit(module.init)(jax.random.key(1), x, batch)
    return jax.jit(module.apply), variables, x, batch


def _relabel(graph, order):
    """Renames nodes so that node `order[i]` becomes node i."""
    place = np.argsort(order).astype(np.int32)
    return graph._replace(
        node_type=graph.node_type[order],
        shape=graph.shape[order],
        senders=place[graph.senders],
        receivers=place[graph.receivers],
    )


# The slow obvious form, in float64 NumPy, one node at a time.


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


ACTIVATE = {
    "relu": lambda x: np.maximum(x, 0),
    "none": lambda x: x,
    "gelu": lambda x: 0.5 * x * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


def _message(mlp, g, activation):
    hidden = np.maximum(g @ mlp["in"]["kernel"] + mlp["in"]["bias"], 0)
    return ACTIVATE[activation](hidden @ mlp["out"]["kernel"] + mlp["out"]["bias"])


def _gru(unit, message, hidden):
    from_message = np.split(message @ unit["message"]["kernel"] + unit["message"]["bias"], 3)
    from_hidden = np.split(hidden @ unit["hidden"]["kernel"] + unit["hidden"]["bias"], 3)
    r = _sigmoid(from_message[0] + from_hidden[0])
    z = _sigmoid(from_message[1] + from_hidden[1])
    n = np.tanh(from_message[2] + r * from_hidden[2])
    return (1 - z) * n + z * hidden


def _incoming(params, g, v, distance, virtual, activation, limit, shortest):
    """m_v of Eq. 2: messages of neighbors, and of nodes further away divided by their distance."""
    m = np.zeros(g.shape[1])
    for u in range(len(g)):
        if distance[u, v] == 1:
            m += _message(params["mlp"], g[u], activation)
        if virtual and shortest <= distance[u, v] <= limit:
            m += _message(params["mlp_virtual"], g[u], activation) / distance[u, v]
    return m


def _loop(params, x, graph, options):
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    distance = np.zeros((len(x), len(x)), int)
    distance[graph.senders, graph.receivers] = graph.distance
    sequential = options["mode"] == "sequential"
    activation = options.get("activation", "relu")
    limit = options.get("max_distance", 50)
    shortest = 1 if options.get("include_1hop", sequential) else 2
    given = (options.get("virtual_edges", True), activation, limit, shortest)
    g = np.asarray(x, np.float64)
    if sequential:
        for _ in range(options.get("rounds", 1)):
            for lengths, order in ((distance, range(len(g))), (distance.T, range(len(g))[::-1])):
                for v in order:
                    m = _incoming(params, g, v, lengths, *given)
                    g[v] = _gru(params["gru"], m, g[v])
        return g
    direction = options.get("direction", "incoming")
    for layer in range(options["layers"]):
        forward = direction != "alternating" or layer % 2 == 0
        ways = (
            [distance, distance.T] if direction == "both" else [distance if forward else distance.T]
        )
        g = np.stack(
            [
                _gru(params["gru"], sum(_incoming(params, g, v, d, *given) for d in ways), g[v])
                for v in range(len(g))
            ]
        )
    return g


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_a_loop_over_nodes_written_from_the_equation(random_graph, options):
    graph = random_graph(15, seed=1)
    apply, variables, x, batch = _setup(graph, options)
    assert graph.distance.max() > 3
    expected = _loop(variables["params"], x, graph, options)
    np.testing.assert_allclose(apply(variables, x, batch), expected, rtol=0, atol=2e-6)


@functools.partial(jax.jit, static_argnums=0)
def _stages(module, theta, batch):
    """Features before and after LayerNorm."""
    plain = module.clone(layer_norm=False)
    before = plain.apply(theta, batch, method=HyperInitializer.features)
    return before, module.apply(theta, batch, method=HyperInitializer.features)


@pytest.mark.parametrize("place", PLACES)
def test_sequential_equals_the_reference(oracle, place):
    graph = oracle.graph(place)
    nodes = len(graph.node_type)
    before, after = _stages(oracle.module, oracle.theta, to_jraph([graph], 96, 3000))
    np.testing.assert_allclose(before[:nodes], oracle[f"{place}/x_gnn"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(after[:nodes], oracle[f"{place}/x_ln"], rtol=0, atol=1e-5)


def test_batch_equals_the_reference_per_graph(oracle):
    graphs = [oracle.graph(place) for place in PLACES]
    batch = to_jraph(graphs)
    blocks = _stages(oracle.module, oracle.theta, batch)[1].reshape(len(graphs), -1, 32)
    for place, graph, block in zip(PLACES, graphs, blocks, strict=True):
        expected = oracle[f"{place}/x_ln"]
        np.testing.assert_allclose(block[: len(graph.node_type)], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[4], OPTIONS[8]], ids=str)
def test_batch_and_padding_change_nothing(random_graph, options):
    graphs = [random_graph(nodes, seed) for seed, nodes in enumerate((9, 20, 14))]
    apply, variables, _, _ = _setup(graphs[0], options)
    bucket = 24
    batch = to_jraph(graphs, bucket, edges=1000)
    x = _features(5, 3 * bucket)
    # Padding rows may hold anything.
    x = jnp.where(jnp.asarray(batch.nodes["mask"])[:, None], x, 1e3 * x)
    together = apply(variables, x, batch).reshape(3, bucket, -1)
    for index, graph in enumerate(graphs):
        nodes = len(graph.node_type)
        own = x.reshape(3, bucket, -1)[index, :nodes]
        alone = apply(variables, own, to_jraph([graph], nodes, len(graph.senders)))
        np.testing.assert_allclose(together[index, :nodes], alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS[4:], ids=str)
def test_sync_follows_any_permutation_of_nodes(random_graph, options):
    graph = random_graph(15, seed=1)
    apply, variables, x, batch = _setup(graph, options)
    order = np.random.default_rng(0).permutation(15)
    other = apply(variables, x[order], to_jraph([_relabel(graph, order)], 15, 200))
    np.testing.assert_allclose(other, apply(variables, x, batch)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_sequential_follows_any_topological_order(random_graph, options):
    graph = random_graph(15, seed=1)
    apply, variables, x, batch = _setup(graph, options)
    random, order = np.random.default_rng(4), []
    while len(order) < 15:
        waiting = set(range(15)) - set(order)
        blocked = {
            int(v) for u, v in zip(graph.senders, graph.receivers, strict=True) if u in waiting
        }
        order.append(random.choice(sorted(waiting - blocked)))
    order = np.array(order)
    assert (order != np.arange(15)).sum() > 5
    other = apply(variables, x[order], to_jraph([_relabel(graph, order)], 15, 200))
    np.testing.assert_allclose(other, apply(variables, x, batch)[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3], OPTIONS[4], OPTIONS[7]], ids=str)
def test_gradient(random_graph, options):
    graph = random_graph(7, seed=2)
    with jax.enable_x64(True):
        apply, variables, x, batch = _setup(graph, options, width=4, nodes=9)
        variables, x = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), (variables, x))

        def loss(variables, x):
            y = apply(variables, x, batch)
            assert y.dtype == jnp.float64
            return jnp.where(jnp.asarray(batch.nodes["mask"])[:, None], jnp.sin(y), 0.0).sum()

        check_grads(jax.jit(loss), (variables, x), order=1, modes=["rev"], rtol=1e-6, eps=1e-6)


def test_sources_and_sinks_are_updated_too(random_graph):
    graph = random_graph(5)._replace(
        senders=np.zeros(0, np.int32), receivers=np.zeros(0, np.int32), distance=np.zeros(0, int)
    )
    for options in (OPTIONS[0], {"mode": "sync", "layers": 1}):
        apply, variables, x, batch = _setup(graph, options)
        y = apply(variables, x, batch)
        np.testing.assert_allclose(y, _loop(variables["params"], x, graph, options), atol=1e-6)
        assert float(jnp.abs(y - x).min(1).max()) > 0


def test_width_of_message_networks():
    shapes = {}
    graph = to_jraph([_chain()], 3)
    for virtual in (True, False):
        module = GatedGNN(8, virtual_edges=virtual)
        params = jax.jit(module.init)(jax.random.key(0), jnp.zeros((3, 8)), graph)["params"]
        shapes[virtual] = {
            name: params[name]["in"]["kernel"].shape for name in params if "mlp" in name
        }
    assert shapes == {True: {"mlp": (8, 4), "mlp_virtual": (8, 4)}, False: {"mlp": (8, 8)}}


def _chain():
    edges = np.array([[0, 1, 1], [0, 2, 2], [1, 2, 1]], np.int32)
    zeros = np.zeros(3, np.int32)
    return ArchGraph(zeros, np.zeros((3, 4), np.int32), (None,) * 3, zeros > 0, *edges.T)


@pytest.mark.parametrize("key", ["mode", "direction", "activation"])
def test_unknown_option_is_a_sentence(key):
    graph = to_jraph([_chain()], 3)
    with pytest.raises(UsageError, match="must be"):
        GatedGNN(8, **{key: "sideways"}).init(jax.random.key(0), jnp.zeros((3, 8)), graph)
