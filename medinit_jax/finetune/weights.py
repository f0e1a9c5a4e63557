"""How much a class counts in the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.finetune.data import TaskImages

RULES = ("none", "balanced")


def class_weights(images: TaskImages, rule: str) -> dict[str, np.ndarray]:
    """Returns the weights that `heads.loss` takes.

    Args:
        images: The task; its training part is counted.
        rule: "none", or "balanced": n / (classes * count) for a softmax, as scikit-learn has it,
            and negatives over positives for each sigmoid class.

    Returns:
        {head: float32 (classes,)}; {} for "none".

    Raises:
        UsageError: There is no such rule, or a class has no training example.
    """
    if rule not in RULES:
        raise UsageError(f"config.train.class_weights={rule!r}; set it to {' or '.join(RULES)}.")
    if rule == "none":
        return {}
    found = {}
    for head in images.heads:
        positives, total = _counted(images, head.name, len(head.classes), head.kind)
        if not positives.all():
            missing = [head.classes[i] for i in np.flatnonzero(positives == 0)]
            raise UsageError(
                f"No training example of {head.name} is {', '.join(missing)}, so it has no "
                "balanced weight; set config.train.class_weights=none or take more images."
            )
        if head.kind == "sigmoid":
            found[head.name] = ((total - positives) / positives).astype(np.float32)
        else:
            found[head.name] = (total / (len(positives) * positives)).astype(np.float32)
    return found


def _counted(images: TaskImages, name: str, classes: int, kind: str) -> tuple[np.ndarray, Any]:
    """Returns how often each class occurs among what is known, and how much is known."""
    train = images.train
    if images.kind == "segmentation":
        counts = np.zeros(classes, np.int64)
        for index in range(len(train)):
            pixels = train.mask(index)[name][train.fov(index)]
            counts += np.bincount(pixels, minlength=classes)
        return counts, int(counts.sum())
    targets = train.targets[name]
    if kind == "sigmoid":
        return (targets == 1).sum(0), (targets >= 0).sum(0)
    counts = np.bincount(targets[targets >= 0], minlength=classes)
    return counts, int(counts.sum())
