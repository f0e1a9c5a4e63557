"""What a network says about images, and how good that is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from medinit_jax.core import cluster
from medinit_jax.core.compiler import jit
from medinit_jax.core.parallel import Parallel
from medinit_jax.downstream import heads as predictions
from medinit_jax.downstream import overlap, scores, windows
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune.data import Examples, TaskImages
from medinit_jax.models.network import Network


class Answers(NamedTuple):
    """What a network says about a part of the images.

    Attributes:
        probabilities: Classification: {head: float64 (n, classes)}; else empty.
        counts: Segmentation: {head: int64 (n, 3)} pixels in both, in the prediction, in the truth.
        finite: Whether all logits were finite.
    """

    probabilities: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    finite: bool


@functools.lru_cache(maxsize=8)
def compiled(network: Network) -> Callable[[Any, Any, Any], jax.Array]:
    """Returns (params, statistics, images (B, H, W, C)) -> logits in float32, compiled."""

    def run(params, statistics, images):
        return network.apply({"params": params, "batch_stats": statistics}, images)

    return jit(run)


def _logits(
    run: Callable[[np.ndarray], Any], images: Iterable[np.ndarray], batch: int
) -> np.ndarray:
    parts = [run(piece)[:count] for piece, count in batches(images, batch)]
    return np.concatenate([np.asarray(part) for part in parts])


def batches(images: Iterable[np.ndarray], batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yields full batches, the last one filled up with its last image, and how many count."""
    held: list[np.ndarray] = []
    for image in images:
        held.append(image)
        if len(held) == batch:
            yield np.stack(held), batch
            held = []
    if held:
        yield np.stack(held + held[-1:] * (batch - len(held))), len(held)


def answers(
    network: Network,
    params: Any,
    statistics: Any,
    images: TaskImages,
    part: Examples,
    batch: int,
    parallel: Parallel | None = None,
) -> Answers:
    """Runs a network over a part of a task's images.

    Processes that share the devices share the images, and all return the answers of all; every one
    calls it.

    Args:
        network: The network.
        params: Its parameters.
        statistics: Its batch statistics.
        images: The task.
        part: The part.
        batch: Images or windows at a time.
        parallel: Devices; None: those of this process.
    """
    run = functools.partial(compiled(network), params, statistics)  # pyright: ignore
    window = network.program.input_shape[0]
    return answers_of(run, window, images, part, batch, parallel)


def answers_of(
    run: Callable[[np.ndarray], Any],
    window: int,
    images: TaskImages,
    part: Examples,
    batch: int,
    parallel: Parallel | None = None,
) -> Answers:
    """Runs any function of pixels over a part of a task's images; otherwise as `answers`.

    Args:
        run: Float32 (batch, H, W, 3), normalized -> logits (batch, ..., width).
        window: Side of what it segments at a time.
        images: The task.
        part: The part.
        batch: Images or windows at a time.
        parallel: Devices; None: those of this process.
    """
    process, processes = parallel.process if parallel else (0, 1)
    share = -(-len(part) // processes)
    # The last process may repeat the last image, so that all hand in as many.
    own = [min(i, len(part) - 1) for i in range(process * share, (process + 1) * share)]

    def everyones(rows: np.ndarray) -> np.ndarray:
        return (parallel.gather(rows) if parallel else rows)[: len(part)]

    inputs = (images.evaluation_image(part, index) for index in own)
    if images.kind == "classification":
        logits = everyones(_logits(run, inputs, batch))
        finite = bool(np.isfinite(logits).all())
        return Answers(predictions.probabilities(images.heads, logits), {}, finite)
    found: dict[str, list[np.ndarray]] = {head.name: [] for head in images.heads}
    finite = True
    for index, logits in zip(own, windows.predict_images(run, inputs, window, batch), strict=True):
        finite &= bool(np.isfinite(logits).all())
        logits = images.native_logits(part, index, logits)
        truth, counted = part.mask(index), part.fov(index)
        for name, predicted in segment(images.heads, logits).items():
            found[name].append(overlap.counts(predicted == 1, truth[name] == 1, counted))
    counts = {name: everyones(np.stack(rows)) for name, rows in found.items()}
    return Answers({}, counts, not cluster.any_of(not finite) if parallel else finite)


def segment(heads: tuple[Head, ...], logits: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {head: int (..., H, W)}, the likeliest class of every pixel.

    Args:
        heads: What is predicted.
        logits: Float (..., H, W, width).
    """
    return {name: part.argmax(-1) for name, part in predictions.split(heads, logits).items()}


def value(images: TaskImages, part: Examples, found: Answers) -> float:
    """Returns the task's metric, NaN where an answer was not finite."""
    if not found.finite:
        return float("nan")
    if images.kind == "classification":
        return scores.value_of(images.metric, images.heads, part.targets, found.probabilities)
    return scores.value_of_counts(images.metric, images.heads, found.counts)


def all_scores(
    images: TaskImages, part: Examples, found: Answers, resamples: int, seed: int
) -> dict[str, Any]:
    """Returns the task's metric with its interval, and all other figures, as JSON."""
    if not found.finite:
        return {"metric": None, "low": None, "high": None, "reason": "outputs were not finite"}
    if images.kind == "classification":
        return scores.classification_scores(
            images.heads,
            part.targets,
            found.probabilities,
            images.metric,
            part.patients,
            resamples=resamples,
            seed=seed,
        )
    return scores.segmentation_scores(
        images.heads, found.counts, images.metric, part.patients, resamples=resamples, seed=seed
    )
