"""The public use of a trained hyper-initializer: load it, look at a model, initialize the model."""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from medinit_jax.arch import flax_model, flax_trace
from medinit_jax.arch.dataflow import NORMS, Tensor, Traced, check_part, inside
from medinit_jax.arch.graph import ancestors, build_graph
from medinit_jax.arch.program import OWN_INIT
from medinit_jax.arch.vocabulary import TYPE_INDEX
from medinit_jax.core.errors import UsageError
from medinit_jax.core.parameters import METADATA_FILE, load_params
from medinit_jax.core.provenance import fingerprint
from medinit_jax.hyper.asset import opened
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta, from_config
from medinit_jax.hyper.starts import KINDS, Transfer
from medinit_jax.hyper.written import Coverage, advice, coverage, write
from medinit_jax.models.initial import initial_parameters
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import initial_statistics


class Initializer(NamedTuple):
    """A trained hyper-initializer.

    Attributes:
        module: The hypernetwork.
        theta: Its parameters, NumPy arrays.
        metadata: Design space, preprocessing, pretext and seed of its training.
        fingerprint: SHA-256 of theta.
    """

    module: HyperInitializer
    theta: Theta
    metadata: dict[str, Any]
    fingerprint: str


def load(path: str | os.PathLike[str], modality: str = "") -> Initializer:
    """Loads a trained hyper-initializer.

    Args:
        path: Its folder, the workdir of the run that trained it, a release as a .zip, or the name
            of a release that `python -m medinit_jax.release install` put into the cache. What
            lies at this path comes before what is installed under this name.
        modality: What it has to be trained on, such as "fundus"; "" takes any.

    Returns:
        The initializer.

    Raises:
        UsageError: If there is none, it is damaged, or it was trained on another modality.
    """
    with opened(path) as folder:
        theta, metadata = load_params(folder)
    if not isinstance(metadata, dict) or "hyper" not in metadata:
        raise UsageError(
            f"The {METADATA_FILE} of {path} does not describe a hypernetwork; check the path."
        )
    if modality and metadata.get("modality") != modality:
        raise UsageError(
            f"{path} was trained on {metadata.get('modality')!r} images, not on {modality!r}; "
            "load another one, or leave modality out to use it all the same."
        )
    return Initializer(from_config(metadata["hyper"]), theta, metadata, fingerprint(theta))


def inspect(
    model: Any,
    example: Any,
    *,
    options: Mapping[str, Any] | None = None,
    only: str = "",
    on_unknown: Any = "fallback",
) -> Coverage:
    """Tells what a hyper-initializer would do with every parameter of a model.

    Args: as those of `initialize`.

    Returns:
        The coverage; printed, it is a table.

    Raises:
        UsageError: If the model cannot be traced.
    """
    return coverage(_traced(model, _inputs(example), options or {}, only, on_unknown, False))


def initialize(
    model: Any,
    example: Any,
    initializer: Initializer,
    *,
    key: jax.Array | None = None,
    options: Mapping[str, Any] | None = None,
    head: bool = False,
    only: str = "",
    on_unknown: Any = "fallback",
    unknown_types: str = "error",
    depth_fraction: float = 1.0,
    init_noise: float = 0.0,
    orthogonal: bool = False,
    kinds: Sequence[str] = KINDS,
    deviation: Literal["predicted", "default"] = "predicted",
    quiet: bool = False,
) -> Any:
    """Initializes a model with predicted parameters, and prints what that means for training it.

    Args:
        model: Any Flax Linen or NNX module; those of `models.zoo` need no tracing.
        example: A batch of inputs (batch first), or its shape and dtype; several as a tuple.
        initializer: From `load`.
        key: Random key of what is not predicted; `jax.random.key(0)` by default, so that the same
            model and initializer give the same parameters.
        options: Further keyword arguments of the model's call, such as {"train": False}.
        head: Whether the classifier is predicted too; else it keeps the model's own init.
        only: Name of the part of the model to predict, such as "encoder".
        on_unknown: What becomes of parameters without a rule: "fallback" (the model's own init),
            "error", or {layer class: rule}, see `arch.flax_trace.trace`.
        unknown_types: What becomes of node types that the initializer was not made for: "error",
            or "nearest" to treat them as the nearest types it knows.
        depth_fraction: Share of the tensors, input first, that take predicted values.
        init_noise: Normal noise on predicted tensors, in units of their standard deviation.
        orthogonal: Whether filters are made orthogonal, see `hyper.starts.Transfer`.
        kinds: Which leaves take predicted values: some of kernel, scale, bias, embedding.
        deviation: "predicted", or "default" to scale predicted kernels and embeddings to the
            standard deviation of usual random ones.
        quiet: Whether to print nothing.

    Returns:
        Linen: exactly the tree of `model.init(key, zeros of the example)`; batch statistics are
        mean 0, variance 1. NNX: a new module with the predicted parameters; the given one stays as
        it is.

    Raises:
        UsageError: If the model cannot be traced, the example does not fit it, an option is out of
            range, or the head has another number of classes than the initializer.
    """
    inputs, options = _inputs(example), options or {}
    key = jax.random.key(0) if key is None else key
    traced = _traced(model, inputs, options, only, on_unknown, initializer.module.activations)
    transfer = Transfer(head, depth_fraction, init_noise, orthogonal, tuple(kinds), deviation)
    values = write(initializer.module, initializer.theta, traced, key, transfer, unknown_types)
    if not quiet:
        print(advice(coverage(traced, head, values)), file=sys.stderr)
    if isinstance(model, Network):
        return _network_variables(model, values, key)
    if isinstance(model, nnx.Module):
        return _nnx_module(model, values)
    return _linen_variables(model, inputs, options, values, key)


