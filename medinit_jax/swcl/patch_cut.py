"""Cuts and encodes the patches of a patient's two eyes."""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.image_files import png
from medinit_jax.swcl.patch_geometry import EYES, by_position, cut_patch, patch_name
from medinit_jax.swcl.patch_plan import Eye
from medinit_jax.swcl.patch_table import Row


class Shown(NamedTuple):
    """A photograph with its scores.

    Attributes:
        eye: Whose it is.
        image: Uint8 (S, S, 3).
        scores: Float (5,).
    """

    eye: Eye
    image: np.ndarray
    scores: np.ndarray


class Patch(NamedTuple):
    """A pair of patches, ready to be written.

    Attributes:
        row: Its row in the table.
        source: Name of the set.
        patient: The patient's name within the set.
        position: One of `POSITIONS`.
        images: Encoded patches of the left and the right eye.
    """

    row: Row
    source: str
    patient: str
    position: str
    images: tuple[bytes, bytes]


def cut_pair(left: Shown, right: Shown, crop: int, quality: int) -> dict[str, Patch]:
    """Returns the patches of a patient by position.

    Args:
        left: The left eye.
        right: The right eye of the same patient.
        crop: Side of a patch in pixels.
        quality: See `encoded`.

    Raises:
        UsageError: A score is none, or the photographs are too small or no squares.
    """
    scores = _scores(left), _scores(right)
    source, patient = left.eye.source, left.eye.patient
    patches = {}
    for position in scores[0]:
        names = [patch_name(source, patient, eye, position) for eye in EYES]
        images = [
            encoded(cut_patch(shown.image, crop, shown.eye.eye, position), quality)
            for shown in (left, right)
        ]
        row = Row(
            names[0],
            scores[0][position],
            names[1],
            scores[1][position],
            left.eye.label,
            right.eye.label,
        )
        patches[position] = Patch(row, source, patient, position, (images[0], images[1]))
    return patches


def _scores(shown: Shown) -> dict[str, float]:
    """Returns an eye's scores by position; 0 of a normal photograph of a labelled set.

    Source: SWCL's code.
    """
    eye, found = shown.eye, np.asarray(shown.scores, np.float32)
    if not ((found >= 0) & (found <= 1)).all():
        raise UsageError(
            f"The labeler gives the {eye.eye} eye of patient {eye.patient} of {eye.source} the "
            f"scores {found.tolist()}, which should lie between 0 and 1; train it again."
        )
    return by_position(np.zeros_like(found) if eye.known == 0 else found, eye.eye)


def encoded(patch: np.ndarray, quality: int) -> bytes:
    """Returns a patch uint8 (H, W, 3) as JPEG of a quality, or with 0 as PNG."""
    if not quality:
        # Half a million patches are encoded once, and decoded in every epoch.
        return png(patch, fast=True)
    stream = io.BytesIO()
    # Pillow, as in the authors' code: other encoders give other pixels at the same quality.
    Image.fromarray(patch).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
