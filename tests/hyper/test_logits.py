"""The four networks of the reference from graph to logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.deepnets import Architecture, program
from medinit_jax.arch.graph import ArchGraph, build_graph, path_lengths
from medinit_jax.arch.vocabulary import TYPE_INDEX
from medinit_jax.hyper.initializer import predict
from medinit_jax.models.network import Network, apply_with_batch_statistics

NETS = ("darts", "vgg", "vit", "cse")


def network(oracle, name):
    config = dict(oracle.meta["arch"][name]["config"])
    genotype = config.pop("genotype")
    arch = Architecture(
        normal=tuple((op, state) for op, state in genotype["normal"]),
        reduce=tuple((op, state) for op, state in genotype["reduce"]),
        concat=tuple(genotype["normal_concat"]),
        norm=config.pop("norm") is not None,
        **config,
    )
    return program(arch, 32, num_classes=10)


def without_attention_and_gates(graph):
    """The reference loses these nodes: their sources are joined to their receivers."""
    parents = [[] for _ in graph.node_type]
    for sender, receiver, length in zip(
        graph.senders, graph.receivers, graph.distance, strict=True
    ):
        if length == 1:
            parents[receiver].append(int(sender))
    lost = np.isin(graph.node_type, [TYPE_INDEX["msa"], TYPE_INDEX["cse"]])
    for node, before in enumerate(parents):
        joined = [s for p in before for s in (parents[p] if lost[p] else [p])]
        parents[node] = list(dict.fromkeys(joined))
    kept = np.flatnonzero(~lost)
    number = {int(node): i for i, node in enumerate(kept)}
    parents = [[number[p] for p in parents[node]] for node in kept]
    return ArchGraph(
        graph.node_type[kept],
        graph.shape[kept],
        tuple(graph.parameters[node] for node in kept),
        graph.head[kept],
        *path_lengths(parents),
    )


def reorder_flat_head(program, parameters):
    """Moves the rows of a dense layer on flattened maps from (C, H, W) to our (H, W, C) order.

    The reference flattens channels first, and the hypernetwork repeats its tile along the rows, so
    a predicted head means another function here than there: the same values, other rows. Training
    ours from the start is equivalent; only a comparison with the reference has to reorder.
    """
    head = program.calls[-1]
    if head.block.steps[0].kind != "flatten":
        return parameters
    height, width, channels = program.shapes[head.inputs[0]]
    name = head.module("0")
    kernel = np.asarray(parameters[name]["kernel"])
    kernel = kernel.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return {
        **parameters,
        name: {**parameters[name], "kernel": kernel.reshape(-1, kernel.shape[-1])},
    }


def assert_same_logits(oracle, name, parameters):
    net = network(oracle, name)
    images = jnp.asarray(oracle[f"arch/{name}/img"].transpose(0, 2, 3, 1))
    expected = oracle[f"arch/{name}/logits"]
    parameters = jax.tree.map(jnp.asarray, reorder_flat_head(net, parameters))
    # Calls one by one: compiling a network for one batch costs more than running it.
    logits = apply_with_batch_statistics(net, parameters, images, len(images))
    error = np.abs(logits - expected).max() / np.abs(expected).max()
    assert error < 1e-4
    return net, parameters, images, logits


@pytest.mark.parametrize("name", NETS)
def test_logits_of_the_reference_parameters(oracle, name):
    assert_same_logits(oracle, name, oracle.parameters(name))


@pytest.mark.parametrize("name", NETS)
def test_logits_from_the_architecture_alone(oracle, name):
    net = network(oracle, name)
    shapes = net.parameter_shapes()
    graph = without_attention_and_gates(build_graph(net))
    predicted = predict(oracle.module, oracle.theta, graph, shapes)
    wanted = oracle.parameters(name)
    assert predicted.keys() == wanted.keys()
    assert_same_logits(oracle, name, predicted)


def test_the_module_gives_the_logits_of_the_pure_function(oracle):
    net, parameters, images, logits = assert_same_logits(oracle, "vit", oracle.parameters("vit"))
    np.testing.assert_allclose(
        Network(net).apply({"params": parameters}, images), logits, rtol=1e-4, atol=1e-5
    )


def test_the_flat_head_differs_by_the_order_of_its_rows_only(oracle):
    net, parameters = network(oracle, "vgg"), oracle.parameters("vgg")
    images = jnp.asarray(oracle["arch/vgg/img"].transpose(0, 2, 3, 1))
    plain = jax.tree.map(jnp.asarray, parameters)
    logits = apply_with_batch_statistics(net, plain, images, len(images))
    expected = oracle["arch/vgg/logits"]
    assert np.abs(logits - expected).max() / np.abs(expected).max() > 1e-3
