"""How a stored parameter lies beside the form in which it is predicted.

A layout is a tuple of steps, ("reshape", shape) and ("transpose", axes), that leads from the array
as a model stores it to the array as `hyper.tiles.finish` writes it. All steps can be undone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Shape = tuple[int, ...]
Layout = tuple[tuple[str, Shape], ...]


def reshape(shape: Sequence[int]) -> tuple[str, Shape]:
    """Returns the step that gives an array another shape."""
    return "reshape", tuple(shape)


def transpose(axes: Sequence[int]) -> tuple[str, Shape]:
    """Returns the step that permutes the axes of an array."""
    return "transpose", tuple(axes)


def shape_after(shape: Sequence[int], layout: Layout) -> Shape:
    """Returns the shape that an array of `shape` has after the steps of a layout.

    Raises:
        ValueError: If a step does not fit.
    """
    current = tuple(shape)
    for kind, argument in layout:
        if kind == "reshape":
            if math.prod(argument) != math.prod(current):
                raise ValueError(f"shape {current} cannot become {argument}")
            current = argument
        else:
            if sorted(argument) != list(range(len(current))):
                raise ValueError(f"axes {argument} do not permute those of {current}")
            current = tuple(current[axis] for axis in argument)
    return current


def apply(array: Any, layout: Layout) -> Any:
    """Takes an array as it is stored to the form in which it is predicted."""
    for kind, argument in layout:
        array = array.reshape(argument) if kind == "reshape" else array.transpose(argument)
    return array


def undo(array: Any, shape: Sequence[int], layout: Layout) -> Any:
    """Takes an array as it is predicted to the form in which it is stored.

    Args:
        array: Of shape `shape_after(shape, layout)`.
        shape: The stored shape.
        layout: The steps from the stored to the predicted form.

    Returns:
        Array of `shape`.
    """
    shapes = [shape_after(shape, layout[:count]) for count in range(len(layout))]
    for (kind, argument), before in zip(reversed(layout), reversed(shapes), strict=True):
        if kind == "reshape":
            array = array.reshape(before)
        else:
            array = array.transpose([argument.index(axis) for axis in range(len(argument))])
    return array
