"""Losses of a student that follows a slow copy of itself: DINO and BYOL."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from medinit_jax.core.errors import UsageError
from medinit_jax.losses.vectors import unit, wide


def dino_loss(
    students: Sequence[jax.Array],
    teachers: Sequence[jax.Array],
    center: jax.Array,
    teacher_temperature: float | jax.Array,
    student_temperature: float = 0.1,
) -> jax.Array:
    """Returns the cross-entropy between each teacher's view and every other view of the student.

    Args:
        students: Float (B, K) scores of each view, at least two; the first are the teachers' views.
        teachers: Float (B, K) scores of two views; no gradient passes.
        center: Float (K,), subtracted from the teachers' scores.
        teacher_temperature: Divides the teachers' scores; see `teacher_temperature`.
        student_temperature: Divides the student's scores.

    Returns:
        Float scalar, mean over the batch and over the pairs of different views.

    Raises:
        UsageError: There are fewer than two views, or fewer of the student than of the teacher.

    Source: DINO (arXiv 2104.14294), Eq. 2 and 3 and Algorithm 1.
    """
    if len(students) < max(2, len(teachers)):
        raise UsageError(
            f"DINO got {len(students)} views of the student for {len(teachers)} of the teacher; "
            "give the student all of the teacher's views, at least 2."
        )
    teachers = [
        jax.nn.softmax((wide(t) - center) / teacher_temperature)
        for t in jax.lax.stop_gradient(list(teachers))
    ]
    logs = [jax.nn.log_softmax(wide(s) / student_temperature) for s in students]
    losses = [
        -(target * log).sum(-1).mean()
        for i, target in enumerate(teachers)
        for j, log in enumerate(logs)
        if i != j
    ]
    return jnp.stack(losses).mean()


def dino_center(
    center: jax.Array, teachers: Sequence[jax.Array], momentum: float = 0.9
) -> jax.Array:
    """Returns the center for the next step, to be taken after the loss.

    Args:
        center: Float (K,).
        teachers: Float (B, K) scores of each view, of the batch of all devices.
        momentum: What is kept of the old one.

    Source: DINO (arXiv 2104.14294), Eq. 4.
    """
    mean = jnp.stack([wide(t) for t in teachers]).mean((0, 1))
    return momentum * center + (1 - momentum) * jax.lax.stop_gradient(mean)


def teacher_temperature(
    epoch: float | jax.Array, start: float = 0.04, final: float = 0.07, epochs: int = 30
) -> jax.Array:
    """Returns DINO's teacher temperature: a line from `start` to `final`, reached at `epochs`."""
    return start + (final - start) * jnp.minimum(epoch / epochs, 1)


def byol_loss(predictions: Sequence[jax.Array], targets: Sequence[jax.Array]) -> jax.Array:
    """Returns BYOL's loss, the squared distance of unit vectors in both directions, 0 to 8.

    Args:
        predictions: Float (B, D) of the online network's predictor, for both views.
        targets: Float (B, D) of the target network's projection; no gradient passes.

    Returns:
        Float scalar, mean over the batch.

    Source: BYOL (arXiv 2006.07733), Eq. 2.
    """
    (p1, p2), (z1, z2) = predictions, jax.lax.stop_gradient(tuple(targets))
    return _gap(p1, z2).mean() + _gap(p2, z1).mean()


def momentum(step: int | jax.Array, total: int, base: float = 0.996) -> jax.Array:
    """Returns what a teacher keeps of itself at a step: `base`, rising as a cosine to 1.

    Args:
        step: From 0, at which the teacher is a copy of the student.
        total: Steps of the training, at which 1 is reached.
        base: At step 0.

    Source: BYOL (arXiv 2006.07733), section 3.2.
    """
    return 1 - (1 - base) * (jnp.cos(math.pi * (step / total)) + 1) / 2


def ema(teacher: Any, student: Any, keep: float | jax.Array) -> Any:
    """Returns keep * teacher + (1 - keep) * student of two pytrees of floats."""
    return jax.tree.map(
        lambda t, s: t + (1 - jnp.asarray(keep, t.dtype)) * (s - t), teacher, student
    )


def _gap(a, b):
    a, b = unit(a), unit(b)
    return ((a - b) ** 2).sum(-1)
