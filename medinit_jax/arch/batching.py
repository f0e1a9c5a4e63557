"""Architecture graphs -> one padded `jraph.GraphsTuple` of static size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import jraph
import numpy as np

NODE_BUCKETS = (64, 96, 128, 192, 256, 384, 512, 768, 1024)


class GraphArrays(Protocol):
    """What `to_jraph` reads of an architecture graph of N nodes and E pairs.

    Attributes:
        node_type: int32 (N,), operation of each node.
        shape: int32 (N, 4), parameter size as (out, in, height, width), 0 = none.
        senders: int32 (E,), start of each pair of nodes joined by a directed path.
        receivers: int32 (E,), its end.
        distance: int32 (E,), length of the shortest path, 1 = a real edge.
    """

    @property
    def node_type(self) -> np.ndarray: ...  # noqa: D102
    @property
    def shape(self) -> np.ndarray: ...  # noqa: D102
    @property
    def senders(self) -> np.ndarray: ...  # noqa: D102
    @property
    def receivers(self) -> np.ndarray: ...  # noqa: D102
    @property
    def distance(self) -> np.ndarray: ...  # noqa: D102


def node_bucket(nodes: int) -> int:
    """Returns the smallest bucket that holds `nodes` nodes; above 1024, a multiple of 512."""
    return next((size for size in NODE_BUCKETS if size >= nodes), -(-nodes // 512) * 512)


def edge_bucket(edges: int) -> int:
    """Returns the smallest of 1024, 1536, 2048, 3072, 4096, ... that holds `edges` edges."""
    size = 1024
    while size < edges:
        size *= 2
    three_quarters = size // 4 * 3
    return three_quarters if three_quarters >= max(edges, 1024) else size


def to_jraph(
    graphs: Sequence[GraphArrays], nodes: int | None = None, edges: int | None = None
) -> jraph.GraphsTuple:
    """Batches architecture graphs into blocks of equal size, so that its arrays have static shapes.

    Graph i owns the rows `i * nodes` to `(i + 1) * nodes - 1`, real nodes first in their own order,
    and `mask` tells which rows are real. A padding graph at the end, jraph's own way, would make
    the place of a graph depend on its neighbors, so here every graph counts `nodes` nodes instead.
    Edges follow one another in the order of the graphs; those that pad to `edges` join the last row
    with itself at distance 0, count to the last graph, and mean nothing.

    Args:
        graphs: m architecture graphs.
        nodes: Rows per graph; the bucket of the largest graph by default.
        edges: Edges of the whole batch; their bucket by default.

    Returns:
        GraphsTuple of numpy arrays: nodes {"type" int32 (m*nodes,), "shape" int32 (m*nodes, 4),
        "mask" bool (m*nodes,)}, edges {"distance" int32 (edges,)}, senders and receivers int32
        (edges,), n_node and n_edge int32 (m,), globals None.

    Raises:
        ValueError: If there is no graph, or one is larger than the padding.
    """
    if not graphs:
        raise ValueError("to_jraph needs at least one architecture graph")
    counts = np.array([len(graph.node_type) for graph in graphs], np.int32)
    edge_counts = np.array([len(graph.senders) for graph in graphs], np.int32)
    nodes = node_bucket(int(counts.max())) if nodes is None else nodes
    edges = edge_bucket(int(edge_counts.sum())) if edges is None else edges
    if counts.max() > nodes:
        raise ValueError(f"an architecture of {counts.max()} nodes does not fit into {nodes} rows")
    if edge_counts.sum() > edges:
        raise ValueError(f"architectures of {edge_counts.sum()} edges do not fit into {edges}")

    rows = len(graphs) * nodes
    node_type = np.zeros(rows, np.int32)
    shape = np.zeros((rows, 4), np.int32)
    mask = np.zeros(rows, bool)
    senders = np.full(edges, rows - 1, np.int32)
    receivers = np.full(edges, rows - 1, np.int32)
    distance = np.zeros(edges, np.int32)
    edge = 0
    for index, graph in enumerate(graphs):
        first = index * nodes
        own = slice(first, first + counts[index])
        node_type[own], shape[own], mask[own] = graph.node_type, graph.shape, True
        own = slice(edge, edge + edge_counts[index])
        senders[own] = np.asarray(graph.senders) + first
        receivers[own] = np.asarray(graph.receivers) + first
        distance[own] = graph.distance
        edge += int(edge_counts[index])
    edge_counts[-1] += edges - edge
    return jraph.GraphsTuple(
        nodes={"type": node_type, "shape": shape, "mask": mask},
        edges={"distance": distance},
        senders=senders,
        receivers=receivers,
        n_node=np.full(len(graphs), nodes, np.int32),
        n_edge=edge_counts,
        globals=None,
    )
