"""Flax models as pure functions whose layers leave a mark in the trace."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core as jex

from medinit_jax.arch.reader import View, not_real
from medinit_jax.core.errors import UsageError

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


class Start(NamedTuple):
    """The `init` of a Linen module, traced.

    Attributes:
        jaxpr: From a random key to the leaves of `shapes`.
        shapes: ShapeDtypeStructs in the tree that `init` returns.
    """

    jaxpr: jex.ClosedJaxpr
    shapes: Any

    def drawn(self, key: jax.Array, wanted: Sequence[int]) -> list[jax.Array]:
        """Draws some leaves, those with the numbers `wanted`, and computes nothing else."""
        outer = self.jaxpr.jaxpr
        outputs = [outer.outvars[number] for number in wanted]
        needed = {variable for variable in outputs if not isinstance(variable, jex.Literal)}
        equations = []
        for equation in reversed(outer.eqns):
            if needed.intersection(equation.outvars):
                equations.append(equation)
                needed.update(v for v in equation.invars if not isinstance(v, jex.Literal))
        part = outer.replace(outvars=outputs, eqns=equations[::-1])
        return jex.jaxpr_as_fun(self.jaxpr.replace(jaxpr=part))(key)


def linen_start(
    module: nn.Module, inputs: Sequence[Any], options: Mapping[str, Any], key: Any
) -> Start:
    """Traces the `init` of a Linen module.

    Args:
        module: The module, unbound.
        inputs: Arrays or ShapeDtypeStructs of its call.
        options: Further keyword arguments of its call.
        key: ShapeDtypeStruct of the random key that will be drawn with.

    Raises:
        UsageError: If the module fails on such inputs.
    """

    def init(key):
        zeros = [jnp.zeros(x.shape, x.dtype) for x in inputs]
        return module.init({"params": key, "dropout": key}, *zeros, **options)

    with explained(type(module).__name__):
        return Start(*jax.make_jaxpr(init, return_shape=True)(key))


def linen_model(module: nn.Module, start: Start, options: Mapping[str, Any]) -> Model:
    """Returns a Linen module as a pure function; arguments as those of `linen_start`."""
    variables = dict(nn.meta.unbox(start.shapes))
    mutable = [name for name in variables if name != "params"]

    def run(variables, *inputs):
        # Other streams of random numbers fall back to this one, as they do in `init`.
        rngs = {"params": jax.random.key(0)}
        return module.apply(variables, *inputs, rngs=rngs, mutable=mutable, **options)[0]

    places, _ = jax.tree_util.tree_flatten_with_path(variables)
    names = {
        jax.tree_util.keystr(path): jax.tree_util.keystr(path[1:], simple=True, separator="/")
        for path, _ in places
        if path[0].key == "params"
    }
    return Model(run, variables, names, type(module).__name__)


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


def check_on_unknown(on_unknown: Any) -> None:
    """Raises `UsageError` unless `on_unknown` is what `flax_trace.trace` takes."""
    if isinstance(on_unknown, Mapping):
        for kind, rule in on_unknown.items():
            if not isinstance(kind, type):
                raise UsageError(f"on_unknown has the key {kind!r}; give layer classes.")
            if rule not in RULES:
                raise UsageError(
                    f"on_unknown gives {kind.__name__} the rule {rule!r}; choose from "
                    f"{', '.join(RULES)}."
                )
    elif on_unknown not in ("fallback", "error"):
        raise UsageError(
            f"on_unknown={on_unknown!r} is none of fallback, error or a dict {{class: rule}}."
        )


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


def parameter_views(model: Model) -> list[View | None]:
    """Returns a view for every array of the model that is a parameter, None for the others."""
    places, _ = jax.tree_util.tree_flatten_with_path(model.variables)
    names = [model.parameters.get(jax.tree_util.keystr(path)) for path, _ in places]
    views: list[View | None] = []
    for name, (_, leaf) in zip(names, places, strict=True):
        lost = "" if jnp.issubdtype(leaf.dtype, jnp.floating) else not_real(leaf.dtype)
        views.append(None if name is None else View(name, None, tuple(leaf.shape), lost=lost))
    return views


def stretched(layer: Layer, leaves: Mapping[str, tuple[int, ...]]) -> Iterator[tuple]:
    """Yields lengths, kernels and summed axes of a Linen `WeightNorm`, see `Dataflow.stretch`."""
    inner, axes = layer.module.layer_instance, layer.module.feature_axes
    start, end = f"{layer.name}/{inner.name}/", "/scale"
    for path in leaves:
        kernel = "/".join((*inner.path, path[len(start) : -len(end)]))
        if path.startswith(start) and path.endswith(end) and kernel in leaves:
            shape = leaves[kernel]
            given = () if axes is None else axes if isinstance(axes, Sequence) else (axes,)
            kept = {axis % len(shape) for axis in given}
            # Layers in a stack have one axis more than they know of.
            if math.prod(leaves[path]) == math.prod(shape[axis] for axis in kept):
                yield path, kernel, tuple(n for n in range(len(shape)) if n not in kept)


@contextlib.contextmanager
def marked(table: Mapping[type, str], layers: list[Layer]) -> Iterator[None]:
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
        if isinstance(context.module, nn.WeightNorm):
            layers.append(Layer(name, "weight_norm", context.module))
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
