"""Where in an image to classify the finding is, as boxes or a mask tell it."""

from __future__ import annotations

import numpy as np

from medinit_jax.data.decode import decode
from medinit_jax.data.fov import crop_to, fov_mask
from medinit_jax.finetune import recipes, sizes
from medinit_jax.finetune.examples import UNLABELLED_PIXEL, Examples
from medinit_jax.finetune.recipes import Plan


def region(examples: Examples, index: int) -> np.ndarray | None:
    """Returns where the finding is, uint8 (H, W) of 0 and 1; None where nobody marked it."""
    records, number = examples.records, int(examples.indices[index])
    found = np.zeros((0, 0), np.uint8)
    if records.has("mask"):
        mask = records.read(number, "mask")[..., 0]
        found = ((mask > 0) & (mask != UNLABELLED_PIXEL)).astype(np.uint8)
    elif records.has("boxes"):
        height, width = examples.native_size(index)
        found = np.zeros((height, width), np.uint8)
        for box in np.asarray(records.read(number, "boxes")).reshape(-1, 4):
            top, left, bottom, right = np.rint(box * [height, width, height, width]).astype(int)
            found[top:bottom, left:right] = 1
    if not found.any():
        return None
    return np.ascontiguousarray(np.rot90(found, index % 4)) if examples.turned else found


def shown_region(examples: Examples, index: int, plan: Plan) -> np.ndarray | None:
    """Returns the region moved as the image is for evaluation, bool (size, size).

    Args:
        examples: The images.
        index: Number of the image.
        plan: The recipe of a classification.

    Returns:
        None where nobody marked anything.
    """
    found = region(examples, index)
    if found is None:
        return None
    if plan.recipe.keep == "short":
        return recipes.shown_image(sizes.shorter(found, plan.recipe.kept), plan) > 0
    if plan.fit == "fov":
        image = decode(examples.records.read(int(examples.indices[index]), "image", encoded=True))
        if examples.turned:
            image = np.rot90(image, index % 4)
        found = crop_to(np.repeat(found[..., None], 3, -1), fov_mask(image)[0])[..., 0]
    return sizes.padded(np.ascontiguousarray(found), plan.size) > 0
