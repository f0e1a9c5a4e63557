"""Graphs of programs against the reference, hand-made ones and networkx."""

import dataclasses

import networkx as nx
import numpy as np
import pytest

from medinit_jax.arch import deepnets
from medinit_jax.arch.graph import build_graph, path_lengths
from medinit_jax.arch.program import BlockBuilder, ProgramBuilder
from medinit_jax.arch.space import get_space
from medinit_jax.arch.vocabulary import NODE_TYPES, TYPE_INDEX
from medinit_jax.core.errors import UsageError
from medinit_jax.models.resnet import resnet


def to_networkx(graph):
    result = nx.DiGraph()
    for node, (kind, shape, entry) in enumerate(
        zip(graph.node_type, graph.shape, graph.parameters, strict=True)
    ):
        name = f"{entry[0]}.{'bias' if entry[1] == 'bias' else 'weight'}" if entry else ""
        result.add_node(node, label=(NODE_TYPES[kind], name, tuple(shape.tolist())))
    edges = graph.distance == 1
    result.add_edges_from(
        zip(graph.senders[edges].tolist(), graph.receivers[edges].tolist(), strict=True)
    )
    return result


def pairs(graph):
    return {
        (sender, receiver): length
        for sender, lengths in nx.all_pairs_shortest_path_length(graph, cutoff=50)
        for receiver, length in lengths.items()
        if length > 0
    }


def stored_pairs(graph):
    keys = zip(graph.senders.tolist(), graph.receivers.tolist(), strict=True)
    return dict(zip(keys, graph.distance.tolist(), strict=True))


def without_attention_and_gates(graph):
    """The reference loses these nodes: their sources are joined to their receivers."""
    for node, data in list(graph.nodes(data=True)):
        if data["label"][0] in ("msa", "cse"):
            graph.add_edges_from(
                (before, after)
                for before in list(graph.predecessors(node))
                for after in list(graph.successors(node))
            )
            graph.remove_node(node)
    return graph


def reference_graph(meta, arrays):
    info = {row["node"]: row for row in meta["node_info"]}
    graph = nx.DiGraph()
    for node, kind in enumerate(arrays["node_type"].tolist()):
        row = info.get(node, {"name": "", "size": ()})
        name = row["name"] if row["name"] not in ("max_pool", "avg_pool") else ""
        size = tuple(row["size"])
        if len(size) in (1, 2):
            size = size + (1,) * (4 - len(size))
        graph.add_node(node, label=(NODE_TYPES[kind], name, size or (0, 0, 0, 0)))
    edges = arrays["edges"]
    graph.add_edges_from(edges[edges[:, 2] == 1, :2].tolist())
    return graph


def test_graph_is_the_reference_graph(oracle_network):
    arch, meta, arrays = oracle_network
    found = without_attention_and_gates(to_networkx(build_graph(deepnets.program(arch, 32, 10))))
    expected = reference_graph(meta, arrays)
    matcher = nx.algorithms.isomorphism.DiGraphMatcher(
        found, expected, node_match=lambda a, b: a["label"] == b["label"]
    )
    assert matcher.is_isomorphic()
    mapping = matcher.mapping
    found_pairs = {(mapping[a], mapping[b]): length for (a, b), length in pairs(found).items()}
    expected_pairs = {(a, b): length for a, b, length in arrays["edges"].tolist()}
    assert found_pairs == expected_pairs


@pytest.mark.parametrize(
    ("name", "nodes", "edges", "all_pairs"),
    [
        ("resnet18", 53, 60, None),
        ("resnet34", 93, 108, None),
        ("resnet50", 127, 142, 7953),
        ("resnet101", 246, 278, None),
    ],
)
def test_resnet_sizes(name, nodes, edges, all_pairs):
    """Nodes: convolutions, norms and sums, and five more; edges: one more for every sum."""
    graph = build_graph(resnet(name))
    assert len(graph.node_type) == nodes
    assert np.sum(graph.distance == 1) == edges
    if all_pairs:
        assert len(graph.distance) == all_pairs


def test_docstring_example():
    b = BlockBuilder(1)
    y = b.conv(0, "conv", 8, 3)
    b("batch_norm", y, name="bn")
    head = BlockBuilder(1)
    head("dense", head("global_pool", 0), name="fc", features=5, bias=True)
    build = ProgramBuilder((6, 6, 3))
    build(head.build(), (build(b.build(), (0,), "stem"),))
    graph = build_graph(build.build())
    names = [NODE_TYPES[kind] for kind in graph.node_type]
    assert names == ["input", "conv", "bn", "glob_avg", "conv", "bias"]
    assert graph.shape.tolist() == [
        [0, 0, 0, 0],
        [8, 3, 3, 3],
        [8, 1, 1, 1],
        [0, 0, 0, 0],
        [5, 8, 1, 1],
        [5, 1, 1, 1],
    ]
    assert graph.parameters == (
        None,
        ("stem.conv", "kernel"),
        ("stem.bn", "norm"),
        None,
        ("fc", "kernel"),
        ("fc", "bias"),
    )
    assert graph.head.tolist() == [False] * 4 + [True] * 2
    assert np.sum(graph.distance == 1) == 5
    assert np.sum(graph.distance > 1) == 10
    assert [field.dtype for field in (graph.node_type, graph.shape, graph.senders)] == [
        np.int32
    ] * 3


