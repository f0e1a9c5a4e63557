"""The few SVG shapes that the figures are made of, colored by the page's style sheet."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from medinit_jax.report.markup import Html, count, element, fixed

WIDE, NARROW = 840, 344
TEXT = 12.5  # font size in figures, in pixels of the drawing
_LETTER = 0.6 * TEXT  # mean width of a letter


class Frame(NamedTuple):
    """A plotting area and its scales.

    Attributes:
        left: left edge in pixels.
        top: top edge.
        right: right edge.
        bottom: bottom edge.
        x: data range from left to right.
        y: data range from bottom to top.
        log: whether y is on a log scale.
    """

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]
    log: bool = False

    def at(self, x: float) -> float:
        """Pixel column of a value."""
        return self.left + (x - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def row(self, y: float) -> float:
        """Pixel row of a value, kept inside the area."""
        low, high = self.y
        if self.log:
            low, high, y = math.log(low), math.log(high), math.log(max(y, low))
        share = min(max((y - low) / (high - low), -0.02), 1.02)
        return self.bottom - share * (self.bottom - self.top)


def padded(values: Iterable[float], share: float = 0.06, least: float = 1e-3) -> tuple:
    """The range of finite values with a margin on both sides."""
    finite = [float(v) for v in values if math.isfinite(v)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    margin = max(high - low, least) * share
    return low - margin, high + margin


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers inside a range, about as many as wanted.

    Args:
        low: lower end.
        high: upper end, above `low`.
        wanted: how many, roughly.

    Returns:
        Multiples of 1, 2, 2.5 or 5 times a power of ten.
    """
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def whole_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """As `ticks`, whole numbers only."""
    return [t for t in ticks(low, high, wanted) if abs(t - round(t)) < 1e-9]


