"""Where another library keeps a tensor of ours, and in which form; one description, both ways."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from medinit_jax.arch.program import OWN_INIT, ParameterShapes, Program, Shape
from medinit_jax.models.encoder import ENCODER, body
from medinit_jax.models.statistics import initial_statistics

# PyTorch's orders of axes, of kernels (height, width, in, out) and (in, out).
_CONV, _CONV_T, _DENSE = (3, 2, 0, 1), (2, 3, 0, 1), (1, 0)


def torch_spelling(module: str, leaf: str) -> str:
    """Returns a tensor's name in PyTorch's manner, such as "layer1.0.conv1.weight".

    Args:
        module: Ours, such as "layer1.0.conv1", or "bn1.stats" of batch statistics.
        leaf: Ours, such as "kernel" or "mean".
    """
    if leaf in ("mean", "var"):
        return f"{module.removesuffix('.stats')}.running_{leaf}"
    if leaf == "embedding" or leaf in OWN_INIT:
        return module
    return f"{module}.{'bias' if leaf == 'bias' else 'weight'}"


class Names(NamedTuple):
    """How a library names and stores the tensors of one network.

    Attributes:
        rename: Leads from a name of ours, as `spell` returns it, to the library's.
        spell: Joins a module and its leaf.
        convs: Our dense modules that the library keeps as convolutions.
        heads: {module: classes} of the library's heads, which lie side by side in our one; empty:
            one head, named by `rename`.
        scale: Axes of length 1 that follow the channels of a layer scale.
        native: Whether kernels keep our order of axes.
        counters: Whether batch norms count their batches.
        encoder_only: Whether only the encoder has a place, without "encoder." before its names: a
            segmentation network's, or a classifier without its head.
    """

    rename: Callable[[str], str]
    spell: Callable[[str, str], str] = torch_spelling
    convs: frozenset[str] = frozenset()
    heads: Mapping[str, int] = {}
    scale: Shape = ()
    native: bool = False
    counters: bool = True
    encoder_only: bool = False


class Place(NamedTuple):
    """Where a tensor of ours, or a part of it, lies in a library's state.

    Attributes:
        name: The library's.
        shape: The library's.
        columns: First and last (excluded) index of our last axis; None: all of it.
        view: Our tensor's axes, as they are permuted.
        axes: The library's order of them.
    """

    name: str
    shape: Shape
    columns: tuple[int, int] | None
    view: Shape
    axes: tuple[int, ...]

    def write(self, value: np.ndarray) -> np.ndarray:
        """Returns the library's tensor of ours, contiguous."""
        part = value if self.columns is None else value[..., slice(*self.columns)]
        return np.ascontiguousarray(part.reshape(self.view).transpose(self.axes)).reshape(
            self.shape
        )

    def read(self, value: np.ndarray, own: Shape) -> np.ndarray:
        """Returns our tensor of the library's, or the columns of it.

        Args:
            value: The library's, of `shape`.
            own: Shape of our whole tensor.
        """
        moved = value.reshape([self.view[axis] for axis in self.axes])
        moved = moved.transpose(np.argsort(self.axes))
        last = own[-1] if self.columns is None else self.columns[1] - self.columns[0]
        return np.ascontiguousarray(moved.reshape(*own[:-1], last))


def parameter_places(
    program: Program, names: Names, others: ParameterShapes
) -> Iterator[tuple[str, str, Shape, tuple[Place, ...]]]:
    """Yields (module, leaf, shape, places) of parameters.

    Args:
        program: The network.
        names: Of the library, for this network.
        others: {module: {leaf: shape}} of layers on vectors beside the network's own.
    """
    kinds = _kinds(program)
    for module, leaves in (program.parameter_shapes() | others).items():
        inside = _inside(program, names, module)
        if inside is None:
            continue
        for leaf, shape in leaves.items():
            kind, flat = kinds.get(module, ("dense", None))
            own = names.spell(inside, leaf)
            if module == program.head and names.heads:
                yield module, leaf, shape, tuple(_heads(names, own, leaf, shape, kind))
                continue
            axes, view, target = _form(names, inside, leaf, shape, kind, flat)
            yield module, leaf, shape, (Place(names.rename(own), target, None, view, axes),)


