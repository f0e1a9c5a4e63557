"""The tensors of what is exported, under the names of a layout, and which of ours each one is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.description import Owners, without_head
from medinit_jax.interop.layouts import COUNTER, names_of, to_state
from medinit_jax.interop.origin import Origin
from medinit_jax.interop.places import Names, parameter_places, statistics_places
from medinit_jax.interop.run_state import NOTHING, Beside
from medinit_jax.models.statistics import initial_statistics


class ExportedState(NamedTuple):
    """Tensors under a layout's names.

    Attributes:
        state: {name: float32 array, int64 for counters}.
        owners: {(module, leaf) of ours: names}, see `description.describe`.
        heads: Modules of the network's head in the layout, in order; of an encoder those that are
            left out.
        beside: Names of tensors that the network does not read: heads of its pretraining.
    """

    state: dict[str, np.ndarray]
    owners: Owners
    heads: tuple[str, ...]
    beside: tuple[str, ...] = ()

    @property
    def network(self) -> dict[str, np.ndarray]:
        """The tensors that the network reads."""
        return {name: value for name, value in self.state.items() if name not in self.beside}


def exported_state(origin: Origin, layout: str, beside: Beside = NOTHING) -> ExportedState:
    """Returns the tensors of a network as a layout has them.

    Args:
        origin: The network; for a layout of encoders alone one of `origin.encoder_of`.
        layout: A key of `layouts.LAYOUTS`.
        beside: Heads of its pretraining, for layouts that have a place for them.

    Raises:
        UsageError: There is no such layout, or it cannot hold the network.
    """
    names = names_of(origin.name, origin.program, layout, heads_of(origin))
    program, shapes = origin.program, origin.program.parameter_shapes()
    head = {program.calls[-1].module(step.name) for step in program.calls[-1].block.steps}
    # The layouts know whole networks; what an encoder lacks is put in, named, and taken out again.
    params = {
        module: {
            leaf: np.asarray(origin.params[module][leaf], np.float32)
            if module in origin.params
            else np.zeros(shape, np.float32)
            for leaf, shape in leaves.items()
        }
        for module, leaves in shapes.items()
    }
    statistics = in_float32(initial_statistics(program) | dict(origin.statistics))
    state = to_state(origin.name, program, params, statistics, layout, heads_of(origin))
    extra: dict[str, np.ndarray] = {}
    if beside.params:
        together = params | in_float32(beside.params), statistics | in_float32(beside.statistics)
        whole = to_state(origin.name, program, *together, layout, heads_of(origin))
        extra = {name: value for name, value in whole.items() if name not in state}
    owners = _owners(program, names)
    # Names of archives are no modules; timm, which reads them, calls modules as we do.
    heads = [
        module if names.native else place.rpartition(".")[0]
        for (module, _), places in owners.items()
        if module in head
        for place in places
    ]
    if not origin.has_head:
        kept = without_head(program).parameter_shapes()
        gone = {
            place
            for (module, _), places in owners.items()
            if module.removesuffix(".stats") not in kept
            for place in places
        }
        state = {name: value for name, value in state.items() if name not in gone}
        owners = {own: places for own, places in owners.items() if not gone & set(places)}
    return ExportedState(state | extra, owners, tuple(dict.fromkeys(heads)), tuple(extra))


def in_float32(tree: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Returns {module: {leaf: array}} with arrays of NumPy in float32."""
    return {
        name: {leaf: np.asarray(value, np.float32) for leaf, value in leaves.items()}
        for name, leaves in tree.items()
    }


def refuse_not_finite(state: dict[str, np.ndarray], force: bool) -> tuple[str, ...]:
    """Returns the names of tensors that hold NaN or infinity.

    Raises:
        UsageError: There are some, and they were not asked for.
    """
    broken = tuple(n for n, v in state.items() if v.dtype.kind == "f" and not np.isfinite(v).all())
    if broken and not force:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise UsageError(
            f"{', '.join(broken[:3])}{more} hold numbers that are not finite; export another "
            "checkpoint, or set config.force=True to export them all the same."
        )
    return broken


def heads_of(origin: Origin) -> dict[str, int]:
    """Returns {task: classes} of a network of several tasks, {} of others; see `names_of`."""
    several = len(origin.heads) > 1
    return {head.name: len(head.classes) for head in origin.heads} if several else {}


def _owners(program: Program, names: Names) -> dict[tuple[str, str], tuple[str, ...]]:
    found = {
        (module, leaf): tuple(place.name for place in places)
        for module, leaf, _, places in parameter_places(program, names, {})
    }
    for name, leaf, _, place in statistics_places(program, names, {}):
        found[name, leaf] = (place.name,)
        if names.counters and leaf == "var":
            found[name, "counter"] = (f"{place.name.rpartition('.')[0]}.{COUNTER}",)
    return found
