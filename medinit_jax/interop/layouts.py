"""Tensors of a network under the names of other libraries, out and in.

One description of names and forms, `places`, serves both directions, so that what was written is read
back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.places import Names, Place, parameter_places, statistics_places
from medinit_jax.interop.torchvision_names import torchvision_names
from medinit_jax.models import zoo

# Of batch norms in PyTorch.
COUNTER = "num_batches_tracked"


class Layout(NamedTuple):
    """A library's way to keep weights.

    Attributes:
        title: What it is.
        holds: Networks that it can hold, for errors.
        names: (name of a network of the zoo, family, network) -> its names.
    """

    title: str
    holds: str
    names: Callable[[str, str, Program], Names]


LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(
        "torchvision",
        "all networks of the zoo but BiT networks; decoders keep the names of this package",
        torchvision_names,
    ),
}


class Tensors(NamedTuple):
    """What a state holds of a network.

    Attributes:
        params: {"module/leaf": float32 array} of the network's shapes.
        statistics: {"module.stats/mean" or "/var": array}.
        missing: Tensors of ours that the state lacks, with the library's names.
        misshapen: Tensors of ours whose shape differs there, with both shapes.
        unused: Names in the state that the network has no place for.
        layout: The layout that the state has.
    """

    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    missing: dict[str, str]
    misshapen: dict[str, str]
    unused: tuple[str, ...]
    layout: str


def find_layout(layout: str) -> Layout:
    """Returns a layout by its name.

    Raises:
        UsageError: There is no such layout.
    """
    if layout not in LAYOUTS:
        raise UsageError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
    return LAYOUTS[layout]


def family_of(name: str) -> str:
    """Returns the family of a network of the zoo, or of its encoder: "resnet", "vgg", "unet", ...

    Raises:
        UsageError: The zoo has no such network.
    """
    encoder = zoo.encoder_of(name)
    if encoder in zoo.CLASSIFIERS:
        return zoo.CLASSIFIERS[encoder].__name__  # pyright: ignore[reportFunctionMemberAccess]
    if name in zoo.MODELS:
        return name
    raise UsageError(f"there is no network {name!r}: choose from {', '.join(zoo.MODELS)}")


def names_of(name: str, program: Program, layout: str, heads: Mapping[str, int] = {}) -> Names:
    """Returns how a layout names and stores the tensors of a network.

    Args:
        name: The network's in the zoo.
        program: The network.
        layout: A key of `LAYOUTS`.
        heads: {name of a head there: its classes} where several heads lie side by side in our one,
            in their order.

    Raises:
        UsageError: There is no such layout, or it cannot hold the network.
    """
    found = find_layout(layout)
    try:
        names = found.names(name, family_of(name), program)
    except UsageError as error:
        raise UsageError(f"{error}; the layout {layout!r} holds {found.holds}.") from error
    return names._replace(heads=heads) if heads else names


def to_state(
    name: str,
    program: Program,
    params: Mapping[str, Mapping[str, Any]],
    statistics: Mapping[str, Mapping[str, Any]],
    layout: str,
    heads: Mapping[str, int] = {},
) -> dict[str, np.ndarray]:
    """Returns the tensors of a network under a library's names and in its forms.

    Args:
        name: The network's in the zoo, such as "resnet18" or "unet_resnet18".
        program: The network.
        params: {module: {leaf: array}}; the head's may be missing, and heads on pooled features
            may be there beside the network's own.
        statistics: {"module.stats": {"mean" or "var": array}} of batch norms; {} where there are
            none.
        layout: A key of `LAYOUTS`.
        heads: {name of a head there: its classes} where our one head stands for several.

    Returns:
        {name: array, of the dtype of ours}; with an int64 0 for each batch norm's count of batches
        where the library keeps one, so that a strict loading finds all it looks for.

    Raises:
        UsageError: There is no such layout, it cannot hold the network, or a tensor of the network
            is not there.
    """
    names = names_of(name, program, layout, heads)
    shapes = program.parameter_shapes()
    absent = [
        f"{m}/{leaf}"
        for m, leaves in shapes.items()
        for leaf in leaves
        if m != program.head and leaf not in params.get(m, {})
    ]
    if absent:
        raise UsageError(f"The parameters lack {', '.join(absent[:5])}, which {name} needs.")
    own = {m: {leaf: np.shape(v) for leaf, v in leaves.items()} for m, leaves in params.items()}
    state: dict[str, np.ndarray] = {}
    for module, leaf, places in parameter_places(program, names, own):
        for place in places:
            state[place.name] = place.write(np.asarray(params[module][leaf]))
    others = {n: {k: np.shape(v) for k, v in leaves.items()} for n, leaves in statistics.items()}
    for module, leaf, place in statistics_places(program, names, others):
        state[place.name] = place.write(np.asarray(statistics[module][leaf]))
        if names.counters and leaf == "var":
            state[f"{place.name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return state


def from_state(
    name: str,
    program: Program,
    state: Mapping[str, np.ndarray],
    layout: str = "auto",
    heads: Mapping[str, int] = {},
) -> Tensors:
    """Returns what a library's state holds of a network; the inverse of `to_state`.

    Args:
        name: The network's in the zoo.
        program: The network.
        state: {name: array} in the library's form.
        layout: A key of `LAYOUTS`, or "auto": the one whose names the state has most of.
        heads: {name of a head there: its classes} where our one head stands for several.

    Raises:
        UsageError: There is no such layout, or it cannot hold the network.
    """
    raise NotImplementedError
