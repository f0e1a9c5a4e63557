"""The training curve and the rotation accuracy by split."""

import math
from typing import Any

import numpy as np

from medinit_jax.report.markup import Html, count, element, fixed, is_number
from medinit_jax.report.plot import (
    NARROW,
    Frame,
    axes,
    canvas,
    curve,
    end_labels,
    marker,
    reference,
    rule,
    text,
    text_width,
    tick_texts,
    ticks,
    whole_ticks,
)
from medinit_jax.report.workdir import part

_POINTS = 240  # more points than this say no more at this size

SPLITS: dict[str, str] = {
    "train": "training space",
    "val": "validation",
    "test": "test",
    "wide": "wide",
    "deep": "deep",
    "dense": "dense",
    "bnfree": "without norm",
    "resnet": "ResNets",
    "resnets": "ResNets",
}

ROTATION_LOSS = "train/loss/rotation"


def smoothed(
    steps: np.ndarray, values: np.ndarray, points: int = _POINTS
) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal runs of consecutive steps.

    Args:
        steps: (n,) ascending.
        values: (n,) floats.
        points: at most so many runs.

    Returns:
        Mean steps and mean values, at most (points,) each.
    """
    parts = np.array_split(np.arange(len(steps)), min(points, len(steps)))
    return (
        np.array([steps[index].mean() for index in parts]),
        np.array([values[index].mean() for index in parts]),
    )


def training_figure(
    metrics: dict[str, tuple[np.ndarray, np.ndarray]], summary: dict[str, Any], width: int
) -> Html | None:
    """Loss and accuracy over steps, with the step at which the run left chance.

    Args:
        metrics: scalar name to (steps, values); uses "train/loss", or of several pretexts that of
            rotation, "train/accuracy" and "val/accuracy".
        summary: of the run; uses the take-off step, chance and the ridge figure.
        width: of the drawing in pixels.

    Returns:
        The drawing, or None without a curve.
    """
    # Of several pretexts together chance changes as they begin; rotation's stays.
    loss = ROTATION_LOSS if ROTATION_LOSS in metrics else "train/loss"
    keys = [k for k in (loss, "train/accuracy", "val/accuracy") if k in metrics]
    if not keys:
        return None
    last = max(float(metrics[k][0][-1]) for k in keys)
    span = (0.0, max(last, 1.0))
    rotation, train = part(summary, "rotation_accuracy", dict), part(summary, "train", dict)
    chance, takeoff = rotation.get("chance"), train.get("takeoff_step")
    right = width - (110 if width > NARROW else 92)
    parts: list[Any] = []
    top = 30.0
    accuracy = "train/accuracy" in keys or "val/accuracy" in keys
    if loss in keys:
        steps, values = metrics[loss]
        highest = float(np.quantile(values, 0.995))
        ends = [(_tail(values), "train", "t-train")]
        if is_number(chance):
            highest = max(highest, math.log(1 / chance) * 1.04)
            ends.append((math.log(1 / chance), f"chance {math.log(1 / chance):.2f}", "t-quiet"))
        frame = Frame(40, top, right, top + 120, span, (0.0, highest * 1.05))
        bottom = [] if accuracy else whole_ticks(*span, wanted=4)
        parts += axes(frame, bottom, ticks(*frame.y, 4), "" if accuracy else "step", "loss")
        if is_number(chance):
            parts.append(reference(frame, math.log(1 / chance)))
        parts += noisy_line(frame, steps, values, "t-train")
        parts += _takeoff(frame, takeoff, True)
        parts += end_labels(frame, ends)
        top = frame.bottom + (46 if accuracy else 44)
    if accuracy:
        frame = Frame(40, top, right, top + 190, span, (0.0, 1.0))
        parts += axes(
            frame, whole_ticks(*span, wanted=4), [0, 0.25, 0.5, 0.75, 1], "step", "accuracy"
        )
        ends = []
        for value, name in ((chance, "chance"), (rotation.get("ridge"), "ridge")):
            if is_number(value):
                parts.append(reference(frame, value))
                ends.append((value, f"{name} {value:.2f}", "t-quiet"))
        for key, class_ in (("train/accuracy", "t-train"), ("val/accuracy", "t-val")):
            if key in keys:
                steps, values = metrics[key]
                parts += noisy_line(frame, steps, values, class_)
                ends.append((_tail(values), key.split("/")[0], class_))
        parts += _takeoff(frame, takeoff, "train/loss" not in keys)
        parts += end_labels(frame, ends)
        top = frame.bottom + 44
    return canvas(width, top, "Training loss and accuracy over steps", *parts)


def split_names(rotation: dict[str, Any]) -> list[str]:
    """Keys of the splits, known ones first and in a fixed order."""
    present = [key for key, value in rotation.items() if isinstance(value, dict)]
    return [k for k in SPLITS if k in present] + [k for k in present if k not in SPLITS]


def network_figures(split: dict[str, Any]) -> list[float]:
    """The accuracy of each network of a split."""
    values = split.get("per_network")
    found = []
    for value in values if isinstance(values, list) else []:
        figure = value.get("accuracy") if isinstance(value, dict) else value
        if is_number(figure):
            found.append(float(figure))
    return found


def split_figure(rotation: dict[str, Any], width: int) -> Html | None:
    """Accuracy by split: a bar to the mean, a dot per network, the untrained one beneath.

    Args:
        rotation: "rotation_accuracy" of the summary.
        width: of the drawing in pixels.

    Returns:
        The drawing, or None without splits.
    """
    names = split_names(rotation)
    if not names:
        return None
    narrow = width <= NARROW
    labels = {name: SPLITS.get(name, name) for name in names}
    margin = 12.0 if narrow else max(text_width(label) for label in labels.values()) + 22
    pitch, lead = (62, 20) if narrow else (46, 0)
    top = 40.0
    bottom = top + pitch * len(names)
    frame = Frame(margin, top, width - 52, bottom, (0.0, 1.0), (0.0, 1.0))
    parts: list[Any] = []
    quarters = [0, 0.25, 0.5, 0.75, 1]
    for value, label in zip(quarters, tick_texts(quarters), strict=True):
        x = frame.at(value)
        parts.append(rule(x, top, x, bottom, "grid"))
        parts.append(text(x, bottom + 17, label, "middle", "tick"))
    parts.append(text(frame.right, bottom + 35, "rotation accuracy", "end", "label"))
    for key, name in (("chance", "chance"), ("ridge", "ridge")):
        value = rotation.get(key)
        if is_number(value):
            x = frame.at(value)
            parts.append(rule(x, top - 8, x, bottom, "reference"))
            near = abs(frame.at(rotation.get("ridge") or 0) - frame.at(rotation.get("chance") or 0))
            anchor = "middle"
            if near < 96:
                anchor = "end" if key == "chance" else "start"
            parts.append(text(x, top - 14, f"{name} {value:.2f}", anchor, "note"))
    for index, name in enumerate(names):
        split = rotation[name]
        y = top + pitch * index + lead + 17
        if narrow:
            parts.append(text(margin, y - 15, labels[name], class_="row halo"))
        else:
            parts.append(text(margin - 12, y + 4, labels[name], "end", "row"))
        parts += _bar(frame, y, split.get("mean"), 9, "b-hyper")
        parts += _bar(frame, y + 14, split.get("untrained_mean"), 5, "b-untrained")
        for k, value in enumerate(network_figures(split)):
            jitter = ((k * 7) % 5 - 2) * 1.6
            hint = f"{labels[name]}, network {k}: {fixed(value)}"
            parts.append(marker("circle", frame.at(value), y + jitter, 2.4, "dot", hint))
        if is_number(split.get("min")):
            x = frame.at(split["min"])
            parts.append(rule(x, y - 9, x, y + 9, "least"))
        if is_number(split.get("mean")):
            parts.append(text(frame.right + 8, y + 4, fixed(split["mean"], 2), class_="value"))
    return canvas(width, bottom + 44, "Rotation accuracy by split", *parts)


def _bar(frame: Frame, y: float, value: Any, height: float, class_: str) -> list[Html]:
    if not is_number(value):
        return []
    return [
        element(
            "rect",
            x=frame.left,
            y=y - height / 2,
            width=max(frame.at(value) - frame.left, 0.0),
            height=height,
            class_=class_,
        )
    ]


def noisy_line(frame: Frame, steps: np.ndarray, values: np.ndarray, class_: str) -> list[Html]:
    """A line as it was logged and, where it has many points, smoothed on top."""
    if len(steps) <= 40:
        parts = [curve(frame, steps.tolist(), values.tolist(), f"line {class_}")]
        if len(steps) == 1:
            parts = [
                marker("circle", frame.at(steps[0]), frame.row(values[0]), 3, f"mark {class_}")
            ]
        return parts
    fine, broad = smoothed(steps, values), smoothed(steps, values, 60)
    return [
        curve(frame, fine[0].tolist(), fine[1].tolist(), f"faint {class_}"),
        curve(frame, broad[0].tolist(), broad[1].tolist(), f"line {class_}"),
    ]


def _tail(values: np.ndarray) -> float:
    """Where a noisy line ends: the mean of its last twentieth."""
    return float(values[-max(1, len(values) // 20) :].mean())


def _takeoff(frame: Frame, step: Any, named: bool) -> list[Html]:
    if not is_number(step) or not frame.x[0] <= step <= frame.x[1]:
        return []
    x = frame.at(step)
    parts = [rule(x, frame.top - 4, x, frame.bottom, "event")]
    if named:
        left = x < (frame.left + frame.right) / 2
        label = f"left chance at step {count(step)}"
        anchor = "start" if left else "end"
        parts.append(text(x + (6 if left else -6), frame.top + 4, label, anchor, "note halo"))
    return parts
