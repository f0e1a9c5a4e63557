"""Predicted parameters in the form in which any traced model stores its own, and what was left."""

from __future__ import annotations

import io
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from medinit_jax.arch import layout
from medinit_jax.arch.dataflow import Traced
from medinit_jax.arch.vocabulary import known_types
from medinit_jax.hyper.hypernetwork import HyperInitializer, Theta
from medinit_jax.hyper.initializer import predict
from medinit_jax.hyper.starts import WHOLE, Transfer, enter

HEAD = "is the classifier, which keeps the model's own start"


class Row(NamedTuple):
    """What becomes of one parameter of a model.

    Attributes:
        path: Its name.
        shape: Its shape.
        status: "predicted", "fallback" (it has no rule) or "excluded" (it is left out on purpose);
            the last two keep the model's own values.
        reason: Why it is not predicted.
    """

    path: str
    shape: tuple[int, ...]
    status: str
    reason: str = ""


class Coverage(NamedTuple):
    """Which parameters of a model are predicted; printed, it is a table.

    Attributes:
        rows: One for every parameter.
        nodes: Nodes of the graph.
        edges: Its edges.
        notes: What else the reader should know.
    """

    rows: tuple[Row, ...]
    nodes: int
    edges: int
    notes: tuple[str, ...]

    def share(self, status: str = "predicted") -> float:
        """Returns the share of all scalar parameters that has a status."""
        sizes = {row.path: math.prod(row.shape) for row in self.rows}
        part = sum(sizes[row.path] for row in self.rows if row.status == status)
        return part / max(sum(sizes.values()), 1)

    def __str__(self) -> str:
        table = Table("parameter", "shape", "value", title_justify="left")
        for row in self.rows:
            why = row.status if row.status == "predicted" else f"own: {row.reason}"
            table.add_row(row.path, " x ".join(map(str, row.shape)), why)
        counts = {s: sum(row.status == s for row in self.rows) for s in STATUSES}
        lines = [
            f"{len(self.rows)} tensors: "
            + ", ".join(f"{count} {status}" for status, count in counts.items())
            + f" ({self.share():.1%} of the parameters predicted); "
            f"graph of {self.nodes} nodes and {self.edges} edges.",
            *self.notes,
        ]
        text = io.StringIO()
        console = Console(file=text, width=120)
        console.print(table)
        for line in lines:
            console.print(line, highlight=False)
        return text.getvalue()


ADVICE = (
    "Search the learning rate anew, between 0.05 and 0.003: the best one differed between starts, "
    "by up to 17 times (docs/results.md). Batch statistics start at mean 0, variance 1: estimate "
    "them before the network is used untrained."
)
NO_NORM = (
    "The model has no normalization layer: predicted kernels are smaller than common random ones, "
    "and its signal may fade from layer to layer (docs/results.md). Look at the spread of its "
    "outputs before you train it."
)
STATUSES = ("predicted", "fallback", "excluded")


def coverage(
    traced: Traced, head: bool = False, written: Collection[str] | None = None
) -> Coverage:
    """Returns what becomes of every parameter of a traced model.

    Args:
        traced: The model.
        head: Whether the classifier is predicted too.
        written: Names of the parameters that were written; None = all that can be.
    """
    places = {tensor.path: key for key, tensor in traced.tensors.items()}
    places |= {path: places[kernel] for path, (kernel, _) in traced.lengths.items()}
    heads = _heads(traced)
    rows = []
    for path, shape in traced.leaves.items():
        reason, status = traced.reasons.get(path, ""), "fallback"
        if path not in places:
            status = "excluded" if reason.startswith("is outside") else "fallback"
        elif places[path][0] in heads and not head:
            status, reason = "excluded", HEAD
        elif written is not None and path not in written:
            status, reason = "excluded", "is left out by depth_fraction or kinds"
        else:
            status = "predicted"
        rows.append(Row(path, shape, status, reason))
    edges = int((traced.graph.distance == 1).sum())
    notes = traced.notes if traced.normalized else (*traced.notes, NO_NORM)
    return Coverage(tuple(rows), len(traced.graph.node_type), edges, notes)


def advice(found: Coverage) -> str:
    """Returns what was predicted, how to train what comes of it, and what else is to be known."""
    count = sum(row.status == "predicted" for row in found.rows)
    predicted = f"{count} of {len(found.rows)} tensors predicted ({found.share():.1%})."
    return " ".join((predicted, ADVICE, *found.notes))


def _heads(traced: Traced) -> set[str]:
    graph = traced.graph
    entries = [graph.parameters[i] for i in np.flatnonzero(graph.head)]
    return {entry[0] for entry in entries if entry is not None}


def write(
    module: HyperInitializer,
    theta: Theta,
    traced: Traced,
    key: jax.Array,
    transfer: Transfer = WHOLE,
    unknown_types: str = "error",
) -> dict[str, np.ndarray]:
    """Predicts the parameters of a traced model.

    Args:
        module: The hypernetwork.
        theta: Its parameters.
        traced: The model.
        key: Random key of the noise.
        transfer: Which tensors take predicted values, and what is done to them.
        unknown_types: What becomes of node types that the hypernetwork does not know, see
            `vocabulary.known_types`.

    Returns:
        {name: float32 array of the shape the model stores} of what is predicted. Of stacked layers
        all are written, or none.

    Raises:
        UsageError: The classifier cannot be predicted, an option is out of range, or a node type is
            not known.
    """
    graph = traced.graph._replace(
        node_type=known_types(traced.graph.node_type, module.node_types, unknown_types)
    )
    parameters = predict(module, theta, graph, traced.shapes, include_head=transfer.head)
    predicted = {
        f"{name}/{leaf}": np.asarray(parameters[name][leaf])
        for name, leaf in traced.tensors
        if leaf in parameters.get(name, {})
    }
    entered = enter(predicted, key, transfer)
    parts: dict[str, dict[Any, np.ndarray]] = {}
    for (name, leaf), tensor in traced.tensors.items():
        if f"{name}/{leaf}" in entered:
            value = layout.undo(entered[f"{name}/{leaf}"], tensor.stored, tensor.layout)
            parts.setdefault(tensor.path, {})[tensor.index] = value
    found = {}
    for path, values in parts.items():
        if None in values:
            found[path] = values[None]
        elif len(values) == traced.leaves[path][0]:
            found[path] = np.stack([values[index] for index in sorted(values)])
    for path, (kernel, axes) in traced.lengths.items():
        if kernel in found:
            length = np.sqrt(np.square(found[kernel]).sum(axes))
            found[path] = length.reshape(traced.leaves[path])
    return found
