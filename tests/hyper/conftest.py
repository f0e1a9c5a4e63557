"""The reference hypernetwork's arrays, its weights in our layout, and random architectures."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medinit_jax.arch.graph import ArchGraph
from medinit_jax.hyper.initializer import HyperInitializer

NETS = ("darts", "vgg", "vit", "cse")


def _affine(weight, bias):
    return {"kernel": np.ascontiguousarray(weight.T), "bias": bias}


def _theta(weights):
    """Converts the reference's PyTorch state dict."""
    get = weights.__getitem__

    def mlp(name):
        first, second = f"gnn.{name}.fc.0", f"gnn.{name}.fc.2"
        return {
            "in": _affine(get(first + ".weight"), get(first + ".bias")),
            "out": _affine(get(second + ".weight"), get(second + ".bias")),
        }

    hidden_1 = _affine(get("decoder.conv.0.weight")[..., 0, 0], get("decoder.conv.0.bias"))
    tile, tile_bias = get("decoder.conv.2.weight")[..., 0, 0], get("decoder.conv.2.bias")
    hidden_0, hidden_0_bias = get("decoder.fc.0.weight"), get("decoder.fc.0.bias")
    classes = "decoder.class_layer_predictor.1"
    decoder = {
        "hidden_0": {
            "kernel": hidden_0.reshape(128, 11, 11, 32).transpose(3, 1, 2, 0),
            "bias": hidden_0_bias.reshape(128, 11, 11).transpose(1, 2, 0),
        },
        "hidden_1": hidden_1,
        "tile": {
            "kernel": tile.reshape(64, 64, 256).transpose(2, 1, 0),
            "bias": tile_bias.reshape(64, 64).T,
        },
        "class_kernel": _affine(get(classes + ".weight")[..., 0, 0], get(classes + ".bias")),
        "vector_0": _affine(get("decoder_1d.fc.0.weight"), get("decoder_1d.fc.0.bias")),
        "vector_1": {
            "kernel": get("decoder_1d.fc.2.weight").reshape(2, 64, 64).transpose(2, 0, 1),
            "bias": get("decoder_1d.fc.2.bias").reshape(2, 64),
        },
        "class_bias": _affine(get("bias_class.1.weight"), get("bias_class.1.bias")),
    }
    return {
        "params": {
            "embedding": {
                "type": get("embed.weight"),
                "channels": get("shape_enc.embed_channel.weight"),
                "spatial": get("shape_enc.embed_spatial.weight"),
            },
            "gnn": {
                "gru": {
                    "message": _affine(get("gnn.gru.weight_ih"), get("gnn.gru.bias_ih")),
                    "hidden": _affine(get("gnn.gru.weight_hh"), get("gnn.gru.bias_hh")),
                },
                "mlp": mlp("mlp"),
                "mlp_virtual": mlp("mlp_ve"),
            },
            "norm": {"scale": get("ln.weight"), "bias": get("ln.bias")},
            "decoder": decoder,
        }
    }


class Oracle:
    """`ghn.npz`, read by name."""

    def __init__(self, path):
        with np.load(path) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.meta = json.loads(str(self.arrays["meta_json"]))
        weights = {k[len("ghn/") :]: v for k, v in self.arrays.items() if k.startswith("ghn/")}
        self.module = HyperInitializer(num_classes=10)
        self.theta = _theta(weights)

    def __getitem__(self, name):
        return self.arrays[name]

    def graph(self, place):
        """Graph at `arch/<name>` or `synth`; the latter has table rows instead of shapes."""
        node_type = self[f"{place}/node_type"].astype(np.int32)
        senders, receivers, distance = self[f"{place}/edges"].T.astype(np.int32)
        nodes = len(node_type)
        shape = np.zeros((nodes, 4), np.int32)
        parameters = [None] * nodes
        head = np.zeros(nodes, bool)
        name = place.removeprefix("arch/")
        for row in self.meta["arch"].get(name, {"node_info": ()})["node_info"]:
            node, size = row["node"], row["size"]
            shape[node] = (*size, 1, 1, 1)[:4]
            head[node] = row["last_weight"] or row["last_bias"]
            if row["target"]:
                owner, leaf = row["target"].rsplit(".", 1)
                kinds = {"bn": "norm", "ln": "norm", "bias": "bias", "pos_enc": "embedding"}
                parameters[node] = (owner, kinds.get(row["prim"], "kernel"))
        if place == "synth":
            shape = self._shapes_of_rows(self["synth/shape_ind"])
        return ArchGraph(node_type, shape, tuple(parameters), head, senders, receivers, distance)

    def _shapes_of_rows(self, rows):
        channels = np.append(self["shape_enc/channels"], 0)
        spatial = np.append(self["shape_enc/spatial"], 0)
        return np.concatenate([channels[rows[:, :2]], spatial[rows[:, 2:]]], 1).astype(np.int32)

    def parameters(self, name):
        """The reference's predictions for a net, named and laid out as in Flax."""
        prefix = f"arch/{name}/pred/"
        predicted = {k[len(prefix) :]: v for k, v in self.arrays.items() if k.startswith(prefix)}
        tree = {}
        for key, value in predicted.items():
            owner, leaf = key.rsplit(".", 1)
            if value.ndim == 1:
                leaf = "scale" if leaf == "weight" else "bias"
            elif owner == "pos_enc":
                leaf, value = "embedding", value.transpose(0, 2, 3, 1)
            else:
                leaf = "kernel"
                value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
            tree.setdefault(owner, {})[leaf] = value
        return tree


@pytest.fixture(scope="session")
def oracle():
    shared = os.environ.get("MEDINIT_SHARED") or Path(__file__).parents[2] / ".." / "shared"
    path = Path(shared) / "oracles" / "ghn.npz"
    if not path.exists():
        pytest.skip(f"the reference arrays {path} are absent")
    return Oracle(path)


def all_pairs(adjacency, largest=50):
    """Shortest-path lengths up to `largest`, 0 = none, by the definition: powers of adjacency."""
    distance = np.zeros(adjacency.shape, np.int32)
    reach = np.eye(len(adjacency), dtype=bool)
    for length in range(1, largest + 1):
        reach = (reach.astype(int) @ adjacency.astype(int)) > 0
        distance[reach & (distance == 0)] = length
    return distance


def graph_of(node_type, shape, distance):
    """Architecture graph from a dense matrix of path lengths (sender, receiver)."""
    senders, receivers = np.nonzero(distance)
    return ArchGraph(
        node_type.astype(np.int32),
        shape.astype(np.int32),
        (None,) * len(node_type),
        np.zeros(len(node_type), bool),
        senders.astype(np.int32),
        receivers.astype(np.int32),
        distance[senders, receivers].astype(np.int32),
    )


@pytest.fixture(scope="session")
def random_graph():
    """Function (nodes, seed) -> graph of a random connected DAG in topological order."""

    def build(nodes, seed=0):
        random = np.random.default_rng(seed)
        adjacency = np.zeros((nodes, nodes), bool)
        for node in range(1, nodes):
            earliest = max(0, node - 4)
            count = random.integers(1, min(3, node - earliest) + 1)
            adjacency[random.choice(np.arange(earliest, node), count, replace=False), node] = True
        shape = random.choice([0, 1, 3, 16, 33, 64, 200], size=(nodes, 4))
        return graph_of(random.integers(0, 15, nodes), shape, all_pairs(adjacency))

    return build
