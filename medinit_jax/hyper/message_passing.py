"""Message passing as pure functions: sequential (GHN-2) and synchronous (the paper's Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
from jax import lax

Parameters = Mapping[str, Any]
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "none": lambda x: x,
}


def message_mlp(parameters: Parameters, x: jax.Array, activation: str = "relu") -> jax.Array:
    """Turns node features into messages.

    Args:
        parameters: {"in", "out"} of {"kernel", "bias"}: (d, width) and (width, d).
        x: (..., d).
        activation: What follows the second layer; "relu" makes messages non-negative. The first
            layer is always followed by a ReLU.

    Returns:
        (..., d).
    """
    hidden = nn.relu(x @ parameters["in"]["kernel"] + parameters["in"]["bias"])
    return ACTIVATIONS[activation](hidden @ parameters["out"]["kernel"] + parameters["out"]["bias"])


def gru(gates_message: jax.Array, gates_hidden: jax.Array, hidden: jax.Array) -> jax.Array:
    """Gated recurrent unit from its two affine maps, each (..., 3d) for reset, update, candidate.

    Args:
        gates_message: Affine map of the message.
        gates_hidden: Affine map of the hidden state.
        hidden: (..., d).

    Returns:
        New hidden state (..., d).
    """
    reset_m, update_m, candidate_m = jnp.split(gates_message, 3, axis=-1)
    reset_h, update_h, candidate_h = jnp.split(gates_hidden, 3, axis=-1)
    reset = nn.sigmoid(reset_m + reset_h)
    update = nn.sigmoid(update_m + update_h)
    candidate = jnp.tanh(candidate_m + reset * candidate_h)
    return candidate + update * (hidden - candidate)


def virtual_weights(
    distance: jax.Array, max_distance: int, include_1hop: bool, dtype: jnp.dtype
) -> jax.Array:
    """Weights 1 / distance of virtual edges, 0 where there is none.

    Args:
        distance: int32, any shape; 1 = a real edge, 0 = no path.
        max_distance: Longest path that carries a message.
        include_1hop: Whether real edges carry a virtual message too.
        dtype: Of the result.

    Returns:
        Array like `distance`.
    """
    virtual = (distance >= (1 if include_1hop else 2)) & (distance <= max_distance)
    return jnp.where(virtual, 1 / jnp.maximum(distance, 1).astype(dtype), jnp.zeros((), dtype))


def dense_distances(graph: jraph.GraphsTuple) -> jax.Array:
    """Scatters the edges of a batch with equal blocks into dense matrices.

    Args:
        graph: Batch of m graphs of n rows each (`arch.batching.to_jraph`).

    Returns:
        int32 (m, n, n): shortest-path length from column to row, 0 = no path.
    """
    count = graph.n_node.shape[0]
    nodes = graph.nodes["mask"].shape[0] // count
    receivers = jnp.asarray(graph.receivers)
    flat = receivers * nodes + jnp.asarray(graph.senders) % nodes
    matrix = jnp.zeros(count * nodes * nodes, jnp.int32)
    return matrix.at[flat].set(jnp.asarray(graph.edges["distance"])).reshape(count, nodes, nodes)


def sweep(
    parameters: Parameters,
    x: jax.Array,
    real: jax.Array,
    virtual: jax.Array | None,
    activation: str,
    reverse: bool,
) -> jax.Array:
    """Updates the nodes of one graph one after another, each seeing what was updated before it.

    A node's two messages are computed once, right after its update, and kept in one array, so that
    a step is one weighted sum over that array, one gated unit and one small network.

    Args:
        parameters: {"gru", "mlp", "mlp_virtual"}, see `GatedGNN`.
        x: (n, d), in topological order.
        real: (n, n), 1 where a real edge leads from column to row (along the sweep).
        virtual: (n, n), weights of virtual edges, None = no virtual edges.
        activation: See `message_mlp`.
        reverse: Whether to go from the last node to the first.

    Returns:
        (n, d).
    """
    nodes, width = x.shape
    unit = parameters["gru"]
    kinds = [parameters["mlp"]] + ([] if virtual is None else [parameters["mlp_virtual"]])
    kernel_in = jnp.concatenate([kind["in"]["kernel"] for kind in kinds], axis=1)
    bias_in = jnp.concatenate([kind["in"]["bias"] for kind in kinds])
    kernel_out = jax.scipy.linalg.block_diag(*[kind["out"]["kernel"] for kind in kinds])
    bias_out = jnp.concatenate([kind["out"]["bias"] for kind in kinds])
    weights = real if virtual is None else jnp.concatenate([real, virtual], axis=1)
    gates_hidden = x @ unit["hidden"]["kernel"] + unit["hidden"]["bias"]

    def step(messages: jax.Array, node: tuple[jax.Array, ...]):
        index, weight, gates, hidden = node
        message = weight @ messages.reshape(len(kinds) * nodes, width)
        gates_message = message @ unit["message"]["kernel"] + unit["message"]["bias"]
        hidden = gru(gates_message, gates, hidden)
        out = nn.relu(hidden @ kernel_in + bias_in) @ kernel_out + bias_out
        out = ACTIVATIONS[activation](out).reshape(len(kinds), 1, width)
        return lax.dynamic_update_slice_in_dim(messages, out, index, axis=1), hidden

    start = jnp.zeros((len(kinds), nodes, width), x.dtype)
    return lax.scan(step, start, (jnp.arange(nodes), weights, gates_hidden, x), reverse=reverse)[1]


def sequential_pass(
    parameters: Parameters,
    x: jax.Array,
    distance: jax.Array,
    *,
    virtual_edges: bool = True,
    include_1hop: bool = True,
    max_distance: int = 50,
    activation: str = "relu",
) -> jax.Array:
    """One round of GHN-2: every node in topological order, then every node in reverse order.

    Args:
        parameters: {"gru", "mlp", "mlp_virtual"}, see `GatedGNN`.
        x: (m, n, d), nodes of each graph in topological order.
        distance: int32 (m, n, n), see `dense_distances`.
        virtual_edges: Whether nodes further away send messages too.
        include_1hop: Whether direct neighbors also send a virtual message (GHN-2 does).
        max_distance: Longest path that carries a message.
        activation: See `message_mlp`.

    Returns:
        (m, n, d).

    Source: Graph HyperNetworks (Zhang et al. 2019) and GHN-2 (Knyazev et al. 2021, Eq. 4), checked
    against `ghn.npz`.
    """

    def round_trip(x: jax.Array, distance: jax.Array) -> jax.Array:
        real = (distance == 1).astype(x.dtype)
        virtual = virtual_weights(distance, max_distance, include_1hop, x.dtype)
        x = sweep(parameters, x, real, virtual if virtual_edges else None, activation, False)
        virtual = virtual.T if virtual_edges else None
        return sweep(parameters, x, real.T, virtual, activation, True)

    return jax.vmap(round_trip)(x, distance)


def synchronous_pass(
    parameters: Parameters,
    x: jax.Array,
    graph: jraph.GraphsTuple,
    *,
    backward: bool = False,
    both: bool = False,
    virtual_edges: bool = True,
    include_1hop: bool = False,
    max_distance: int = 50,
    activation: str = "relu",
) -> jax.Array:
    """One layer of the paper's Eq. 2: all nodes at once, from the features of the layer before.

    Args:
        parameters: {"gru", "mlp", "mlp_virtual"}, see `GatedGNN`.
        x: (nodes, d).
        graph: Edges with {"distance" int32}; its nodes are not read.
        backward: Whether messages go against the edges.
        both: Whether messages go both ways.
        virtual_edges: Whether nodes further away send messages too.
        include_1hop: Whether direct neighbors also send a virtual message.
        max_distance: Longest path that carries a message.
        activation: See `message_mlp`.

    Returns:
        (nodes, d).

    Source: Hyper-initializer paper (arXiv 2206.03661), Eq. 2.
    """
    distance = jnp.asarray(graph.edges["distance"])
    near = message_mlp(parameters["mlp"], x, activation)
    real = (distance == 1).astype(x.dtype)[:, None]
    if virtual_edges:
        far = message_mlp(parameters["mlp_virtual"], x, activation)
        virtual = virtual_weights(distance, max_distance, include_1hop, x.dtype)[:, None]

    def gather(senders: jax.Array, receivers: jax.Array) -> jax.Array:
        messages = real * near[senders]
        if virtual_edges:
            messages = messages + virtual * far[senders]
        return jraph.segment_sum(messages, receivers, num_segments=x.shape[0])

    senders, receivers = jnp.asarray(graph.senders), jnp.asarray(graph.receivers)
    if both:
        message = gather(senders, receivers) + gather(receivers, senders)
    else:
        message = gather(receivers, senders) if backward else gather(senders, receivers)
    unit = parameters["gru"]
    gates_message = message @ unit["message"]["kernel"] + unit["message"]["bias"]
    gates_hidden = x @ unit["hidden"]["kernel"] + unit["hidden"]["bias"]
    return gru(gates_message, gates_hidden, x)
