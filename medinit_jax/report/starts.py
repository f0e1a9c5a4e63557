"""Figures that compare the four starts: differences, convergence, probe."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from medinit_jax.report.looks import look
from medinit_jax.report.markup import Html, fixed, is_number, percent, signed
from medinit_jax.report.plot import (
    NARROW,
    Frame,
    axes,
    band,
    canvas,
    curve,
    end_labels,
    hint,
    marker,
    padded,
    rule,
    text,
    text_width,
    tick_texts,
    ticks,
    whole_ticks,
)
from medinit_jax.report.verdict import NAMES, Comparison


def difference_figure(comparisons: Sequence[Comparison], width: int) -> Html | None:
    """The paired differences with their intervals around zero.

    Args:
        comparisons: of `verdict.compare_all`.
        width: of the drawing in pixels.

    Returns:
        The drawing, or None without comparisons.
    """
    if not comparisons:
        return None
    narrow = width <= NARROW
    ends = [0.0]
    for _, _, (mean, _, low, high, _), _, _ in comparisons:
        ends += [v for v in (mean, low, high) if is_number(v)]
    labels = [f"over {look(c.other).short if narrow else NAMES[c.other]}" for c in comparisons]
    margin = 10.0 if narrow else max(text_width(label) for label in labels) + 24
    pitch, lead = (58, 24) if narrow else (40, 0)
    right = width - 14 if narrow else width - 212
    top, bottom = 12.0, 12.0 + pitch * len(comparisons)
    frame = Frame(margin, top, right, bottom, padded(ends, 0.08, 0.01), (0.0, 1.0))
    parts: list[Any] = []
    marks = ticks(*frame.x, wanted=4 if narrow else 6)
    for value, label in zip(marks, tick_texts(marks), strict=True):
        x = frame.at(value)
        parts.append(rule(x, top, x, bottom, "zero" if value == 0 else "grid"))
        parts.append(
            text(
                x,
                bottom + 17,
                f"+{label}" if value > 0 else label,
                "middle",
                "tick",
            )
        )
    parts.append(text(frame.right, bottom + 36, "difference in test AUC", "end", "label"))
    for index, (comparison, label) in enumerate(zip(comparisons, labels, strict=True)):
        mean, _, low, high, _ = comparison.difference
        y = top + pitch * index + lead + 20
        start = f"s-{comparison.other}"
        figures = signed(mean)
        if is_number(low):
            figures += f" ({signed(low)} to {signed(high)})"
        if narrow:
            parts.append(text(margin, y - 17, label, class_="row halo"))
            parts.append(text(width - 6, y - 17, figures, "end", "value small halo"))
        else:
            parts.append(text(margin - 14, y + 4, label, "end", "row"))
            parts.append(text(right + 14, y + 4, figures, class_="value small"))
        if is_number(low):
            parts.append(rule(frame.at(low), y, frame.at(high), y, f"interval {start}"))
            for end in (low, high):
                parts.append(rule(frame.at(end), y - 5, frame.at(end), y + 5, f"cap {start}"))
        parts.append(marker(look(comparison.other).shape, frame.at(mean), y, 5, f"mark {start}"))
    return canvas(width, bottom + 44, "Paired differences in test AUC", *parts)


def convergence_figure(
    entries: Sequence[dict[str, Any]],
    title: str,
    width: int,
    among: Sequence[dict[str, Any]] | None = None,
) -> Html:
    """Test figure after each epoch, mean over seeds with a band of one deviation.

    Args:
        entries: fine-tuning entries of one network and fraction, at most one per start.
        title: what the panel shows, for the drawing's accessible name.
        width: of the drawing in pixels.
        among: the entries of all panels, which share their scale.

    Returns:
        The drawing.
    """
    series = [_course(entry) for entry in entries]
    epochs = max((len(mean) for _, mean, _ in series), default=0)
    every = [_course(entry) for entry in among or entries]
    values = [v for _, m, s in every for v in np.concatenate([m - s, m + s]).tolist()]
    low, high = padded(values, 0.05, 0.02)
    height = 220 if width <= NARROW else 300
    frame = Frame(
        46,
        30,
        width - (126 if width > NARROW else 84),
        30 + height,
        (0.6, max(epochs, 1) + 0.4),
        (low, min(high, 1.005)),
    )
    xs = list(range(1, epochs + 1))
    parts: list[Any] = axes(
        frame,
        [t for t in whole_ticks(1, max(epochs, 2), 6) if t <= epochs] if epochs > 6 else xs,
        ticks(*frame.y, 5),
        "epoch",
        "test AUC",
    )
    for start, mean, deviation in series:
        if deviation.any() and np.isfinite(mean).all():
            parts.append(
                band(
                    frame,
                    xs[: len(mean)],
                    (mean - deviation).tolist(),
                    (mean + deviation).tolist(),
                    f"band s-{start}",
                )
            )
    # The start under test is drawn last, on top.
    for start, mean, deviation in reversed(series):
        parts.append(curve(frame, xs[: len(mean)], mean.tolist(), f"line s-{start}"))
        for x, y, s in zip(xs, mean, deviation, strict=False):
            if epochs <= 25 and np.isfinite(y):
                shape = look(start).shape
                told = hint(look(start).name, f"epoch {x}", float(y), float(s))
                parts.append(marker(shape, frame.at(x), frame.row(y), 3.4, f"mark s-{start}", told))
    parts += end_labels(
        frame,
        [
            (float(mean[-1]), _end_name(start, float(mean[-1]), width), f"s-{start}")
            for start, mean, _ in series
            if len(mean) and np.isfinite(mean[-1])
        ],
    )
    return canvas(width, frame.bottom + 44, title, *parts)


def probe_figure(
    entries: Sequence[dict[str, Any]],
    title: str,
    width: int,
    among: Sequence[dict[str, Any]] | None = None,
) -> Html:
    """Test figure of the frozen probe by label fraction, one deviation as a bar.

    Args:
        entries: probe entries of one network and depth.
        title: accessible name of the drawing.
        width: of the drawing in pixels.
        among: the entries of all panels, which share their scale.

    Returns:
        The drawing.
    """
    shares = sorted({e["fraction"] for e in entries if is_number(e.get("fraction"))})
    starts = [s for s in NAMES if any(e.get("start") == s for e in entries)]
    figures = {
        (str(e.get("start")), e.get("fraction")): (e["mean"], e.get("sd"))
        for e in entries
        if is_number(e.get("mean"))
    }
    ends = []
    for entry in among or entries:
        if is_number(entry.get("mean")):
            reach = entry["sd"] if is_number(entry.get("sd")) else 0.0
            ends += [entry["mean"] - reach, entry["mean"] + reach]
    low, high = padded(ends, 0.05, 0.02)
    height = 200 if width <= NARROW else 280
    frame = Frame(
        46,
        30,
        width - (126 if width > NARROW else 84),
        30 + height,
        (-0.35, len(shares) - 0.65),
        (low, min(high, 1.005)),
    )
    parts: list[Any] = axes(
        frame,
        list(range(len(shares))),
        ticks(*frame.y, 5),
        "share of the labels",
        "test AUC",
        x_text=[percent(share) for share in shares],
    )
    labels = []
    for start in reversed(starts):
        shift = (starts.index(start) - (len(starts) - 1) / 2) * 0.035
        xs, ys = [], []
        for index, share in enumerate(shares):
            if (start, share) not in figures:
                continue
            mean, sd = figures[start, share]
            xs.append(index + shift)
            ys.append(mean)
            x, y = frame.at(xs[-1]), frame.row(mean)
            if is_number(sd):
                top, bottom = frame.row(mean + sd), frame.row(mean - sd)
                parts.append(rule(x, top, x, bottom, f"cap s-{start}"))
            told = hint(look(start).name, f"{percent(share)} of the labels", mean, sd)
            parts.append(marker(look(start).shape, x, y, 4, f"mark s-{start}", told))
        parts.append(curve(frame, xs, ys, f"line s-{start}"))
        if ys:
            labels.append((ys[-1], _end_name(start, ys[-1], width), f"s-{start}"))
    parts += end_labels(frame, labels)
    return canvas(width, frame.bottom + 44, title, *parts)


def _course(entry: dict[str, Any]) -> tuple[str, np.ndarray, np.ndarray]:
    """Start, mean and deviation per epoch; a missing mean is NaN, a missing deviation 0."""
    mean = [v if is_number(v) else float("nan") for v in entry.get("mean") or []]
    deviation = [v if is_number(v) else 0.0 for v in entry.get("sd") or []]
    deviation += [0.0] * (len(mean) - len(deviation))
    return str(entry.get("start")), np.array(mean), np.array(deviation[: len(mean)])


def _end_name(start: str, value: float, width: int) -> str:
    """The name at the end of a line, with its last figure where there is room for it."""
    name = look(start).short
    return f"{name} {fixed(value)}" if width > NARROW else name
