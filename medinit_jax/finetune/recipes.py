"""How images become what a network sees: the recipes of the two papers, and a small one of ours.

A recipe names sides in pixels of the image that the network sees; with another `size` all its sides
change in proportion. Masks move with their image. They are held as class + 1, so that 0, which
fills what lies outside of an image, is a pixel that is not known.

Source: the hyper-initializer (arXiv 2206.03661), section 3: its "random crop" with a scale above 1
we read as a zoom, its rotation as up to 15 degrees; and SWCL (arXiv 2108.02122) with its authors'
code. "Random flip" is read as both ways for photographs of the fundus, but only left-right for CT
and X-ray, where no patient is upside down.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, NamedTuple

import cv2
import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data import pillow_color
from medinit_jax.data.augment import NORMALIZATION, Augmentation, normalize, warp
from medinit_jax.data.decode import Fit, fit_square
from medinit_jax.data.paired import PairAugmentation, augment_pair
from medinit_jax.data.views import RECIPES as VIEW_RECIPES
from medinit_jax.data.views import Views, take_view
from medinit_jax.finetune.sizes import padded, placed, resized, shorter, window


@dataclasses.dataclass(frozen=True)
class Crops:
    """Random crops of an image and its mask, at the resolution that they have.

    Attributes:
        pair: How a crop is turned, flipped and lit; its zoom is not used.
        gray: Probability that all color is lost.
    """

    pair: PairAugmentation = PairAugmentation(Augmentation(mirror=0.5), 0.0, 0.0)
    gray: float = 0.2


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How the images of a task are kept, changed for training, and shown for evaluation.

    Attributes:
        kind: Task that it is for.
        size: Side of the images that the network sees, in pixels.
        keep: How an image is kept: "square": all of it in a square of `size`; "short": its shorter
            side becomes `kept`; "native": as it is, discs and cups stretched to a square of `kept`.
        kept: Side in pixels for "short" and "native".
        shown: Classification with "short": shorter side of the image from whose middle the network
            sees `size` pixels in evaluation.
        draws: Changes for training.
        seen: Side of the images that the network sees in evaluation, where it is another one.
    """

    kind: Literal["classification", "segmentation"]
    size: int
    keep: Literal["square", "short", "native"]
    draws: Augmentation | Views | PairAugmentation | Crops
    kept: int = 0
    shown: int = 0
    seen: int = 0


_ZOOMED = Augmentation(zoom=(0.8, 1.2), rotate=15.0, mirror=0.5, flip=0.5)
_CROPPED = VIEW_RECIPES["ft_cls"].views[0]
_TURNED = Augmentation(rotate=180.0, mirror=0.5, flip=0.5)

RECIPES: dict[str, Recipe] = {
    "hyper512": Recipe("classification", 512, "square", _ZOOMED),
    "swcl224": Recipe("classification", 224, "short", _CROPPED, kept=350, shown=256),
    # Of SWCL's labeler, and of the networks that its paper pretrains on labels.
    "labeler384": Recipe(
        "classification",
        384,
        "short",
        VIEW_RECIPES["labeler"].views[0],
        kept=448,
        shown=448,
        seen=448,
    ),
    "sup_pre": Recipe(
        "classification", 448, "short", VIEW_RECIPES["sup_pre"].views[0], kept=448, shown=448
    ),
    "swcl384": Recipe("segmentation", 384, "native", Crops(), kept=514),
    "hyper512seg": Recipe("segmentation", 512, "square", PairAugmentation(_ZOOMED, 0.0, 0.0)),
    "crops": Recipe(
        "segmentation", 128, "native", Crops(PairAugmentation(_TURNED, 0.2, 0.2), 0.0), kept=171
    ),
}


class Plan(NamedTuple):
    """A recipe for the images of a task.

    Attributes:
        recipe: With the sides that are wanted.
        fit: How images that are no squares fill one.
        stretch: Whether "native" images are stretched to a square first.
        mean: Of red, green and blue in 0..1.
        std: Their deviations.
    """

    recipe: Recipe
    fit: Fit
    stretch: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def size(self) -> int:
        """Side of the images that the network sees, in pixels."""
        return self.recipe.size

    @property
    def square(self) -> int:
        """Side to which images are stretched when they are read; 0: they are not."""
        return self.recipe.kept if self.stretch else 0


