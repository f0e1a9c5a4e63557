"""The graph of a program that the hypernetwork reads, built by rule without tracing.

Every value carries the node that produced it last. A step with parameters, a pooling, an attention
or a gate makes a node; a step without a rule of its own hands the node of its input on. A sum or a
concatenation is a node only where two different nodes meet, as in the reference.

Source: Knyazev et al., Parameter Prediction for Unseen Deep Architectures, NeurIPS 2021 (node
types, virtual edges); checked against four graphs of the authors' code (shared/oracles/ghn.npz).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from medinit_jax.arch.program import Block, Program, Shape, Step, block_layout
from medinit_jax.arch.vocabulary import TYPE_INDEX
from medinit_jax.core.errors import UsageError

# Step kind -> node type: what is nearly the same function is the same to the hypernetwork.
ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "hard_swish": "hard_swish",
    "sigmoid": "sigmoid",
    "hard_sigmoid": "sigmoid",
}
PASSING = frozenset(ACTIVATIONS) | {
    "flatten", "subsample", "squeeze", "pad", "tokens", "first_token", "dropout",
}  # fmt: skip
RULES = PASSING | {
    "conv",
    "conv_t",
    "dense",
    "batch_norm",
    "layer_norm",
    "group_norm",
    "layer_scale",
    "class_token",
    "bilinear",
    "nearest",
    "max_pool",
    "avg_pool",
    "adaptive_pool",
    "position",
    "global_pool",
    "attention",
    "gate",
    "add",
    "concat",
    "zeros",
}
NORM_TYPES = {"batch_norm": "bn", "layer_norm": "ln", "group_norm": "gn"}
MAX_DISTANCE = 50

_NO_SHAPE = (0, 0, 0, 0)
_UNREACHED = 20_000


class ArchGraph(NamedTuple):
    """The graph of an architecture with N nodes in topological order and E connected pairs.

    A network `image -> conv -> bn -> global pool -> dense` has the nodes input, conv, bn, glob_avg,
    conv (the dense weight) and bias; its last two nodes are the head; its pairs are the 5 edges
    and 10 longer paths.

    Attributes:
        node_type: int32 (N,), index into `vocabulary.NODE_TYPES`.
        shape: int32 (N, 4), parameter shape as (out, in per group, height, width); a pooling node
            has (1, 1, height, width), a node without shape zeros.
        parameters: N entries, (module name, leaf kind) or None; the leaf kind is "kernel", "norm"
            (scale and bias), "bias" or "embedding". The nodes of leaves in `OWN_INIT` have None.
        head: bool (N,), the weight and the bias of the classifier.
        senders: int32 (E,), start of each pair of nodes that a directed path joins.
        receivers: int32 (E,), its end; sorted.
        distance: int32 (E,), length of its shortest path, 1 (an edge) to 50.
    """

    node_type: np.ndarray
    shape: np.ndarray
    parameters: tuple[tuple[str, str] | None, ...]
    head: np.ndarray
    senders: np.ndarray
    receivers: np.ndarray
    distance: np.ndarray


class _Node(NamedTuple):
    """A node inside a block; negative inputs -1-i stand for the block's input i."""

    type: int
    shape: tuple[int, int, int, int]
    name: str
    leaf: str
    inputs: tuple[int, ...]