def test_every_parameter_has_exactly_one_node_and_order_is_topological():
    space = get_space("deepnets")
    for index in range(40):
        program = deepnets.program(space.sample("train", index))
        graph = build_graph(program)
        leaves = {
            (module, "norm" if leaf == "scale" else leaf)
            for module, shapes in program.parameter_shapes().items()
            for leaf in shapes
            if not (leaf == "bias" and "scale" in shapes)
        }
        entries = [entry for entry in graph.parameters if entry]
        assert len(entries) == len(leaves)
        assert set(entries) == leaves
        assert np.all(graph.senders < graph.receivers)
        edges = graph.distance == 1
        sources = set(range(len(graph.node_type))) - set(graph.receivers[edges].tolist())
        assert {NODE_TYPES[graph.node_type[node]] for node in sources} <= {"input", "pos_enc"}
        # Every node leads to the last one.
        last = graph.receivers == len(graph.node_type) - 1
        assert np.sum(last) == len(graph.node_type) - 1 or graph.distance.max() == 50


def test_distances_equal_networkx_on_random_graphs():
    rng = np.random.default_rng(3)
    for count, limit in ((30, 50), (70, 5), (130, 50)):
        parents = [[]] + [
            sorted(set(rng.integers(max(0, node - 3), node, rng.integers(1, 4)).tolist()))
            for node in range(1, count)
        ]
        graph = nx.DiGraph((parent, node) for node in range(count) for parent in parents[node])
        senders, receivers, distance = path_lengths(parents, limit)
        found = dict(
            zip(
                zip(senders.tolist(), receivers.tolist(), strict=True),
                distance.tolist(),
                strict=True,
            )
        )
        assert found == {pair: n for pair, n in pairs(graph).items() if n <= limit}
        assert np.all(np.diff(receivers) >= 0)


def test_long_chains_are_cut_at_fifty():
    senders, receivers, distance = path_lengths([[]] + [[node] for node in range(199)])
    assert distance.max() == 50
    assert len(distance) == sum(min(node, 50) for node in range(200))


def cse_program():
    gene = (("cse", 0), ("conv_1x1", 1))
    return deepnets.program(deepnets.Architecture(gene, gene, (2,), n_cells=4, C_mult=1))


def test_gate_joins_the_value_and_its_weights():
    graph = build_graph(cse_program())
    gates = np.flatnonzero(graph.node_type == TYPE_INDEX["cse"])
    assert len(gates) == 4
    for gate in gates:
        before = graph.senders[(graph.receivers == gate) & (graph.distance == 1)]
        assert len(before) == 2
        assert "bias" in [NODE_TYPES[graph.node_type[node]] for node in before]


def test_activation_nodes():
    program = cse_program()
    plain, full = build_graph(program), build_graph(program, activations=True)
    added = [step.kind for call in program.calls for step in call.block.steps]
    for kind in ("relu", "hard_swish"):
        assert np.sum(full.node_type == TYPE_INDEX[kind]) == added.count(kind) > 0
    kept = full.node_type[full.node_type < TYPE_INDEX["relu"]]
    assert sorted(kept) == sorted(plain.node_type)

    gene = (("none", 0), ("msa", 1))
    vit = deepnets.Architecture(gene, gene, (2,), n_cells=2, C_mult=1, preproc=False)
    graph = build_graph(deepnets.program(vit), activations=True)
    names = [NODE_TYPES[kind] for kind in graph.node_type]
    assert names.count("softmax") == names.count("msa") == names.count("gelu") == 2
    msa = names.index("msa")
    before = graph.senders[(graph.receivers == msa) & (graph.distance == 1)]
    assert [names[node] for node in before] == ["conv", "softmax"]


def test_zeros_add_nothing_to_a_concatenation():
    none = (("none", 0), ("none", 1))
    conv = (("conv_3x3", 0), ("conv_1x1", 1))
    arch = deepnets.Architecture(none + conv, none + conv, (2, 3), n_cells=4)
    names = [NODE_TYPES[kind] for kind in build_graph(deepnets.program(arch)).node_type]
    reductions = 2
    assert names.count("concat") == reductions


def test_depthwise_convolutions_have_their_own_types():
    gene = (("sep_conv_3x3", 0), ("dil_conv_5x5", 1))
    arch = deepnets.Architecture(gene, gene, (2,), n_cells=4, C_mult=1)
    graph = build_graph(deepnets.program(arch))
    names = [NODE_TYPES[kind] for kind in graph.node_type]
    assert names.count("sep_conv") == 8
    assert names.count("dil_conv") == 4
    assert graph.shape[names.index("dil_conv")].tolist() == [32, 1, 5, 5]


def test_operation_without_rule_is_named_with_its_place():
    b = BlockBuilder(1)
    b("mish", b.conv(0, "conv", 8), name="act")
    build = ProgramBuilder((6, 6, 3))
    build(b.build(), (0,), "layer1.0")
    with pytest.raises(UsageError, match="no rule for operation 'mish' at 'layer1.0.act'"):
        build_graph(build.build())


def test_pairs_of_a_sampled_network_equal_networkx():
    arch = dataclasses.replace(get_space("deepnets").sample("train", 3), C=32)
    graph = build_graph(deepnets.program(arch))
    assert stored_pairs(graph) == pairs(to_networkx(graph))
