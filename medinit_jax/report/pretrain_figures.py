"""What the pretraining of an encoder logs, as curves, and what each of them means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from medinit_jax.report.markup import Html, element
from medinit_jax.report.plot import NARROW, Frame, axes, canvas, padded, ticks, whole_ticks
from medinit_jax.report.training import noisy_line

# Scalar name -> (steps, values), as `workdir.read_workdir` has them.
Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]


class Scalar(NamedTuple):
    """A logged figure.

    Attributes:
        title: For people.
        meaning: How to read it.
    """

    title: str
    meaning: str


SCALARS: dict[str, Scalar] = {
    "loss": Scalar("loss", "What is minimized. Losses of different methods do not compare."),
    "alignment": Scalar(
        "alignment",
        "Mean squared distance of positives on the unit sphere: 0 where they coincide, 2 by "
        "chance.",
    ),
    "uniformity": Scalar(
        "uniformity",
        "Log of the mean of exp(−2 squared distance) over all pairs: 0 where all features are "
        "one point, near −4 where they spread evenly.",
    ),
    "positives": Scalar("positives per anchor", "Other views in the batch that share its label."),
    "collapse_distance": Scalar(
        "distance from collapse",
        "From the loss of an encoder that maps everything to one point; a training that stays "
        "near 0 has collapsed.",
    ),
    "spread": Scalar(
        "spread", "Deviation of unit features over the batch: 1 if even, 0 if all are one point."
    ),
    "teacher_entropy": Scalar(
        "teacher entropy",
        "In nats: 0 where the teacher names one class for all images, the log of the number of "
        "prototypes where it says nothing.",
    ),
    "accuracy_abnormality": Scalar("accuracy, abnormality", "On training patches."),
    "accuracy_position": Scalar("accuracy, position", "On training patches."),
    "grad_norm": Scalar("gradient norm", "Before clipping."),
}


def scalar_panel(metrics: Metrics, name: str, title: str, width: int = NARROW) -> Html | None:
    """A logged figure by step; None where it was not logged.

    Args:
        metrics: Of a run.
        name: Key of `SCALARS`.
        title: The drawing's accessible name.
        width: Of the drawing in pixels.
    """
    steps, values = metrics.get(f"train/{name}", (np.zeros(0), np.zeros(0)))
    if not len(steps):
        return None
    # Single batches far off would flatten the rest.
    shown = np.quantile(values, (0.0, 0.995))
    span = padded([0.0, float(steps[-1])], 0.0, 1.0)
    frame = Frame(56, 26, width - 14, 190, (span[0], max(span[1], 1.0)), padded(shown, 0.08, 0.01))
    parts = axes(frame, whole_ticks(*frame.x, wanted=4), ticks(*frame.y, wanted=4), "step", "")
    class_ = "t-val" if name == "loss" else "t-train"
    return canvas(width, 230, title, *parts, *noisy_line(frame, steps, values, class_))


def scalar_panels(metrics: Metrics) -> Html | None:
    """All logged figures of `SCALARS`, each with its meaning; None without any."""
    boxes = []
    for name, scalar in SCALARS.items():
        drawing = scalar_panel(metrics, name, scalar.title)
        if drawing is not None:
            heading = element("h3", f"{scalar.title[0].upper()}{scalar.title[1:]}")
            caption = element("figcaption", scalar.meaning)
            boxes.append(element("figure", heading, drawing, caption, class_="panel"))
    return element("div", boxes, class_="panels") if boxes else None
