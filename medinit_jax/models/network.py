"""The Flax module of a program: the same blocks as the tape, run whole under one jit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from medinit_jax.arch.program import OWN_INIT, Call, Program
from medinit_jax.models.ops import (
    apply_block,
    at_least_float32,
    batch_norm_over_groups,
    normalize_with,
    pooled,
)

MOMENTUM = 0.9


def default_initializer(leaf: str, shape: tuple[int, ...]) -> nn.initializers.Initializer:
    """Returns the usual initializer of a leaf: He normal (fan-out, as torchvision) for kernels."""
    if leaf in OWN_INIT:
        return nn.initializers.constant(OWN_INIT[leaf])
    if leaf == "kernel" and len(shape) == 4:
        return nn.initializers.variance_scaling(2.0, "fan_out", "normal")
    if leaf == "kernel":
        bound = 1 / math.sqrt(shape[0])
        return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
            key, shape, dtype, -bound, bound
        )
    if leaf == "embedding":
        return nn.initializers.normal(0.02)
    return nn.initializers.ones if leaf == "scale" else nn.initializers.zeros


def default_deviation(leaf: str, shape: tuple[int, ...]) -> float:
    """Returns the standard deviation of `default_initializer`; 0 for leaves that start constant."""
    if leaf == "kernel" and len(shape) == 4:
        return math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
    if leaf == "kernel":
        return 1 / math.sqrt(3 * shape[0])
    return 0.02 if leaf == "embedding" else 0.0


class Leaves(nn.Module):
    """Holds the parameters of one named step.

    Attributes:
        shapes: {leaf: shape}.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @nn.compact
    def __call__(self) -> dict[str, jax.Array]:
        """Returns {leaf: parameter}."""
        return {
            leaf: self.param(leaf, default_initializer(leaf, shape), shape)
            for leaf, shape in self.shapes.items()
        }


class Statistics(nn.Module):
    """Holds running batch statistics of one normalization layer: "mean" and "var"."""

    channels: int

    @nn.compact
    def __call__(self) -> tuple[nn.Variable, nn.Variable]:
        """Returns the variables "mean" and "var", (channels,) each."""
        mean = self.variable("batch_stats", "mean", jnp.zeros, (self.channels,))
        var = self.variable("batch_stats", "var", jnp.ones, (self.channels,))
        return mean, var


class Network(nn.Module):
    """A network given by a program.

    Parameters are {module: {leaf: array}} with dotted module names; batch statistics likewise.

    Attributes:
        program: The architecture.
        dtype: Compute type of activations; parameters stay float32.
        frozen: Prefixes of module names; batch normalization below them keeps its statistics in
            training too.
    """

    program: Program
    dtype: jnp.dtype = jnp.float32
    frozen: tuple[str, ...] = ()

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, taps: tuple[int, ...] = ()):
        """Runs the network.

        Args:
            images: (batch, height, width, channels).
            train: Whether batch normalization uses and updates with this batch's statistics, and
                dropout leaves values out, if there is a random key "dropout".
            taps: Values of the program (see `Call.inputs`) to return pooled instead of logits.

        Returns:
            Logits in at least float32, (batch, classes) of a classifier and (batch, height, width,
            classes) of a segmentation network; with `taps` a tuple of (batch, channels) arrays.
        """
        values = [images.astype(self.dtype)]
        drop = self._drop if train and self.has_rng("dropout") else None
        for index, call in enumerate(self.program.calls):
            layout = self.program.layout(index)
            leaves = {
                name: Leaves(shapes, name=call.module(name))()
                for name, shapes in layout.parameters.items()
            }
            statistics = {
                step.name: Statistics(
                    layout.parameters[step.name]["scale"][0], name=f"{call.module(step.name)}.stats"
                )()
                for step in call.block.steps
                if step.kind == "batch_norm"
            }
            inputs = tuple(values[i] for i in call.inputs)
            moving = train and not self.is_initializing() and not self._is_frozen(call, statistics)
            normalize = _normalizer(statistics, moving)
            values.append(apply_block(call.block, leaves, inputs, normalize, drop))
        if taps:
            pooled = [values[i].astype(jnp.float32) for i in taps]
            return tuple(x.mean(tuple(range(1, x.ndim - 1))) for x in pooled)
        return values[-1].astype(at_least_float32(values[-1].dtype))

    def _drop(self, step, x):
        """Leaves out a share of the values and enlarges the others, Srivastava et al. 2014."""
        kept = jax.random.bernoulli(self.make_rng("dropout"), 1 - step.rate, x.shape)
        return jnp.where(kept, x / jnp.asarray(1 - step.rate, x.dtype), jnp.zeros_like(x))

    def _is_frozen(self, call: Call, names: Iterable[str]) -> bool:
        """Returns whether the named modules of a call are all frozen."""
        return bool(self.frozen) and all(is_below(call.module(name), self.frozen) for name in names)


