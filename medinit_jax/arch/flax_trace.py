"""Any Flax model -> graph, by tracing it once with abstract values.

Known layers (convolution, dense, norm) are told apart by their class: while the model is traced,
every call of one runs under a name scope of its own, and the equations of that scope become one
node. Everything between them is read off the equations: which values meet in a sum, a
concatenation, a gate or an attention, and what becomes of parameters that no known layer holds.

`nn.scan` over stacked parameters is unrolled: every layer has nodes of its own.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from flax import nnx
from jax.extend import core as jex

from medinit_jax.arch.dataflow import Dataflow, Tensor, Traced, inside
from medinit_jax.arch.graph import conv_type
from medinit_jax.arch.layout import Layout, reshape, shape_after, transpose
from medinit_jax.core.errors import UsageError

Shape = tuple[int, ...]
LAYERS: dict[type, str] = {
    nn.Conv: "conv",
    nn.ConvTranspose: "conv_t",
    nn.Dense: "dense",
    nn.DenseGeneral: "dense",
    nn.BatchNorm: "bn",
    nn.GroupNorm: "gn",
    nn.InstanceNorm: "in",
    nn.LayerNorm: "ln",
    nn.RMSNorm: "ln",
    nn.Embed: "embed",
    nnx.Conv: "conv",
    nnx.ConvTranspose: "conv_t",
    nnx.Linear: "dense",
    nnx.LinearGeneral: "dense",
    nnx.BatchNorm: "bn",
    nnx.GroupNorm: "gn",
    nnx.InstanceNorm: "in",
    nnx.LayerNorm: "ln",
    nnx.RMSNorm: "ln",
    nnx.Embed: "embed",
}
RULES = ("conv", "conv_t", "dense", "bn", "gn", "in", "ln", "embed")
NORMS = frozenset(("bn", "gn", "in", "ln"))
ON_UNKNOWN = ("fallback", "error")
TAG = re.compile(r"@layer(\d+)@")
# What hands a parameter on as it is, or in another shape.
SAME = frozenset(
    ("convert_element_type", "copy", "copy_p", "stop_gradient", "rev", "reduce_precision")
)
VIEWS = SAME | {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim"}
BINARY = frozenset(("add", "add_any", "sub", "mul", "div", "max", "min", "pow", "select_n"))
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


class View(NamedTuple):
    """A value that is one parameter and nothing else.

    Attributes:
        path: Its name.
        index: Which part of its first axis, for stacked layers.
        shape: Stored shape, of that part.
        layout: From the stored shape to that of the value.
        partial: Whether only a part of it is left, or its elements were changed.
    """

    path: str
    index: int | None
    shape: Shape
    layout: Layout = ()
    partial: bool = False


class Value(NamedTuple):
    """What is known about a value of the trace.

    Attributes:
        producer: Node it came from last; None = it does not depend on the input.
        view: Set where it is a parameter.
        pooled: Whether it is a mean over all positions that is no node yet.
        squeezed: Whether it holds one number per channel.
        fresh: Whether it comes straight out of its node, so that a bias may belong to it.
        scores: Attention node whose weights it holds.
        root: Whether it is what a normalization divides by.
        normalized: Whether it was divided so, and waits for a scale.
        scale: The parameter that scaled a root.
    """

    producer: int | None = None
    view: View | None = None
    pooled: bool = False
    squeezed: bool = False
    fresh: bool = False
    scores: int | None = None
    root: bool = False
    normalized: bool = False
    scale: View | None = None


class Layer(NamedTuple):
    """One call of a known layer: its name in the model, its rule, and the layer itself."""

    name: str
    rule: str
    module: Any


class Model(NamedTuple):
    """A model as a pure function.

    Attributes:
        run: (variables, *inputs) -> outputs.
        variables: ShapeDtypeStructs of all its arrays.
        parameters: Names of those that are parameters, {key path: name}.
        label: What messages call it.
    """

    run: Callable[..., Any]
    variables: Any
    parameters: Mapping[str, str]
    label: str


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
    layers: list[Layer] = []
    table = LAYERS | (dict(on_unknown) if isinstance(on_unknown, Mapping) else {})
    if isinstance(on_unknown, str) and on_unknown not in ON_UNKNOWN:
        raise UsageError(
            f"on_unknown={on_unknown!r} is none of fallback, error or a dict {{class: rule}}."
        )
    for kind, rule in table.items():
        if rule not in RULES:
            raise UsageError(
                f"on_unknown gives {kind.__name__} the rule {rule!r}; choose from "
                f"{', '.join(RULES)}."
            )
    with explained(model.label), _marked(table, layers):
        closed = jax.make_jaxpr(model.run)(model.variables, *inputs)
    flow = Dataflow()
    walker = _Walker(flow, layers, activations)
    values = [Value(view=view) for view in _views(model)]
    for shape in jax.tree.leaves(inputs):
        values.append(Value(producer=flow.add("input", name=f"input {tuple(np.shape(shape))}")))
    found = walker.run(closed.jaxpr, values)
    results = [walker.producer(value) for value in found]
    outputs = [node for node in results if node is not None]
    leaves = {view.path: view.shape for view in _views(model) if view is not None}
    if not outputs:
        raise UsageError(f"No output of {model.label} depends on its input; check the model.")
    if only and not any(inside(path, only) for path in leaves):
        parts = dict.fromkeys(path.split("/")[0] for path in leaves)
        raise UsageError(
            f"{model.label} has no parameters under {only!r}; its parts are {', '.join(parts)}."
        )
    traced = flow.finish(outputs, leaves, only)
    if on_unknown == "error":
        bad = [f"{path} ({reason})" for path, reason in traced.reasons.items()]
        if bad:
            raise UsageError(
                f"{model.label} has parameters that cannot be predicted: {'; '.join(bad[:5])}"
                f"{f' and {len(bad) - 5} more' if len(bad) > 5 else ''}. Pass "
                "on_unknown='fallback' to let them keep the model's own values, or a dict "
                "{class: rule} for layers that are like known ones."
            )
    return traced


def linen_model(module: nn.Module, inputs: Sequence[Any], options: Mapping[str, Any]) -> Model:
    """Returns a Linen module as a pure function.

    Args:
        module: The module, unbound.
        inputs: Arrays or ShapeDtypeStructs of its call.
        options: Further keyword arguments of its call.
    """
    label = type(module).__name__
    keys = {name: jax.random.key(0) for name in ("params", "dropout")}
    with explained(label):
        variables = jax.eval_shape(lambda keys, *x: module.init(keys, *x, **options), keys, *inputs)
    variables = dict(nn.meta.unbox(variables))
    mutable = [name for name in variables if name != "params"]

    def run(variables, *inputs):
        rngs = {"dropout": jax.random.key(0)}
        return module.apply(variables, *inputs, rngs=rngs, mutable=mutable, **options)[0]

    places, _ = jax.tree_util.tree_flatten_with_path(variables)
    names = {
        jax.tree_util.keystr(path): jax.tree_util.keystr(path[1:], simple=True, separator="/")
        for path, _ in places
        if path[0].key == "params"
    }
    return Model(run, variables, names, label)


def nnx_model(module: nnx.Module, options: Mapping[str, Any]) -> Model:
    """Returns an NNX module as a pure function of its split state."""
    definition, state = nnx.split(module)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state)

    def run(state, *inputs):
        return nnx.merge(definition, state)(*inputs, **options)

    names = {}
    places, _ = jax.tree_util.tree_flatten_with_path(shapes)
    pure = nnx.to_flat_state(state)
    kinds = {path: variable for path, variable in pure}
    for path, _ in places:
        words = tuple(
            key.key if hasattr(key, "key") else key.name if hasattr(key, "name") else key.idx
            for key in path
        )
        while words and words not in kinds:
            words = words[:-1]
        if words and isinstance(kinds[words], nnx.Param):
            names[jax.tree_util.keystr(path)] = "/".join(map(str, words))
    return Model(run, shapes, names, type(module).__name__)


@contextlib.contextmanager
def explained(label: str) -> Iterator[None]:
    """Turns what goes wrong inside a model into one sentence.

    Args:
        label: What the model is called.

    Raises:
        UsageError: In place of any other error.
    """
    try:
        yield
    except UsageError:
        raise
    except jax.errors.JAXTypeError as error:
        raise UsageError(
            f"{label} cannot be traced, because it looks at values of its input "
            f"({_first_line(error)}); move such decisions into its options, or use jnp.where."
        ) from error
    except TypeError as error:
        raise UsageError(
            f"{label} cannot be called with this example: {_first_line(error)} (arguments such as "
            "train=False go into options={'train': False})."
        ) from error
    except Exception as error:
        raise UsageError(
            f"{label} fails on this example: {type(error).__name__}: {_first_line(error)} "
            "(check the example's shape and dtype)."
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0].rstrip(".") if text else type(error).__name__


def _views(model: Model) -> list[View | None]:
    """Returns a view for every array of the model that is a parameter, None for the others."""
    places, _ = jax.tree_util.tree_flatten_with_path(model.variables)
    names = [model.parameters.get(jax.tree_util.keystr(path)) for path, _ in places]
    return [
        None if name is None else View(name, None, tuple(leaf.shape))
        for name, (_, leaf) in zip(names, places, strict=True)
    ]


@contextlib.contextmanager
def _marked(table: Mapping[type, str], layers: list[Layer]) -> Iterator[None]:
    """Runs every call of a layer of the table under a scope of its own and lists it."""
    inside = False

    def call(module, name, function):
        nonlocal inside
        rule = next((table[kind] for kind in type(module).__mro__ if kind in table), None)
        if rule is None or inside:
            return function()
        layers.append(Layer(name, rule, module))
        inside = True
        try:
            with jax.named_scope(f"@layer{len(layers) - 1}@"):
                return function()
        finally:
            inside = False

    def intercept(following, args, kwargs, context):
        if context.method_name != "__call__":
            return following(*args, **kwargs)
        name = "/".join(context.module.path)
        return call(context.module, name, lambda: following(*args, **kwargs))

    def wrapped(original):
        def replacement(module, *args, **kwargs):
            name = type(module).__name__
            return call(module, name, lambda: original(module, *args, **kwargs))

        return replacement

    with contextlib.ExitStack() as stack:
        stack.enter_context(nn.intercept_methods(intercept))
        # NNX has no interceptors: its layer classes are wrapped while the model is traced.
        for kind in table:
            if issubclass(kind, nnx.Module) and "__call__" in vars(kind):
                original = kind.__call__
                stack.callback(setattr, kind, "__call__", original)
                setattr(kind, "__call__", wrapped(original))  # noqa: B010
        yield


class _Walker:
    """Follows values through equations and reports to a `Dataflow`."""

    def __init__(self, flow: Dataflow, layers: Sequence[Layer], activations: bool):
        self.flow, self.layers, self.activations = flow, layers, activations
        self._placed: dict[tuple[int, tuple[int, ...]], int] = {}
        self._pools: dict[int, int] = {}
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

    def producer(self, value: Value) -> int | None:
        """Returns the node a value comes from; a pending pooling becomes one."""
        if not value.pooled or value.producer is None:
            return value.producer
        if value.producer not in self._pools:
            self._pools[value.producer] = self.flow.add("glob_avg", [value.producer])
        return self._pools[value.producer]

    def _layer(self, number: int, given: Sequence[Value], equation) -> list[Value]:
        """Adds an equation inside a known layer to that layer's node."""
        layer = self.layers[number]
        key = number, self._iteration
        # Statistics and random keys pass through a layer without its input: no node yet.
        if key not in self._placed:
            self._placed[key] = self.flow.add(_type_of(layer), (), name=layer.name)
        node = self._placed[key]
        for value in given:
            source = self.producer(value)
            if source is not None:
                self.flow.link(source, node)
            if value.view is not None:
                self._place(node, layer, value.view)
        count = len(equation.outvars)
        if all(value.producer is None for value in given):
            # A cast of a parameter is still the parameter, and statistics are not the input.
            same = equation.primitive.name in SAME and given[0].view is not None
            return [given[0] if same else Value()] * count
        return [Value(producer=node, fresh=True)] * count

    def _place(self, node: int, layer: Layer, view: View) -> None:
        """Gives a parameter to the node of its layer, or says why not."""
        leaf = view.path.rsplit("/", 1)[-1]
        layout = _layer_layout(layer, leaf, view)
        if isinstance(layout, str):
            self.flow.keep(view.path, layout)
            return
        kind = self.flow.nodes[node]
        self.flow.give(node, Tensor(view.path, view.index, view.shape, layout, leaf))
        canonical = shape_after(view.shape, layout)
        if leaf == "kernel":
            kind.kind, kind.shape = _type_of(layer, canonical), _kernel_shape(canonical)
        elif kind.kind in NORMS:
            kind.shape = (canonical[0], 1, 1, 1)
            groups = getattr(layer.module, "num_groups", None)
            if kind.kind == "gn" and groups == canonical[0]:
                kind.kind = "in"

    def _equation(self, equation, given: list[Value], place: str) -> list[Value]:
        name, count = equation.primitive.name, len(equation.outvars)
        called = str(equation.params.get("name", ""))
        live = [value for value in given if value.producer is not None]
        inner = _inner(equation)
        if name == "scan":
            return self._scan(equation, given, place)
        if name == "cond":
            if live and not _by_platform(equation):
                self.flow.note("A branch is decided while running; the last one was read.")
            return self.run(equation.params["branches"][-1].jaxpr, given[1:], place)
        if name == "while":
            if live:
                self.flow.note("A loop of unknown length was passed over.")
            return [_passed(live)] * count
        if called == "_resize" and live:
            grows = equation.outvars[0].aval.size > equation.invars[0].aval.size
            node = self.flow.add("upsample", [self._node(live[0])]) if grows else None
            return [live[0] if node is None else Value(producer=node)] * count
        if self.activations and called in ACTIVATIONS and len(live) == 1:
            node = self.flow.add(ACTIVATIONS[called], [self._node(live[0])])
            return [Value(producer=node, squeezed=live[0].squeezed)] * count
        if inner is not None:
            return self.run(inner, given, place)
        views = [value.view for value in given if value.view is not None]
        if not live:
            return [self._constant(equation, given, views)] * count
        if views:
            return [self._with_parameter(equation, given, live, place)] * count
        return [self._computed(equation, given, live)] * count

    def _node(self, value: Value) -> int:
        node = self.producer(value)
        assert node is not None
        return node

    def _constant(self, equation, given: Sequence[Value], views: Sequence[View]) -> Value:
        """An equation that reads parameters and constants alone."""
        name, out = equation.primitive.name, equation.outvars[0].aval
        root = name in ("rsqrt", "sqrt") or any(value.root for value in given)
        if not views:
            return Value(root=root)
        if len(given) and name in VIEWS and given[0].view is not None:
            return Value(view=_reshaped(given[0].view, equation), root=given[0].root)
        if name in LOOKUPS:
            return Value(view=views[0]._replace(partial=True))
        if root and len({view.path for view in views}) == 1 and name == "mul":
            return Value(root=True, scale=views[0])
        whole = [
            value.view
            for value, variable in zip(given, equation.invars, strict=True)
            if value.view is not None and variable.aval.shape == out.shape
        ]
        if not whole or name == "concatenate":
            return Value()
        for view in views:
            if view.path != whole[0].path:
                self.flow.keep(view.path, f"only changes {whole[0].path}")
        return Value(view=whole[0])

    def _with_parameter(self, equation, given, live: Sequence[Value], place: str) -> Value:
        """An equation where a parameter that no known layer holds meets the input."""
        name = equation.primitive.name
        value = live[0]
        position = next(i for i, other in enumerate(given) if other.view is not None)
        view: View = given[position].view
        own = value._replace(fresh=False)
        if view.partial and name not in ("concatenate",):
            self.flow.keep(view.path, "is used in parts")
            return own
        if name == "conv_general_dilated" and position == 1:
            return self._raw_conv(equation, value, view, place)
        if name == "dot_general":
            return self._raw_dense(equation, value, view, position, place)
        size = math.prod(view.shape)
        channels = equation.outvars[0].aval.shape[-1:]
        vector = (size,) == channels and sum(n > 1 for n in view.shape) <= 1
        if name in ("add", "add_any", "sub"):
            return self._added(value, view, vector, size)
        if name == "mul":
            if (value.normalized or value.root) and vector:
                if value.root:
                    return value._replace(scale=view)
                return self._raw_norm(value, view)
            if size > 1 and vector:
                self.flow.keep(view.path, "is a layer scale, which starts as the model says")
                node = self.flow.add("layer_scale", [self._node(value)], (size, 1, 1, 1))
                return Value(producer=node, squeezed=value.squeezed)
            self.flow.keep(view.path, "multiplies features in a way without a rule")
            return own
        if name == "concatenate":
            self.flow.keep(view.path, "is a learned token")
            token = self.flow.add("embed", (), (1, channels[0] if channels else 1, 1, 1))
            return Value(producer=self.flow.add("concat", [*map(self._node, live), token]))
        if name in LOOKUPS:
            self.flow.keep(view.path, "is looked up by index")
            return Value(producer=self.flow.add("embed", [self._node(value)]))
        self.flow.keep(view.path, f"is used by the operation {name}, which has no rule")
        return own

    def _raw_conv(self, equation, value: Value, view: View, place: str) -> Value:
        settings = equation.params
        out, into, *spatial = settings["dimension_numbers"].rhs_spec
        layout = (*view.layout, transpose((*spatial, into, out)))
        name = _name(view, place)
        shape = shape_after(view.shape, layout)
        if len(spatial) == 1:
            layout = (*layout, reshape((shape[0], 1, *shape[1:])))
        if max(settings["lhs_dilation"]) > 1:
            kind = "conv_t"
        else:
            groups = settings["feature_group_count"]
            kind = conv_type(groups, groups * shape[-2], max(settings["rhs_dilation"]))
        node = self.flow.add(kind, [self._node(value)], name=name)
        if len(spatial) > 2:
            self.flow.keep(view.path, "is a kernel of three dimensions")
        else:
            self.flow.give(node, Tensor(view.path, view.index, view.shape, layout, "kernel"))
            self.flow.nodes[node].shape = _kernel_shape(shape_after(view.shape, layout))
        return Value(producer=node, fresh=True)

    def _raw_dense(self, equation, value, view: View, position: int, place: str) -> Value:
        contracting, batch = equation.params["dimension_numbers"]
        read, shape = contracting[position], shape_after(view.shape, view.layout)
        if batch[position]:
            self.flow.keep(view.path, "is a stack of kernels for a stack of inputs")
            return value._replace(fresh=False)
        kept = [axis for axis in range(len(shape)) if axis not in read]
        sizes = [math.prod(shape[axis] for axis in axes) for axes in (read, kept)]
        layout = (*view.layout, transpose((*read, *kept)), reshape(sizes))
        node = self.flow.add("conv", [self._node(value)], name=_name(view, place))
        self.flow.give(node, Tensor(view.path, view.index, view.shape, layout, "kernel"))
        self.flow.nodes[node].shape = _kernel_shape((sizes[0], sizes[1]))
        return Value(producer=node, fresh=True)

    def _added(self, value: Value, view: View, vector: bool, size: int) -> Value:
        """A parameter that is added: a bias, a position encoding, or something else."""
        producer = self._node(value)
        if value.scores is not None:
            self.flow.keep(view.path, "is a bias of attention weights")
            self.flow.link(self.flow.add("embed"), value.scores)
            return value
        node = self.flow.nodes[producer]
        flat = Tensor(view.path, view.index, view.shape, (reshape((size,)),), "bias")
        kernel = node.tensors.get("kernel")
        if value.fresh and "bias" not in node.tensors:
            features = kernel.shape[-1] if kernel else node.shape[0]
            if features == size and (kernel or node.kind in NORMS):
                self.flow.give(producer, flat)
                return value._replace(fresh=False)
        if vector and value.normalized:
            node_number = self.flow.add("ln", [producer], (size, 1, 1, 1), _name(view, ""))
            self.flow.give(node_number, flat)
            return Value(producer=node_number)
        if vector:
            node_number = self.flow.add("bias", [producer], (size, 1, 1, 1), _name(view, ""))
            self.flow.give(node_number, flat)
            return Value(producer=node_number, squeezed=value.squeezed)
        shape = tuple(n for n in view.shape)
        shape = shape[1:] if len(shape) > 2 and shape[0] == 1 else shape
        if len(shape) not in (2, 3):
            self.flow.keep(view.path, "is added to features in a way without a rule")
            return value._replace(fresh=False)
        side = (math.isqrt(shape[0]),) * 2 if len(shape) == 2 else shape[:2]
        encoding = self.flow.add("pos_enc", (), (1, shape[-1], *side), _name(view, ""))
        layout = (reshape((1, *shape)),)
        self.flow.give(encoding, Tensor(view.path, view.index, view.shape, layout, "embedding"))
        return Value(producer=self.flow.add("sum", (producer, encoding)))

    def _raw_norm(self, value: Value, scale: View) -> Value:
        """A normalization that is written out: its scale makes it a node."""
        size = math.prod(scale.shape)
        node = self.flow.add("ln", [self._node(value)], (size, 1, 1, 1), _name(scale, ""))
        layout = (reshape((size,)),)
        self.flow.give(node, Tensor(scale.path, scale.index, scale.shape, layout, "scale"))
        return Value(producer=node, fresh=True)

    def _computed(self, equation, given: Sequence[Value], live: list[Value]) -> Value:
        """An equation that reads values of the input alone."""
        name, settings = equation.primitive.name, equation.params
        value = live[0]
        source = equation.invars[given.index(value)].aval.shape
        if name in ("rsqrt", "sqrt"):
            return value._replace(root=True, pooled=False, fresh=False)
        if name in ("reduce_window_max", "reduce_window_sum", "reduce_window"):
            window = settings["window_dimensions"]
            spatial = window[1:-1] if len(window) > 2 else window
            if window[1:-1] == tuple(source[1:-1]):
                return Value(producer=value.producer, pooled=True)
            if max(window) == 1:
                return value
            kind = "max_pool" if "max" in name else "avg_pool"
            height, width = spatial if len(spatial) == 2 else (spatial[0], 1)
            node = self.flow.add(kind, [self._node(value)], (1, 1, height, width))
            return Value(producer=node)
        if name in ("reduce_sum", "reduce_max", "argmax") and value.scores is None:
            middle = tuple(range(1, len(source) - 1))
            if middle and tuple(settings["axes"]) == middle:
                return Value(producer=value.producer, pooled=True)
        if name == "dot_general" and len(live) == 2:
            scores = next((v.scores for v in live if v.scores is not None), None)
            node = self.flow.attend([self._node(v) for v in live], scores)
            return Value(producer=node, scores=None if scores == node else node)
        if self.activations and value.scores is not None and name == "exp":
            scores = value.scores
            self.flow.link(self.flow.add("softmax", self.flow.nodes[scores].sources), scores)
        elif self.activations and value.scores is None and name in ACTIVATIONS:
            node = self.flow.add(ACTIVATIONS[name], [self._node(value)])
            return Value(producer=node, squeezed=value.squeezed)
        if name in ("mul", "div") and len(live) == 2:
            other = live[1]
            if other.root != value.root:
                kept, root = (value, other) if other.root else (other, value)
                if root.scale is not None:
                    return self._raw_norm(kept, root.scale)
                return kept._replace(normalized=True, fresh=False)
            if self._differ(live):
                return self._gated(live)
        if name in ("mul", "div") and len(live) == 1 and len(given) == 2:
            other = next(v for v in given if v is not value)
            if other.root:
                if other.scale is not None:
                    return self._raw_norm(value, other.scale)
                return value._replace(normalized=True, fresh=False)
        if self._differ(live):
            kind = "concat" if name == "concatenate" else "sum"
            node = self.flow.join([self.producer(v) for v in live], kind)
            return Value(producer=node)
        keeps = name in VIEWS
        return value._replace(
            pooled=all(v.pooled for v in live),
            fresh=value.fresh and keeps,
            scores=next((v.scores for v in live if v.scores is not None), None),
            root=value.root and name in VIEWS | {"mul"},
            normalized=all(v.normalized for v in live) and (keeps or name == "mul"),
        )

    def _differ(self, live: Sequence[Value]) -> bool:
        return len({value.producer for value in live}) > 1

    def _gated(self, live: Sequence[Value]) -> Value:
        first, second = live
        value, factor = (second, first) if first.squeezed and not second.squeezed else live
        node = self.flow.gate(self._node(value), self._node(factor), factor.squeezed)
        return Value(producer=node)

    def _scan(self, equation, given: Sequence[Value], place: str) -> list[Value]:
        """Unrolls a scan over stacked parameters; one over data alone is walked once."""
        settings = equation.params
        body, length = settings["jaxpr"].jaxpr, settings["length"]
        constants, carried = settings["num_consts"], settings["num_carry"]
        fixed, carry = list(given[:constants]), list(given[constants : constants + carried])
        stacked = given[constants + carried :]
        layers = any(value.view is not None for value in stacked)
        steps = range(length) if layers else range(1)
        outer, results = self._iteration, []
        for step in reversed(steps) if settings["reverse"] else steps:
            self._iteration = (*outer, step)
            parts = [_part(value, step) for value in stacked]
            results = self.run(body, [*fixed, *carry, *parts], place)
            carry = results[:carried]
        self._iteration = outer
        return [*carry, *results[carried:]]


