"""Learned heads: two layers on pooled features of any width."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from medinit_jax.losses.vectors import unit

# The width at which features have length sqrt(REFERENCE), see `hyper.objective.standardized`.
REFERENCE = 128


def draw(key: jax.Array, inputs: int, hidden: int, out: int) -> dict[str, Any]:
    """Draws two layers whose outputs have about variance 1.

    Args:
        key: Random key.
        inputs: Channels that come in; their squares add up to about `REFERENCE`.
        hidden: Channels between the layers.
        out: Channels of the output.

    Returns:
        {"in": {"kernel", "bias"}, "out": {"kernel", "bias"}}, float32.
    """
    first, last = jax.random.split(key)
    return {
        "in": _layer(first, inputs, hidden, REFERENCE),
        "out": _layer(last, hidden, out, hidden),
    }


def _layer(key, inputs: int, out: int, scale: int):
    kernel = jax.random.normal(key, (inputs, out), jnp.float32) / jnp.sqrt(jnp.float32(scale))
    return {"kernel": kernel, "bias": jnp.zeros(out, jnp.float32)}


def apply(head: dict[str, Any], features: jax.Array) -> jax.Array:
    """Returns (n, out) of features (n, inputs): linear, ReLU, linear."""
    return _linear(head["out"], jax.nn.relu(_linear(head["in"], features)))


def project(head: dict[str, Any], features: jax.Array) -> jax.Array:
    """Returns vectors of length 1, (n, out), of features (n, inputs)."""
    return unit(apply(head, features))


def _linear(layer, x):
    return x @ layer["kernel"].astype(x.dtype) + layer["bias"].astype(x.dtype)


def classified(
    logits: jax.Array, targets: jax.Array, smoothing: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """Returns cross-entropy in nats and whether the answer is right, (n,) each.

    Args:
        logits: Float (n, classes).
        targets: int (n,).
        smoothing: Share of the target spread over all classes.
    """
    log = jax.nn.log_softmax(logits)
    wanted = jnp.take_along_axis(log, targets[:, None], axis=1)[:, 0]
    right = (jnp.argmax(logits, -1).astype(targets.dtype) == targets).astype(logits.dtype)
    return -(1 - smoothing) * wanted - smoothing * log.mean(-1), right
