"""Class activation maps: where in an image a classifier sees its class.

Sources: Zhou et al., Learning Deep Features for Discriminative Localization, CVPR 2016 (CAM);
Selvaraju et al., Grad-CAM, ICCV 2017.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.arch.program import Block, Program
from medinit_jax.core.compiler import jit
from medinit_jax.core.errors import UsageError
from medinit_jax.data.color import viridis
from medinit_jax.models.features import features
from medinit_jax.models.network import Network
from medinit_jax.models.ops import aligned_interpolation, apply_block, normalize_with


def class_activation(features: Any, kernel: Any) -> Any:
    """Returns the maps of all classes, without the bias.

    Args:
        features: Float (..., h, w, channels), before global average pooling.
        kernel: Float (channels, classes) of the linear classifier.

    Returns:
        Float (..., h, w, classes).
    """
    return features @ kernel


def has_cam(program: Program) -> bool:
    """Tells whether a network ends in global average pooling of its last map and a linear layer."""
    place, last = last_map(program), len(program.calls) - 1
    steps = program.calls[-1].block.steps
    if place is None or place[0] < last - 1 or len(steps) < 2:
        return False
    arity = program.calls[-1].block.arity
    # The map is what the pooling reads: a value of the last call, or its input.
    read = place[1] if place[0] == last else 0
    pool, dense = steps[-2:]
    kinds = (pool.kind, dense.kind) == ("global_pool", "dense")
    return kinds and pool.args == (read,) and dense.args == (arity + len(steps) - 2,)


def activation_map(
    network: Network, params: Any, statistics: Any, images: np.ndarray, classes: np.ndarray
) -> np.ndarray:
    """Returns the map of one class per image: CAM where the network allows it, else Grad-CAM.

    Args:
        network: The network, a classifier or a segmentation network.
        params: Its parameters.
        statistics: Its batch statistics.
        images: Float32 (n, H, W, C), normalized.
        classes: Int (n,), which column of the logits is explained.

    Returns:
        Float32 (n, h, w) of the last map's size; for Grad-CAM without negative values.
    """
    run = _cam if has_cam(network.program) else _grad_cam
    answer = run(network)(params, statistics, jnp.asarray(images), jnp.asarray(classes))  # pyright: ignore
    return np.asarray(answer, np.float32)


@functools.lru_cache(maxsize=4)
def _cam(network: Network) -> Callable[..., jax.Array]:
    def run(params, statistics, images, classes):
        variables = {"params": params, "batch_stats": statistics}
        last = features(network, variables, images).map
        return _chosen(class_activation(last, params[network.program.head]["kernel"]), classes)

    return jit(run)


@functools.lru_cache(maxsize=4)
def _grad_cam(network: Network) -> Callable[..., jax.Array]:
    """Weights channels by the mean gradient of the score; the score of pixels is their mean."""

    def run(params, statistics, images, classes):
        def score(shift):
            logits, features = run_with_map(network, params, statistics, images, shift)
            if logits.ndim == 2:
                return jnp.take_along_axis(logits, classes[:, None], -1).sum(), features
            # Of a segmentation: over the pixels that are given the class.
            given = (logits.argmax(-1) == classes[:, None, None]).astype(logits.dtype)
            counted = jnp.maximum(given.sum((1, 2)), 1)
            return ((_chosen(logits, classes) * given).sum((1, 2)) / counted).sum(), features

        shape = jax.eval_shape(lambda: run_with_map(network, params, statistics, images)[1])
        gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
        places = tuple(range(1, gradient.ndim - 1))
        weighted = (features * gradient.mean(places, keepdims=True)).sum(-1)
        return jax.nn.relu(_as_grid(weighted))

    return jit(run)


def _as_grid(values: jax.Array) -> jax.Array:
    """Returns values of tokens (n, tokens) as a map (n, h, w), without a class token in front."""
    if values.ndim == 3:
        return values
    side = math.isqrt(values.shape[1])
    return values[:, values.shape[1] - side * side :].reshape(-1, side, side)


def _chosen(maps: jax.Array, classes: jax.Array) -> jax.Array:
    return jnp.take_along_axis(maps, classes[:, None, None, None], -1)[..., 0]


def last_map(program: Program) -> tuple[int, int] | None:
    """Returns the last value before the logits that still has places: (call, value in its block).

    Args:
        program: The network.

    Returns:
        The number of the call, and of the value inside it (its inputs come first). A map of one
        pixel is none. Of a transformer it is what its last attention reads: after it, only the
        class token reaches the logits. None if there is neither.
    """
    last = len(program.calls) - 1
    for index in range(last, -1, -1):
        call = program.calls[index]
        outputs = program.layout(index).outputs
        # Logits of pixels are what is explained, resized or not.
        end = _logits_from(call.block) if index == last else len(outputs)
        for number in range(end - 1, -1, -1):
            if len(outputs[number]) == 3 and min(outputs[number][:2]) > 1:
                return index, call.block.arity + number
            if len(outputs[number]) == 2 and call.block.steps[number].kind == "attention":
                return index, _source(call.block, call.block.arity + number)
    return None


def _source(block: Block, value: int) -> int:
    """Returns the value that the projection before an attention reads."""
    projection = block.steps[value - block.arity].args[0]
    return block.steps[projection - block.arity].args[0]


def _logits_from(block: Block) -> int:
    """Returns the number of the step that makes the logits: the last one with parameters."""
    return max(i for i, step in enumerate(block.steps) if step.name)


def run_with_map(
    network: Network, params: Any, statistics: Any, images: jax.Array, shift: Any = None
) -> tuple[jax.Array, jax.Array]:
    """Runs a network with fixed statistics; returns logits and last map, to which `shift` is added.

    Raises:
        UsageError: The network has no map.
    """
    program = network.program
    place = last_map(program)
    if place is None:
        raise UsageError(
            "This network keeps no map of places, so there is no class activation map of it; "
            "choose a convolutional one or a transformer."
        )
    values = [images.astype(network.dtype)]
    features = values[0]
    for index, call in enumerate(program.calls):

        def normalize(step, x, leaves, call=call):
            own = statistics[f"{call.module(step.name)}.stats"]
            return normalize_with(x, own["mean"], own["var"], leaves, step.epsilon)

        inner = [values[i] for i in call.inputs]
        for step in call.block.steps:
            one = Block(len(inner), (step,))
            leaves = {step.name: params[call.module(step.name)]} if step.name else {}
            value = apply_block(one, leaves, tuple(inner), normalize)
            if (index, len(inner)) == place:
                value = value if shift is None else value + shift
                features = value
            inner.append(value)
        values.append(inner[-1])
    return values[-1].astype(jnp.float32), features.astype(jnp.float32)


def upsample_aligned(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns maps (..., h, w) at another size, bilinear with corners kept in place.

    Source: SWCL's code (align_corners=True).
    """
    rows, columns = (
        aligned_interpolation(n, s).astype(maps.dtype)
        for n, s in zip(maps.shape[-2:], size, strict=True)
    )
    return rows @ maps @ columns.T


