"""What a classifier makes of images before its head: the part that routes hand on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from medinit_jax.arch.program import Program
from medinit_jax.models.encoder import body
from medinit_jax.models.network import Network
from medinit_jax.models.ops import pooled


class Features(NamedTuple):
    """Features of a batch of images.

    Attributes:
        map: What the head reads: float32 (batch, h, w, channels), or (batch, tokens, channels) of a
            transformer.
        pooled: Float32 (batch, channels): the spatial mean of the map, or the class token where
            the head reads it.
        batch_stats: Batch statistics after these images; in evaluation those given.
    """

    map: jax.Array
    pooled: jax.Array
    batch_stats: Any


def features(
    network: Network, variables: Mapping[str, Any], images: jax.Array, train: bool = False
) -> Features:
    """Runs a classifier without its head.

    Args:
        network: The classifier.
        variables: "params" {module: {leaf: array}} and, with batch normalization, "batch_stats";
            the head's may be missing.
        images: (batch, height, width, channels); other sizes than the program's if the network is
            convolutional.
        train: Whether batch normalization uses and updates with this batch's statistics.

    Raises:
        UsageError: The network is no classifier.
    """
    encoder = network.clone(program=body(network.program))
    statistics = variables.get("batch_stats", {})
    held = {"params": variables["params"], "batch_stats": statistics}
    # In evaluation nothing may change, and the answer is a pair all the same.
    changing = ["batch_stats"] if train else []
    answer: Any = encoder.apply(held, images, train=train, mutable=changing)
    last, state = answer
    statistics = state.get("batch_stats", statistics)
    return Features(last, pooled(last, network.program.reads_token), statistics)


def encoder_params(program: Program, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters {module: {leaf: array}} of a classifier without its head's.

    Args:
        program: The classifier.
        params: All its parameters.

    Raises:
        UsageError: The network is no classifier.
    """
    return {name: params[name] for name in body(program).parameter_shapes()}
