"""A network's own initialization without running the network."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import flax.linen as nn
import jax

from medinit_jax.arch.program import Program
from medinit_jax.models.network import Leaves

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
