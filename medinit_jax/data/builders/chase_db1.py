"""CHASE_DB1: both eyes of 14 children, with vessels drawn by two observers (Fraz et al. 2012)."""

from __future__ import annotations

import re

from etils import epath

from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.vessels import VesselBuilder, validation_config
from medinit_jax.data.layout import Tree, normal

_NAME = re.compile(r"image (\d\d)([lr])(?: (1st|2nd)ho)?")
_EYES = {"l": "left", "r": "right"}
# Number of the last child that is trained on.
_LAST = {"bob8": 4}


class MedinitChaseDb1(VesselBuilder):
    """CHASE_DB1: vessel segmentation, 28 photographs of 999 x 960 pixels around the optic disc.

    No child is in two splits. CHASE_DB1 brings no field of view: it is computed.
    """

    HOMEPAGE = "https://blogs.kingston.ac.uk/retinal/chasedb1/"
    LICENSE = "No license is stated on the site; treat it as no redistribution."
    CITATION = (
        "Fraz et al., An ensemble classification-based approach applied to retinal blood vessel "
        "segmentation, 2012."
    )
    SIZE = "3 MB"
    EXPECTED = "Image_01L.jpg to Image_14R.jpg, each with _1stHO.png and _2ndHO.png"
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download CHASEDB1.zip from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="first", description="First observer; 01L-10R training, 11L-14R test."),
        Config(
            name="bob8",
            description="First observer; 01L-04R training, 05L-14R test, the split of bob.",
            rule="bob8",
        ),
        validation_config("first"),
    ]
    COUNTS = {
        "first": {"train": 20, "test": 8},
        "bob8": {"train": 8, "test": 20},
        "validation": {"train": 16, "validation": 4, "test": 8},
    }
    # Copies that were saved anew hold stray levels.
    STRAY = 0.02

    @classmethod
    def is_root(cls, tree: Tree) -> bool:
        """Says whether photographs named as here lie in a folder, or in its folder Images."""
        return bool(_named(tree, "Images"))

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the flat folder, or Images and Masks."""
        files = {**_named(tree, "Images"), **_named(tree, "Masks", ".png")}
        images, first, second = (
            {name: path for (name, observer), path in files.items() if observer == wanted}
            for wanted in (None, "1st", "2nd")
        )
        if not first:
            tree.missing("any vessel mask Image_<number><L or R>_1stHO.png", ("Masks",))
        splits: dict[str, list[Item]] = {"train": [], "test": []}
        for name, paths in self.complete(tree, images, first, second).items():
            number, eye = name[:2], name[2]
            split = "train" if int(number) <= _LAST.get(self.builder_config.rule, 10) else "test"
            stem = f"Image_{name.upper()}"
            values = {"image_id": stem, "patient_id": number, "eye": _EYES[eye]}
            splits[split].append(Item(f"{split}/{stem}", paths, values))
        return self.divided(**splits)


def _named(
    tree: Tree, folder: str, suffix: str = ".jpg"
) -> dict[tuple[str, str | None], epath.Path]:
    """Returns {("01l", observer or None): file}, from a folder, or from `tree` if it has none."""
    place = tree.find(folder)
    files = (tree.folder(folder) if place is not None and place.is_dir() else tree).files(suffix)
    matches = ((_NAME.fullmatch(normal(stem)), path) for stem, path in files.items())
    return {(match[1] + match[2], match[3]): path for match, path in matches if match}