def energy_inside(cam: np.ndarray, mask: np.ndarray) -> float:
    """Returns the share of a map's positive energy inside a mask; 0 where there is none.

    Args:
        cam: Float (H, W).
        mask: Bool (H, W).
    """
    positive = np.maximum(cam, 0)
    total = positive.sum()
    return float(positive[np.asarray(mask, bool)].sum() / total) if total > 0 else 0.0


def iou_at_half(cam: np.ndarray, mask: np.ndarray) -> float:
    """Returns the overlap (over the union) of a mask and what exceeds half of a map's maximum.

    Args:
        cam: Float (H, W).
        mask: Bool (H, W).
    """
    if cam.max() <= 0:
        return 0.0
    hot, mask = cam >= cam.max() / 2, np.asarray(mask, bool)
    return float((hot & mask).sum() / (hot | mask).sum())


def drift(cam: np.ndarray, last: np.ndarray) -> float:
    """Returns 1 minus the correlation of two maps; 1 where one alone is constant, 0 where both are.

    Args:
        cam: Float (h, w).
        last: Float (h, w).
    """
    a, b = (m.ravel() - m.mean() for m in (np.asarray(cam, float), np.asarray(last, float)))
    norms = np.linalg.norm(a), np.linalg.norm(b)
    # Rounding leaves a constant map with a tiny spread.
    flat = [
        n <= 1e-7 * max(np.abs(m).max(), 1e-30) for n, m in zip(norms, (cam, last), strict=True)
    ]
    if any(flat):
        return 0.0 if all(flat) else 1.0
    return float(1 - a @ b / (norms[0] * norms[1]))


def overlay(image: np.ndarray, cam: np.ndarray, strength: float = 0.5) -> np.ndarray:
    """Returns an image with a map laid over it in color.

    Args:
        image: Uint8 (H, W, 3).
        cam: Float (h, w) of any size; its range becomes that of the colors.
        strength: Share of the colors, in [0, 1].

    Returns:
        uint8 (H, W, 3).
    """
    if not 0 <= strength <= 1:
        raise UsageError(f"The strength of an overlay lies in [0, 1], got {strength}.")
    sized = upsample_aligned(cam.astype(np.float64), image.shape[:2])
    low, high = sized.min(), sized.max()
    shares = (sized - low) / (high - low) if high > low else np.zeros_like(sized)
    return np.rint((1 - strength) * image + strength * viridis(shares)).astype(np.uint8)
