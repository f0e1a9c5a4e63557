"""The figures of a study: shares of labels, convergence, class activation maps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from medinit_jax.downstream.cam import overlay
from medinit_jax.report.looks import look
from medinit_jax.report.markup import Html, element, fixed, is_number, percent, signed
from medinit_jax.report.pictures import data_uri
from medinit_jax.report.plot import (
    NARROW,
    Frame,
    axes,
    band,
    canvas,
    curve,
    hint,
    marker,
    padded,
    reference,
    responsive,
    rule,
    text,
    text_width,
    tick_texts,
    ticks,
)

Row = Mapping[str, Any]
# (x, mean, deviation or None) of a start's line.
Points = Sequence[tuple[float, float, float | None]]


def line_panel(
    series: Mapping[str, Points],
    title: str,
    width: int,
    labels: tuple[str, str],
    x_ticks: Sequence[tuple[float, str]] | None = None,
    level: float | None = None,
) -> Html:
    """Lines of several starts with a band of one deviation.

    Args:
        series: {start: points}.
        title: The drawing's accessible name.
        width: Of the drawing in pixels.
        labels: Of both axes.
        x_ticks: (value, text); None chooses round numbers.
        level: A dashed line.
    """
    points = [point for line in series.values() for point in line]
    values = [m + s * (sd or 0) for _, m, sd in points for s in (-1, 1)]
    values += [level] if level is not None else []
    x = padded([place for place, _, _ in points], 0.03, 0.1)
    frame = Frame(48, 26, width - 14, 216, x, padded(values, 0.08, 0.01))
    marks = x_ticks or [(value, f"{value:g}") for value in ticks(*frame.x, wanted=5)]
    parts: list[Any] = axes(
        frame,
        [value for value, _ in marks],
        ticks(*frame.y, wanted=4),
        *labels,
        x_text=[label for _, label in marks],
    )
    if level is not None:
        parts.append(reference(frame, level))
    for start, line in series.items():
        xs, means = [p[0] for p in line], [p[1] for p in line]
        if all(p[2] is not None for p in line) and len(line) > 1:
            lows, highs = ([m + s * sd for _, m, sd in line] for s in (-1, 1))  # pyright: ignore
            parts.append(band(frame, xs, lows, highs, f"band s-{start}"))
        parts.append(curve(frame, xs, means, f"line s-{start}"))
        for place, mean, sd in line:
            parts.append(
                marker(
                    look(start).shape,
                    frame.at(place),
                    frame.row(mean),
                    3.2,
                    f"mark s-{start}",
                    hint(look(start).name, f"{place:g}", mean, sd),
                )
            )
    return canvas(width, 256, title, *parts)


def panels(
    rows: Sequence[Row],
    draw: Callable[[list[Row], str, int], Html | None],
    apart: Sequence[str] = (),
) -> Html | None:
    """A drawing for every task and network that has figures; None if none has.

    Args:
        rows: Of `study_tables.with_tests`.
        draw: (rows of a panel, its title, width in pixels) -> the drawing.
        apart: What else sets panels apart, such as "fraction".
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["model"], *(row[key] for key in apart)), []).append(row)
    several = len({row["fraction"] for row in rows}) > 1 and "fraction" in apart
    known = {}
    for group in groups.values():
        title = f"{group[0]['task']}, {group[0]['model']}"
        title += f", {percent(group[0]['fraction'])} of the labels" if several else ""
        if draw(group, title, NARROW) is not None:
            known[title] = group
    boxes = []
    for title, group in known.items():
        if len(known) == 1:
            drawing: Any = responsive(lambda width, t=title, g=group: draw(g, t, width))  # pyright: ignore
        else:
            drawing = draw(group, title, NARROW)
        boxes.append(element("div", element("h3", title), drawing, class_="panel"))
    if not boxes:
        return None
    return boxes[0] if len(boxes) == 1 else element("div", boxes, class_="panels")


def difference_panel(rows: list[Row], title: str, width: int) -> Html | None:
    """Paired differences to random of all starts with their intervals, a line for each.

    Args:
        rows: Of one task and network.
        title: The drawing's accessible name.
        width: Of the drawing in pixels.
    """
    found = {row["start"]: row["difference"]["best"] for row in rows if row["difference"]}
    if not found:
        return None
    names = {start: look(start).short if width <= NARROW else look(start).name for start in found}
    means = [one["mean"] for one in found.values()]
    # Two seeds have intervals so wide that they would leave the means no room.
    reach = max(4 * max(abs(mean) for mean in means), 0.02)
    ends = [end for one in found.values() for end in (one["low"], one["high"]) if is_number(end)]
    inside = [min(max(end, -reach), reach) for end in ends]
    pitch, top = 24.0, 10.0
    left = max(text_width(name) for name in names.values()) + 14
    bottom = top + pitch * len(found) + 4
    span = padded([0.0, *means, *inside], 0.05, 0.01)
    frame = Frame(left, top, width - 74, bottom, span, (0.0, 1.0))
    marks = ticks(*frame.x, wanted=3 if width <= NARROW else 7)
    parts: list[Any] = []
    for value, label in zip(marks, tick_texts(marks), strict=True):
        x = frame.at(value)
        parts.append(rule(x, top, x, bottom, "zero" if value == 0 else "grid"))
        parts.append(text(x, bottom + 17, f"+{label}" if value > 0 else label, "middle", "tick"))
    label = f"difference in {rows[0]['metric']}"
    parts.append(text(frame.right, bottom + 35, label, "end", "label"))
    for index, (start, one) in enumerate(found.items()):
        y = top + pitch * (index + 0.5)
        parts.append(text(left - 10, y + 4, names[start], "end"))
        parts.append(text(frame.right + 10, y + 4, signed(one["mean"], 4), class_="value small"))
        parts += _interval(frame, y, one["low"], one["high"], f"s-{start}")
        told = hint(look(start).name, title, one["mean"])
        x = frame.at(one["mean"])
        parts.append(marker(look(start).shape, x, y, 4.5, f"mark s-{start}", told))
    return canvas(width, bottom + 42, f"{title}: differences to random initialization", *parts)