def _part(value: Value, step: int) -> Value:
    """Returns what is known of one slice of a stacked value."""
    view = value.view
    if view is None:
        return value
    if view.layout or view.index is not None:
        return Value(view=view._replace(partial=True))
    return Value(view=View(view.path, step, view.shape[1:]))


def _passed(live: Sequence[Value]) -> Value:
    return live[0]._replace(fresh=False) if live else Value()


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


def _by_platform(equation) -> bool:
    return "branches_platforms" in equation.params and bool(equation.params["branches_platforms"])


def _reshaped(view: View, equation) -> View:
    """Returns the view after an equation that changes no more than the shape."""
    name, out = equation.primitive.name, equation.outvars[0].aval.shape
    if name in SAME:
        return view
    if name == "transpose":
        return view._replace(layout=(*view.layout, transpose(equation.params["permutation"])))
    if math.prod(out) == math.prod(view.shape):
        return view._replace(layout=(*view.layout, reshape(out)))
    return view


def _name(view: View, place: str) -> str:
    """Names a node after its parameter."""
    del place
    return view.path.rsplit("/", 1)[0] if "/" in view.path else view.path


def _kernel_shape(shape: Shape) -> tuple[int, int, int, int]:
    """Returns (out, in, height, width) of a kernel (height, width, in, out) or (in, out)."""
    height, width = shape[:2] if len(shape) == 4 else (1, 1)
    return (shape[-1], shape[-2], height, width)


