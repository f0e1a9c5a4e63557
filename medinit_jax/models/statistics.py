"""Batch statistics of a network whose parameters were not trained step by step.

Predicted parameters come without running statistics. Before such a network is judged with its
parameters frozen, its statistics are estimated once from images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.compiler import jit
from medinit_jax.models.network import MOMENTUM, Network

Statistics = dict[str, dict[str, jax.Array]]


def initial_statistics(program: Program) -> Statistics:
    """Returns mean 0 and variance 1 for every batch normalization, as `Network.init` does."""
    return {
        f"{call.module(step.name)}.stats": {
            "mean": jnp.zeros(program.layout(index).parameters[step.name]["scale"]),
            "var": jnp.ones(program.layout(index).parameters[step.name]["scale"]),
        }
        for index, call in enumerate(program.calls)
        for step in call.block.steps
        if step.kind == "batch_norm"
    }


@functools.lru_cache(maxsize=16)
def batch_statistics(network: Network) -> Callable[[Any, jax.Array], Statistics]:
    """Returns the compiled function (params, images (B, H, W, C)) -> statistics of that batch.

    The variance is the unbiased one that running statistics are made of.
    """

    def statistics(params, images):
        # Running values that start at 0 hold 1 - MOMENTUM of the batch's after one step.
        zeros = jax.tree.map(jnp.zeros_like, initial_statistics(network.program))
        state: Any = network.apply(
            {"params": params, "batch_stats": zeros}, images, train=True, mutable=["batch_stats"]
        )[1]
        return jax.tree.map(lambda x: x / (1 - MOMENTUM), dict(state.get("batch_stats", {})))

    return jit(statistics)


@jax.jit
def _add(total: Statistics, part: Statistics) -> Statistics:
    return jax.tree.map(jnp.add, total, part)


def recalibrate_bn(
    network: Network, params: Any, batches: Iterable[jax.Array | np.ndarray], limit: int = 64
) -> Statistics:
    """Estimates the batch statistics of a network from images.

    Args:
        network: The network.
        params: Its parameters, {module: {leaf: array}}.
        batches: Image batches (B, H, W, C); equal sizes spare compilations.
        limit: Batches that are read at most.

    Returns:
        "batch_stats": means and variances, averaged over the batches with equal weights; {} for a
        network without batch normalization.

    Raises:
        ValueError: If there is no batch.
    """
    if not initial_statistics(network.program):
        return {}
    of_batch = batch_statistics(network)  # pyright: ignore[reportArgumentType]
    total, count = None, 0
    for images in batches:
        part = of_batch(params, jnp.asarray(images))
        total = part if total is None else _add(total, part)
        count += 1
        if count == limit:
            break
    if total is None:
        raise ValueError("batch statistics cannot be estimated without images")
    return jax.tree.map(lambda x: x / count, total)