def build_graph(
    program: Program, activations: bool = False, max_distance: int = MAX_DISTANCE
) -> ArchGraph:
    """Returns the graph of a program.

    Args:
        program: The network.
        activations: Whether activation functions are nodes too. A softmax then stands between
            queries, keys, values and their attention node.
        max_distance: Longest path that joins a pair.

    Raises:
        UsageError: If an operation of the program has no rule.
    """
    for number, call in enumerate(program.calls):
        step = _step_without_rule(call.block)
        if step is not None:
            where = call.module(step.name) or f"call {number}"
            raise UsageError(
                f"the graph has no rule for operation {step.kind!r} at {where!r}: "
                "build the network from the operations in medinit_jax.arch.graph.RULES"
            )
    types = [TYPE_INDEX["input"]]
    shapes: list[tuple[int, int, int, int]] = [_NO_SHAPE]
    parameters: list[tuple[str, str] | None] = [None]
    parents: list[list[int]] = [[]]
    producers = [0]
    head = program.head
    value_shapes = program.shapes
    for call in program.calls:
        origins = [producers[i] for i in call.inputs]
        if len(origins) == 1:
            pattern: tuple[int, ...] = (0,)
        else:
            pattern = tuple(origins.index(origin) for origin in origins)
        input_shapes = tuple([value_shapes[i] for i in call.inputs])
        nodes, output = _block_nodes(call.block, input_shapes, pattern, activations)
        start = len(types)
        prefix = call.prefix + "." if call.prefix else ""
        for node in nodes:
            types.append(node.type)
            shapes.append(node.shape)
            parameters.append((prefix + node.name, node.leaf) if node.leaf else None)
            parents.append([start + i if i >= 0 else origins[-1 - i] for i in node.inputs])
        producers.append(start + output if output >= 0 else origins[-1 - output])
    senders, receivers, distance = path_lengths(parents, max_distance)
    return ArchGraph(
        node_type=np.array(types, np.int32),
        shape=np.array(shapes, np.int32),
        parameters=tuple(parameters),
        head=np.array([entry is not None and entry[0] == head for entry in parameters]),
        senders=senders,
        receivers=receivers,
        distance=distance,
    )


def ancestors(graph: ArchGraph, nodes: np.ndarray) -> ArchGraph:
    """Returns the graph of some nodes and of all that lead to them.

    Args:
        graph: The graph.
        nodes: bool (N,).
    """
    keep = np.array(nodes, bool)
    direct = graph.distance == 1
    for sender, receiver in zip(
        graph.senders[direct][::-1], graph.receivers[direct][::-1], strict=True
    ):
        keep[sender] |= keep[receiver]
    number = np.cumsum(keep, dtype=np.int32) - 1
    pairs = keep[graph.senders] & keep[graph.receivers]
    return ArchGraph(
        node_type=graph.node_type[keep],
        shape=graph.shape[keep],
        parameters=tuple(p for p, kept in zip(graph.parameters, keep, strict=True) if kept),
        head=graph.head[keep],
        senders=number[graph.senders[pairs]],
        receivers=number[graph.receivers[pairs]],
        distance=graph.distance[pairs],
    )


def conv_type(groups: int, channels: int, dilation: int = 1) -> str:
    """Returns the type of a convolution: the reference tells apart depthwise ones by dilation."""
    if groups == 1:
        return "conv"
    if dilation > 1:
        return "dil_conv"
    return "sep_conv" if groups == channels else "group_conv"


