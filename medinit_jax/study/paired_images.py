"""Two starts on the same test images: is their difference larger than that of the images drawn?

A test over seeds asks whether other seeds would agree; this one asks whether other images would,
with the networks as they are. One seed allows this question only.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.downstream import figures, overlap
from medinit_jax.downstream.heads import Head
from medinit_jax.downstream.intervals import paired_test

PREDICTIONS = "predictions.npz"
RESAMPLES = 1000
Figure = Callable[[np.ndarray], float]


def compare_on_images(
    own: Sequence[Sequence[Path]],
    other: Sequence[Sequence[Path]],
    metric: str,
    resamples: int = RESAMPLES,
) -> dict[str, Any] | None:
    """Returns the difference of two starts with its interval over test images.

    Args:
        own: Folders of the first start's runs by seed; several of one seed are its folds, whose
            images are taken together.
        other: Those of the second, in the same order.
        metric: The task's metric.
        resamples: Of the paired bootstrap; whole patients are drawn.

    Returns:
        "mean", "low", "high", "p", "images" and "patients"; None where answers are missing, or too
        few resamples define the metric.

    Raises:
        UsageError: The runs were judged on different images.
    """
    answers = [_joined(folders) for folders in (*own, *other)]
    held = [part for part in answers if part is not None]
    if not held or len(held) < len(answers) or len(own) != len(other):
        return None
    first = held[0]
    for folders, part in zip((*own, *other), held, strict=True):
        if not np.array_equal(part["id"], first["id"]):
            raise UsageError(
                f"{folders[0]} was judged on other images than {own[0][0]}; remove the folder of "
                "the older run, or give config.jobs_dir another one for the new images."
            )
    judges = [_figure(part, metric) for part in held]
    firsts, seconds = judges[: len(own)], judges[len(own) :]
    try:
        found = paired_test(
            _mean(firsts), _mean(seconds), len(first["id"]), first["patient"], resamples=resamples
        )
    except UsageError:
        return None
    return {
        "mean": found.difference,
        "low": found.low,
        "high": found.high,
        "p": found.p,
        "images": len(first["id"]),
        "patients": len(np.unique(first["patient"])),
    }


def _joined(folders: Sequence[Path]) -> dict[str, np.ndarray] | None:
    """Returns the answers of a seed's folds, one after another."""
    parts = [_answers(folder / PREDICTIONS) for folder in folders]
    held = [part for part in parts if part is not None]
    if len(held) < len(parts):
        return None
    return {name: np.concatenate([part[name] for part in held]) for name in held[0]}


def _answers(path: Path) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return None


def _mean(judges: Sequence[Figure]) -> Figure:
    return lambda weights: float(np.mean([judge(weights) for judge in judges]))


def _figure(answers: Mapping[str, np.ndarray], metric: str) -> Figure:
    """Returns weights of images -> the metric of one run's answers."""
    counts = [value for name, value in answers.items() if name.endswith("/counts")]
    if counts:
        per_image = np.mean([overlap.dice(part) for part in counts], axis=0)
        return lambda weights: float(np.average(per_image, weights=weights))
    names = [name.removesuffix("/label") for name in answers if name.endswith("/label")]
    labels = {name: answers[f"{name}/label"] for name in names}
    probabilities = {name: answers[f"{name}/probability"] for name in names}
    heads = [
        Head(
            name,
            tuple(str(k) for k in range(probabilities[name].shape[1])),
            "sigmoid" if labels[name].ndim == 2 else "softmax",
        )
        for name in names
    ]
    figure, counted = figures.weighed(metric, heads, labels, probabilities)
    # Images without a label keep their place, so that both starts draw the same ones.
    return lambda weights: figure(weights[counted])