def is_below(module: str, prefixes: Iterable[str]) -> bool:
    """Returns whether a dotted module name is one of the prefixes or lies below one."""
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


def _normalizer(statistics, moving):
    def normalize(step, x, leaves):
        return normalize_moving(x, leaves, statistics[step.name], moving, step.epsilon)

    return normalize


def normalize_moving(
    x: jax.Array,
    leaves: Mapping[str, jax.Array],
    statistics: tuple[nn.Variable, nn.Variable],
    moving: bool,
    epsilon: float,
) -> jax.Array:
    """Normalizes with running statistics, or with the batch's and moves the running ones.

    Args:
        x: (batch, ..., channels).
        leaves: "scale" and "bias", (channels,) each.
        statistics: The running mean and variance, of `Statistics`.
        moving: Whether the batch's statistics count.
        epsilon: Added to the variance.

    Returns:
        Array like x. The running variance is made of the unbiased variance of batches, as in
        PyTorch.
    """
    mean, var = statistics
    if not moving:
        return normalize_with(x, mean.value, var.value, leaves, epsilon)
    wide = x.astype(at_least_float32(x.dtype))
    places = tuple(range(x.ndim - 1))
    batch_mean = wide.mean(places)
    batch_var = jnp.square(wide - batch_mean).mean(places)
    count = x.size // x.shape[-1]
    unbiased = batch_var * (count / max(count - 1, 1))
    mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean.astype(mean.value.dtype)
    var.value = MOMENTUM * var.value + (1 - MOMENTUM) * unbiased.astype(var.value.dtype)
    return normalize_with(x, batch_mean, batch_var, leaves, epsilon)


def apply_with_batch_statistics(
    program: Program, parameters, images: jax.Array, bn_group: int
) -> jax.Array:
    """Runs a program as a pure function of its parameters, with the statistics of image groups.

    Args:
        program: The network.
        parameters: {module: {leaf: array}}.
        images: (batch, height, width, channels).
        bn_group: Images that share batch statistics.

    Returns:
        Logits, as `Network` returns them.
    """

    def normalize(step, x, leaves):
        return batch_norm_over_groups(x, leaves, bn_group, step.epsilon)

    return _run(program, parameters, images, normalize)[-1]


def logits_and_features(
    program: Program, parameters, images: jax.Array, bn_group: int
) -> tuple[jax.Array, jax.Array]:
    """Runs a program as `apply_with_batch_statistics` does.

    Args: as there.

    Returns:
        Logits, and what the head pools: (batch, channels).
    """

    def normalize(step, x, leaves):
        return batch_norm_over_groups(x, leaves, bn_group, step.epsilon)

    values = _run(program, parameters, images, normalize)
    return values[-1], pooled(values[program.head_input], program.reads_token)


def _run(program, parameters, images, normalize):
    values = [images]
    for call in program.calls:
        leaves = {s.name: parameters[call.module(s.name)] for s in call.block.steps if s.name}
        inputs = tuple(values[i] for i in call.inputs)
        values.append(apply_block(call.block, leaves, inputs, normalize))
    return values


def feature_taps(program: Program, depths: tuple[float, ...] = (1.0,)) -> tuple[int, ...]:
    """Returns the values whose pooled maps serve as features at the given fractions of depth.

    Args:
        program: The network.
        depths: Fractions in (0, 1]; 1 is the input of the head.

    Returns:
        One value number per depth; only outputs of calls before the head that hold a spatial map or
        a sequence are chosen.
    """
    maps = [i for i, shape in enumerate(program.shapes[:-1]) if i and len(shape) > 1]
    return tuple(maps[max(0, math.ceil(depth * len(maps)) - 1)] for depth in depths)
