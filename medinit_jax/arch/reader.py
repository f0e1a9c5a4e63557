"""What two values become when they meet, in whatever library the model is written.

A tracer knows its library's operations and sorts them into few kinds: a parameter is added, two
values are multiplied, a window is pooled. What that means for the graph is decided here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from medinit_jax.arch.dataflow import NORMS, Dataflow, Shape, Tensor
from medinit_jax.arch.layout import Layout, reshape, shape_after

ARITHMETIC = frozenset(("add", "add_any", "sub", "mul", "div", "batch_norm"))
PARTS = "is used in parts"
JOINED = "is joined with other parameters"


class View(NamedTuple):
    """A value that is one parameter and nothing else.

    Attributes:
        path: Its name.
        index: Which part of its first axis, for stacked layers.
        shape: Stored shape, of that part.
        layout: From the stored shape to that of the value.
        lost: Why it can no longer be predicted, such as that only a part of it is left.
    """

    path: str
    index: int | None
    shape: Shape
    layout: Layout = ()
    lost: str = ""


class Value(NamedTuple):
    """What is known about a value of the trace.

    Attributes:
        producer: Node it came from last; None = it does not depend on the input.
        view: Set where it is a parameter.
        pooled: Whether it is a mean over all positions that is no node yet.
        squeezed: Whether it holds one number per channel.
        fresh: Whether it comes straight out of its node, so that a bias may belong to it.
        scores: Attention node whose weights it holds.
        root: Whether it is what a normalization divides by.
        normalized: Whether it was divided so, and waits for a scale.
        scale: The parameter that scaled a root.
    """

    producer: int | None = None
    view: View | None = None
    pooled: bool = False
    squeezed: bool = False
    fresh: bool = False
    scores: int | None = None
    root: bool = False
    normalized: bool = False
    scale: View | None = None


class Reader:
    """Turns meetings of values into nodes of a `Dataflow`."""

    def __init__(self, flow: Dataflow):
        self.flow = flow
        self._pools: dict[int, int] = {}

    def producer(self, value: Value) -> int | None:
        """Returns the node a value comes from; a pending pooling becomes one."""
        if not value.pooled or value.producer is None:
            return value.producer
        if value.producer not in self._pools:
            self._pools[value.producer] = self.flow.add("glob_avg", [value.producer])
        return self._pools[value.producer]

    def node(self, value: Value) -> int:
        """Returns the node of a value that depends on the input."""
        node = self.producer(value)
        assert node is not None
        return node

    def kernel(self, value: Value, view: View, layout: Layout | str, kind: str) -> Value:
        """A convolution or dense layer with a kernel.

        Args:
            value: What it reads.
            view: The kernel.
            layout: From the stored to the predicted form, or why there is none.
            kind: Node type.
        """
        node = self.flow.add(kind, [self.node(value)], name=owner(view))
        if isinstance(layout, str):
            self.flow.keep(view.path, layout)
        else:
            self.give(node, view, layout, "kernel")
        return Value(producer=node, fresh=True)

    def give(self, node: int, view: View, layout: Layout, leaf: str) -> None:
        """Gives a parameter to a node; its shape becomes the node's unless it is a bias."""
        self.flow.give(node, Tensor(view.path, view.index, view.shape, layout, leaf))
        shape, known = shape_after(view.shape, layout), self.flow.nodes[node]
        if leaf == "kernel":
            height, width = shape[:2] if len(shape) == 4 else (1, 1)
            known.shape = (shape[-1], shape[-2], height, width)
        elif known.kind in NORMS or known.kind == "bias":
            known.shape = (shape[0], 1, 1, 1)

    def norm(self, value: Value, kind: str, scale: View | None, bias: View | None = None) -> Value:
        """A normalization with a scale, a bias, both or none."""
        given = {"scale": scale, "bias": bias}
        if scale is None and bias is None:
            return self.unscaled(value)
        named = scale or bias
        assert named is not None
        node = self.flow.add(kind, [self.node(value)], name=owner(named))
        for leaf, view in given.items():
            if view is None:
                continue
            if view.lost:
                self.flow.keep(view.path, view.lost)
            else:
                self.give(node, view, (reshape((math.prod(view.shape),)),), leaf)
        return Value(producer=node, fresh=True)

    def unscaled(self, value: Value) -> Value:
        """A value that was normalized without parameters, which may still follow."""
        assert value.producer is not None
        self.flow.normalized.add(value.producer)
        return value._replace(fresh=False, normalized=True)

    def added(self, value: Value, view: View, channels: int, layout: Layout | None) -> Value:
        """A parameter is added to a value: a bias, a position encoding, or something else.

        Args:
            value: The value.
            view: The parameter.
            channels: Channels of the sum.
            layout: From the stored form to (1, height, width, channels) or (1, positions,
                channels), should it be a position encoding; None = it can be none.
        """
        size, producer = math.prod(view.shape), self.node(value)
        flat: Layout = (reshape((size,)),)
        if view.lost:
            return self.refused(value, view, view.lost)
        if value.scores is not None:
            self.flow.keep(view.path, "is a bias of attention weights")
            self.flow.link(self.flow.add("embed"), value.scores)
            return value
        node = self.flow.nodes[producer]
        kernel = node.tensors.get("kernel")
        if value.fresh and "bias" not in node.tensors:
            features = kernel.shape[-1] if kernel else node.shape[0]
            if features == size and (kernel or node.kind in NORMS):
                self.give(producer, view, flat, "bias")
                return value._replace(fresh=False)
        if is_vector(view, channels):
            kind = "ln" if value.normalized else "bias"
            number = self.flow.add(kind, [producer], name=owner(view))
            self.give(number, view, flat, "bias")
            return Value(producer=number, squeezed=value.squeezed)
        if layout is None:
            return self.refused(value, view, "is added to features in a way without a rule")
        _, *sizes, depth = shape_after(view.shape, layout)
        height, width = sizes if len(sizes) == 2 else [math.isqrt(sizes[0])] * 2
        encoding = self.flow.add("pos_enc", (), (1, depth, height, width), owner(view))
        self.give(encoding, view, layout, "embedding")
        return Value(producer=self.flow.add("sum", (producer, encoding)))

    def scaled(self, value: Value, view: View, channels: int) -> Value:
        """A parameter is multiplied with a value: a norm's scale, a layer scale, or else."""
        if view.lost:
            return self.refused(value, view, view.lost)
        if is_vector(view, channels):
            if value.root:
                return value._replace(scale=view)
            if value.normalized:
                return self.norm(value, "ln", view)
            self.flow.keep(view.path, "is a layer scale, which starts as the model says")
            shape = (math.prod(view.shape), 1, 1, 1)
            node = self.flow.add("layer_scale", [self.node(value)], shape)
            return Value(producer=node, squeezed=value.squeezed)
        return self.refused(value, view, "multiplies features in a way without a rule")

    def joined(self, values: Sequence[Value], views: Sequence[View], kind: str) -> Value:
        """Values, and parameters such as a class token, are concatenated."""
        sources = [self.node(value) for value in values]
        for view in views:
            self.flow.keep(view.path, "is a learned token")
            sources.append(self.flow.add("embed", (), (view.shape[-1], 1, 1, 1)))
        return Value(producer=self.flow.join(sources, kind))

    def merged(self, views: Sequence[View]) -> Value:
        """Parameters are put together, without the input."""
        for view in views:
            self.flow.keep(view.path, JOINED)
        return Value(view=views[0]._replace(lost=JOINED))

    def token(self, view: View) -> Value:
        """A parameter takes the place of an input."""
        self.flow.keep(view.path, "is a learned token")
        return Value(producer=self.flow.add("embed", (), (view.shape[-1], 1, 1, 1)))

    def looked_up(self, value: Value, view: View) -> Value:
        """Rows of a parameter are looked up by a value."""
        self.flow.keep(view.path, "is looked up by index")
        return Value(producer=self.flow.add("embed", [self.node(value)]))

    def refused(self, value: Value, view: View, reason: str) -> Value:
        """A parameter meets a value in a way without a rule."""
        self.flow.keep(view.path, reason)
        return value._replace(fresh=False)

    def pooled(self, value: Value, kind: str, window: Sequence[int]) -> Value:
        """A window of one or two sides is pooled."""
        if max(window) == 1:
            return value
        height, width = window if len(window) == 2 else (window[0], 1)
        return Value(producer=self.flow.add(kind, [self.node(value)], (1, 1, height, width)))

    def attended(self, values: Sequence[Value]) -> Value:
        """Two values that depend on the input are contracted with each other."""
        scores = next((value.scores for value in values if value.scores is not None), None)
        node = self.flow.attend([self.node(value) for value in values], scores)
        return Value(producer=node, scores=None if scores == node else node)

    def multiplied(self, values: Sequence[Value]) -> Value | None:
        """Returns the product, or quotient, of two values, or None if it is nothing special."""
        first, second = values
        if first.root != second.root:
            kept, root = (first, second) if second.root else (second, first)
            if kept.producer is None:
                return None
            if root.scale is not None:
                return self.norm(kept, "ln", root.scale)
            if root.producer is None:
                # By a constant, as attention weights are, or by moments of an earlier training.
                return kept._replace(normalized=True, fresh=False)
            return self.unscaled(kept)
        if first.producer is None or second.producer is None or first.producer == second.producer:
            return None
        value, factor = (second, first) if first.squeezed and not second.squeezed else values
        squeezed = factor.squeezed and not value.squeezed
        return Value(producer=self.flow.gate(self.node(value), self.node(factor), squeezed))

    def met(self, values: Sequence[Value], keeps: bool, product: bool) -> Value:
        """Values meet in any other way.

        Args:
            values: Those that depend on the input.
            keeps: Whether the operation changes no more than the shape.
            product: Whether it multiplies.
        """
        value = values[0]
        if len({other.producer for other in values}) > 1:
            return Value(producer=self.flow.join([self.producer(v) for v in values], "sum"))
        return value._replace(
            pooled=all(v.pooled for v in values),
            fresh=value.fresh and keeps,
            scores=next((v.scores for v in values if v.scores is not None), None),
            root=value.root and (keeps or product),
            normalized=all(v.normalized for v in values) and (keeps or product),
        )

    def changed(
        self, views: Sequence[tuple[View, Shape]], out: Shape, root: bool, name: str
    ) -> Value:
        """Parameters are computed with, without the input.

        A kernel that is centered or scaled, as in weight standardization, is still the kernel.

        Args:
            views: The parameters, and the shapes they have here.
            out: Shape of the result.
            root: Whether one operand is the root of a variance.
            name: The operation.
        """
        paths = {view.path for view, _ in views}
        if root and len(paths) == 1 and sum(n > 1 for n in views[0][0].shape) <= 1:
            return Value(root=True, scale=views[0][0])
        whole = [view for view, shape in views if shape == out]
        whole.sort(key=lambda view: bool(view.lost))
        if whole and name not in ARITHMETIC:
            whole[0] = whole[0]._replace(lost=f"is changed by the operation {name}")
        for path in paths - {view.path for view in whole[:1]}:
            other = f"only changes {whole[0].path}" if whole else unruled(name)
            self.flow.keep(path, other)
        return Value(view=whole[0]) if whole else Value()


def unruled(operation: str) -> str:
    """Returns why a parameter that an operation uses is not predicted."""
    return f"is used by the operation {operation}, which has no rule"


def not_real(kind: Any) -> str:
    """Returns why a parameter of a dtype that holds no real numbers is not predicted."""
    return f"holds numbers of type {str(kind).removeprefix('torch.')}"


def is_vector(view: View, channels: int) -> bool:
    """Returns whether a parameter holds one number per channel."""
    size = math.prod(view.shape)
    return size == channels and size > 1 and sum(n > 1 for n in view.shape) == 1


def owner(view: View) -> str:
    """Returns the name of the layer that a parameter belongs to."""
    for mark in "/.":
        if mark in view.path:
            return view.path.rsplit(mark, 1)[0]
    return view.path
