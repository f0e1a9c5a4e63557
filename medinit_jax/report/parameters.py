"""How large the predicted weights are beside the network's own initialization, by depth."""

import math
from typing import Any

from medinit_jax.report.looks import look
from medinit_jax.report.markup import Html, fixed, is_number
from medinit_jax.report.plot import (
    Frame,
    axes,
    canvas,
    curve,
    decades,
    marker,
    whole_ticks,
)

# The permuted values have the predicted ones' mean and deviation, so they need no line.
_SHOWN = ("untrained", "random", "hyper")


def kernels(tensors: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tensors with at least two axes, in the network's order."""
    found = []
    for tensor in tensors if isinstance(tensors, list) else []:
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        if isinstance(shape, list) and len([n for n in shape if n != 1]) >= 2:
            found.append(tensor)
    return found


def deviation(tensor: dict[str, Any], start: str) -> float | None:
    """The standard deviation of a tensor from a start, if it was recorded."""
    statistics = tensor.get(start)
    value = statistics.get("std") if isinstance(statistics, dict) else None
    return float(value) if is_number(value) else None


def parameter_figure(network: str, tensors: list[dict[str, Any]], width: int) -> Html | None:
    """Standard deviation of each weight tensor in the network's order, on a log scale.

    Args:
        network: its name.
        tensors: records of `parameters.json`.
        width: of the drawing in pixels.

    Returns:
        The drawing, or None if no weight tensor has a recorded deviation.
    """
    weights = kernels(tensors)
    table = {start: [deviation(t, start) for t in weights] for start in _SHOWN}
    values = [v for row in table.values() for v in row if v]
    if not values:
        return None
    low, high = min(values) / 1.35, max(values) * 1.35
    low, high = min(low, 10 ** (math.log10(high) - 1)), high
    frame = Frame(52, 30, width - 14, 196, (0.4, len(weights) + 0.6), (low, high), log=True)
    scale = decades(low, high)
    parts: list[Any] = axes(
        frame,
        [t for t in whole_ticks(1, max(len(weights), 2), 5) if 1 <= t <= len(weights)],
        scale,
        "weight tensor, input to output",
        "standard deviation",
        y_text=[f"{value:g}" for value in scale],
    )
    size = 3.2 if len(weights) <= 40 else 2.0
    for start, row in table.items():
        xs = [k + 1 for k, v in enumerate(row) if v]
        ys = [v for v in row if v]
        parts.append(curve(frame, xs, ys, f"thin s-{start}"))
        for x, y in zip(xs, ys, strict=True):
            told = f"{weights[x - 1].get('name')}, {look(start).name}: {fixed(y, 4)}"
            parts.append(
                marker(look(start).shape, frame.at(x), frame.row(y), size, f"mark s-{start}", told)
            )
    return canvas(width, frame.bottom + 44, f"Weight deviations of {network} by depth", *parts)
