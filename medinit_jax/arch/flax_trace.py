"""Any Flax model -> graph, by tracing it once with abstract values.

Known layers (convolution, dense, norm) are told apart by their class: while the model is traced,
every call of one runs under a name scope of its own, and the equations of that scope become one
node. Everything between them is read off the equations: which values meet in a sum, a
concatenation, a gate or an attention, and what becomes of parameters that no known layer holds.

`nn.scan` over stacked parameters is unrolled: every layer has nodes of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from medinit_jax.arch.dataflow import Dataflow, Shape, Traced, inside, refuse_unknown
from medinit_jax.arch.flax_layers import STACK, VOLUME, layer_layout, node_type
from medinit_jax.arch.flax_model import (
    LAYERS,
    Layer,
    Model,
    check_on_unknown,
    explained,
    marked,
    parameter_views,
    stretched,
)
from medinit_jax.arch.graph import conv_type
from medinit_jax.arch.layout import Layout, reshape, shape_after, transpose
from medinit_jax.arch.reader import PARTS, Reader, Value, View, owner, unruled

TAG = re.compile(r"@layer(\d+)@")
# What hands a parameter on as it is, or in another shape.
SAME = frozenset(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "rev", "reduce_precision")
)
VIEWS = SAME | {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim"}
LOOKUPS = frozenset(("gather", "dynamic_slice", "slice"))
# By the name of a jitted function, or of the primitive that tells an activation from others.
ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "silu": "silu",
    "hard_silu": "hard_swish",
    "hard_swish": "hard_swish",
    "sigmoid": "sigmoid",
    "logistic": "sigmoid",
    "erf": "gelu",
    "erfc": "gelu",
    "tanh": "gelu",
}


def trace(
    model: Model,
    inputs: Sequence[Any],
    on_unknown: Any = "fallback",
    activations: bool = False,
    only: str = "",
) -> Traced:
    """Traces a model and reads its graph.

    Args:
        model: From `linen_model` or `nnx_model`.
        inputs: Arrays or ShapeDtypeStructs, batch first.
        on_unknown: What becomes of parameters in layers without a rule: "fallback" (they keep the
            model's own values), "error", or {class: rule} with a rule of `RULES` for layers of
            these classes, which then have parameters "kernel"/"bias" or "scale"/"bias".
        activations: Whether activation functions are nodes.
        only: See `Dataflow.finish`.

    Returns:
        The traced model.

    Raises:
        UsageError: The model cannot be traced, or holds what "error" forbids.
    """
    check_on_unknown(on_unknown)
    layers: list[Layer] = []
    table = LAYERS | (dict(on_unknown) if isinstance(on_unknown, Mapping) else {})
    with explained(model.label), marked(table, layers):
        closed = jax.make_jaxpr(model.run)(model.variables, *inputs)
    flow = Dataflow()
    # Modules that own parameters, as far as names tell (those of NNX layers do not).
    paths = frozenset(owner(view) for view in parameter_views(model) if view is not None)
    walker = _Walker(flow, layers, paths, activations)
    values = [Value(view=view) for view in parameter_views(model)]
    for shape in jax.tree.leaves(inputs):
        values.append(Value(producer=flow.add("input", name=f"input {tuple(np.shape(shape))}")))
    found = walker.run(closed.jaxpr, values)
    results = [walker.producer(value) for value in found]
    outputs = [node for node in results if node is not None]
    leaves = {view.path: view.shape for view in parameter_views(model) if view is not None}
    for layer in layers:
        if layer.rule == "weight_norm":
            for length, kernel, axes in stretched(layer, leaves):
                flow.stretch(length, kernel, axes)
    traced = flow.finish(outputs, leaves, model.label, only)
    if on_unknown == "error":
        refuse_unknown(traced, model.label, only)
    return traced


class _Walker(Reader):
    """Follows values through equations."""

    def __init__(
        self, flow: Dataflow, layers: Sequence[Layer], paths: frozenset[str], activations: bool
    ):
        super().__init__(flow)
        self.layers, self.activations = layers, activations
        self.paths = paths
        self._placed: dict[tuple[int, tuple[int, ...]], int] = {}
        self._iteration: tuple[int, ...] = ()

    def run(self, jaxpr: Any, values: Sequence[Value], scope: str = "") -> list[Value]:
        """Walks the equations of a jaxpr and returns what is known of its outputs."""
        known: dict[Any, Value] = dict(zip(jaxpr.invars, values, strict=True))

        def read(variable) -> Value:
            literal = isinstance(variable, jex.Literal)
            return Value() if literal else known.get(variable, Value())

        for equation in jaxpr.eqns:
            given = [read(variable) for variable in equation.invars]
            place = f"{scope}/{equation.source_info.name_stack}"
            tags = TAG.findall(place)
            if tags:
                results = self._layer(int(tags[-1]), given, equation)
            else:
                results = self._equation(equation, given, place)
            for variable, value in zip(equation.outvars, results, strict=True):
                known[variable] = value._replace(squeezed=_squeezed(variable, value))
        return [read(variable) for variable in jaxpr.outvars]

    def _layer(self, number: int, given: Sequence[Value], equation) -> list[Value]:
        """Adds an equation inside a known layer to that layer's node."""
        layer, count = self.layers[number], len(equation.outvars)
        key = number, self._iteration
        if key not in self._placed:
            self._placed[key] = self.flow.add(node_type(layer), (), name=layer.name)
        node = self._placed[key]
        given = [self._own(layer, value) for value in given]
        for value in given:
            source = self.producer(value)
            if source is not None:
                self.flow.link(source, node)
            if value.view is not None:
                self._place(node, layer, value.view)
        if all(value.producer is None for value in given):
            # A cast of a parameter is still the parameter, and statistics are not the input.
            same = equation.primitive.name in SAME and given[0].view is not None
            return [given[0] if same else Value()] * count
        return [Value(producer=node, fresh=True)] * count

    def _own(self, layer: Layer, value: Value) -> Value:
        """Returns the value, or a learned token if it is the parameter of another module."""
        view = value.view
        if view is None or layer.name not in self.paths or inside(view.path, layer.name):
            return value
        return self.token(view)

    def _place(self, node: int, layer: Layer, view: View) -> None:
        """Gives a parameter to the node of its layer, or says why not."""
        leaf = view.path.rsplit("/", 1)[-1]
        layout = layer_layout(layer, leaf, view)
        if isinstance(layout, str):
            self.flow.keep(view.path, layout)
            return
        self.give(node, view, layout, leaf)
        known, shape = self.flow.nodes[node], shape_after(view.shape, layout)
        if leaf == "kernel":
            known.kind = node_type(layer, shape)
        elif known.kind == "gn" and getattr(layer.module, "num_groups", None) == shape[0]:
            known.kind = "in"

    def _equation(self, equation, given: list[Value], place: str) -> list[Value]:
        name, count = equation.primitive.name, len(equation.outvars)
        called = str(equation.params.get("name", ""))
        live = [value for value in given if value.producer is not None]
        if name == "scan":
            return self._scan(equation, given, place)
        if name == "cond":
            if live and not equation.params.get("branches_platforms"):
                self.flow.note("A branch is decided while running; the last one was read.")
            return self.run(equation.params["branches"][-1].jaxpr, given[1:], place)
        if name == "while":
            if live:
                self.flow.note("A loop of unknown length was passed over.")
            return [live[0]._replace(fresh=False) if live else Value()] * count
        if called == "_resize" and live:
            grows = equation.outvars[0].aval.size > equation.invars[0].aval.size
            node = self.flow.add("upsample", [self.node(live[0])]) if grows else None
            return [live[0] if node is None else Value(producer=node)] * count
        if self.activations and called in ACTIVATIONS and len(live) == 1:
            return [self._activation(called, live[0])] * count
        inner = _inner(equation)
        if inner is not None:
            return self.run(inner, given, place)
        if not live:
            return [self._constant(equation, given)] * count
        if any(value.view for value in given):
            return [self._with_parameter(equation, given, live)] * count
        return [self._computed(equation, given, live)] * count

    def _activation(self, name: str, value: Value) -> Value:
        node = self.flow.add(ACTIVATIONS[name], [self.node(value)])
        return Value(producer=node, squeezed=value.squeezed)

    def _constant(self, equation, given: Sequence[Value]) -> Value:
        """An equation that reads parameters and constants alone."""
        name, out = equation.primitive.name, equation.outvars[0].aval.shape
        root = name in ("rsqrt", "sqrt") or any(value.root for value in given)
        views = [
            (value.view, variable.aval.shape)
            for value, variable in zip(given, equation.invars, strict=True)
            if value.view is not None
        ]
        if not views:
            return Value(root=root)
        if name in VIEWS:
            return Value(view=_reshaped(views[0][0], equation))
        if name in LOOKUPS:
            return Value(view=views[0][0]._replace(lost=PARTS))
        if name == "concatenate":
            return self.merged([view for view, _ in views])
        return self.changed(views, out, root, name)

    def _with_parameter(self, equation, given: Sequence[Value], live: Sequence[Value]) -> Value:
        """An equation where a parameter that no known layer holds meets the input."""
        name, value = equation.primitive.name, live[0]
        views = [other.view for other in given if other.view is not None]
        view = views[0]
        position = next(i for i, other in enumerate(given) if other.view is not None)
        channels = (1, *equation.outvars[0].aval.shape)[-1]
        if name == "concatenate":
            return self.joined(live, views, "concat")
        if name in ("add", "add_any", "sub"):
            return self.added(value, view, channels, _encoding(view.shape))
        if name == "mul":
            return self.scaled(value, view, channels)
        if name in LOOKUPS:
            return self.looked_up(value, view)
        if name == "conv_general_dilated" and position == 1:
            return self._raw_conv(equation, value, view)
        if name == "dot_general":
            return self._raw_dense(equation, value, view, position)
        return self.refused(value, view, unruled(name))

    def _raw_conv(self, equation, value: Value, view: View) -> Value:
        settings = equation.params
        out, into, *spatial = settings["dimension_numbers"].rhs_spec
        layout: Layout = (*view.layout, transpose((*spatial, into, out)))
        shape = shape_after(view.shape, layout)
        if len(spatial) == 1:
            layout = (*layout, reshape((shape[0], 1, *shape[1:])))
        if max(settings["lhs_dilation"]) > 1:
            kind = "conv_t"
        else:
            groups = settings["feature_group_count"]
            kind = conv_type(groups, groups * shape[-2], max(settings["rhs_dilation"]))
        wrong = VOLUME if len(spatial) > 2 else view.lost
        return self.kernel(value, view, wrong or layout, kind)

    def _raw_dense(self, equation, value: Value, view: View, position: int) -> Value:
        contracting, batch = equation.params["dimension_numbers"]
        read, shape = contracting[position], shape_after(view.shape, view.layout)
        kept = [axis for axis in range(len(shape)) if axis not in read]
        sizes = [math.prod(shape[axis] for axis in axes) for axes in (read, kept)]
        layout = (*view.layout, transpose((*read, *kept)), reshape(sizes))
        wrong = STACK if batch[position] else view.lost
        return self.kernel(value, view, wrong or layout, "conv")

    def _computed(self, equation, given: Sequence[Value], live: Sequence[Value]) -> Value:
        """An equation that reads the input and no parameter."""
        name, settings, value = equation.primitive.name, equation.params, live[0]
        source = equation.invars[given.index(value)].aval.shape
        if name in ("rsqrt", "sqrt"):
            return value._replace(root=True, pooled=False, fresh=False)
        if name in ("reduce_window_max", "reduce_window_sum", "reduce_window"):
            window = settings["window_dimensions"][1:-1]
            if tuple(window) == tuple(source[1:-1]):
                return Value(producer=value.producer, pooled=True)
            return self.pooled(value, "max_pool" if "max" in name else "avg_pool", window)
        if name in ("reduce_sum", "reduce_max") and value.scores is None:
            middle = tuple(range(1, len(source) - 1))
            if middle and tuple(settings["axes"]) == middle:
                return Value(producer=value.producer, pooled=True)
        if name == "dot_general" and len(live) == 2:
            return self.attended(live)
        if name in ("mul", "div") and len(given) == 2:
            found = self.multiplied(given)
            if found is not None:
                return found
        if self.activations and value.scores is not None and name == "exp":
            sources = self.flow.nodes[value.scores].sources
            self.flow.link(self.flow.add("softmax", sources), value.scores)
        elif self.activations and value.scores is None and name in ACTIVATIONS:
            return self._activation(name, value)
        if name == "concatenate" and len({v.producer for v in live}) > 1:
            return self.joined(live, (), "concat")
        return self.met(live, name in VIEWS, name == "mul")

    def _scan(self, equation, given: Sequence[Value], place: str) -> list[Value]:
        """Unrolls a scan over stacked parameters; one over data alone is walked once."""
        settings = equation.params
        body, length = settings["jaxpr"].jaxpr, settings["length"]
        constants, carried = settings["num_consts"], settings["num_carry"]
        fixed, carry = list(given[:constants]), list(given[constants : constants + carried])
        stacked = given[constants + carried :]
        steps = range(length if any(value.view is not None for value in stacked) else 1)
        outer, results, before = self._iteration, [], len(self.flow.nodes)
        for step in reversed(steps) if settings["reverse"] else steps:
            self._iteration = (*outer, step)
            parts = [_part(value, step) for value in stacked]
            results = self.run(body, [*fixed, *carry, *parts], place)
            carry = results[:carried]
        self._iteration = outer
        if len(steps) == 1 and length > 1:
            for node in self.flow.nodes[before:]:
                for tensor in node.tensors.values() if not node.sources else ():
                    self.flow.keep(tensor.path, "reads the state of a recurrence")
        return [*carry, *results[carried:]]


def _part(value: Value, step: int) -> Value:
    """Returns what is known of one slice of a stacked value."""
    view = value.view
    if view is None:
        return value
    if view.layout or view.index is not None:
        return Value(view=view._replace(lost=PARTS))
    return Value(view=View(view.path, step, view.shape[1:]))


def _squeezed(variable, value: Value) -> bool:
    if value.producer is None:
        return False
    shape = variable.aval.shape
    return value.squeezed or (len(shape) > 1 and math.prod(shape[1:-1]) == 1)


def _inner(equation) -> Any:
    """Returns the jaxpr that an equation calls with its own operands, if it does."""
    for value in equation.params.values():
        jaxpr = value.jaxpr if isinstance(value, jex.ClosedJaxpr) else value
        if isinstance(jaxpr, jex.Jaxpr) and len(jaxpr.invars) == len(equation.invars):
            return jaxpr
    return None


def _reshaped(view: View, equation) -> View:
    """Returns the view after an equation that changes no more than the shape."""
    name, out = equation.primitive.name, equation.outvars[0].aval.shape
    if name in SAME or view.lost:
        return view
    if name == "transpose":
        return view._replace(layout=(*view.layout, transpose(equation.params["permutation"])))
    if math.prod(out) == math.prod(view.shape):
        return view._replace(layout=(*view.layout, reshape(out)))
    return view


def _encoding(shape: Shape) -> Layout | None:
    """Returns the layout of a parameter that would be a position encoding."""
    shape = shape[1:] if len(shape) > 2 and shape[0] == 1 else shape
    return (reshape((1, *shape)),) if len(shape) in (2, 3) else None
