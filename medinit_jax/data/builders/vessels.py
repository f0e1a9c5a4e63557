"""What sets of vessels in fundus photographs share: observers, the field of view, validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import carve
from medinit_jax.data.builders.image_files import png
from medinit_jax.data.fov import fov_mask
from medinit_jax.data.layout import Tree

# Share of the pixels that a field of view covers at least, and vessels at most; vessels cover
# about a tenth.
_BETWEEN = 0.4
_NAMES = {"image": "image", "mask": "vessel mask", "fov": "field of view"}
Files = Mapping[str, epath.Path]


def validation_config(of: str) -> Config:
    """Returns the config that holds back a fifth of the training photographs of another one."""
    return Config(
        name="validation",
        description=f"As {of}, with a fifth of the training photographs for validation.",
        rule="validation",
    )


class VesselBuilder(Builder, skip_registration=True):  # pyright: ignore
    """Photographs with the vessels that one or two observers have drawn.

    Class attributes:
        FIELD_SHARE: `share` of `fov_mask`, for photographs that come without a field of view.
        STRAY: Share of a mask's pixels that may be neither black nor white.
    """

    FIELD_SHARE: ClassVar[float] = 0.06
    STRAY: ClassVar[float] = 0.001

    def features(self) -> dict[str, Any]:
        """Returns vessels, those of a second observer in a list of none or one, and the field.

        `fov_source` says whether the field of view comes from a file; `fov_found` is 0 where it was
        computed in vain and is the whole image.
        """
        vessels = {"labels": ["background", "vessel"], "shape": (None, None, 1)}
        return {
            "mask": tfds.features.LabeledImage(**vessels),
            "mask2": tfds.features.Sequence(tfds.features.LabeledImage(**vessels)),
            "fov": tfds.features.Image(shape=(None, None, 1)),
            "fov_found": tfds.features.Scalar(np.uint8),
            "fov_source": tfds.features.ClassLabel(names=["file", "computed"]),
        }

    def complete(
        self, tree: Tree, images: Files, first: Files, second: Files, fields: Files | None = None
    ) -> dict[str, dict[str, epath.Path]]:
        """Returns {name: its files} of the photographs that have all that they need.

        Args:
            tree: Where the files are, for messages.
            images: {name: photograph}.
            first: {name: vessels}.
            second: {name: vessels of another observer}, of any of them.
            fields: {name: field of view}; None if it shall be computed.

        Raises:
            DatasetLayoutError: E_ORPHAN.
        """
        names = sorted({*images, *first})
        needed = {"image": images, "mask": first}
        if fields is not None:
            needed["fov"] = fields
        for feature, what in _NAMES.items():
            missing = [name for name in names if name not in needed.get(feature, names)]
            self.refuse_orphans(tree, missing, len(names), what)
        self.ignored += [
            f"{path.name}: no image"
            for extra in (second, fields or {})
            for name, path in extra.items()
            if name not in names
        ]
        return {
            name: {
                **{feature: files[name] for feature, files in needed.items()},
                **({"mask2": second[name]} if name in second else {}),
            }
            for name in names
            if all(name in files for files in needed.values())
        }

    def divided(self, train: Sequence[Item], test: Sequence[Item]) -> dict[str, list[Item]]:
        """Returns the splits; under the rule "validation" a fifth of the training is held back."""
        if self.builder_config.rule != "validation":
            return {"train": list(train), "test": list(test)}
        kept, held = carve(train, "validation", self.builder_config.split_seed)
        return {"train": kept, "validation": held, "test": list(test)}

    def example(self, item: Item) -> dict[str, Any]:
        """Decodes a photograph and its masks."""
        image = self.read_image(item.files["image"])
        masks = {
            name: self.read_mask(path, image.shape[:2], self.STRAY)
            for name, path in item.files.items()
            if name != "image"
        }
        for name, mask in masks.items():
            self._refuse_misplaced(item.files[name], float(mask.mean()), name == "fov")
        found = True
        if "fov" not in masks:
            field, found = fov_mask(image, self.FIELD_SHARE)
            masks["fov"] = field.astype(np.uint8)
        # Vessels are stored as 0 and 1, the field as 0 and 255.
        masks["fov"] = masks["fov"] * np.uint8(255)
        encoded: dict[str, Any] = {
            name: png(self.resized(mask, nearest=True)) for name, mask in masks.items()
        }
        encoded["mask2"] = [encoded["mask2"]] if "mask2" in encoded else []
        encoded["fov_found"] = np.uint8(found)
        encoded["fov_source"] = "file" if "fov" in item.files else "computed"
        return {**item.values, **self.stored_image(image, item.files["image"]), **encoded}

    def _refuse_misplaced(self, path: epath.Path, covered: float, field: bool) -> None:
        if (covered >= _BETWEEN) == field:
            return
        kinds = ["the field of view, about 70 %", "vessels, about 10 %"]
        wanted, found = kinds if field else reversed(kinds)
        self.fail(
            "E_MISPLACED",
            f"{path.name} covers {covered:.0%} of the image",
            path,
            found=[found.partition(",")[0]],
            expected=wanted,
            fix="Masks of the field of view and of vessels were exchanged; put each in its place.",
        )
