"""The hyper-initializer at work: architecture graph -> parameters of the network."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jraph
import numpy as np
from jax.core import Tracer

from medinit_jax.arch.batching import to_jraph
from medinit_jax.arch.graph import ArchGraph, build_graph
from medinit_jax.arch.program import OWN_INIT, Program
from medinit_jax.arch.vocabulary import known_types
from medinit_jax.core.errors import UsageError
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta, from_config, init_theta
from medinit_jax.hyper.tiles import Shape, finish, tile_shape

__all__ = [
    "HyperInitializer",
    "Slot",
    "Theta",
    "from_config",
    "graph_of",
    "hide_head",
    "init_theta",
    "parameter_slots",
    "predict",
]

# Tensors that a call of the decoder writes: few or many, so that little is compiled.
DECODED = (2, 16)
ParameterShapes = Mapping[str, Mapping[str, Sequence[int]]]


class Slot(NamedTuple):
    """One parameter of a network and where it comes from.

    Attributes:
        module: Module name.
        leaf: Parameter name in the module.
        node: Index of its node in the graph.
        kind: Kind of `tiles.finish`.
        shape: Shape of the parameter.
        tile: Shape of its raw tile, see `tiles.tile_shape`.
    """

    module: str
    leaf: str
    node: int
    kind: str
    shape: Shape
    tile: Shape


def graph_of(module: HyperInitializer, program: Program) -> ArchGraph:
    """Returns the graph that a hypernetwork reads: with activations if it asks for them.

    Raises:
        UsageError: If the network has nodes of types that the hypernetwork does not know.
    """
    graph = build_graph(program, module.activations)
    return graph._replace(node_type=known_types(graph.node_type, module.node_types))


def parameter_slots(
    module: HyperInitializer,
    graph: ArchGraph,
    shapes: ParameterShapes,
    include_head: bool = True,
) -> list[Slot]:
    """Lists the parameters to predict, in the order of `shapes`.

    Args:
        module: The hyper-initializer.
        graph: Architecture graph.
        shapes: {module: {leaf: shape}} of the network, or of a part of it.
        include_head: Whether to predict the classifier too.

    Returns:
        One slot per parameter but those of `OWN_INIT`; a module that several nodes share is
        predicted from the first.

    Raises:
        UsageError: If a parameter has no node, or the head another number of classes.
    """
    nodes: dict[tuple[str, str], tuple[int, str]] = {}
    for index, parameter in enumerate(graph.parameters):
        if parameter is None:
            continue
        name, kind = parameter
        for leaf in ("scale", "bias") if kind == "norm" else (kind,):
            own_kind = f"head_{leaf}" if graph.head[index] else leaf
            nodes.setdefault((name, leaf), (index, own_kind))
    slots = []
    for name, leaves in shapes.items():
        for leaf, shape in leaves.items():
            if leaf in OWN_INIT:
                continue
            if (name, leaf) not in nodes:
                raise UsageError(f"no node of the graph holds the parameter {name}/{leaf}")
            index, kind = nodes[name, leaf]
            if kind.startswith("head_"):
                if not include_head:
                    continue
                if math.prod(shape[:-2]) > 1:
                    raise UsageError(
                        f"the classifier {name} is a convolution of {shape[0]} x {shape[1]}, which "
                        "cannot be predicted: predict with head=False"
                    )
                if shape[-1] != module.num_classes:
                    raise UsageError(
                        f"the network has {shape[-1]} classes, the hyper-initializer was made for "
                        f"{module.num_classes}: predict with include_head=False"
                    )
            tile = tile_shape(shape, kind, module.max_shape)
            slots.append(Slot(name, leaf, index, kind, tuple(shape), tile))
    return slots


def hide_head(module: HyperInitializer, graph: ArchGraph) -> ArchGraph:
    """Returns the graph with the head's size replaced by the hypernetwork's own."""
    shape = np.array(graph.shape)
    own = np.asarray(graph.head) & (shape[:, 0] > 0)
    shape[own, 0] = module.num_classes
    return graph._replace(shape=shape)


@functools.partial(jax.jit, static_argnums=0)
def _features(module: HyperInitializer, theta: Theta, graph: jraph.GraphsTuple) -> Any:
    return module.apply(theta, graph, method=HyperInitializer.features)


@functools.partial(jax.jit, static_argnums=(0, 4, 5))
def _decode(
    module: HyperInitializer,
    theta: Theta,
    features: jax.Array,
    rows: jax.Array,
    kind: str,
    size: Shape,
) -> Any:
    """Decodes whole raw tiles of some nodes, the first axis counting nodes."""
    x = features[rows]
    if kind == "kernel":
        method, args = HyperInitializer.decode_kernel, (size, *module.max_shape[:2])
    else:
        method, args = getattr(HyperInitializer, f"decode_{kind}"), ()
    return module.apply(theta, x, *args, method=method)


def predict(
    module: HyperInitializer,
    theta: Theta,
    graph: ArchGraph,
    shapes: ParameterShapes,
    include_head: bool = True,
) -> dict[str, dict[str, jax.Array]]:
    """Predicts the parameters of a network.

    Nodes that need a tile of the same height and width are decoded together, with all its channels
    and a fixed number at a time, so that a handful of compiled functions serve every network. What
    follows (`tiles.finish`) is done by NumPy where theta holds plain arrays: nothing is compiled
    for a shape. Differentiable in theta.

    Args:
        module: The hyper-initializer.
        theta: Its variables, or their "params" alone.
        graph: Architecture graph.
        shapes: {module: {leaf: shape}} of the network, or of a part of it.
        include_head: Whether to predict the classifier too; otherwise its leaves are left out.

    Returns:
        {module: {leaf: array}} with the shapes given, in the dtype of theta, without the leaves of
        `OWN_INIT`.

    Raises:
        UsageError: If a parameter has no node, the head another number of classes, or a node a type
            that the hyper-initializer does not know.
    """
    graph = graph._replace(node_type=known_types(graph.node_type, module.node_types))
    theta = theta if "params" in theta else {"params": theta}
    slots = parameter_slots(module, graph, shapes, include_head)
    if not include_head and module.encode_own_classes:
        graph = hide_head(module, graph)
    features = _features(module, theta, to_jraph([graph]))

    groups: dict[tuple[str, Shape], list[int]] = defaultdict(list)
    for slot in slots:
        nodes = groups[_decoder_key(slot)]
        if slot.node not in nodes:
            nodes.append(slot.node)
    plain = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(theta))
    raw: dict[tuple[str, Shape], dict[int, Any]] = defaultdict(dict)
    for key, nodes in groups.items():
        for start, count in _chunks(len(nodes)):
            part = nodes[start : start + count]
            rows = np.full(count, part[0], np.int32)
            rows[: len(part)] = part
            tiles = _decode(module, theta, features, rows, *key)
            raw[key].update(zip(part, np.asarray(tiles) if plain else tiles, strict=False))

    parameters: dict[str, dict[str, jax.Array]] = {}
    for slot in slots:
        key = _decoder_key(slot)
        tile = raw[key][slot.node]
        if key[0] == "1d":
            tile = tile[0 if slot.kind == "scale" else 1]
        value = finish(tile, slot.shape, slot.kind, module.normalize, module.tiling)
        parameters.setdefault(slot.module, {})[slot.leaf] = (
            jax.device_put(value) if plain else value
        )
    return parameters


def _chunks(count: int) -> list[tuple[int, int]]:
    """Divides nodes into calls of the decoder: (first, number) with numbers of `DECODED` only."""
    few, many = DECODED
    starts, start = [], 0
    while start < count:
        size = many if count - start > few else few
        starts.append((start, size))
        start += size
    return starts


def _decoder_key(slot: Slot) -> tuple[str, Shape]:
    """Returns the branch of the decoder that a parameter needs, and its height and width."""
    if slot.kind in ("scale", "bias"):
        return "1d", ()
    kind = "kernel" if slot.kind == "embedding" else slot.kind
    return kind, slot.tile[:2] if kind == "kernel" else ()
