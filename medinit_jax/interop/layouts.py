"""Tensors of a network under the names of other libraries, out and in.

One description of names and forms, `places`, serves both directions, so that what was written is
read back bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.arch.program import ParameterShapes, Program, Shape
from medinit_jax.core.errors import UsageError
from medinit_jax.interop.authors_names import authors_names
from medinit_jax.interop.bit_names import bit_names
from medinit_jax.interop.places import (
    Names,
    Place,
    parameter_places,
    statistics_places,
    torch_spelling,
)
from medinit_jax.interop.smp_names import smp_names
from medinit_jax.interop.timm_names import timm_names
from medinit_jax.interop.torchvision_names import torchvision_names
from medinit_jax.models import zoo
from medinit_jax.models.statistics import initial_statistics

# Of batch norms in PyTorch.
COUNTER = "num_batches_tracked"
AUTO = "auto"
NONE: Mapping[str, int] = MappingProxyType({})
# Below which other programs keep an encoder.
PREFIXES = ("", "encoder.", "backbone.", "model.")
# Ends the names of weight-normed rows.
_DIRECTION = ".weight_v"


class Layout(NamedTuple):
    """A library's way to keep weights.

    Attributes:
        holds: Networks that it can hold, for errors.
        names: (name of a network of the zoo, family, network, heads) -> its names.
        beside: Whether heads on pooled features have a place, such as projections.
    """

    holds: str
    names: Callable[[str, str, Program, Mapping[str, int]], Names]
    beside: bool = False


def _flax_names(name: str, family: str, program: Program, heads: object) -> Names:
    """Our own names, as in the folder `model/` of a run."""
    del name, family, program, heads

    def spell(module: str, leaf: str) -> str:
        tree = "batch_stats" if leaf in ("mean", "var") else "params"
        return f"{tree}/{module}/{leaf}"

    return Names(str, spell, native=True, counters=False)


LAYOUTS: dict[str, Layout] = {
    "torchvision": Layout(
        "all networks of the zoo but BiT networks; decoders keep the names of this package",
        torchvision_names,
    ),
    "timm": Layout(
        "all networks of the zoo but mobilenet_v3_large, VGGs for images of at most 255 pixels; "
        "decoders keep the names of this package",
        timm_names,
    ),
    "authors": Layout(
        "ResNets and BiT networks, and U-Nets and DeepLabv3+ with decoder=swcl on them or, U-Nets, "
        "without an encoder",
        authors_names,
        beside=True,
    ),
    "smp": Layout(
        "encoders alone: ResNets, RegNets, VGGs, mobilenet_v2, efficientnet_b0, densenet121",
        smp_names,
    ),
    "bit": Layout("BiT networks, such as resnetv2_50x1_bit; encoders alone", bit_names),
    "flax": Layout("all networks", _flax_names, beside=True),
}


class Tensors(NamedTuple):
    """What a state holds of a network.

    Attributes:
        params: {"module/leaf": array} in our form, of whatever dtype the state has.
        statistics: {"module.stats/mean" or "/var": array}.
        missing: {"module/leaf" of ours: the library's name} of tensors that the state lacks.
        misshapen: {"module/leaf" of ours: (the library's name, shape there, shape wanted there)}.
        used: {name in the state: "module/leaf" of ours} of what the network has a place for.
        unused: The others, but for counts of batches.
        layout: The layout that the state has.
    """

    params: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    missing: dict[str, str]
    misshapen: dict[str, tuple[str, Shape, Shape]]
    used: dict[str, str]
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


def names_of(name: str, program: Program, layout: str, heads: Mapping[str, int] = NONE) -> Names:
    """Returns how a layout names and stores the tensors of a network.

    Args:
        name: The network's in the zoo.
        program: The network.
        layout: A key of `LAYOUTS`.
        heads: {task: classes} in the order in which they lie in our one head, for layouts that
            name heads by their task; empty: one.

    Raises:
        UsageError: There is no such layout, or it cannot hold the network.
    """
    found = find_layout(layout)
    try:
        return found.names(name, family_of(name), program, heads)
    except UsageError as error:
        fit = ", ".join(
            other for other in LAYOUTS if other != layout and _holds(name, program, other)
        )
        raise UsageError(
            f"The layout {layout!r} cannot hold this network: {error}. It holds {found.holds}; "
            f"{name} fits into {fit}."
        ) from error


def _holds(name: str, program: Program, layout: str) -> bool:
    try:
        LAYOUTS[layout].names(name, family_of(name), program, NONE)
    except UsageError:
        return False
    return True


def to_state(
    name: str,
    program: Program,
    params: Mapping[str, Mapping[str, Any]],
    statistics: Mapping[str, Mapping[str, Any]],
    layout: str,
    heads: Mapping[str, int] = NONE,
) -> dict[str, np.ndarray]:
    """Returns the tensors of a network under a library's names and in its forms.

    Args:
        name: The network's in the zoo, such as "resnet18" or "unet_resnet18".
        program: The network.
        params: {module: {leaf: array}}; the head's may be missing, and heads on pooled features
            may be there beside the network's own.
        statistics: {"module.stats": {"mean" or "var": array}} of batch norms; {} where there are
            none.
        layout: A key of `LAYOUTS`; those of encoders alone leave out what comes after.
        heads: {task: classes} where our one head stands for several, see `names_of`.

    Returns:
        {name: array, of the dtype of ours}; with an int64 0 for each batch norm's count of batches
        where the library keeps one, so that a strict loading finds all it looks for.

    Raises:
        UsageError: There is no such layout, it cannot hold the network, or a tensor of the network
            is not there.
    """
    names = names_of(name, program, layout, heads)
    absent = [
        f"{module}/{leaf}"
        for tree, given in (
            (program.parameter_shapes(), params),
            (initial_statistics(program), statistics),
        )
        for module, leaves in tree.items()
        for leaf in leaves
        if module != program.head and leaf not in given.get(module, {})
    ]
    if absent:
        raise UsageError(
            f"{len(absent)} tensors of {name} are not there, such as {absent[0]}; give all but the "
            "head's."
        )
    beside = sorted(set(params) - set(program.parameter_shapes()))
    if beside and not LAYOUTS[layout].beside:
        fit = ", ".join(other for other, held in LAYOUTS.items() if held.beside)
        raise UsageError(
            f"The layout {layout!r} has no place for {', '.join(beside)}; leave them out, or "
            f"choose {fit}."
        )
    state: dict[str, np.ndarray] = {}
    for module, leaf, _, places in parameter_places(program, names, _shapes(params)):
        for place in places if module in params else ():
            state[place.name] = place.write(np.asarray(params[module][leaf]))
            if place.name.endswith(_DIRECTION):
                # Lengths of weight-normed rows are fixed at 1.
                length = np.ones((place.shape[0], 1), state[place.name].dtype)
                state[_length_of(place.name)] = length
    for module, leaf, _, place in statistics_places(program, names, _shapes(statistics)):
        state[place.name] = place.write(np.asarray(statistics[module][leaf]))
        if names.counters and leaf == "var":
            state[f"{place.name.rpartition('.')[0]}.{COUNTER}"] = np.zeros((), np.int64)
    return state


def from_state(
    name: str,
    program: Program,
    state: Mapping[str, np.ndarray],
    layout: str = AUTO,
    heads: Mapping[str, int] = NONE,
    others: ParameterShapes | None = None,
) -> Tensors:
    """Returns what a library's state holds of a network; the inverse of `to_state`.

    A state of another network with the same encoder gives its encoder: a classifier's to a
    segmentation network, and the other way round.

    Args:
        name: The network's in the zoo.
        program: The network.
        state: {name: array} in the library's form.
        layout: A key of `LAYOUTS`, or `AUTO`: the one whose names the state has most of.
        heads: {task: classes} where our one head stands for several, see `names_of`.
        others: {module: {leaf: shape}} of heads on pooled features, and of the statistics of their
            norms, which are looked for too.

    Raises:
        UsageError: There is no such layout, or it can hold neither the network nor its encoder.
    """
    best, most = None, (-1, -1)
    for own, names in _candidates(name, program, layout, heads):
        found = _score(program, names, state)
        if found > most:
            best, most = (own, names), found
    assert best is not None
    return _read(program, best[1], state, best[0], others or {})


def _candidates(
    name: str, program: Program, layout: str, heads: Mapping[str, int]
) -> Iterator[tuple[str, Names]]:
    """Yields (layout, names) of all states that could hold the network or its encoder.

    Raises:
        UsageError: The given layout is none, or holds neither.
    """
    classifier, family = zoo.encoder_of(name), family_of(name)
    named = tuple(LAYOUTS) if layout == AUTO else (layout,)
    whole = [own for own in named if find_layout(own) and _holds(name, program, own)]
    # A classic U-Net has no classifier's encoder.
    parts = [own for own in named if family != "unet" and _holds(classifier, program, own)]
    if not whole and not parts:
        names_of(name, program, layout, heads)
    # Where both fit equally, as SWCL's pretraining does, the whole is meant: it comes first.
    for own in whole:
        yield own, names_of(name, program, own, heads)
    for own in parts:
        inner = LAYOUTS[own].names(classifier, family, program, NONE)
        for prefix in ("",) if own == "bit" else PREFIXES:
            yield own, _below(inner, prefix)._replace(encoder_only=True)


def _below(names: Names, prefix: str) -> Names:
    """Returns the names of an encoder that lies below a module."""
    if names.spell is torch_spelling:
        return names._replace(rename=lambda own: prefix + names.rename(own))
    return names._replace(spell=lambda module, leaf: names.spell(prefix + module, leaf))


def _score(program: Program, names: Names, state: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Returns how many parameters lie there in the right shape, and how many at all."""
    places = [p for *_, parts in parameter_places(program, names, {}) for p in parts]
    held = [place for place in places if place.name in state]
    return sum(np.shape(state[place.name]) == place.shape for place in held), len(held)


def _read(
    program: Program,
    names: Names,
    state: Mapping[str, np.ndarray],
    layout: str,
    others: ParameterShapes,
) -> Tensors:
    params, statistics, missing, misshapen = {}, {}, {}, {}
    used: dict[str, str] = {}

    def parts_of(name: str, shape: Shape, places: tuple[Place, ...]) -> np.ndarray | None:
        parts = []
        for place in places:
            if place.name not in state:
                missing[name] = place.name
                continue
            used[place.name] = name
            value = np.asarray(state[place.name])
            if value.shape != place.shape:
                misshapen[name] = (place.name, value.shape, place.shape)
            else:
                parts.append(place.read(value, shape))
            if place.name.endswith(_DIRECTION):
                used[_length_of(place.name)] = name
                _check_lengths(state, place.name)
        if len(parts) < len(places):
            return None
        return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)

    beside = {name: leaves for name, leaves in others.items() if not name.endswith(".stats")}
    for module, leaf, shape, places in parameter_places(program, names, beside):
        value = parts_of(f"{module}/{leaf}", shape, places)
        if value is not None:
            params[f"{module}/{leaf}"] = value
    beside = {name: leaves for name, leaves in others.items() if name.endswith(".stats")}
    for module, leaf, shape, place in statistics_places(program, names, beside):
        value = parts_of(f"{module}/{leaf}", shape, (place,))
        if value is not None:
            statistics[f"{module}/{leaf}"] = value
    counts = {name for name in state if name.endswith(COUNTER)}
    unused = tuple(sorted(set(state) - set(used) - counts))
    return Tensors(params, statistics, missing, misshapen, used, unused, layout)


def _length_of(direction: str) -> str:
    return f"{direction.removesuffix(_DIRECTION)}.weight_g"


def _check_lengths(state: Mapping[str, np.ndarray], direction: str) -> None:
    """Raises UsageError unless the lengths of weight-normed rows are 1, as here they always are."""
    length = state.get(_length_of(direction))
    if length is not None and not (np.asarray(length) == 1).all():
        raise UsageError(
            f"{_length_of(direction)} is not 1 everywhere, but here prototypes have length 1; give "
            "a checkpoint with fixed lengths."
        )


def _shapes(tree: Mapping[str, Mapping[str, Any]]) -> ParameterShapes:
    return {
        name: {leaf: np.shape(value) for leaf, value in leaves.items()}
        for name, leaves in tree.items()
    }
