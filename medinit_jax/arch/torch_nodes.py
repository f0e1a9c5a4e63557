"""What a node of an exported program says: its operation, its shape, and the layout of a kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from medinit_jax.arch.dataflow import Shape
from medinit_jax.arch.layout import Layout, reshape, shape_after, transpose
from medinit_jax.arch.reader import PARTS, Value, View

PERMUTED = frozenset(("permute", "transpose", "t", "movedim", "swapaxes"))


def operation(node: Any) -> str:
    """Returns the name of an ATen operation without overload and mark of working in place."""
    name = node.target.__name__.split(".")[0]
    return name if name.startswith("_") and name.endswith("__") else name.rstrip("_")


def shape_of(node: Any) -> Shape:
    """Returns the shape of a node's value, () where it is none or several."""
    value: Any = node.meta.get("val") if isinstance(node, torch.fx.Node) else None
    while isinstance(value, (list, tuple)):
        value = value[0] if value else None
    # A size that depends on values is no number.
    sizes = value.shape if hasattr(value, "shape") else ()
    return tuple(n if isinstance(n, int) else 0 for n in sizes)


def squeezed(shape: Shape, value: Value) -> bool:
    """Returns whether a value of a shape holds one number per channel."""
    if value.producer is None or len(shape) < 2:
        return False
    return math.prod(shape[1:]) == max(shape[1:])


def argument(arguments: Sequence[Any], place: int, default: Any = None) -> Any:
    """Returns one of a node's arguments, of which the last may be left out."""
    return arguments[place] if len(arguments) > place else default


def largest(setting: Any) -> int:
    """Returns the largest of a setting's sides, such as dilation (2, 2); it may be one number."""
    return setting if isinstance(setting, int) else max(setting, default=1)


def reshaped(view: View, node: Any, name: str, out: Shape) -> View:
    """Returns the view after an operation that changes no more than the shape."""
    if view.lost:
        return view
    before = shape_after(view.shape, view.layout)
    if name in PERMUTED:
        axes = list(range(len(before)))
        if name == "permute":
            axes = [axis % len(before) for axis in node.args[1]]
        elif name in ("t", "mT"):
            axes[-1], axes[-2] = axes[-2], axes[-1]
        elif name in ("transpose", "swapaxes"):
            first, second = node.args[1] % len(before), node.args[2] % len(before)
            axes[first], axes[second] = axes[second], axes[first]
        else:
            return view._replace(lost=PARTS)
        return view._replace(layout=(*view.layout, transpose(axes)))
    if out != before and math.prod(out) == math.prod(before):
        return view._replace(layout=(*view.layout, reshape(out)))
    return view


def kernel_layout(view: View, transposed_groups: int) -> Layout | str:
    """Returns the layout of a kernel: (out, in, ...), or of a transposed one (in, out, ...).

    Args:
        view: The kernel.
        transposed_groups: Groups of a transposed convolution, 0 = an ordinary one.
    """
    if view.lost:
        return view.lost
    shape, groups = shape_after(view.shape, view.layout), transposed_groups
    inputs, outputs, *sizes = shape
    if len(sizes) > 2:
        return "is a kernel of three dimensions"
    window = tuple(sizes) if len(sizes) == 2 else (sizes[0], 1)
    if not groups:
        axes = (*range(2, len(shape)), 1, 0)
        return (*view.layout, transpose(axes), reshape((*window, outputs, inputs)))
    # Groups lie side by side among the inputs; predicted kernels have them among the outputs.
    parts = (groups, inputs // groups, outputs, *sizes)
    axes = (*range(3, len(parts)), 1, 0, 2)
    predicted = (*window, inputs // groups, groups * outputs)
    return (*view.layout, reshape(parts), transpose(axes), reshape(predicted))