def _interval(frame: Frame, y: float, low: Any, high: Any, class_: str) -> list[Html]:
    if not (is_number(low) and is_number(high)):
        return []
    shown = [min(max(end, frame.x[0]), frame.x[1]) for end in (low, high)]
    parts = [rule(frame.at(shown[0]), y, frame.at(shown[1]), y, f"interval {class_}")]
    for end, kept in zip((low, high), shown, strict=True):
        if end == kept:
            parts.append(rule(frame.at(end), y - 5, frame.at(end), y + 5, f"cap {class_}"))
    return parts


def fraction_panel(rows: list[Row], title: str, width: int) -> Html | None:
    """Test figure against the share of labels, on a log scale."""
    series: dict[str, list[tuple[float, float, float | None]]] = {}
    for row in sorted(rows, key=lambda row: row["fraction"]):
        if is_number(row["best"]["mean"]):
            point = (math.log10(row["fraction"]), row["best"]["mean"], row["best"]["sd"])
            series.setdefault(row["start"], []).append(point)
    if not series:
        return None
    shares = sorted({row["fraction"] for row in rows})
    marks = [(math.log10(share), percent(share)) for share in shares]
    return line_panel(series, title, width, ("share of labels", rows[0]["metric"]), marks)


def convergence_panel(rows: list[Row], title: str, width: int) -> Html | None:
    """Validation figure by epoch, with 95 % of the best that random initialization reaches."""
    series = {
        row["start"]: [(e, m, sd) for e, m, sd in row["curve"] if is_number(m)]
        for row in rows
        if row["curve"]
    }
    series = {start: line for start, line in series.items() if line}
    if not series:
        return None
    level = 0.95 * max(m for _, m, _ in series["random"]) if "random" in series else None
    labels = ("epoch", f"validation {rows[0]['metric']}")
    return line_panel(series, title, width, labels, level=level)


def cam_panel(name: str) -> Callable[[list[Row], str, int], Html | None]:
    """Returns the drawing of a figure of maps ("energy", "iou" or "drift") by epoch."""

    def draw(rows: list[Row], title: str, width: int) -> Html | None:
        series = {
            row["start"]: [
                (epoch, value, None)
                for epoch, value in zip(row["cam"]["epochs"], row["cam"][name], strict=True)
            ]
            for row in rows
            if row["cam"] and name in row["cam"]
        }
        if not series:
            return None
        return line_panel(series, f"{title}: {name}", width, ("epoch", name))

    return draw


def map_grid(maps: Mapping[str, Mapping[str, np.ndarray]], most: int = 3) -> Html | None:
    """Images in rows, epochs in columns, all starts of an image one below the other.

    Args:
        maps: {start: arrays of its `cams.npz`}: image uint8 (n, S, S, 3), cam_<epoch> float (n, h,
            w) and, if known, mask bool (n, S, S), whose outline is drawn.
        most: Images shown.
    """
    known = {start: held for start, held in maps.items() if "image" in held}
    if not known:
        return None
    first = next(iter(known.values()))
    # Side by side only what shows the same images.
    known = {
        start: held
        for start, held in known.items()
        if np.array_equal(held["image"], first["image"])
    }
    epochs = sorted(int(name[4:]) for name in first if name.startswith("cam_"))
    head = ["", "image", *(f"epoch {epoch}" for epoch in epochs)]
    body = []
    for index in range(min(most, len(first["image"]))):
        for start, held in known.items():
            mask = held["mask"][index] if "mask" in held else None
            image = outlined(held["image"][index], mask)
            pictures = [image]
            pictures += [
                outlined(overlay(held["image"][index], held[f"cam_{epoch}"][index]), mask)
                for epoch in epochs
                if f"cam_{epoch}" in held
            ]
            cells = [
                element("img", src=data_uri(picture), alt=f"image {index + 1}, {start}")
                for picture in pictures
            ]
            body.append([look(start).name, *cells])
    return element(
        "div",
        element(
            "table",
            element("thead", element("tr", [element("th", name) for name in head])),
            element(
                "tbody",
                [element("tr", [element("td", cell) for cell in row]) for row in body],
            ),
        ),
        class_="maps",
    )


def outlined(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Draws the outline of a mask in white."""
    if mask is None:
        return image
    inside = np.pad(mask, 1)
    whole = inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    return np.where((mask & ~whole)[..., None], np.uint8(255), image)


def epochs_text(row: Row) -> str:
    """Returns the epochs to 95 % of random's best of every seed; a dash where it is not reached."""
    found = row.get("epochs_to_95")
    return ", ".join("–" if e is None else f"{e:g}" for e in found) if found else fixed(None)