def make_plan(
    name: str,
    kind: str,
    modality: str,
    size: int = 0,
    normalization: str = "auto",
    stretch: bool = False,
    upright: bool = False,
) -> Plan:
    """Returns what a recipe means for a task.

    Args:
        name: Key of `RECIPES`.
        kind: "classification" or "segmentation".
        modality: "fundus", "CT", "X-ray" or "your own".
        size: Side of the images that the network sees, in pixels; 0: the recipe's.
        normalization: "auto", or a key of `NORMALIZATION`.
        stretch: Whether the masks are of discs and cups, which the second paper stretches.
        upright: Whether up must stay up, as where turns are to be told.

    Raises:
        UsageError: There is no such recipe or normalization, or it is for another kind of task.
    """
    if name not in RECIPES:
        raise UsageError(f"config.data.recipe is {name!r}; set it to one of: {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    if recipe.kind != kind:
        fitting = [other for other, one in RECIPES.items() if one.kind == kind]
        raise UsageError(
            f"config.data.recipe={name} is for {recipe.kind}, but the task is {kind}; set it to "
            f"one of: {', '.join(fitting)}."
        )
    if size and not 16 <= size <= 4096:
        raise UsageError(f"config.data.size is {size}; set it to 16 to 4096 pixels, or to 0.")
    if normalization == "auto":
        normalization = "fundus" if modality in ("fundus", "your own") else "gray"
    if normalization not in NORMALIZATION:
        raise UsageError(
            f"config.data.normalization is {normalization!r}; set it to auto or one of: "
            f"{', '.join(NORMALIZATION)}."
        )
    scale = (size or recipe.size) / recipe.size
    draws = recipe.draws
    if isinstance(draws, Augmentation) and (upright or modality in ("CT", "X-ray")):
        draws = dataclasses.replace(draws, flip=0.0)
    recipe = dataclasses.replace(
        recipe,
        size=size or recipe.size,
        kept=round(recipe.kept * scale),
        shown=round(recipe.shown * scale),
        seen=round(recipe.seen * scale),
        draws=draws,
    )
    fit: Fit = "fov" if modality == "fundus" else "pad"
    mean, std = NORMALIZATION[normalization]
    return Plan(recipe, fit, stretch and recipe.keep == "native", mean, std)


def least_side(plan: Plan) -> int:
    """Returns the shorter side in pixels that keeping an image needs; 0: all that it has.

    Whoever reads images for a plan passes it to `decode_with_size`, so that fine-tuning and
    prediction see the same pixels of a JPEG, which is decoded at a part of its size.
    """
    recipe = plan.recipe
    if recipe.keep == "native":
        return plan.square
    if recipe.keep == "short":
        return recipe.kept
    # The box of a field of view may be much smaller than the image.
    whole = recipe.kind == "classification" and plan.fit == "fov"
    return 0 if whole else recipe.size


def kept_image(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns a photograph to classify as it is kept: uint8 (H, W, 3) of uint8 (h, w, 3).

    Raises:
        UsageError: The image is a strip that would become too long.
    """
    if plan.recipe.keep == "square":
        return fit_square(image, plan.size, plan.fit)
    return shorter(image, plan.recipe.kept)


def kept_pair(image: np.ndarray, mask: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image to segment and its mask as they are kept.

    Args:
        image: uint8 (h, w, 3).
        mask: uint8 (h, w) of class + 1, 0 unknown.
        plan: The recipe.

    Returns:
        uint8 (H, W, 3) and uint8 (H, W).
    """
    if plan.recipe.keep == "square":
        # A JPEG may have been decoded at a part of its size, rounded up.
        return padded(image, plan.size, mask.shape), padded(mask, plan.size)
    if plan.square:
        size = (plan.square, plan.square)
        return resized(image, size), resized(mask, size)
    return image, mask


def drawn_image(image: np.ndarray, plan: Plan, rng: np.random.Generator) -> np.ndarray:
    """Changes a kept photograph for training; returns uint8 (size, size, 3)."""
    draws = plan.recipe.draws
    if isinstance(draws, Views):
        return take_view(image, draws.draw(rng, *image.shape[:2]), plan.size)
    assert isinstance(draws, Augmentation)
    return warp(image, draws.draw(rng), plan.size, draws.border)


def drawn_pair(
    image: np.ndarray, mask: np.ndarray, plan: Plan, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Changes a kept image and its mask for training by the same draw.

    Returns:
        uint8 (size, size, 3) and uint8 (size, size) of class + 1, 0 where nothing is known.
    """
    draws, size = plan.recipe.draws, plan.size
    if isinstance(draws, PairAugmentation):
        return augment_pair(image, mask, draws, size, rng)
    assert isinstance(draws, Crops)
    top, left = (_start(length, size, rng) for length in image.shape[:2])
    gray = rng.random() < draws.gray
    geometry = draws.pair.geometry
    # With a margin of a quarter, a window that is turned by any angle holds the crop.
    before = -(-size // 4) if geometry.rotate or geometry.tilt else 0
    side = size + 2 * before
    image, mask = (window(one, top - before, left - before, side) for one in (image, mask))
    # The zoom shows the middle of the window, pixel by pixel.
    still = dataclasses.replace(geometry, zoom=(side / size, side / size))
    image, mask = augment_pair(
        image, mask, dataclasses.replace(draws.pair, geometry=still), size, rng
    )
    return pillow_color.saturation(image, 0.0) if gray else image, mask


def _start(length: int, size: int, rng: np.random.Generator) -> int:
    """Draws where a crop begins; one that is larger than the image has it in the middle."""
    u = rng.random()
    return int(u * (length - size + 1)) if length > size else -((size - length) // 2)


def shown_image(image: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns a kept photograph as it is evaluated, uint8 (seen, seen, 3)."""
    if plan.recipe.keep == "square":
        return image
    image, side = shorter(image, plan.recipe.shown), plan.recipe.seen or plan.size
    top, left = ((length - side) // 2 for length in image.shape[:2])
    return np.ascontiguousarray(image[top : top + side, left : left + side])


def normalized(images: np.ndarray, plan: Plan) -> np.ndarray:
    """Returns uint8 (..., 3) as float32 with the plan's mean and deviation."""
    return normalize(images, plan.mean, plan.std)


def to_native(logits: np.ndarray, native: tuple[int, int], plan: Plan) -> np.ndarray:
    """Returns logits of a kept image at the size of its mask.

    Args:
        logits: float32 (H, W, classes).
        native: Height and width of the mask.
        plan: The recipe by which the image was kept.

    Returns:
        float32 (h, w, classes), bilinear between the centers of pixels; margins are cut off.
    """
    if plan.recipe.keep == "square":
        top, left, height, width = placed(native, plan.size)
        logits = logits[top : top + height, left : left + width]
    if logits.shape[:2] == native:
        return logits
    layers = [
        cv2.resize(np.ascontiguousarray(layer), native[::-1], interpolation=cv2.INTER_LINEAR)
        for layer in np.moveaxis(logits, -1, 0)
    ]
    return np.stack(layers, -1)
