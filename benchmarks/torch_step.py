"""The bilevel step in eager PyTorch, as the opponent of `bilevel.py --against-torch`.

The same function of the same theta, architectures and images as `hyper.bilevel.gradient_by_tape`,
written the way PyTorch is used: networks run layer by layer in NCHW, the hypernetwork visits nodes
one after another, all graphs of the meta-batch together, as GHN-2's code does. What depends on the
architectures alone (graphs, groups, indices) is planned beforehand, as for the tape.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from medinit_jax.arch.program import Program, Step
from medinit_jax.hyper.bilevel import MetaBatch
from medinit_jax.hyper.embedding import shape_indices
from medinit_jax.hyper.hypernetwork import HyperInitializer

Weights = Mapping[str, Mapping[str, Tensor]]


class Visit(NamedTuple):
    """One position of a sweep: the node at it in every graph that is long enough.

    Attributes:
        rows: Rows of these nodes.
        real: Rows that send a message along an edge.
        virtual: Rows that send one along a path.
        weights: (len(virtual), 1), 1 / length of each path.
        receivers: Which of `rows` each message of `real`, then of `virtual`, is for.
    """

    rows: Tensor
    real: Tensor
    virtual: Tensor
    weights: Tensor
    receivers: Tensor


class Plan(NamedTuple):
    """What a meta-batch says about the work to do, without any weight.

    Attributes:
        node_type: (rows,).
        sizes: (rows, 4), rows of the tables of sizes.
        sweeps: Visits forward, then backward.
        kernels: {(height, width, out, in): [(network, module, leaf, row)]}.
        vectors: [(network, module, kind, row)] of norms and biases.
        heads: The same of classifiers.
    """

    node_type: Tensor
    sizes: Tensor
    sweeps: tuple[tuple[Visit, ...], ...]
    kernels: dict[tuple[int, int, int, int], list[tuple[int, str, str, int]]]
    vectors: list[tuple[int, str, str, int]]
    heads: list[tuple[int, str, str, int]]


def plan(batch: MetaBatch, module: HyperInitializer, dtype: torch.dtype = torch.float32) -> Plan:
    """Plans the hypernetwork's work for a meta-batch.

    Args:
        batch: The architectures.
        module: The hypernetwork.
        dtype: In which it computes.
    """
    graph, count = batch.graph, len(batch.programs)
    nodes = len(graph.nodes["type"]) // count
    known = graph.edges["distance"] > 0
    senders, receivers = graph.senders[known], graph.receivers[known]
    distance = graph.edges["distance"][known]
    live = np.flatnonzero(graph.nodes["mask"])
    sweeps = (
        _visits(live, nodes, senders, receivers, distance, dtype),
        _visits(live, nodes, receivers, senders, distance, dtype)[::-1],
    )
    kernels, vectors, heads = {}, [], []
    for group in batch.groups:
        for (network, name, kind), row in zip(group.places, group.rows.tolist(), strict=False):
            place = network, name, kind, row
            if group.key[0] == "kernel":
                kernels.setdefault(group.key[1:], []).append(place)
            else:
                (heads if group.key[0].startswith("head") else vectors).append(place)
    rows = np.array(shape_indices(graph.nodes["shape"], module.known_sizes))
    node_type = torch.from_numpy(graph.nodes["type"].astype(np.int64))
    return Plan(node_type, torch.from_numpy(rows).long(), sweeps, kernels, vectors, heads)


def _visits(live, nodes, senders, receivers, distance, dtype) -> tuple[Visit, ...]:
    visits = []
    for position in range(nodes):
        rows = live[live % nodes == position]
        here = receivers % nodes == position
        real, virtual = here & (distance == 1), here
        slots = {row: slot for slot, row in enumerate(rows.tolist())}
        into = [slots[row] for mask in (real, virtual) for row in receivers[mask].tolist()]
        if len(rows):
            visits.append(
                Visit(
                    rows=torch.from_numpy(rows).long(),
                    real=torch.from_numpy(senders[real]).long(),
                    virtual=torch.from_numpy(senders[virtual]).long(),
                    weights=torch.from_numpy(1.0 / distance[virtual])[:, None].to(dtype),
                    receivers=torch.tensor(into, dtype=torch.long),
                )
            )
    return tuple(visits)


class Hypernetwork:
    """The hypernetwork with weights in PyTorch's layouts.

    Args:
        module: Its description; sequential with virtual edges, one round.
        theta: Its parameters, NumPy arrays.
    """

    def __init__(self, module: HyperInitializer, theta: Any):
        self.module = module
        self.weights = jax.tree.map(lambda x: torch.tensor(np.array(x)), theta)
        decoder, d = self.weights["decoder"], module.hidden
        out, in_, height, width = module.max_shape
        # (positions, channels) -> (channels, positions), (in, out) -> (out, in).
        first = decoder["hidden_0"]
        first["kernel"] = first["kernel"].permute(3, 1, 2, 0).reshape(4 * d * height * width, d)
        first["bias"] = first["bias"].permute(2, 0, 1).reshape(-1)
        decoder["hidden_1"]["kernel"] = decoder["hidden_1"]["kernel"].T[:, :, None, None]
        decoder["tile"]["kernel"] = decoder["tile"]["kernel"].permute(2, 1, 0)
        decoder["tile"]["bias"] = decoder["tile"]["bias"].T
        decoder["vector_1"]["kernel"] = decoder["vector_1"]["kernel"].reshape(2 * d, 2 * out)
        decoder["vector_1"]["bias"] = decoder["vector_1"]["bias"].reshape(-1)
        self.weights = jax.tree.map(lambda x: x.contiguous().requires_grad_(), self.weights)
        self.leaves: list[Tensor] = jax.tree.leaves(self.weights)

    def gradient(self) -> Any:
        """Returns the gradients in the layouts of theta, as NumPy arrays."""
        found = jax.tree.map(lambda x: x.grad, self.weights)
        decoder, d = found["decoder"], self.module.hidden
        out, _, height, width = self.module.max_shape
        first = decoder["hidden_0"]
        first["kernel"] = first["kernel"].reshape(4 * d, height, width, d).permute(3, 1, 2, 0)
        first["bias"] = first["bias"].reshape(4 * d, height, width).permute(1, 2, 0)
        decoder["hidden_1"]["kernel"] = decoder["hidden_1"]["kernel"][..., 0, 0].T
        decoder["tile"]["kernel"] = decoder["tile"]["kernel"].permute(2, 1, 0)
        decoder["tile"]["bias"] = decoder["tile"]["bias"].T
        decoder["vector_1"]["kernel"] = decoder["vector_1"]["kernel"].reshape(2 * d, 2, out)
        decoder["vector_1"]["bias"] = decoder["vector_1"]["bias"].reshape(2, out)
        return jax.tree.map(lambda x: x.numpy(), found)

    def features(self, work: Plan) -> Tensor:
        """Returns (rows, d), the features of all nodes; rows of padding mean nothing."""
        table = self.weights["embedding"]
        described = [table["channels"][work.sizes[:, :2]], table["spatial"][work.sizes[:, 2:]]]
        x = table["type"][work.node_type] + torch.cat(described, 1).flatten(1)
        gnn = self.weights["gnn"]
        unit = [gnn["gru"][name][leaf].T if leaf == "kernel" else gnn["gru"][name][leaf]
                for leaf in ("kernel", "bias") for name in ("message", "hidden")]  # fmt: skip
        for sweep in work.sweeps:
            for visit in sweep:
                messages = torch.cat(
                    [
                        _message(gnn["mlp"], x[visit.real]),
                        _message(gnn["mlp_virtual"], x[visit.virtual]) * visit.weights,
                    ]
                )
                message = messages.new_zeros(len(visit.rows), x.shape[1])
                message = message.index_add(0, visit.receivers, messages)
                x = x.index_copy_(0, visit.rows, torch.gru_cell(message, x[visit.rows], *unit))
        norm = self.weights["norm"]
        return functional.layer_norm(x, x.shape[1:], norm["scale"], norm["bias"])

    def predict(self, programs: Sequence[Program], work: Plan) -> list[dict[str, dict]]:
        """Returns the parameters of every network, {module: {leaf: tensor}}, OIHW."""
        x = self.features(work)
        shapes = [program.parameter_shapes() for program in programs]
        found: list[dict[str, dict]] = [{} for _ in programs]
        for key, places in work.kernels.items():
            rows = [row for *_, row in places]
            tiles = self._kernels(x[rows], key)
            for (network, name, leaf, _), tile in zip(places, tiles, strict=True):
                target = shapes[network][name][leaf]
                value = _embedding(tile, target) if leaf == "embedding" else _kernel(tile, target)
                found[network].setdefault(name, {})[leaf] = value
        vectors = self._vectors(x[[row for *_, row in work.vectors]])
        for (network, name, kind, _), (scale, bias) in zip(work.vectors, vectors, strict=True):
            own = found[network].setdefault(name, {})
            (size,) = shapes[network][name]["bias"]
            if kind == "norm":
                own["scale"] = 2 * torch.sigmoid(0.5 * _repeat(scale, (size,)))
            own["bias"] = torch.tanh(0.2 * _repeat(bias, (size,)))
        for network, name, kind, row in work.heads:
            own = found[network].setdefault(name, {})
            own[kind] = self._head(x[row : row + 1], kind, shapes[network][name]["kernel"])
        return found

    def _kernels(self, x: Tensor, key: tuple[int, int, int, int]) -> Tensor:
        """Decodes (n, out, in, height, width): all positions, then those wanted, as GHN-2 does."""
        (height, width, out, in_), decoder = key, self.weights["decoder"]
        first, second, last = (decoder[name] for name in ("hidden_0", "hidden_1", "tile"))
        hidden = functional.linear(x, first["kernel"], first["bias"]).relu()
        hidden = hidden.view(len(x), -1, *self.module.max_shape[2:])[:, :, :height, :width]
        hidden = functional.conv2d(hidden, second["kernel"], second["bias"]).relu()
        kernel = last["kernel"][:out, :in_].reshape(out * in_, -1, 1, 1)
        tiles = functional.conv2d(hidden, kernel, last["bias"][:out, :in_].reshape(-1))
        return tiles.view(len(x), out, in_, height, width)

    def _vectors(self, x: Tensor) -> Tensor:
        first, last = (self.weights["decoder"][name] for name in ("vector_0", "vector_1"))
        hidden = functional.linear(x, first["kernel"].T, first["bias"]).relu()
        return functional.linear(hidden, last["kernel"].T, last["bias"]).view(len(x), 2, -1)

    def _head(self, x: Tensor, kind: str, target: tuple[int, ...]) -> Tensor:
        if kind == "bias":
            layer = self.weights["decoder"]["class_bias"]
            value = functional.linear(self._vectors(x)[0, 1].relu(), layer["kernel"].T)
            return torch.tanh(0.2 * (value + layer["bias"]))
        layer = self.weights["decoder"]["class_kernel"]
        tile = self._kernels(x, (1, 1, *self.module.max_shape[:2]))[0, ..., 0, 0].relu()
        value = layer["kernel"].T @ tile + layer["bias"][:, None]
        return _repeat(value, (target[1], target[0])) * math.sqrt(2 / target[0])


def _message(layers: Weights, x: Tensor) -> Tensor:
    hidden = functional.linear(x, layers["in"]["kernel"].T, layers["in"]["bias"]).relu()
    return functional.linear(hidden, layers["out"]["kernel"].T, layers["out"]["bias"]).relu()


def _repeat(values: Tensor, sizes: Sequence[int]) -> Tensor:
    values = values[tuple(slice(size) for size in sizes)]
    copies = [-(-size // have) for size, have in zip(sizes, values.shape, strict=True)]
    return values.repeat(copies)[tuple(slice(s) for s in sizes)] if max(copies) > 1 else values


def _kernel(tile: Tensor, target: tuple[int, ...]) -> Tensor:
    in_, out = target[-2:]
    value = _repeat(tile, (out, in_, *tile.shape[2:]))
    plain = len(target) == 2 or (in_ > 1 and target[0] >= target[1])
    value = value * math.sqrt((2 if plain else 1) / math.prod(target[:-1]))
    return value[..., 0, 0] if len(target) == 2 else value


def _embedding(tile: Tensor, target: tuple[int, ...]) -> Tensor:
    return _repeat(tile, (1, target[-1], *tile.shape[2:]))


def run(program: Program, parameters: Mapping[str, Mapping[str, Tensor]], images: Tensor) -> Tensor:
    """Runs a network of the design space on (batch, channels, height, width); returns logits."""
    values = [images]
    for call in program.calls:
        inner = [values[i] for i in call.inputs]
        for step in call.block.steps:
            leaves = parameters[call.module(step.name)] if step.name else {}
            inner.append(_apply(step, leaves, *(inner[i] for i in step.args)))
        values.append(inner[-1])
    return values[-1]


def _apply(step: Step, leaves: Mapping[str, Tensor], x: Tensor, *others: Tensor) -> Tensor:
    match step.kind:
        case "conv":
            return functional.conv2d(
                x, leaves["kernel"], None, step.stride, step.padding, step.dilation, step.groups
            )
        case "batch_norm":
            scale, bias = leaves["scale"], leaves["bias"]
            return functional.batch_norm(x, None, None, scale, bias, True, 0.0, step.epsilon)
        case "layer_norm":
            return _by_place(
                lambda y: functional.layer_norm(
                    y, y.shape[-1:], leaves["scale"], leaves["bias"], step.epsilon
                ),
                x,
            )
        case "dense":
            return _by_place(
                lambda y: functional.linear(y, leaves["kernel"], leaves.get("bias")), x
            )
        case "attention":
            return _attention(x, step.heads)
        case "max_pool":
            return functional.max_pool2d(x, step.kernel, step.stride, step.padding)
        case "avg_pool":
            return functional.avg_pool2d(
                x, step.kernel, step.stride, step.padding, count_include_pad=False
            )
        case "global_pool" | "squeeze":
            return x.mean((2, 3))
        case "flatten":
            return x.permute(0, 2, 3, 1).flatten(1)
        case "subsample":
            height, width = (-(-n // s) for n, s in zip(x.shape[2:], step.stride, strict=True))
            if step.offset:
                x = functional.pad(x, (0, step.offset, 0, step.offset))
                x = x[:, :, step.offset :, step.offset :]
            return x[:, :, :: step.stride[0], :: step.stride[1]][:, :, :height, :width]
        case "add":
            return x + others[0]
        case "concat":
            return torch.cat([x, *others], 1)
        case "gate":
            return x * others[0][:, :, None, None]
        case "position":
            return x + leaves["embedding"]
        case "zeros":
            return torch.zeros_like(x)
        case "relu":
            return x.relu()
        case "gelu":
            return functional.gelu(x)
        case "hard_swish":
            return functional.hardswish(x)
    raise ValueError(f"the design space has no step {step.kind!r}")


def _by_place(function: Any, x: Tensor) -> Tensor:
    """Applies a function of the last axis to the channels of a vector or a map."""
    return function(x) if x.ndim == 2 else function(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _attention(x: Tensor, heads: int) -> Tensor:
    batch, channels, height, width = x.shape
    query, key, value = (
        x.reshape(batch, 3, heads, channels // 3 // heads, height * width).transpose(3, 4).unbind(1)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(2, 3).reshape(batch, channels // 3, height, width)
