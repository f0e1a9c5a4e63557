"""Fine-tuning of one network on labeled images, whole-network jit, AUC after every epoch.

One compiled step per network serves every start, seed, learning rate and label fraction: batches
have one size, and the learning rate is an argument.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from medinit_jax.core import optim
from medinit_jax.core.compiler import jit
from medinit_jax.core.errors import UsageError
from medinit_jax.downstream.protocol import fold_seed
from medinit_jax.downstream.ranking import roc_auc
from medinit_jax.models.network import Network
from medinit_jax.models.statistics import batch_statistics, initial_statistics, recalibrate_bn

CHANCE_AUC = 0.5


class Labeled(NamedTuple):
    """Images with labels, on the host.

    Attributes:
        images: float32 (n, H, W, C), normalized.
        labels: int32 (n,), from 0.
    """

    images: np.ndarray
    labels: np.ndarray

    def subset(self, indices: np.ndarray) -> Labeled:
        """Returns the images with these numbers."""
        return Labeled(self.images[indices], self.labels[indices])


class Task(NamedTuple):
    """What a network is fine-tuned and judged on."""

    train: Labeled
    val: Labeled
    test: Labeled


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every start gets alike.

    Attributes:
        epochs: Passes over the labeled images; the network is judged after each.
        batch: Images per step; fewer if there are fewer labeled images.
        min_steps: Least steps per epoch; few labeled images are shown several times in an epoch.
        weight_decay: Of SGD with momentum 0.9 and a cosine schedule to 0.
        clip: Largest global norm of the gradient, 0 = none.
        flip: Whether images are mirrored left to right at random.
        recalibrate_steps: While no more steps than these are done, batch statistics are
            re-estimated on the labeled images before the network is judged: running ones lag.
        recalibrate_batches: Batches that this reads at most.
    """

    epochs: int = 12
    batch: int = 32
    min_steps: int = 1
    weight_decay: float = 1e-4
    clip: float = 0.0
    flip: bool = False
    recalibrate_steps: int = 100
    recalibrate_batches: int = 16


class Course(NamedTuple):
    """How a fine-tuning went.

    Attributes:
        test_auc: Per epoch; chance where a score was not finite.
        val_auc: The same on the validation images.
        loss: Mean training loss per epoch, None where it was not finite.
        diverged: Whether any score was not finite.
    """

    test_auc: list[float]
    val_auc: list[float]
    loss: list[float | None]
    diverged: bool


class _State(NamedTuple):
    params: Any
    statistics: Any
    optimizer: Any


def fine_tune(
    network: Network, params: Any, task: Task, budget: Budget, learning_rate: float, seed: int
) -> Course:
    """Trains all parameters of a network and judges it after every epoch.

    Args:
        network: The network.
        params: Where it starts.
        task: Images and labels.
        budget: How long, and with what.
        learning_rate: At the start of the cosine.
        seed: Of the order of images and the flips.

    Returns:
        The course; equal for equal arguments.

    Raises:
        UsageError: If labels do not fit the network or a set lacks a class.
    """
    classes = network.program.num_classes
    top = max(int(part.labels.max()) for part in task)
    if top >= classes:
        raise UsageError(f"the labels go up to {top}, but the network has {classes} classes")
    courses: tuple[list[float], list[float]] = ([], [])
    losses: list[float | None] = []
    diverged = False
    for state, mean_loss, done in _epochs(network, params, task.train, budget, learning_rate, seed):
        statistics = state.statistics
        if done <= budget.recalibrate_steps:
            statistics = calibrate(network, state.params, task.train, budget)
        losses.append(mean_loss if math.isfinite(mean_loss) else None)
        for part, course in zip((task.test, task.val), courses, strict=True):
            *_, logits = outputs(network, state.params, statistics, part.images)
            finite = bool(np.isfinite(logits).all())
            diverged |= not finite
            course.append(auc(part.labels, logits) if finite else CHANCE_AUC)
    return Course(*courses, losses, diverged)


def train(
    network: Network, params: Any, images: Labeled, budget: Budget, learning_rate: float, seed: int
) -> Any:
    """Trains all parameters of a network as `fine_tune` does, and judges nothing.

    Args: as `fine_tune`, with `images` to learn from.

    Returns:
        The parameters after the last epoch.
    """
    for state, _, _ in _epochs(network, params, images, budget, learning_rate, seed):
        params = state.params
    return params


