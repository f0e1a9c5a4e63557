"""The gated graph network: its parameters and its two ways of passing messages."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jraph

from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.message_passing import (
    ACTIVATIONS,
    dense_distances,
    sequential_pass,
    synchronous_pass,
)

DIRECTIONS = ("incoming", "alternating", "both")


def draw_affine(key: jax.Array, inputs: int, outputs: tuple[int, ...]) -> dict[str, jax.Array]:
    """Draws an affine layer as PyTorch does, uniform in +-1/sqrt(inputs).

    Args:
        key: Random key.
        inputs: Inputs of the layer.
        outputs: Shape of its output.

    Returns:
        {"kernel": (inputs, *outputs), "bias": outputs}.
    """
    size, bound = math.prod(outputs), inputs**-0.5
    # One flat draw: XLA compiles random bits of many axes several times more slowly.
    values = jax.random.uniform(key, ((inputs + 1) * size,), minval=-bound, maxval=bound)
    kernel, bias = values[size:], values[:size]
    return {"kernel": kernel.reshape(inputs, *outputs), "bias": bias.reshape(outputs)}


class GatedGNN(nn.Module):
    """Gated graph network that takes nothing but a `jraph.GraphsTuple`.

    Attributes:
        features: Width d.
        mode: "sequential" (GHN-2) or "sync" (Eq. 2).
        layers: Layers K of the synchronous mode.
        rounds: Forward and backward sweeps T of the sequential mode.
        direction: "incoming" edges only, "alternating" with the reverse, or "both"; sync mode only.
        virtual_edges: Whether nodes further away send messages, divided by their distance.
        include_1hop: Whether direct neighbors send that message too; None = as the source of the
            mode does: yes in GHN-2, no in Eq. 2.
        max_distance: Longest path that carries a message.
        activation: See `message_mlp`.
    """

    features: int
    mode: str = "sequential"
    layers: int = 8
    rounds: int = 1
    direction: str = "incoming"
    virtual_edges: bool = True
    include_1hop: bool | None = None
    max_distance: int = 50
    activation: str = "relu"

    def setup(self) -> None:
        """Creates the gated unit and the message networks, shared by all nodes and directions."""
        if self.mode not in ("sequential", "sync"):
            raise UsageError(f"mode must be 'sequential' or 'sync', not {self.mode!r}")
        if self.direction not in DIRECTIONS:
            raise UsageError(f"direction must be one of {DIRECTIONS}, not {self.direction!r}")
        if self.activation not in ACTIVATIONS:
            options = tuple(ACTIVATIONS)
            raise UsageError(f"mlp_activation must be one of {options}, not {self.activation!r}")
        width = self.features
        inner = width // 2 if self.virtual_edges else width

        def init_mlp(key: jax.Array) -> dict:
            first, second = jax.random.split(key)
            return {
                "in": draw_affine(first, width, (inner,)),
                "out": draw_affine(second, inner, (width,)),
            }

        def init_gru(key: jax.Array) -> dict:
            names = ("message", "hidden")
            keys = jax.random.split(key)
            return {
                n: draw_affine(k, width, (3 * width,)) for n, k in zip(names, keys, strict=True)
            }

        parameters = {"gru": self.param("gru", init_gru), "mlp": self.param("mlp", init_mlp)}
        if self.virtual_edges:
            parameters["mlp_virtual"] = self.param("mlp_virtual", init_mlp)
        self.parameters = parameters

    def __call__(self, x: jax.Array, graph: jraph.GraphsTuple) -> jax.Array:
        """Passes messages.

        Args:
            x: (m*n, d), features of the nodes of m graphs of n rows each; in sequential mode the
                real nodes of each graph stand in topological order before its padding.
            graph: Their edges, see `arch.batching.to_jraph`.

        Returns:
            (m*n, d).
        """
        sequential = self.mode == "sequential"
        options = {
            "virtual_edges": self.virtual_edges,
            "include_1hop": sequential if self.include_1hop is None else self.include_1hop,
            "max_distance": self.max_distance,
            "activation": self.activation,
        }
        if sequential:
            count = graph.n_node.shape[0]
            distance = dense_distances(graph)
            dense = x.reshape(count, -1, self.features)
            for _ in range(self.rounds):
                dense = sequential_pass(self.parameters, dense, distance, **options)
            return dense.reshape(-1, self.features)
        both = self.direction == "both"
        for layer in range(self.layers):
            backward = self.direction == "alternating" and layer % 2 == 1
            x = synchronous_pass(self.parameters, x, graph, backward=backward, both=both, **options)
        return x
