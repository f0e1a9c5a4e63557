"""What a network predicts: its heads, their loss and their probabilities.

The logits of all heads lie side by side on the last axis, so that several heads are one linear
layer. One rule serves images and pixels: targets have the shape of the logits without that axis.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

# A target that is not known, or a pixel that does not count.
UNKNOWN = -1


class Head(NamedTuple):
    """One prediction.

    Attributes:
        name: Of the label, such as "dme".
        classes: Names of the classes.
        kind: "softmax": one class holds; "sigmoid": each class holds or not, on its own.
    """

    name: str
    classes: tuple[str, ...]
    kind: Literal["softmax", "sigmoid"] = "softmax"


def width(heads: Sequence[Head]) -> int:
    """Returns the size of the logits."""
    return sum(len(head.classes) for head in heads)


def split(heads: Sequence[Head], logits: Any) -> dict[str, Any]:
    """Divides logits (..., width) into {head: (..., classes)}."""
    parts, first = {}, 0
    for head in heads:
        last = first + len(head.classes)
        parts[head.name] = logits[..., first:last]
        first = last
    return parts


def weight_of(
    head: Head, target: jax.Array, class_weights: Mapping[str, jax.Array] | None, dtype: Any
) -> jax.Array:
    """Returns how much each target counts, an array like `target`; 0 for `UNKNOWN`."""
    known = (target != UNKNOWN).astype(dtype)
    weights = None if class_weights is None else class_weights.get(head.name)
    if weights is None:
        return known
    safe, weights = jnp.maximum(target, 0), weights.astype(dtype)
    if head.kind == "softmax":
        return known * weights[safe]
    return known * (1 + safe.astype(dtype) * (weights - 1))


def total_weights(
    heads: Sequence[Head],
    targets: Mapping[str, jax.Array],
    class_weights: Mapping[str, jax.Array] | None,
    dtype: Any,
) -> dict[str, jax.Array]:
    """Returns {head: ()}: the sum of `weight_of`, by which the head's loss is divided."""
    return {
        head.name: weight_of(head, targets[head.name], class_weights, dtype).sum() for head in heads
    }


def loss(
    heads: Sequence[Head],
    logits: jax.Array,
    targets: Mapping[str, jax.Array],
    class_weights: Mapping[str, jax.Array] | None = None,
    totals: Mapping[str, jax.Array] | None = None,
) -> jax.Array:
    """Returns the sum over heads of the mean cross-entropy of what is known.

    Args:
        heads: What is predicted.
        logits: Float (batch, ..., width).
        targets: {head: int (batch, ...)}, or int (batch, ..., classes) of 0 and 1 for a sigmoid;
            `UNKNOWN` does not count.
        class_weights: {head: float (classes,)}: weight of each softmax class, or of the positives
            of each sigmoid class; the mean is a weighted one, as in PyTorch.
        totals: `total_weights` of a whole batch, of which this is a part: the parts' losses then
            add up to the batch's. None: this is all of it.

    Returns:
        Float ().

    Source: SWCL (arXiv 2108.02122) adds up the losses of its heads.
    """
    if totals is None:
        totals = total_weights(heads, targets, class_weights, logits.dtype)
    value = jnp.zeros((), logits.dtype)
    for head, part in zip(heads, split(heads, logits).values(), strict=True):
        target = targets[head.name]
        safe = jnp.maximum(target, 0)
        if head.kind == "softmax":
            losses = optax.softmax_cross_entropy_with_integer_labels(part, safe)
        else:
            losses = optax.sigmoid_binary_cross_entropy(part, safe.astype(logits.dtype))
        weights = weight_of(head, target, class_weights, logits.dtype)
        total = jnp.maximum(totals[head.name], jnp.finfo(logits.dtype).tiny)
        value += (losses * weights).sum() / total
    return value


def probabilities(heads: Sequence[Head], logits: np.ndarray) -> dict[str, np.ndarray]:
    """Returns {head: float64 (..., classes)}, in sum 1 for a softmax.

    Args:
        heads: What is predicted.
        logits: Float (..., width).
    """
    found = {}
    for head, part in zip(
        heads, split(heads, np.asarray(logits, np.float64)).values(), strict=True
    ):
        if head.kind == "softmax":
            shifted = np.exp(part - part.max(-1, keepdims=True))
            found[head.name] = shifted / shifted.sum(-1, keepdims=True)
        else:
            found[head.name] = 1 / (1 + np.exp(-np.clip(part, -500, 500)))
    return found