def _type_of(layer: Layer, kernel: Shape = (1, 1)) -> str:
    """Returns the node type of a layer, given the predicted form of its kernel."""
    module = layer.module
    if layer.rule == "dense":
        return "conv"
    if layer.rule == "conv":
        groups = getattr(module, "feature_group_count", 1) or 1
        dilation = np.max(getattr(module, "kernel_dilation", 1) or 1)
        return conv_type(groups, groups * kernel[-2], int(dilation))
    return layer.rule


def _layer_layout(layer: Layer, leaf: str, view: View) -> Layout | str:
    """Returns the layout of a parameter of a known layer, or why it has none."""
    rule, shape = layer.rule, view.shape
    if view.partial:
        return "is used in parts"
    if rule == "embed":
        return "is a table of embeddings"
    if leaf == "bias" or (leaf == "scale" and rule in NORMS):
        return (reshape((math.prod(shape),)),)
    if leaf != "kernel" or rule in NORMS:
        return f"is a {leaf!r} of {type(layer.module).__name__}, which has no rule"
    if rule == "dense":
        axes = getattr(layer.module, "axis", -1)
        count = len(axes) if isinstance(axes, Sequence) else 1
        if getattr(layer.module, "batch_dims", ()) or getattr(layer.module, "batch_axis", None):
            return "is a stack of kernels for a stack of inputs"
        return (reshape((math.prod(shape[:count]), math.prod(shape[count:]))),)
    if len(shape) > 4:
        return "is a kernel of three dimensions"
    layout: Layout = ()
    if getattr(layer.module, "transpose_kernel", False):
        layout = (transpose((*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)),)
        shape = shape_after(shape, layout)
    return (*layout, reshape((shape[0], 1, *shape[1:]))) if len(shape) == 3 else layout
