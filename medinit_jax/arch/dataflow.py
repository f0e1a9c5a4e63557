"""From the dataflow that a tracer reports to the graph that the hypernetwork reads.

tracers (`flax_trace`, `torch_trace`) follow values through a model and tell a `Dataflow` what
they meet. Every value has one producer, the node it came from last; an operation without a rule
hands the producer of its input on. The rules that do not depend on where a model comes from live
here.
"""

from __future__ import annotations

import dataclasses
import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from medinit_jax.arch.graph import MAX_DISTANCE, ArchGraph, path_lengths
from medinit_jax.arch.layout import Layout, shape_after
from medinit_jax.arch.vocabulary import TYPE_INDEX
from medinit_jax.core.errors import UsageError

Shape = tuple[int, ...]
UNUSED = "is never used"
NO_SHAPE = (0, 0, 0, 0)
WEIGHTS = frozenset(("conv", "sep_conv", "dil_conv", "group_conv", "conv_t"))
NORMS = frozenset(("bn", "gn", "in", "ln"))
MEETINGS = frozenset(("sum", "concat", "cse", "mul", "msa"))


class Tensor(NamedTuple):
    """A parameter of a model that the hypernetwork can write.

    Attributes:
        path: Its name in the model.
        index: Which part of the first axis it is, for layers whose parameters are stacked.
        stored: Shape in the model (of that part).
        layout: From the stored to the predicted form.
        leaf: "kernel", "bias", "scale" or "embedding".
    """

    path: str
    index: int | None
    stored: Shape
    layout: Layout
    leaf: str

    @property
    def shape(self) -> Shape:
        """Shape in the predicted form, see `hyper.tiles.finish`."""
        return shape_after(self.stored, self.layout)


class Traced(NamedTuple):
    """A model as the hypernetwork sees it.

    Attributes:
        graph: Its graph; node i's parameters are named (str(i of creation), leaf kind).
        tensors: What can be written, by (module, leaf) as in `graph.parameters`.
        leaves: Shape of every parameter of the model, by its name, in the model's order.
        reasons: Why a parameter keeps the model's own value, by its name.
        notes: What the reader should know, one sentence each.
        lengths: Parameters that hold the length of another in weight normalization, by name: that
            other and the axes its squares are summed over. They are written so that the normalized
            kernel is the predicted one.
        normalized: Whether values are normalized on the way to the outputs, with or without
            parameters.
    """

    graph: ArchGraph
    tensors: dict[tuple[str, str], Tensor]
    leaves: dict[str, Shape]
    reasons: dict[str, str]
    notes: tuple[str, ...]
    lengths: Mapping[str, tuple[str, tuple[int, ...]]]
    normalized: bool

    @property
    def shapes(self) -> dict[str, dict[str, Shape]]:
        """Predicted form of every tensor, {module: {leaf: shape}}."""
        shapes: dict[str, dict[str, Shape]] = {}
        for (module, leaf), tensor in self.tensors.items():
            shapes.setdefault(module, {})[leaf] = tensor.shape
        return shapes


@dataclasses.dataclass
class Node:
    """A node as it is built up; see `Dataflow.add`."""

    kind: str
    sources: list[int]
    shape: tuple[int, int, int, int] = NO_SHAPE
    tensors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    name: str = ""