def path_lengths(
    parents: list[list[int]], max_distance: int = MAX_DISTANCE
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns all pairs of nodes that a directed path joins, and the length of the shortest.

    Args:
        parents: Direct predecessors of each node, the nodes being in topological order.
        max_distance: Longest length kept.

    Returns:
        senders, receivers (sorted) and distance, int32 (E,) each.
    """
    count = len(parents)
    # Row v holds the distances from all earlier nodes to v: one more than the nearest parent's.
    rows = np.full((count, count), _UNREACHED, np.int16)
    for node, before in enumerate(parents):
        row = rows[node]
        if len(before) == 1:
            np.add(rows[before[0]], 1, out=row)
        elif before:
            np.minimum(rows[before[0]], rows[before[1]], out=row)
            for parent in before[2:]:
                np.minimum(row, rows[parent], out=row)
            row += 1
        row[node] = 0
    places = np.flatnonzero((rows > 0) & (rows <= max_distance)).astype(np.int32)
    receivers, senders = np.divmod(places, np.int32(count))
    return senders, receivers, rows.ravel()[places].astype(np.int32)


@functools.lru_cache(maxsize=65536)
def _step_without_rule(block: Block) -> Step | None:
    return next((step for step in block.steps if step.kind not in RULES), None)


@functools.lru_cache(maxsize=65536)
def _block_nodes(
    block: Block, inputs: tuple[Shape, ...], pattern: tuple[int, ...], activations: bool
) -> tuple[tuple[_Node, ...], int]:
    """Returns the nodes of a block and the one that produces its output.

    Args:
        block: The block.
        inputs: Shapes of its inputs.
        pattern: For every input the first input that comes from the same node.
        activations: Whether activation functions are nodes.
    """
    layout = block_layout(block, inputs)
    shapes = [*inputs, *layout.outputs]
    nodes: list[_Node] = []
    # None marks zeros, which come from no node.
    producers: list[int | None] = [-1 - first for first in pattern]

    def add(kind: str, sources: list[int], shape=_NO_SHAPE, name: str = "", leaf: str = "") -> int:
        nodes.append(_Node(TYPE_INDEX[kind], shape, name, leaf, tuple(sources)))
        return len(nodes) - 1

    for step in block.steps:
        kind = step.kind
        given = (producers[value] for value in step.args)
        sources = list(dict.fromkeys(node for node in given if node is not None))
        channels = shapes[step.args[0]][-1]
        if kind == "zeros":
            output = None
        elif kind == "conv":
            shape = (step.features, channels // step.groups, *step.kernel)
            node_kind = conv_type(step.groups, channels, step.dilation)
            output = add(node_kind, sources, shape, step.name, "kernel")
        elif kind == "dense":
            output = add("conv", sources, (step.features, channels, 1, 1), step.name, "kernel")
        elif kind == "conv_t":
            shape = (step.features, channels, *step.kernel)
            output = add("conv_t", sources, shape, step.name, "kernel")
        elif kind in NORM_TYPES:
            instance = kind == "group_norm" and step.groups == channels
            node_kind = "in" if instance else NORM_TYPES[kind]
            output = add(node_kind, sources, (channels, 1, 1, 1), step.name, "norm")
        elif kind == "layer_scale":
            output = add("layer_scale", sources, (channels, 1, 1, 1))
        elif kind == "class_token":
            output = add("concat", [*sources, add("embed", [], (1, channels, 1, 1))])
        elif kind in ("bilinear", "nearest"):
            output = add("upsample", sources)
        elif kind in ("max_pool", "avg_pool"):
            output = add(kind, sources, (1, 1, *step.kernel))
        elif kind == "adaptive_pool" and step.size != (1, 1):
            window = tuple(
                -(-have // made)
                for have, made in zip(shapes[step.args[0]][:2], step.size, strict=True)
            )
            output = add("avg_pool", sources, (1, 1, *window)) if max(window) > 1 else sources[0]
        elif kind == "position":
            *places, _ = shapes[step.args[0]]
            height, width = places if len(places) == 2 else [math.isqrt(places[0])] * 2
            encoding = add("pos_enc", [], (1, channels, height, width), step.name, "embedding")
            output = add("sum", [*sources, encoding])
        elif kind in ("global_pool", "adaptive_pool"):
            output = add("glob_avg", sources)
        elif kind == "attention":
            if activations:
                sources = [*sources, add("softmax", sources)]
            output = add("msa", sources)
        elif kind == "gate":
            output = add("cse", sources)
        elif kind in ("add", "concat"):
            node_kind = "sum" if kind == "add" else "concat"
            output = add(node_kind, sources) if len(sources) > 1 else sources[0]
        elif kind in ACTIVATIONS and activations:
            output = add(ACTIVATIONS[kind], sources)
        else:
            output = sources[0]
        if step.bias and output is not None:
            output = add("bias", [output], (step.features, 1, 1, 1), step.name, "bias")
        producers.append(output)
    output = producers[-1]
    assert output is not None, "a block that yields zeros"
    return tuple(nodes), output
