"""Tells whether the phantoms' tasks need a network: a small CNN against thumbnails.

python benchmarks/phantom_tasks.py
python benchmarks/phantom_tasks.py --task ct --epochs 4 --json

A task that ridge regression on 8 x 8 to 16 x 16 pixels solves would tell nothing about a start.
Both learn from the same images and are scored on the same other patients.
"""

import argparse
import json
import os
import time

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from medinit_jax.core.compiler import jit
from medinit_jax.data.phantoms import PHANTOMS
from medinit_jax.downstream.probe import ridge_probe
from medinit_jax.downstream.ranking import auc_interval, roc_auc

TASKS = {"xray": "opacity", "ct": "any"}
THUMBNAILS = (8, 12, 16)
BATCH = 32
# Patients of no other set.
_FIRST_SEED, _TEST_SEED = 3_910_000_000, 3_960_000_000


def draw(name: str, first: int, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images uint8 (count, size, size, 3) and their labels (count,)."""
    cv2.setNumThreads(1)
    phantom = PHANTOMS[name]
    drawn = [phantom.render(first + i, phantom.eyes[0], size) for i in range(count)]
    images = np.stack([example["image"] for example in drawn])
    return images, np.array([example["labels"][TASKS[name]] for example in drawn])


def thumbnail_auc(train: tuple, test: tuple, side: int) -> float:
    """Returns ridge regression's area, with the penalty that is best on the test images.

    So it is, if anything, too good.
    """
    parts = []
    for images, labels in (train, test):
        small = [cv2.resize(i, (side, side), interpolation=cv2.INTER_AREA) for i in images]
        parts.append((np.stack(small).reshape(len(images), -1).astype(np.float64), labels))
    (x, y), (test_x, test_y) = parts
    return ridge_probe(x, y, test_x, test_y, test_x, test_y)["auc"]


class SmallCnn(nn.Module):
    """Five convolutions, the last map a sixteenth of the image; 0.25 million parameters."""

    widths: tuple[int, ...] = (24, 48, 64, 96, 128)
    strides: tuple[int, ...] = (2, 2, 1, 2, 2)

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns the logit (images,) of images (images, S, S, C)."""
        for width, stride in zip(self.widths, self.strides, strict=True):
            x = nn.Conv(width, (3, 3), strides=stride, use_bias=False)(x)
            x = nn.relu(nn.GroupNorm(8)(x))
        x = jnp.concatenate([x.mean(axis=(1, 2)), x.max(axis=(1, 2))], axis=-1)
        return nn.Dense(1)(x)[:, 0]


def cnn_scores(
    images: np.ndarray, labels: np.ndarray, test: np.ndarray, epochs: int, seed: int = 0
) -> np.ndarray:
    """Trains the CNN with mirrored and shifted images; returns its scores (tests,)."""
    model, rng = SmallCnn(), np.random.default_rng(seed)
    mean, deviation = images.mean(axis=(0, 1, 2)), images.std(axis=(0, 1, 2)) + 1

    def ready(part: np.ndarray) -> np.ndarray:
        return ((part - mean) / deviation).astype(np.float32)

    variables = model.init(jax.random.key(seed), ready(images[:1]))
    steps = epochs * (len(images) // BATCH)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 2e-3, min(100, steps // 4), steps)
    optimizer = optax.adamw(schedule, weight_decay=1e-3)

    @jit
    def step(variables, state, x, y):
        def loss(variables):
            return optax.sigmoid_binary_cross_entropy(model.apply(variables, x), y).mean()

        updates, state = optimizer.update(jax.grad(loss)(variables), state, variables)
        return optax.apply_updates(variables, updates), state

    predict = jit(model.apply)
    state = optimizer.init(variables)
    for _ in range(epochs):
        order = rng.permutation(len(images))[: len(images) // BATCH * BATCH]
        for numbers in order.reshape(-1, BATCH):
            batch = np.roll(images[numbers], rng.integers(-4, 5, 2), axis=(1, 2))
            mirrored = rng.random(BATCH) < 0.5
            batch[mirrored] = batch[mirrored, :, ::-1]
            y = labels[numbers].astype(np.float32)
            variables, state = step(variables, state, ready(batch), y)
    both = [
        np.concatenate([predict(variables, ready(x[i : i + 128])) for i in range(0, len(x), 128)])
        for x in (test, test[:, :, ::-1])
    ]
    return both[0] + both[1]


def measure(name: str, train: int, test: int, size: int, epochs: int) -> dict[str, float | int]:
    """Draws both sets, trains both models and returns the areas under their ROC curves."""
    start = time.perf_counter()
    images, labels = draw(name, _FIRST_SEED, train, size)
    test_images, test_labels = draw(name, _TEST_SEED, test, size)
    figures: dict[str, float | int] = {
        "train": train,
        "test": test,
        "positive_share": float(labels.mean()),
        "draw_s": time.perf_counter() - start,
    }
    for side in THUMBNAILS:
        figures[f"ridge_{side}px_auc"] = thumbnail_auc(
            (images, labels), (test_images, test_labels), side
        )
    start = time.perf_counter()
    scores = cnn_scores(images, labels, test_images, epochs)
    figures["cnn_auc"] = roc_auc(test_labels, scores)
    figures["cnn_auc_low"], figures["cnn_auc_high"] = auc_interval(test_labels, scores)
    figures["cnn_s"] = time.perf_counter() - start
    return figures


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description="A small CNN against thumbnails on phantoms.")
    parser.add_argument("--task", choices=[*TASKS, "all"], default="all")
    parser.add_argument("--train", type=int, default=3000, help="images to learn from")
    parser.add_argument("--test", type=int, default=1000, help="images to score on")
    parser.add_argument("--size", type=int, default=96, help="side of the images in pixels")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    names = list(TASKS) if options.task == "all" else [options.task]
    figures = {
        f"{name}_{TASKS[name]}": measure(
            name, options.train, options.test, options.size, options.epochs
        )
        for name in names
    }
    if options.json:
        settings = {"size": options.size, "epochs": options.epochs}
        print(json.dumps({**settings, **figures, "load_average": os.getloadavg()[0]}, indent=2))
        return
    print(f"{'':18s}" + "".join(f"{name:>14s}" for name in figures))
    for row in next(iter(figures.values())):
        print(f"{row:18s}" + "".join(f"{one[row]:14.4g}" for one in figures.values()))


if __name__ == "__main__":
    main()
