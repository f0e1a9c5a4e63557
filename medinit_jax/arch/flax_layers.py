"""What a known layer of Flax is in the graph: its node type, and its parameters' layouts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from medinit_jax.arch.dataflow import NORMS, Shape
from medinit_jax.arch.flax_model import Layer
from medinit_jax.arch.graph import conv_type
from medinit_jax.arch.layout import Layout, reshape, shape_after, transpose
from medinit_jax.arch.reader import View

VOLUME = "is a kernel of three dimensions"
STACK = "is a stack of kernels for a stack of inputs"


def node_type(layer: Layer, kernel: Shape = (1, 1)) -> str:
    """Returns the node type of a layer, given the predicted form of its kernel."""
    module = layer.module
    if layer.rule == "dense":
        return "conv"
    if layer.rule == "conv":
        groups = getattr(module, "feature_group_count", 1) or 1
        dilation = np.max(getattr(module, "kernel_dilation", 1) or 1)
        return conv_type(groups, groups * kernel[-2], int(dilation))
    return layer.rule


def _rank(layer: Layer, leaf: str) -> int:
    """Returns how many axes a parameter of a layer has unless layers are stacked."""

    def count(*names: str, default: int = 1) -> int:
        for name in names:
            if hasattr(layer.module, name):
                value = getattr(layer.module, name)
                return len(value) if isinstance(value, Sequence) else 1
        return default

    if layer.rule == "dense":
        outputs = count("features", "out_features")
        return outputs + count("axis") if leaf == "kernel" else outputs
    if leaf == "kernel":
        return count("kernel_size", default=2) + 2
    return count({"ln": "feature_axes", "bn": "axis"}.get(layer.rule, ""))


def layer_layout(layer: Layer, leaf: str, view: View) -> Layout | str:
    """Returns the layout of a parameter of a known layer, or why it has none."""
    rule, shape = layer.rule, view.shape
    if view.lost:
        return view.lost
    if rule == "embed":
        return "is a table of embeddings"
    if len(shape) > _rank(layer, leaf):
        return STACK
    if leaf == "bias" or (leaf == "scale" and rule in NORMS):
        return (reshape((math.prod(shape),)),)
    if leaf != "kernel" or rule in NORMS:
        return f"is a {leaf!r} of {type(layer.module).__name__}, which has no rule"
    if rule == "dense":
        axes = getattr(layer.module, "axis", -1)
        count = len(axes) if isinstance(axes, Sequence) else 1
        if getattr(layer.module, "batch_dims", ()) or getattr(layer.module, "batch_axis", None):
            return STACK
        return (reshape((math.prod(shape[:count]), math.prod(shape[count:]))),)
    if len(shape) > 4:
        return VOLUME
    layout: Layout = ()
    if getattr(layer.module, "transpose_kernel", False):
        layout = (transpose((*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)),)
        shape = shape_after(shape, layout)
    return (*layout, reshape((shape[0], 1, *shape[1:]))) if len(shape) == 3 else layout