def decades(low: float, high: float) -> list[float]:
    """Powers of ten inside a range, and their thirds where there are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 300 else (1, 3)
    return [s * 10.0**p for p in powers for s in steps if low <= s * 10.0**p <= high]


def tick_texts(values: Sequence[float]) -> list[str]:
    """Labels of a row of ticks, all with as many digits as the longest needs."""
    if any(abs(value) >= 1000 for value in values):
        return [count(value) for value in values]
    digits = max((len(f"{value:.6g}".partition(".")[2]) for value in values), default=0)
    return [fixed(value, digits) for value in values]


def canvas(width: float, height: float, title: str, *children: Any, class_: str = "") -> Html:
    """An SVG that scales with its box and names itself to a screen reader."""
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=title,
        class_=class_ or None,
        style=f"max-width:{width * (1.12 if width > NARROW else 1.3):g}px",
    )


def responsive(draw: Callable[[int], Html]) -> list[Html]:
    """Draw a figure for both page widths, so that its text has one size; the style sheet picks.

    Args:
        draw: width in pixels to a drawing.

    Returns:
        Two boxes of which one is shown.
    """
    return [
        element("div", draw(WIDE), class_="wide"),
        element("div", draw(NARROW), class_="narrow"),
    ]


def text(x: float, y: float, content: str, anchor: str = "start", class_: str = "") -> Html:
    """A line of text at its baseline."""
    return element(
        "text", content, x=float(x), y=float(y), text_anchor=anchor, class_=class_ or None
    )


def rule(x1: float, y1: float, x2: float, y2: float, class_: str) -> Html:
    """A straight line."""
    return element("line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), class_=class_)


def axes(
    frame: Frame,
    x_ticks: Sequence[float],
    y_ticks: Sequence[float],
    x_label: str,
    y_label: str,
    x_text: Sequence[str] | None = None,
    y_text: Sequence[str] | None = None,
) -> list[Html]:
    """Faint horizontal rules with their values, ticks below, and both labels written level."""
    parts = []
    for value, label in zip(y_ticks, y_text or tick_texts(y_ticks), strict=True):
        y = frame.row(value)
        parts.append(rule(frame.left, y, frame.right, y, "grid"))
        parts.append(text(frame.left - 7, y + 4, label, "end", "tick"))
    for value, label in zip(x_ticks, x_text or tick_texts(x_ticks), strict=True):
        x = frame.at(value)
        parts.append(rule(x, frame.bottom, x, frame.bottom + 4, "axis"))
        parts.append(text(x, frame.bottom + 18, label, "middle", "tick"))
    parts.append(rule(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    if y_label:
        parts.append(text(max(frame.left - 34, 0), frame.top - 11, y_label, class_="label"))
    if x_label:
        parts.append(text(frame.right, frame.bottom + 35, x_label, "end", "label"))
    return parts


def reference(frame: Frame, value: float) -> Html:
    """A dashed level line across the area; `end_labels` names it."""
    y = frame.row(value)
    return rule(frame.left, y, frame.right, y, "reference")


def curve(frame: Frame, xs: Sequence[float], ys: Sequence[float], class_: str) -> Html:
    """A line through points; it breaks where a value is missing."""
    path, pen = [], "M"
    for x, y in zip(xs, ys, strict=True):
        if y is None or not math.isfinite(y):
            pen = "M"
            continue
        path.append(f"{pen}{frame.at(x):.1f} {frame.row(y):.1f}")
        pen = "L"
    return element("path", d="".join(path), class_=class_)


def band(
    frame: Frame, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], class_: str
) -> Html:
    """A filled area between two lines."""
    upper = [f"{frame.at(x):.1f} {frame.row(y):.1f}" for x, y in zip(xs, highs, strict=True)]
    lower = [f"{frame.at(x):.1f} {frame.row(y):.1f}" for x, y in zip(xs, lows, strict=True)]
    return element("path", d="M" + "L".join(upper + lower[::-1]) + "Z", class_=class_)


def marker(shape: str, x: float, y: float, size: float, class_: str, hint: str = "") -> Html:
    """A mark whose shape, not color alone, tells the series; the hint shows on hovering."""
    title = element("title", hint) if hint else None
    if shape == "square":
        side = 1.75 * size
        return element(
            "rect",
            title,
            x=float(x - side / 2),
            y=float(y - side / 2),
            width=float(side),
            height=float(side),
            class_=class_,
        )
    if shape in ("diamond", "triangle"):
        corners = {
            "diamond": ((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
            "triangle": ((0, -1.25), (1.2, 0.85), (-1.2, 0.85)),
        }[shape]
        points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
        return element("polygon", title, points=points, class_=class_)
    return element("circle", title, cx=float(x), cy=float(y), r=float(size), class_=class_)


def end_labels(
    frame: Frame, entries: Sequence[tuple[float, str, str]], gap: float = 15.0
) -> list[Html]:
    """Names at the right end of lines, moved apart where they would overlap.

    Args:
        frame: the plotting area.
        entries: (data value, text, class) per line.
        gap: least distance of two baselines.

    Returns:
        The labels, and a thin leader where one moved.
    """
    ordered = sorted(entries, key=lambda entry: frame.row(entry[0]))
    wanted = np.array([frame.row(value) for value, _, _ in ordered])
    rows = spaced(wanted, gap, frame.top - 4, frame.bottom - 2)
    parts = []
    for (_, label, class_), y, target in zip(ordered, rows, wanted, strict=True):
        if abs(y - target) > 3:
            parts.append(rule(frame.right + 3, target, frame.right + 11, y, f"leader {class_}"))
        parts.append(text(frame.right + 13, y + 4, label, class_=f"name {class_}"))
    return parts


def spaced(wanted: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Move sorted positions as little as needed so that neighbors keep a distance.

    Args:
        wanted: (n,) ascending positions.
        gap: least distance.
        low: least position.
        high: largest position; it yields when there is no room.

    Returns:
        (n,) positions.

    Source: isotonic regression by pooling adjacent violators, after subtracting the gaps.
    """
    offsets = gap * np.arange(len(wanted))
    blocks: list[list[float]] = []
    for value in np.asarray(wanted, np.float64) - offsets:
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            value, size = blocks.pop()
            total = blocks[-1][0] * blocks[-1][1] + value * size
            blocks[-1] = [total / (blocks[-1][1] + size), blocks[-1][1] + size]
    level = np.concatenate([[value] * int(size) for value, size in blocks] or [[]])
    return np.maximum(np.minimum(level, high - gap * (len(wanted) - 1)), low) + offsets


def text_width(content: str) -> float:
    """Rough width of a label, for margins."""
    return _LETTER * len(content)


def hint(name: str, place: str, mean: Any, sd: Any = None) -> str:
    """What hovering over a mark says."""
    tail = f" ± {fixed(sd)}" if fixed(sd) != fixed(None) else ""
    return f"{name}, {place}: {fixed(mean)}{tail}"
