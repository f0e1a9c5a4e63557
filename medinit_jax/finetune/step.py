"""One update of a fine-tuning, compiled once for all starts, seeds and learning rates."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import flax.struct
import jax
import jax.numpy as jnp
import ml_collections
import optax

from medinit_jax.core import optim, state
from medinit_jax.core.compiler import jit
from medinit_jax.core.parallel import Parallel
from medinit_jax.downstream import heads as predictions
from medinit_jax.downstream.heads import Head
from medinit_jax.finetune import layers
from medinit_jax.models.network import Network


@flax.struct.dataclass
class TuneState:
    """What fine-tuning carries from one step to the next.

    Attributes:
        train: Parameters, optimizer and counts.
        statistics: Running batch statistics.
        average: Exponential moving average of the parameters; {} without one.
    """

    train: state.TrainState
    statistics: Any
    average: Any

    @property
    def step(self) -> jax.Array:
        """Steps taken, skipped ones included."""
        return self.train.step

    @property
    def skipped(self) -> jax.Array:
        """Steps whose update was left out because it was not finite."""
        return self.train.skipped

    @property
    def judged(self) -> Any:
        """The parameters that are judged: the average if there is one."""
        return self.average or self.train.params


class Part(NamedTuple):
    """A part of a batch, or all of it.

    Attributes:
        images: Float32 (n, H, W, C), or as the objective wants them.
        targets: {head: int32 (n, ...)}.
        weights: {head: float32 (classes,)}, how much classes count.
        totals: `heads.total_weights` of the whole batch.
        key: Draws what dropout leaves out.
    """

    images: jax.Array
    targets: Mapping[str, jax.Array]
    weights: Mapping[str, jax.Array]
    totals: Mapping[str, jax.Array]
    key: jax.Array


class Objective(Protocol):
    """What a part of a batch costs; hashable. The costs of the parts add up to the batch's."""

    def __call__(
        self, recipe: Recipe, params: Any, statistics: Any, part: Part
    ) -> tuple[jax.Array, Any]:
        """Returns the cost, float (), and new batch statistics."""
        ...


@dataclasses.dataclass(frozen=True)
class Supervised:
    """Cross-entropy of all heads, see `heads.loss`."""

    def __call__(
        self, recipe: Recipe, params: Any, statistics: Any, part: Part
    ) -> tuple[jax.Array, Any]:
        """Returns the cost, float (), and new batch statistics."""
        result: Any = recipe.network.apply(
            {"params": params, "batch_stats": statistics},
            part.images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": part.key},
        )
        logits, new = result
        value = predictions.loss(recipe.heads, logits, part.targets, part.weights, part.totals)
        return value, dict(new.get("batch_stats", {}))


class Recipe(NamedTuple):
    """What the compiled step depends on; hashable.

    Attributes:
        network: The network.
        heads: What it predicts.
        optimizer: Items of `core.optim.create`'s configuration, without learning rate and schedule.
        accumulate: Parts of a batch that are computed one after another.
        ema: Decay of the average of parameters once it is warm, see `average_decay`; 0 = none.
        frozen: Modules that do not learn.
        layer_decay: Factor of the learning rate per block away from the head.
        objective: What a part of a batch costs.
    """

    network: Network
    heads: tuple[Head, ...]
    optimizer: tuple[tuple[str, Any], ...]
    accumulate: int = 1
    ema: float = 0.0
    frozen: tuple[str, ...] = ()
    layer_decay: float = 1.0
    objective: Objective = Supervised()


def average_decay(ema: float, step: jax.Array) -> jax.Array:
    """Returns the decay of the average of parameters at a step: min(ema, (1 + step) / (10 + step)).

    At first the average follows the parameters closely, so that it soon forgets the start, which a
    constant decay would keep for about 1 / (1 - ema) steps.

    Args:
        ema: The decay in the end, in [0, 1).
        step: int32 (), the number of steps before this one.

    Returns:
        float32 ().

    Source: `num_updates` of TensorFlow's tf.train.ExponentialMovingAverage.
    """
    count = step.astype(jnp.float32)
    return jnp.minimum(jnp.float32(ema), (1 + count) / (10 + count))


