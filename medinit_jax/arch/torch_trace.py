"""Any PyTorch model -> graph, through `torch.export`.

The exported program is a list of ATen operations on named parameters. It needs no list of layers:
what a convolution or a norm is, and which parameters it takes, stands in the operation itself.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medinit_jax.arch.dataflow import UNUSED, Dataflow, Traced, refuse_unknown
from medinit_jax.arch.graph import conv_type
from medinit_jax.arch.layout import Layout, reshape, shape_after, transpose
from medinit_jax.arch.reader import PARTS, Reader, Value, View, not_real, unruled
from medinit_jax.arch.torch_export import exported
from medinit_jax.arch.torch_nodes import (
    PERMUTED,
    argument,
    kernel_layout,
    largest,
    operation,
    reshaped,
    shape_of,
    squeezed,
)
from medinit_jax.core.errors import UsageError

CONVOLUTIONS = frozenset(("conv1d", "conv2d", "conv3d", "convolution"))
TRANSPOSED = frozenset(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"))
# Node type, and the places of scale and bias among the arguments.
NORMS = {
    "batch_norm": ("bn", 1, 2),
    "instance_norm": ("in", 1, 2),
    "group_norm": ("gn", 2, 3),
    "layer_norm": ("ln", 2, 3),
    "rms_norm": ("ln", 2, 3),
}
SAME = frozenset(
    ("view", "reshape", "unsqueeze", "squeeze", "expand", "flatten", "unflatten", "contiguous",
     "clone", "to", "_to_copy", "detach", "alias", "type_as", "expand_as", "view_as",
     "reshape_as", "lift_fresh_copy", "dropout", "feature_dropout", "_unsafe_view",
     "_assert_tensor_metadata", "float", "half", "mT", "repeat", "tile", "broadcast_to")
) | PERMUTED  # fmt: skip
LOOKUPS = frozenset(
    ("index", "index_select", "gather", "select", "slice", "narrow", "split", "chunk",
     "split_with_sizes", "embedding", "unbind", "getitem")
)  # fmt: skip
ADDITIONS = frozenset(("add", "sub", "rsub"))
# What reads its first argument as data, even where that is a parameter such as a learned query.
READERS = CONVOLUTIONS | TRANSPOSED | {"linear", "layer_norm"}
SPECTRAL = (
    "Spectral norms follow their weights in training mode only: call the model there some times "
    "before it is used."
)
ACTIVATIONS = {
    "relu": "relu",
    "relu6": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "hardswish": "hard_swish",
    "sigmoid": "sigmoid",
    "hardsigmoid": "sigmoid",
}


def trace(
    model: torch.nn.Module,
    inputs: Sequence[torch.Tensor],
    options: Mapping[str, Any],
    on_unknown: str = "fallback",
    activations: bool = False,
    only: str = "",
) -> Traced:
    """Exports a model and reads its graph; the model stays as it is.

    Args:
        model: The model.
        inputs: Its inputs, batch first, on its device.
        options: Further keyword arguments of its call.
        on_unknown: What becomes of parameters without a rule: "fallback" or "error".
        activations: Whether activation functions are nodes.
        only: See `Dataflow.finish`.

    Returns:
        The traced model; names are those of `named_parameters`.

    Raises:
        UsageError: The model cannot be exported, or holds what "error" forbids.
    """
    label = type(model).__name__
    if on_unknown not in ("fallback", "error"):
        raise UsageError(f"on_unknown={on_unknown!r} is none of fallback, error.")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    aliases = {
        alias: names[id(parameter)]
        for alias, parameter in model.named_parameters(remove_duplicate=False)
    }
    leaves = {name: tuple(p.shape) for name, p in model.named_parameters()}

    def read(training: bool) -> Traced:
        flow = Dataflow()
        program = exported(model, inputs, options, training)
        outputs = _Walker(flow, activations, aliases).run_program(program)
        if any(type(module).__name__ == "_SpectralNorm" for module in model.modules()):
            flow.note(SPECTRAL)
        return flow.finish(outputs, leaves, label, only)

    traced = read(training=False)
    if UNUSED in traced.reasons.values():
        # Auxiliary classifiers run in training alone.
        with contextlib.suppress(UsageError):
            other = read(training=True)
            if len(other.tensors) > len(traced.tensors):
                traced = other
    if on_unknown == "error":
        refuse_unknown(traced, label, only)
    return traced


class _Walker(Reader):
    """Follows values through the nodes of an exported program."""

    def __init__(self, flow: Dataflow, activations: bool, names: Mapping[str, str]):
        super().__init__(flow)
        self.activations, self.names = activations, names
        self.values: dict[Any, Value] = {}

    def run_program(self, program: Any) -> list[int]:
        """Returns the producers of the outputs."""
        names = program.graph_signature.inputs_to_parameters
        given = set(program.graph_signature.user_inputs)
        for node in program.graph.nodes:
            if node.op != "placeholder":
                continue
            if node.name in names:
                kind = node.meta["val"].dtype
                lost = "" if kind.is_floating_point else not_real(kind)
                view = View(self.names[names[node.name]], None, shape_of(node), lost=lost)
                self.values[node] = Value(view=view)
            elif node.name in given and shape_of(node):
                self.values[node] = Value(producer=self.flow.add("input", name=node.name))
        return self._run(program.graph)

    def _run(self, graph: Any) -> list[int]:
        outputs: list[int] = []
        for node in graph.nodes:
            if node.op == "call_function":
                value = self._call(node)
                self.values[node] = value._replace(squeezed=squeezed(shape_of(node), value))
            elif node.op == "output":
                found = [self.producer(self._read(source)) for source in node.all_input_nodes]
                outputs = [number for number in found if number is not None]
        return outputs

    def _read(self, node: Any) -> Value:
        return self.values.get(node, Value())

    def _call(self, node: Any) -> Value:
        name = operation(node)
        if name in READERS and (token := self._view(node.args[0])) is not None:
            self.values[node.args[0]] = self.token(token)
        sources = [self._read(source) for source in node.all_input_nodes]
        live = [value for value in sources if value.producer is not None]
        views = [value.view for value in sources if value.view is not None]
        if name.startswith("wrap_with"):
            return self._inlined(node)
        if not live:
            return self._constant(node, name, views)
        value = self._known(node, name, live, views)
        if value is None:
            value = self._met(node, name, live, views)
        if node.target.__name__.split(".")[0].endswith("_") and node.args:
            self.values[node.args[0]] = value
        return value

    def _inlined(self, node: Any) -> Value:
        """A part of the graph that was set apart, such as one under `torch.no_grad`."""
        part = next(a for a in node.args if getattr(a, "op", "") == "get_attr")
        module = getattr(node.graph.owning_module, part.target)
        given = [a for a in node.args if isinstance(a, torch.fx.Node) and a is not part]
        inner = [n for n in module.graph.nodes if n.op == "placeholder"]
        self.values.update(zip(inner, map(self._read, given), strict=True))
        outputs = self._run(module.graph)
        return Value(producer=self.flow.join(outputs, "sum"))

    def _constant(self, node: Any, name: str, views: Sequence[View]) -> Value:
        """An operation that reads parameters and constants alone."""
        values = [self._read(source) for source in node.all_input_nodes]
        root = name in ("rsqrt", "sqrt") or any(value.root for value in values)
        if not views:
            return Value(root=root)
        out = shape_of(node)
        if name in SAME:
            return Value(view=reshaped(views[0], node, name, out))
        if name in LOOKUPS:
            return Value(view=views[0]._replace(lost=PARTS))
        if name in ("cat", "stack"):
            return self.merged(views)
        if name == "_weight_norm" and len(views) == 2:
            return self._weight_norm(views[0], views[1], argument(node.args, 2, 0))
        pairs = [
            (value.view, shape_of(source))
            for value, source in zip(values, node.all_input_nodes, strict=True)
            if value.view is not None
        ]
        return self.changed(pairs, out, root, name)

    def _weight_norm(self, direction: View, length: View, axis: int) -> Value:
        """A kernel whose length is a parameter of its own; -1 = one length for all of it."""
        count = len(direction.shape)
        summed = tuple(n for n in range(count) if axis == -1 or n != axis % count)
        self.flow.stretch(length.path, direction.path, summed)
        return Value(view=direction)

    def _known(self, node, name, live, views) -> Value | None:
        """Operations with a rule of their own; None = it has none."""
        value, arguments = live[0], node.args
        if name in CONVOLUTIONS or name in TRANSPOSED:
            return self._convolution(node, name)
        if name == "linear":
            bias = argument(arguments, 2)
            return self._dense(arguments[0], arguments[1], transposed=True, bias=bias)
        if name == "addmm":
            return self._dense(arguments[1], arguments[2], transposed=False, bias=arguments[0])
        if name in ("matmul", "mm", "bmm") and len(views) == 1 and len(live) == 1:
            first, second = arguments[:2]
            if self._read(second).view is not None:
                return self._dense(first, second, transposed=False)
            return self._dense(second, first, transposed=True)
        if name in NORMS:
            kind, scale, bias = NORMS[name]
            given = [self._view(argument(arguments, place)) for place in (scale, bias)]
            if kind == "gn" and given[0] is not None and arguments[1] == given[0].shape[0]:
                kind = "in"
            return self.norm(self._read(arguments[0]), kind, *given)
        if name == "embedding":
            return self.looked_up(live[0], views[0]) if views else None
        if name == "scaled_dot_product_attention":
            for view in views:
                self.flow.keep(view.path, "is a learned token")
            return Value(producer=self.flow.add("msa", [self.node(v) for v in live]))
        if name.startswith("upsample") or name in ("pixel_shuffle", "interpolate"):
            return Value(producer=self.flow.add("upsample", [self.node(value)]))
        if name in ("cat", "stack"):
            return self.joined(live, views, "concat")
        return self._pooling(node, name, value)

    def _pooling(self, node, name, value) -> Value | None:
        source = shape_of(node.args[0]) if isinstance(node.args[0], torch.fx.Node) else ()
        if "pool" in name:
            kind = "max_pool" if "max" in name else "avg_pool"
            window = node.args[1]
            window = [window] if isinstance(window, int) else list(window)
            spatial = source[2:]
            if name.startswith("adaptive"):
                if max(size for size in window if size) == 1:
                    return value._replace(pooled=True, fresh=False)
                window = [
                    max(1, whole // (size or whole))
                    for whole, size in zip(spatial, window * len(spatial), strict=False)
                ]
            elif tuple(window) == tuple(spatial):
                return value._replace(pooled=True, fresh=False)
            return self.pooled(value, kind, window[:2])
        if name in ("mean", "sum", "amax") and value.scores is None and len(node.args) > 1:
            axes = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
            axes = {axis % len(source) for axis in axes}
            kept = [axis for axis in range(1, len(source)) if axis not in axes]
            if 0 not in axes and len(source) > 2 and len(kept) == 1:
                return value._replace(pooled=True, fresh=False)
        if name in ("rsqrt", "sqrt"):
            return value._replace(root=True, pooled=False, fresh=False)
        return None

    def _met(self, node, name, live, views) -> Value:
        """Operations that are known by what meets in them."""
        value = live[0]
        if views:
            view = views[0]
            size = math.prod(view.shape)
            if name in ADDITIONS:
                return self.added(value, view, size, self._encoding(value, view))
            if name == "mul":
                return self.scaled(value, view, size)
            if name in LOOKUPS and self._read(node.args[0]).view is not None:
                return self.looked_up(value, view)
            for other in views:
                self.flow.keep(other.path, unruled(name))
        elif name in ("matmul", "bmm", "mm", "baddbmm", "einsum") and len(live) > 1:
            return self.attended(live[-2:] if name == "baddbmm" else live)
        elif name in ("matmul", "bmm") and node.args[0] is node.args[1]:
            return self.attended(live)
        elif name in ("mul", "div") and len(node.args) > 1:
            pair = [self._read(a) for a in node.args[:2] if isinstance(a, torch.fx.Node)]
            found = self.multiplied(pair) if len(pair) == 2 else None
            if found is not None:
                return found
        elif self.activations and name in ACTIVATIONS:
            return Value(producer=self.flow.add(ACTIVATIONS[name], [self.node(value)]))
        return self.met(live, name in SAME, name == "mul")

    def _view(self, argument: Any) -> View | None:
        return self._read(argument).view if isinstance(argument, torch.fx.Node) else None

    def _convolution(self, node: Any, name: str) -> Value | None:
        source, kernel, bias = (argument(node.args, place) for place in range(3))
        view = self._view(kernel)
        if view is None or self._read(source).producer is None:
            return None
        flipped = name in TRANSPOSED
        groups = argument(node.args, 6, 1) or 1
        dilation = argument(node.args, 7 if flipped else 5, 1) or 1
        layout = kernel_layout(view, groups if flipped else 0)
        channels = shape_of(source)[1]
        kind = "conv_t" if flipped else conv_type(groups, channels, largest(dilation))
        value = self.kernel(self._read(source), view, layout, kind)
        return self._biased(value, bias)

    def _dense(self, source: Any, kernel: Any, transposed: bool, bias: Any = None) -> Value | None:
        view = self._view(kernel)
        if view is None or self._read(source).producer is None:
            return None
        shape = shape_after(view.shape, view.layout)
        layout: Layout | str = view.layout
        if view.lost:
            layout = view.lost
        elif len(shape) != 2:
            layout = "is a stack of kernels for a stack of inputs"
        elif transposed:
            layout = (*view.layout, transpose((1, 0)))
        return self._biased(self.kernel(self._read(source), view, layout, "conv"), bias)

    def _biased(self, value: Value, bias: Any) -> Value:
        view = self._view(bias)
        if view is None:
            return value
        if view.lost:
            self.flow.keep(view.path, view.lost)
            return value
        assert value.producer is not None
        self.give(value.producer, view, (reshape((math.prod(view.shape),)),), "bias")
        return value

    def _encoding(self, value: Value, view: View) -> Layout | None:
        """Returns the layout of a parameter that would be a position encoding."""
        shape = view.shape
        if len(shape) == 4 and shape[0] == 1:
            features = self._features(value)
            if shape[3] != features and shape[1] == features:
                return (transpose((0, 2, 3, 1)),)
            return ()
        if len(shape) == 3 and shape[0] == 1:
            return ()
        return (reshape((1, *shape)),) if len(shape) == 2 else None

    def _features(self, value: Value) -> int:
        """Returns the channels that the last weight or norm before a value puts out."""
        number = value.producer
        while number is not None:
            node = self.flow.nodes[number]
            if node.tensors:
                return node.shape[0]
            number = node.sources[0] if node.sources else None
        return 0