def _epochs(
    network: Network, params: Any, images: Labeled, budget: Budget, learning_rate: float, seed: int
) -> Iterator[tuple[_State, float, int]]:
    """Yields state, mean loss and steps so far, after each epoch."""
    count = len(images.labels)
    batch = min(budget.batch, count)
    steps = max(count // batch, budget.min_steps)
    start, step = _step(
        network,  # pyright: ignore[reportArgumentType]
        budget.weight_decay,
        budget.clip,
    )
    state = _State(params, initial_statistics(network.program), start(params))
    done = 0
    for epoch in range(budget.epochs):
        rng = np.random.default_rng(fold_seed(seed, "order", epoch))
        losses = []
        for chosen in _order(rng, count, batch, steps):
            flips = rng.random(batch) < (0.5 if budget.flip else 0.0)
            rate = cosine(learning_rate, done, budget.epochs * steps)
            seen, labels = images.images[chosen], images.labels[chosen]
            state, loss = step(state, seen, labels, flips, np.float32(rate))
            losses.append(loss)
            done += 1
        yield state, float(np.mean(jax.device_get(losses))), done


def cosine(peak: float, step: int, total: int) -> float:
    """Returns the learning rate of a step: `peak` at step 0, 0 at step `total`."""
    return peak * 0.5 * (1 + math.cos(math.pi * step / total))


def calibrate(network: Network, params: Any, labeled: Labeled, budget: Budget) -> Any:
    """Estimates batch statistics on the labeled images, in batches as training has them."""
    batch = min(budget.batch, len(labeled.labels))
    whole = len(labeled.labels) // batch
    return recalibrate_bn(
        network,
        params,
        (labeled.images[i * batch : (i + 1) * batch] for i in range(whole)),
        budget.recalibrate_batches,
    )


def outputs(
    network: Network,
    params: Any,
    statistics: Any,
    images: np.ndarray,
    taps: tuple[int, ...] = (),
    batch: int = 50,
) -> list[np.ndarray]:
    """Runs a network over images with fixed batch statistics.

    Args:
        network: The network.
        params: Its parameters.
        statistics: Its batch statistics.
        images: float32 (n, H, W, C).
        taps: Values whose pooled maps are wanted, see `models.network.feature_taps`.
        batch: Images at a time.

    Returns:
        Pooled features (n, channels) of each tap, then the logits (n, classes).
    """
    run = _outputs(network, taps)  # pyright: ignore[reportArgumentType]
    parts = []
    for first in range(0, len(images), batch):
        piece = images[first : first + batch]
        missing = batch - len(piece)
        if missing:
            piece = np.concatenate([piece, np.repeat(piece[-1:], missing, 0)])
        parts.append(run(params, statistics, piece))
    columns = zip(*jax.device_get(parts), strict=True)
    return [np.concatenate(column)[: len(images)] for column in columns]


def auc(labels: np.ndarray, logits: np.ndarray) -> float:
    """Returns the ROC area of two classes, or the mean over classes of one against the rest.

    Args:
        labels: int (n,).
        logits: float (n, classes).
    """
    if logits.shape[1] == 2:
        return roc_auc(labels, logits[:, 1].astype(np.float64) - logits[:, 0])
    wide = logits.astype(np.float64)
    shifted = np.exp(wide - wide.max(1, keepdims=True))
    chances = shifted / shifted.sum(1, keepdims=True)
    present = [k for k in range(logits.shape[1]) if (labels == k).any()]
    return float(np.mean([roc_auc(labels == k, chances[:, k]) for k in present]))


def _order(rng: np.random.Generator, count: int, batch: int, steps: int) -> Iterator[np.ndarray]:
    """Yields the image numbers of each step: permutations, each used for its whole batches."""
    whole = count // batch
    for _ in range(-(-steps // whole)):
        numbers = rng.permutation(count)[: whole * batch].reshape(whole, batch)
        yield from numbers[: min(whole, steps)]
        steps -= whole


@functools.lru_cache(maxsize=16)
def _step(network: Network, weight_decay: float, clip: float) -> tuple[Callable, Callable]:
    """Returns the compiled start of the optimizer and the compiled step."""
    # SGD's update is linear in the learning rate, so the rate is left out here and multiplied in.
    optimizer, _ = optim.create(
        ml_collections.ConfigDict(
            {
                "name": "sgd",
                "schedule": "constant",
                "learning_rate": 1.0,
                "warmup_steps": 0,
                "total_steps": 1,
                "weight_decay": weight_decay,
                "clip": clip,
            }
        )
    )

    def step(state, images, labels, flips, rate):
        images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)

        def loss(params):
            variables = {"params": params, "batch_stats": state.statistics}
            result: Any = network.apply(variables, images, train=True, mutable=["batch_stats"])
            logits, new = result
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), dict(new.get("batch_stats", {}))

        (value, statistics), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
        params = jax.tree.map(lambda p, u: p + rate * u, state.params, updates)
        return _State(params, statistics, optimizer_state), value

    return jax.jit(optimizer.init), jit(step)


@functools.lru_cache(maxsize=16)
def _outputs(network: Network, taps: tuple[int, ...]) -> Callable:
    last = len(network.program.calls)

    def run(params, statistics, images):
        variables = {"params": params, "batch_stats": statistics}
        return network.apply(variables, images, taps=(*taps, last))

    return jit(run)


def forget_compiled() -> None:
    """Drops compiled functions, as before a network that will not come again."""
    for cache in (_step, _outputs, batch_statistics):
        cache.cache_clear()
