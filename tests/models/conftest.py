"""What every family of networks is held against: its PyTorch counterpart, its graph, its scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from medinit_jax.arch.graph import build_graph
from medinit_jax.arch.program import OWN_INIT
from medinit_jax.arch.vocabulary import NODE_TYPES
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.ops import apply_block, batch_norm_over_groups
from medinit_jax.models.statistics import initial_statistics


def leaf_from_torch(kind, value, shape, first_map):
    """Brings a PyTorch parameter to Flax's layout.

    `first_map` is (channels, height, width) of the map that a dense layer reads flattened.
    """
    if kind == "conv_t":
        return value.transpose(2, 3, 0, 1)
    if value.ndim == 4 and len(shape) == 4:
        return value.transpose(2, 3, 1, 0)
    if first_map:
        value = value.reshape(-1, *first_map).transpose(0, 2, 3, 1)
        return value.reshape(len(value), -1).T
    if len(shape) == 2 and value.ndim in (2, 4):
        return value.reshape(value.shape[:2]).T
    return value.reshape(shape)


def from_torch(program, state, first_maps, rename):
    """Renames a PyTorch state and returns (params, batch_stats); nothing may be left over.

    `rename` leads from our module names to PyTorch's.
    """
    state = {name: value.numpy() for name, value in state.items()}
    kinds = {
        call.module(step.name): step.kind for call in program.calls for step in call.block.steps
    }
    params = {}
    for module, leaves in program.parameter_shapes().items():
        params[module] = {}
        for leaf, shape in leaves.items():
            if leaf == "embedding" or leaf in OWN_INIT:
                name = module
            else:
                name = f"{rename(module)}.{'bias' if leaf == 'bias' else 'weight'}"
            kind = kinds[module] if leaf == "kernel" else ""
            first_map = first_maps.get(module) if leaf == "kernel" else None
            value = leaf_from_torch(kind, state.pop(name), shape, first_map)
            assert value.shape == shape, name
            params[module][leaf] = jnp.asarray(value)
    statistics = {}
    for name in initial_statistics(program):
        module = rename(name.removesuffix(".stats"))
        statistics[name] = {
            "mean": jnp.asarray(state.pop(f"{module}.running_mean")),
            "var": jnp.asarray(state.pop(f"{module}.running_var")),
        }
    assert {name.rsplit(".", 1)[-1] for name in state} <= {"num_batches_tracked"}
    return params, statistics


def randomized(torch, net, seed=0):
    """Gives norms and class tokens of a PyTorch network values that a mistake would show in."""
    torch.manual_seed(seed)
    net.eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.3)
                module.running_var.uniform_(0.5, 2)
            if "Norm" in type(module).__name__ and getattr(module, "weight", None) is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)
        for name, value in net.named_parameters():
            if "token" in name or "layer_scale" in name or name == "pos_embed":
                value.normal_(0, 0.5)
    return net


@pytest.fixture
def torch_error():
    """Returns a function: (program, PyTorch network) -> largest error relative to the logits."""

    def error(program, net, first_maps=None, batch=2, rename=str):
        torch = pytest.importorskip("torch")
        height, width, channels = program.input_shape
        images = np.random.default_rng(0).normal(size=(batch, height, width, channels))
        images = images.astype(np.float32)
        with torch.no_grad():
            net = randomized(torch, net)
            expected = net(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
        params, statistics = from_torch(program, net.state_dict(), first_maps or {}, rename)
        variables = {"params": params, **({"batch_stats": statistics} if statistics else {})}
        logits = np.asarray(jax.jit(Network(program).apply)(variables, images))
        if expected.ndim == 4:
            expected = expected.transpose(0, 2, 3, 1)
        assert logits.shape == expected.shape
        # The spread, not the size: equal logits of all images and classes would hide everything.
        return float(np.abs(logits - expected).max() / expected.std())

    return error


@pytest.fixture
def sound_graph():
    """Returns a function: program -> {node type: count} of its graph, after checking the graph."""

    def check(program):
        graph = build_graph(program)
        names = [NODE_TYPES[kind] for kind in graph.node_type]
        assert np.all(graph.senders < graph.receivers)
        edges = graph.distance == 1
        before = [[] for _ in names]
        for sender, receiver in zip(graph.senders[edges], graph.receivers[edges], strict=True):
            before[receiver].append(int(sender))
        # Every node is reached from a source, and leads to the last one.
        sources = {names[node] for node, parents in enumerate(before) if not parents}
        assert sources <= {"input", "pos_enc", "embed"}
        live = {len(names) - 1}
        for node in reversed(range(len(names))):
            assert node in live, names[node]
            live.update(before[node])
        wanted = {
            (module, "norm" if "scale" in leaves else leaf)
            for module, leaves in program.parameter_shapes().items()
            for leaf in leaves
            if leaf not in OWN_INIT
        }
        found = [entry for entry in graph.parameters if entry]
        assert len(found) == len(wanted) and set(found) == wanted
        head = [graph.parameters[node] for node in np.flatnonzero(graph.head)]
        assert head == [(program.head, "kernel"), (program.head, "bias")]
        return {name: names.count(name) for name in dict.fromkeys(names)}

    return check


@pytest.fixture
def assert_spread_is_sound():
    """Returns a function that runs a program with its own init and looks at every call's output."""

    def check(program, batch=4):
        images = np.random.default_rng(0).normal(size=(batch, *program.input_shape))

        @jax.jit
        def spreads(params, images):
            values = [images]
            for call in program.calls:
                leaves = {s.name: params[call.module(s.name)] for s in call.block.steps if s.name}
                inputs = tuple(values[i] for i in call.inputs)
                values.append(
                    apply_block(
                        call.block, leaves, inputs,
                        lambda step, x, p: batch_norm_over_groups(x, p, batch, step.epsilon),
                    )
                )  # fmt: skip
            return jnp.stack([value.std() for value in values[1:]])

        params = initial_parameters(program, jax.random.key(0))
        found = np.asarray(spreads(params, jnp.asarray(images, jnp.float32)))
        assert np.all((found > 1e-3) & (found < 1e3)), found

    return check