@functools.lru_cache(maxsize=8)
def compiled(
    recipe: Recipe, parallel: Parallel | None = None
) -> tuple[Callable[..., TuneState], Callable[..., Any]]:
    """Returns the state before the first step, and the step.

    Args:
        recipe: What they depend on.
        parallel: Devices; None = wherever the state lies.

    Returns:
        (params, statistics) -> state, and
        (state, images, targets, class weights, learning rate, key) -> (state, metrics), where
        images are float32 (batch, H, W, C), targets and weights are as `heads.loss` has them, the
        rate is float32 () and the key draws what dropout leaves out.
    """
    # Every optimizer's update is linear in the learning rate, which therefore comes as an argument.
    plain = {"schedule": "constant", "learning_rate": 1.0, "warmup_steps": 0, "total_steps": 1}
    optimizer, _ = optim.create(
        ml_collections.ConfigDict({**dict(recipe.optimizer), **plain}), layers.decay_mask
    )
    sharded = dict(recipe.optimizer).get("sharded", False)
    divide = state.divider(parallel, sharded)
    factors = layers.rate_factors(recipe.network.program, recipe.frozen, recipe.layer_decay)

    def start(params: Any, statistics: Any) -> TuneState:
        # Copies: the step writes into its state, and the start is used again.
        params, average = (jax.tree.map(jnp.copy, params) for _ in range(2))
        statistics = jax.tree.map(jnp.copy, statistics)
        return TuneState(state.create(params, optimizer), statistics, average if recipe.ema else {})

    def step(current: TuneState, images, targets, weights, rate, key):
        value, gradient, statistics = _gradient(
            recipe, current.train.params, current.statistics, images, targets, weights, key
        )
        # What is frozen has no gradient, so that it does not count in the norm that is clipped.
        gradient = layers.scaled(gradient, {k: float(f > 0) for k, f in factors.items()})

        def update(gradient: Any, own: Any, params: Any = None):
            updates, own = optimizer.update(gradient, own, params)
            updates = jax.tree.map(lambda u: rate.astype(u.dtype) * u, updates)
            return layers.scaled(updates, factors), own

        scaled = optax.GradientTransformation(optimizer.init, update)  # pyright: ignore
        train, metrics = state.apply_gradients(current.train, gradient, scaled, value, divide)
        taken = metrics["skipped"] == 0
        statistics = jax.tree.map(
            lambda new, old: jnp.where(taken, new, old), statistics, current.statistics
        )
        decay = average_decay(recipe.ema, current.step)
        average = jax.tree.map(
            lambda old, new: new + decay.astype(new.dtype) * (old - new),
            current.average,
            train.params if recipe.ema else {},
        )
        metrics = {
            "train/loss": value,
            "train/grad_norm": metrics["grad_norm"],
            "skipped": metrics["skipped"],
        }
        return TuneState(train, statistics, average), metrics

    place = None
    if parallel:
        everywhere = parallel.everywhere
        place = TuneState(state.places(parallel, sharded), everywhere, everywhere), everywhere
    return jax.jit(start), jit(step, donate_argnums=0, out_shardings=place)


def _gradient(
    recipe: Recipe,
    params: Any,
    statistics: Any,
    images: jax.Array,
    targets: Mapping[str, jax.Array],
    weights: Mapping[str, jax.Array],
    key: jax.Array,
) -> tuple[jax.Array, Any, Any]:
    """Returns loss, gradient and new batch statistics of a batch, part by part."""
    totals = predictions.total_weights(recipe.heads, targets, weights, jnp.float32)

    def loss(params, statistics, images, targets, key):
        part = Part(images, targets, weights, totals, key)
        return recipe.objective(recipe, params, statistics, part)

    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if recipe.accumulate == 1:
        (value, new), gradient = value_and_grad(params, statistics, images, targets, key)
        return value, gradient, new

    def part(carry, batch):
        total, gradients, statistics = carry
        images, targets, key = batch
        (value, new), gradient = value_and_grad(params, statistics, images, targets, key)
        return (total + value, jax.tree.map(jnp.add, gradients, gradient), new), None

    parts = jax.tree.map(
        lambda x: x.reshape(recipe.accumulate, -1, *x.shape[1:]), (images, targets)
    )
    zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params), statistics)
    keys = jax.random.split(key, recipe.accumulate)
    (total, gradients, new), _ = jax.lax.scan(part, zero, (*parts, keys))
    return total, gradients, new
