"""Initializations of a network without running the network: its own, and PyTorch's default."""

from __future__ import annotations

import math
import zlib
from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from medinit_jax.arch.program import Program, Shape, Step
from medinit_jax.models.network import Leaves, default_initializer

Params = dict[str, dict[str, jax.Array]]


class _Parameters(nn.Module):
    """The parameters of a network and nothing else.

    Flax derives a parameter's key from its place in the tree alone, so that these values are those
    of `Network.init`.
    """

    shapes: Mapping[str, Mapping[str, tuple[int, ...]]]

    @nn.compact
    def __call__(self) -> None:
        for name, leaves in self.shapes.items():
            Leaves(leaves, name=name)()


def initial_parameters(
    program: Program, key: jax.Array, modules: Collection[str] | None = None
) -> Params:
    """Returns what `Network(program).init(key, images)["params"]` returns.

    Args:
        program: The network.
        key: Random key.
        modules: Names of the modules that are wanted; None = all.

    Returns:
        {module: {leaf: array}}, float32.
    """
    shapes = {
        name: leaves
        for name, leaves in program.parameter_shapes().items()
        if modules is None or name in modules
    }
    variables: Any = _Parameters(shapes).init(key)
    return variables.get("params", {})


def torch_default_parameters(program: Program, key: jax.Array) -> Params:
    """Draws the parameters that PyTorch's layers start with.

    Kernels and biases of convolutions and dense layers are uniform within 1 / sqrt(fan-in), norms
    are 1 and 0; what PyTorch has no layer for starts as in `initial_parameters`. A parameter
    depends on the key, its name and its shape alone.

    Args:
        program: The network.
        key: Random key.

    Returns:
        {module: {leaf: array}}, float32.

    Source: PyTorch's `reset_parameters`, by which SWCL's BiT networks start from random.
    """
    steps = {call.module(step.name): step for call in program.calls for step in call.block.steps}
    params: Params = {}
    for module, leaves in program.parameter_shapes().items():
        bound = _torch_bound(steps[module], leaves)
        params[module] = {}
        for leaf, shape in leaves.items():
            own = jax.random.fold_in(key, zlib.crc32(f"{module}/{leaf}".encode()))
            params[module][leaf] = (
                jax.random.uniform(own, shape, jnp.float32, -bound, bound)
                if bound
                else jnp.asarray(default_initializer(leaf, shape)(own, shape, jnp.float32))
            )
    return params


def _torch_bound(step: Step, leaves: Mapping[str, Shape]) -> float | None:
    """Returns the bound of a module's parameters; None of what is neither convolution nor dense."""
    if step.kind not in ("conv", "conv_t", "dense"):
        return None
    *window, inputs, outputs = leaves["kernel"]
    # PyTorch counts the channels of the second axis, which here are the outputs.
    return 1 / math.sqrt(math.prod(window) * (outputs if step.kind == "conv_t" else inputs))