def _inputs(example: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Returns shapes and dtypes of the inputs."""
    given = example if isinstance(example, tuple) else (example,)
    if not given:
        raise UsageError("The example is an empty tuple; give a batch of inputs.")
    for part in given:
        if not hasattr(part, "shape") or not hasattr(part, "dtype"):
            raise UsageError(
                f"The example holds a {type(part).__name__}; give an array, a ShapeDtypeStruct or "
                "a tuple of them, batch first."
            )
    return tuple(jax.ShapeDtypeStruct(part.shape, part.dtype) for part in given)


def _traced(
    model: Any,
    inputs: Sequence[Any],
    options: Mapping[str, Any],
    only: str,
    on_unknown: Any,
    activations: bool,
) -> Traced:
    """Returns the model as the hypernetwork sees it; what was seen before is kept."""
    flax_model.check_on_unknown(on_unknown)
    if not isinstance(options, Mapping) or not isinstance(only, str):
        raise UsageError(
            f"options is a dict and only a string, got {type(options).__name__} and "
            f"{type(only).__name__}."
        )
    if isinstance(model, Network):
        wanted, found = tuple(model.program.input_shape), tuple(inputs[0].shape[1:])
        if len(inputs[0].shape) != 4 or found != wanted:
            raise UsageError(
                f"The example has shape {tuple(inputs[0].shape)}, but the model takes images "
                f"(batch, {', '.join(map(str, wanted))}); give such a batch or build the model "
                "anew."
            )
        return _program_traced(model.program, activations, only)
    if isinstance(model, nnx.Module):
        pure = flax_model.nnx_model(model, options)
        return flax_trace.trace(pure, inputs, on_unknown, activations, only)
    if isinstance(model, nn.Module) and model.scope is not None:
        raise UsageError(
            f"This {type(model).__name__} is bound to variables; give the module itself, unbound."
        )
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"initialize does not understand a {type(model).__name__}: give a Flax module (Linen "
            "or NNX); for PyTorch modules use medinit_jax.interop.torch.initialize."
        )
    settings = on_unknown if isinstance(on_unknown, str) else tuple(on_unknown.items())
    return _cached(_linen_traced)(
        model, tuple(inputs), tuple(sorted(options.items())), only, settings, activations
    )


def _kind(key: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(key.shape, key.dtype)


@functools.lru_cache(maxsize=64)
def _linen_start(model, inputs, options, kind) -> flax_model.Start:
    return flax_model.linen_start(model, inputs, dict(options), kind)


@functools.lru_cache(maxsize=64)
def _linen_traced(model, inputs, options, only, on_unknown, activations) -> Traced:
    start = _cached(_linen_start)(model, inputs, options, _kind(jax.random.key(0)))
    pure = flax_model.linen_model(model, start, dict(options))
    on_unknown = on_unknown if isinstance(on_unknown, str) else dict(on_unknown)
    return flax_trace.trace(pure, inputs, on_unknown, activations, only)


@functools.lru_cache(maxsize=64)
def _program_traced(program: Any, activations: bool, only: str) -> Traced:
    tensors = {
        (name, leaf): Tensor(f"{name}/{leaf}", None, shape, (), leaf)
        for name, leaves in program.parameter_shapes().items()
        for leaf, shape in leaves.items()
    }
    leaves = {tensor.path: tensor.stored for tensor in tensors.values()}
    reasons = {
        path: "is a learned token"
        if path.endswith("/token")
        else "is a layer scale, which starts as the model says"
        for path in leaves
        if path.rsplit("/", 1)[1] in OWN_INIT
    }
    tensors = {key: tensor for key, tensor in tensors.items() if key[1] not in OWN_INIT}
    graph = build_graph(program, activations)
    if only:
        check_part(leaves, only, "The network")
        part = np.array([bool(p) and inside(p[0], only) for p in graph.parameters])
        graph = ancestors(graph, part)
        reasons |= {path: f"is outside {only}" for path in leaves if not inside(path, only)}
        tensors = {key: tensor for key, tensor in tensors.items() if inside(tensor.path, only)}
    normalized = bool(np.isin(graph.node_type, [TYPE_INDEX[kind] for kind in NORMS]).any())
    return Traced(graph, tensors, leaves, reasons, (), {}, normalized)


def _network_variables(model: Network, values: Mapping[str, np.ndarray], key: jax.Array) -> dict:
    shapes = model.program.parameter_shapes()
    kept = {
        name for name, leaves in shapes.items() for leaf in leaves if f"{name}/{leaf}" not in values
    }
    own = initial_parameters(model.program, key, kept)
    params = {
        name: {
            leaf: _array(values[f"{name}/{leaf}"], jnp.result_type(float))
            if f"{name}/{leaf}" in values
            else own[name][leaf]
            for leaf in leaves
        }
        for name, leaves in shapes.items()
    }
    statistics = initial_statistics(model.program)
    return {"params": params, **({"batch_stats": statistics} if statistics else {})}


def _linen_variables(
    model: nn.Module,
    inputs: Sequence[jax.ShapeDtypeStruct],
    options: Mapping[str, Any],
    values: Mapping[str, np.ndarray],
    key: jax.Array,
) -> Any:
    """Returns the tree of `model.init` with `values`; only what they leave out is drawn."""
    values = {f"params/{path}": value for path, value in values.items()}
    start, draw = _cached(_linen_init)(
        model, tuple(inputs), tuple(sorted(options.items())), frozenset(values), _kind(key)
    )
    flat, definition = jax.tree_util.tree_flatten_with_path(start.shapes)
    drawn = iter(draw(key))
    leaves = [
        _array(values[name], shape.dtype) if name in values else next(drawn)
        for name, shape in _named(flat).items()
    ]
    return jax.tree_util.tree_unflatten(definition, leaves)


@functools.lru_cache(maxsize=64)
def _linen_init(model, inputs, options, replaced, kind):
    """Returns the traced `init`, and the drawing of what is not replaced."""
    start = _cached(_linen_start)(model, inputs, options, kind)
    names = _named(jax.tree_util.tree_flatten_with_path(start.shapes)[0])
    kept = [number for number, name in enumerate(names) if name not in replaced]
    return start, jax.jit(lambda key: start.drawn(key, kept))


def _cached(function: Any) -> Any:
    """Returns a cached function that computes anew for what could change and look the same."""

    def call(*args):
        return function(*args) if _by_value(args) else function.__wrapped__(*args)

    return call


def _by_value(value: Any) -> bool:
    """Returns whether equal hashes mean equal contents: what hashes by identity may change."""
    if isinstance(value, (tuple, frozenset)):
        return all(map(_by_value, value))
    if isinstance(value, nn.Module):
        fields = (f.name for f in dataclasses.fields(value) if f.name not in ("parent", "name"))
        return all(_by_value(getattr(value, name, None)) for name in fields)
    if isinstance(value, jax.ShapeDtypeStruct) or value is None:
        return True
    if callable(value):
        # Functions and classes, and those of libraries; other objects may hold a state.
        known = ("builtins", "functools", "numpy", "jax", "jaxlib")
        return type(value).__module__.partition(".")[0] in known
    try:
        hash(value)
    except TypeError:
        return False
    return type(value).__hash__ is not object.__hash__


def _array(value: np.ndarray, dtype: Any) -> jax.Array:
    """Puts an array on the device; `jnp.asarray` would compile something for every shape."""
    return jax.device_put(np.asarray(value, dtype))


def _named(flat: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    """Names the leaves of a tree as `flax_model.linen_model` does, with their collection first."""
    named = {}
    for path, leaf in flat:
        words = [key for key in path if not isinstance(key, jax.tree_util.GetAttrKey)]
        named[jax.tree_util.keystr(tuple(words), simple=True, separator="/")] = leaf
    return named


def _nnx_module(model: nnx.Module, values: Mapping[str, np.ndarray]) -> nnx.Module:
    definition, state = nnx.split(model)
    flat = nnx.to_flat_state(state)
    leaves = []
    for path, variable in flat:
        name = "/".join(map(str, path))
        # Every variable is copied: a new module that shared some would change the given one.
        value = variable.get_value()
        if name in values:
            value = _array(values[name], value.dtype)
        leaves.append((path, variable.replace(value)))
    return nnx.merge(definition, nnx.from_flat_state(leaves))
