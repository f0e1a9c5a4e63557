"""A trained labeler: a classifier whose maps say where a photograph is abnormal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.core.parallel import Parallel
from medinit_jax.core.provenance import fingerprint
from medinit_jax.downstream.cam import has_cam
from medinit_jax.finetune.tuned import Model, load_model
from medinit_jax.models.features import features
from medinit_jax.swcl.cam_scores import abnormality

CLASSES = ("normal", "abnormal")
# Takes uint8 (B, S, S, 3) from the host, returns maps and scores on the devices.
Score = Callable[[np.ndarray], tuple[jax.Array, jax.Array]]


class Settings(NamedTuple):
    """How photographs are scored.

    Attributes:
        side: Of the photographs in pixels.
        crop: Side of a patch.
        mask: See `cam_scores.abnormality`.
        batch: Photographs at a time.
    """

    side: int
    crop: int
    mask: str
    batch: int


def load_labeler(path: str | Path) -> Model:
    """Loads a fine-tuned network that can score patches.

    Args:
        path: Its workdir, or its `model/` folder.

    Raises:
        UsageError: There is none, or it does not tell normal from abnormal alone, or it does not
            end in global average pooling and a linear layer.
    """
    model = load_model(path)
    told = ", ".join(f"{head.name} ({' / '.join(head.classes)})" for head in model.heads)
    (head, *others) = model.heads
    if model.kind != "classification" or others or head.kind != "softmax":
        raise UsageError(
            f"The model in {path} is of {model.kind} and predicts {told}; name a classifier with "
            f"one head of the two classes {' and '.join(CLASSES)} under config.labeler."
        )
    if head.classes != CLASSES:
        raise UsageError(
            f"The model in {path} predicts {told}, where a labeler has the two classes "
            f"{' and '.join(CLASSES)}; fine-tune one with --config.labels=abnormal."
        )
    if not has_cam(model.network.program):
        raise UsageError(
            f"The model in {path} ({model.record['model']['name']}) does not end in global average "
            "pooling and one linear layer, so it has no class activation maps; fine-tune a ResNet "
            "such as resnet34."
        )
    return model


def checksum(labeler: Model) -> str:
    """Returns a SHA-256 of all that a labeler's maps depend on but its code."""
    return fingerprint({"params": labeler.params, "batch_stats": labeler.statistics})


def compiled(labeler: Model, settings: Settings, parallel: Parallel) -> Score:
    """Compiles the scoring of a batch, so that no time of it is lost later.

    Photographs cross to the devices as bytes and are normalized there.

    Args:
        labeler: The classifier.
        settings: Sides, mask and number of photographs; the batch is a multiple of the devices.
        parallel: Devices; each scores its part of a batch.

    Returns:
        A function of uint8 (B, S, S, 3) that hands over work and waits for nothing. It returns
        float32 maps and scores, as `cam_scores.abnormality` has them; `rows` puts the parts of
        several devices together.
    """
    mean, std = labeler.plan.mean, labeler.plan.std
    head = labeler.network.program.head
    variables = {"params": labeler.params, "batch_stats": labeler.statistics}

    def score(variables, images):
        scale = jnp.asarray(1 / (255 * np.asarray(std)), jnp.float32)
        offset = jnp.asarray(np.asarray(mean) / np.asarray(std), jnp.float32)
        shown = images.astype(jnp.float32) * scale - offset
        last = features(labeler.network, variables, shown).map
        kernel = variables["params"][head]["kernel"]
        return abnormality(last, kernel, shown, mean, std, settings.crop, settings.mask)

    held = parallel.copy(parallel.replicate(variables))
    blank = np.zeros((settings.batch, settings.side, settings.side, 3), np.uint8)
    # `map` gives what `jax.jit` gives, which can be compiled ahead.
    run = parallel.map(score).lower(held, parallel.shard(blank)).compile()  # pyright: ignore
    return lambda images: run(held, parallel.shard(images))


def rows(values: Any, dims: int) -> np.ndarray:
    """Returns what devices hold, (B, ...) or (devices, b, ...), as an array (B, ...) of `dims`."""
    held = np.asarray(values)
    return held.reshape(-1, *held.shape[held.ndim - dims + 1 :])
