import jraph
import numpy as np
import pytest

from medinit_jax.arch.batching import edge_bucket, node_bucket, to_jraph
from medinit_jax.arch.graph import ArchGraph


def _path(nodes, first_type=0):
    """The path 0 -> 1 -> ... with all its pairs."""
    senders, receivers = np.triu_indices(nodes, 1)
    return ArchGraph(
        node_type=np.arange(first_type, first_type + nodes, dtype=np.int32),
        shape=np.full((nodes, 4), nodes, np.int32),
        parameters=(None,) * nodes,
        head=np.zeros(nodes, bool),
        senders=senders.astype(np.int32),
        receivers=receivers.astype(np.int32),
        distance=(receivers - senders).astype(np.int32),
    )


def test_blocks_of_equal_size():
    graph = to_jraph([_path(2), _path(3, first_type=5)], nodes=4, edges=6)
    assert isinstance(graph, jraph.GraphsTuple)
    assert graph.nodes["type"].tolist() == [0, 1, 0, 0, 5, 6, 7, 0]
    assert graph.nodes["shape"][:, 0].tolist() == [2, 2, 0, 0, 3, 3, 3, 0]
    assert graph.nodes["mask"].tolist() == [True] * 2 + [False] * 2 + [True] * 3 + [False]
    assert graph.senders.tolist() == [0, 4, 4, 5, 7, 7]
    assert graph.receivers.tolist() == [1, 5, 6, 6, 7, 7]
    assert graph.edges["distance"].tolist() == [1, 1, 2, 1, 0, 0]
    assert (graph.n_node.tolist(), graph.n_edge.tolist()) == ([4, 4], [1, 5])
    assert {array.dtype for array in (graph.senders, graph.n_node, graph.nodes["type"])} == {
        np.dtype(np.int32)
    }


def test_jraph_takes_the_batch_apart_again():
    graphs = [_path(2), _path(3), _path(4)]
    parts = jraph.unbatch(to_jraph(graphs))
    for graph, part in zip(graphs, parts, strict=True):
        count = len(graph.node_type)
        assert part.nodes["mask"].sum() == count
        np.testing.assert_array_equal(part.nodes["type"][:count], graph.node_type)
        real = part.edges["distance"] > 0
        np.testing.assert_array_equal(part.senders[real], graph.senders)
        np.testing.assert_array_equal(part.receivers[real], graph.receivers)


def test_default_sizes_are_buckets():
    graph = to_jraph([_path(40), _path(50)])
    assert graph.n_node.tolist() == [64, 64]
    assert len(graph.senders) == 2048
    assert [node_bucket(n) for n in (1, 32, 33, 144, 1024, 1025)] == [64, 64, 64, 192, 1024, 1536]
    assert [edge_bucket(n) for n in (0, 1024, 1025, 1537, 5000)] == [1024, 1024, 1536, 2048, 6144]


def test_what_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="3 nodes does not fit into 2"):
        to_jraph([_path(3)], nodes=2)
    with pytest.raises(ValueError, match="3 edges do not fit into 2"):
        to_jraph([_path(3)], edges=2)
    with pytest.raises(ValueError, match="at least one"):
        to_jraph([])