def statistics_places(
    program: Program, names: Names, others: ParameterShapes
) -> Iterator[tuple[str, str, Shape, Place]]:
    """Yields (name of ours, leaf, shape, place) of the statistics of batch norms.

    Args:
        program: The network.
        names: Of the library, for this network.
        others: {name: {"mean" or "var": shape}} of norms beside the network's own.
    """
    own: ParameterShapes = {
        name: {leaf: value.shape for leaf, value in leaves.items()}
        for name, leaves in initial_statistics(program).items()
    }
    for name, leaves in (own | others).items():
        inside = _inside(program, names, name)
        if inside is None:
            continue
        for leaf, shape in leaves.items():
            target = names.rename(names.spell(inside, leaf))
            yield name, leaf, shape, Place(target, shape, None, shape, (0,))


def _inside(program: Program, names: Names, module: str) -> str | None:
    """Returns a module's name as `rename` expects it; None where it has no place."""
    if not names.encoder_only:
        return module
    if len(program.shapes[-1]) == 3:
        below = f"{ENCODER}."
        return module.removeprefix(below) if module.startswith(below) else None
    return module if module.removesuffix(".stats") in _body(program) else None


@functools.lru_cache(maxsize=64)
def _body(program: Program) -> frozenset[str]:
    """Returns the modules of a classifier without its head."""
    return frozenset(body(program).parameter_shapes())


def _heads(names: Names, own: str, leaf: str, shape: Shape, kind: str) -> Iterator[Place]:
    first = 0
    for head, classes in names.heads.items():
        part = (*shape[:-1], classes)
        axes, view, target = _form(names, "", leaf, part, kind, None)
        end = own.rpartition(".")[2]
        yield Place(f"{head}.{end}", target, (first, first + classes), view, axes)
        first += classes


def _form(
    names: Names,
    module: str,
    leaf: str,
    shape: Shape,
    kind: str,
    flat: Shape | None,
) -> tuple[tuple[int, ...], Shape, Shape]:
    """Returns order of axes, what they are of, and the library's shape."""
    as_conv = kind == "conv1x1" or module in names.convs
    if names.native:
        return (
            tuple(range(len(shape))),
            shape,
            (1, 1, *shape) if leaf == "kernel" and as_conv else shape,
        )
    if leaf == "kernel" and flat:
        view = (*flat, shape[-1])
        moved = tuple(view[axis] for axis in _CONV)
        return _CONV, view, moved if as_conv else (moved[0], shape[0])
    if leaf == "kernel":
        axes = _CONV_T if kind == "conv_t" else _CONV if len(shape) == 4 else _DENSE
        moved = tuple(shape[axis] for axis in axes)
        return axes, shape, (*moved, 1, 1) if as_conv and len(shape) == 2 else moved
    target = shape
    if leaf == "gamma":
        target = (*shape, *names.scale)
    elif leaf == "token":
        target = (1, *shape)
    return tuple(range(len(shape))), shape, target


def _kinds(program: Program) -> dict[str, tuple[str, Shape | None]]:
    """Returns {module: (kind, (height, width, channels) of the map that it reads flattened)}.

    The kind is the step's, but "conv1x1" for a dense layer that PyTorch's libraries all write as a
    convolution: in a gate, or at the end of a segmentation network.
    """
    found = {}
    segments = len(program.shapes[-1]) == 3
    for index, call in enumerate(program.calls):
        block = call.block
        shapes = [program.shapes[i] for i in call.inputs] + list(program.layout(index).outputs)
        gated = any(step.kind == "squeeze" for step in block.steps)
        for step in block.steps:
            if not step.name:
                continue
            module, kind, flat = call.module(step.name), step.kind, None
            if kind == "dense" and (gated or (segments and module == program.head)):
                kind = "conv1x1"
            source = step.args[0] - block.arity
            if kind == "dense" and source >= 0 and block.steps[source].kind == "flatten":
                flat = shapes[block.steps[source].args[0]]
            found[module] = (kind, flat)
    return found