class Dataflow:
    """Collects nodes in the order of execution; node numbers count up from 0."""

    def __init__(self):
        self.nodes: list[Node] = []
        self.reasons: dict[str, str] = {}
        self.notes: list[str] = []
        self.lengths: dict[str, tuple[str, tuple[int, ...]]] = {}
        # Nodes whose values are normalized without parameters, which takes no node of its own.
        self.normalized: set[int] = set()

    def add(
        self,
        kind: str,
        sources: Iterable[int] = (),
        shape: tuple[int, int, int, int] = NO_SHAPE,
        name: str = "",
    ) -> int:
        """Adds a node of a type of `vocabulary.NODE_TYPES` and returns its number."""
        self.nodes.append(Node(kind, list(dict.fromkeys(sources)), shape, name=name))
        return len(self.nodes) - 1

    def link(self, source: int, node: int) -> None:
        """Adds an edge unless it is there, or would lead back to the node itself."""
        if source != node and source not in self.nodes[node].sources:
            self.nodes[node].sources.append(source)

    def give(self, node: int, tensor: Tensor) -> None:
        """Says that a tensor belongs to a node; its first user keeps it."""
        known = self.nodes[node].tensors.setdefault(tensor.leaf, tensor)
        if known.path != tensor.path:
            self.keep(tensor.path, f"is a second {tensor.leaf} of its layer")

    def keep(self, path: str, reason: str) -> None:
        """Says why a parameter keeps the model's own value; the first reason counts."""
        self.reasons.setdefault(path, reason)

    def stretch(self, length: str, kernel: str, axes: tuple[int, ...]) -> None:
        """Says that a parameter is the length of another, see `Traced.lengths`."""
        self.lengths[length] = kernel, axes
        self.keep(length, f"only changes {kernel}")

    def note(self, sentence: str) -> None:
        """Says something the user should know, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def join(self, producers: Sequence[int | None], kind: str) -> int | None:
        """Returns the producer where values meet: a new node only if they come from several."""
        live = list(dict.fromkeys(p for p in producers if p is not None))
        if len(live) > 1:
            return self.add(kind, live)
        return live[0] if live else None

    def attend(self, producers: Sequence[int], scores: int | None) -> int:
        """Returns the attention node of a product of two values.

        Args:
            producers: Of the two values.
            scores: Attention node whose weights one of them holds: their product with the values
                belongs to it. None = a new one.
        """
        if scores is None or scores in self._ancestors(p for p in producers if p != scores):
            return self.add("msa", producers)
        for producer in producers:
            self.link(producer, scores)
        return scores

    def gate(self, value: int, factor: int, squeezed: bool) -> int:
        """Returns the node of a value times a factor; squeeze-and-excite is one node (`cse`).

        The reference does not count the pooling inside a squeeze-and-excite, so it is taken out.

        Args:
            value: Producer of what is scaled.
            factor: Producer of the factor.
            squeezed: Whether the factor, and not the value, is one number per channel. Where both
                are, a factor that comes from the pooled value tells a squeeze-and-excite.
        """
        pools: list[tuple[Node, int]] = []
        pending, seen = [factor], {value}
        while pending:
            number = pending.pop()
            if number in seen or self.nodes[number].kind in MEETINGS:
                continue
            seen.add(number)
            node = self.nodes[number]
            for source in list(node.sources):
                if self.nodes[source].kind != "glob_avg":
                    pending.append(source)
                elif source != value:
                    pools.append((node, source))
        own = any(value in self.nodes[pool].sources for _, pool in pools)
        if not squeezed and not own:
            return self.add("mul", (value, factor))
        for node, pool in pools:
            if not any(pool in other.sources for other in self.nodes if other is not node):
                node.sources.remove(pool)
                node.sources += [s for s in self.nodes[pool].sources if s not in node.sources]
        return self.add("cse", (value, factor))

    def finish(
        self, outputs: Sequence[int], leaves: dict[str, Shape], label: str, only: str = ""
    ) -> Traced:
        """Builds the graph of what leads to the outputs.

        Args:
            outputs: Producers of the model's outputs.
            leaves: Shape of every parameter of the model.
            label: What messages call the model.
            only: Name of a part of the model, such as "encoder": the graph ends with the last nodes
                that hold parameters of it, skip connections included, and only those are written.

        Returns:
            The traced model; a parameter without a place in the graph has a reason.

        Raises:
            UsageError: No output depends on the input, or there is no such part.
        """
        if not outputs:
            raise UsageError(f"No output of {label} depends on its input; check the model.")
        check_part(leaves, only, label)
        used = self._ancestors(outputs)
        heads = self._heads(used)
        if only:
            used = self._ancestors(
                number
                for number in used
                if any(inside(t.path, only) for t in self.nodes[number].tensors.values())
            )
        order = self._topological(used)
        types: list[int] = []
        shapes: list[tuple[int, int, int, int]] = []
        parameters: list[tuple[str, str] | None] = []
        parents: list[list[int]] = []
        head: list[bool] = []
        last: dict[int, int] = {}
        tensors: dict[tuple[str, str], Tensor] = {}
        placed: set[tuple[str, int | None]] = set()

        def put(kind, shape, before, parameter, is_head):
            types.append(TYPE_INDEX[kind])
            shapes.append(shape)
            parents.append(before)
            parameters.append(parameter)
            head.append(is_head)
            return len(types) - 1

        for number in order:
            node, is_head = self.nodes[number], number in heads
            module = f"{number}:{node.name}" if node.name else str(number)
            own = {
                leaf: tensor
                for leaf, tensor in node.tensors.items()
                if (tensor.path, tensor.index) not in placed and inside(tensor.path, only)
            }
            for leaf, tensor in own.items():
                tensors[module, leaf] = tensor
                placed.add((tensor.path, tensor.index))
            if any((t.path, t.index) in placed and t not in own.values()
                   for t in node.tensors.values()):  # fmt: skip
                self.note(f"{node.name} runs more than once; its first use decides what is written")
            before = [last[source] for source in node.sources if source in last]
            main = _main_leaf(node)
            parameter = (module, main) if main and _holds(own, main) else None
            last[number] = put(node.kind, node.shape, before, parameter, is_head)
            bias = node.tensors.get("bias") if main == "kernel" else None
            if bias is not None:
                parameter = (module, "bias") if "bias" in own else None
                shape = (bias.shape[0], 1, 1, 1)
                last[number] = put("bias", shape, [last[number]], parameter, is_head)

        senders, receivers, distance = path_lengths(parents, MAX_DISTANCE)
        graph = ArchGraph(
            node_type=np.array(types, np.int32),
            shape=np.array(shapes, np.int32).reshape(-1, 4),
            parameters=tuple(parameters),
            head=np.array(head, bool),
            senders=senders,
            receivers=receivers,
            distance=distance,
        )
        unused = {t.path for n, node in enumerate(self.nodes) if n not in used
                  for t in node.tensors.values()}  # fmt: skip
        found = {tensor.path for tensor in tensors.values()}
        lengths = {length: (kernel, axes) for length, (kernel, axes) in self.lengths.items()
                   if kernel in found and inside(length, only)}  # fmt: skip
        reasons = {}
        for path in leaves:
            if not inside(path, only):
                reasons[path] = f"is outside {only}"
            elif path not in found and path not in lengths:
                lost = "does not lead to an output" if path in unused else UNUSED
                reasons[path] = self.reasons.get(path, lost)
        normalized = any(n in self.normalized or self.nodes[n].kind in NORMS for n in used)
        return Traced(graph, tensors, leaves, reasons, tuple(self.notes), lengths, normalized)

    def _ancestors(self, outputs: Iterable[int]) -> set[int]:
        used: set[int] = set()
        pending = list(outputs)
        while pending:
            number = pending.pop()
            if number not in used:
                used.add(number)
                pending += self.nodes[number].sources
        return used

    def _topological(self, used: set[int]) -> list[int]:
        """Orders nodes by creation as far as edges allow: attention meets its values late."""
        waiting = {n: len([s for s in self.nodes[n].sources if s in used]) for n in used}
        users: dict[int, list[int]] = {n: [] for n in used}
        for number in used:
            for source in self.nodes[number].sources:
                users[source].append(number)
        ready = [number for number in used if not waiting[number]]
        heapq.heapify(ready)
        order = []
        while ready:
            number = heapq.heappop(ready)
            order.append(number)
            for user in users[number]:
                waiting[user] -= 1
                if not waiting[user]:
                    heapq.heappush(ready, user)
        assert len(order) == len(used), "a cycle"
        return order

    def _heads(self, used: set[int]) -> set[int]:
        """Returns dense layers and convolutions that no node with parameters follows."""
        leads_on: set[int] = set()
        for number in used:
            if self.nodes[number].tensors:
                leads_on |= self._ancestors(self.nodes[number].sources)
        weights = [n for n in used if self.nodes[n].kind in WEIGHTS and self.nodes[n].tensors]
        # A stack of layers whose last part comes last is no classifier.
        inner = {t.path for n in weights if n in leads_on for t in self.nodes[n].tensors.values()}
        return {
            number
            for number in weights
            if number not in leads_on
            and not any(t.path in inner for t in self.nodes[number].tensors.values())
        }


def inside(path: str, part: str) -> bool:
    """Returns whether a parameter belongs to a part of the model; "" is all of it."""
    words, wanted = (re.split(r"[/.]", text) for text in (path, part))
    return not part or words[: len(wanted)] == wanted


def check_part(leaves: Iterable[str], part: str, label: str) -> None:
    """Raises `UsageError` unless some parameter lies inside a part of the model.

    Args:
        leaves: Names of the parameters.
        part: See `inside`.
        label: What the message calls the model.
    """
    if part and not any(inside(path, part) for path in leaves):
        parts = dict.fromkeys(re.split(r"[/.]", path)[0] for path in leaves)
        raise UsageError(
            f"{label} has no parameters under {part!r}; its parts are {', '.join(parts)}."
        )


def refuse_unknown(traced: Traced, label: str, part: str) -> None:
    """Raises `UsageError` if parameters of a part cannot be predicted; arguments as above."""
    lost = [f"{path} ({why})" for path, why in traced.reasons.items() if inside(path, part)]
    if lost:
        raise UsageError(
            f"{label} has parameters that cannot be predicted: {'; '.join(lost[:5])}"
            f"{f' and {len(lost) - 5} more' if len(lost) > 5 else ''}. Pass "
            "on_unknown='fallback' to let them keep the model's own values."
        )


def _main_leaf(node: Node) -> str:
    """Returns the leaf kind of a node as `ArchGraph.parameters` names it, empty without tensors."""
    if node.kind in WEIGHTS:
        return "kernel"
    if {"scale", "bias"} & node.tensors.keys():
        return "norm" if node.kind != "bias" else "bias"
    return "embedding" if node.tensors else ""


def _holds(own: dict[str, Tensor], main: str) -> bool:
    return bool({"scale", "bias"} & own.keys()) if main == "norm" else main in own
