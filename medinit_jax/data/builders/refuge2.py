"""REFUGE-2: REFUGE with 800 later photographs, most of them without labels (Fang et al. 2022)."""

from __future__ import annotations

from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.refuge import MedinitRefuge
from medinit_jax.data.builders.refuge_layouts import PARTS, Known, by_class
from medinit_jax.data.layout import Tree

_IMAGES = {"Validation": ("Images",), "Test": ("refuge2-test", "Images")}
_MASKS = ("Disc_Masks", "Disc_Mask", "Disc_Cup_Masks")
_TABLES = (".csv", ".xls", ".xlsx")


class MedinitRefuge2(MedinitRefuge):
    """REFUGE-2: optic disc and cup; REFUGE's 1200 photographs to train, and 400 and 400 later ones.

    The features are those of medinit_refuge. Tables of the later photographs are templates for
    submissions and not the truth: they are not read, labels are -1, and masks are 255 unless the
    folder holds masks of them.
    """

    HOMEPAGE = "https://refuge.grand-challenge.org/REFUGE2Download/"
    CITATION = (
        "Fang et al., REFUGE2 Challenge: a treasure trove for multi-dimension analysis, 2022."
    )
    SIZE = "about 4 GB"
    EXPECTED = (
        "Train/ with REFUGE1-train/, REFUGE1-val/ and REFUGE1-test/, Validation/Images/ and "
        "Test/refuge2-test/"
    )
    MARKERS = (*MedinitRefuge.MARKERS, ("Validation/Images", "Test/refuge2-test"))
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download REFUGE2 from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(name="default", description="Images and masks as they are."),
        Config(name="seg512", description="Images and masks stretched to 512 x 512.", square=512),
        Config(
            name="paper",
            description="REFUGE's 800 of train and validation to train, its 400 of test to test, "
            "512 x 512. The published numbers; the published division is unknown.",
            square=512,
            rule="paper",
        ),
        Config(
            name="refuge1_to_refuge2val",
            description="REFUGE's 1200 to train, REFUGE-2's 400 of validation to test, 512 x 512. "
            "Needs the later masks.",
            square=512,
            rule="refuge1_to_refuge2val",
        ),
    ]
    COUNTS = {
        "default": {"train": 1200, "validation": 400, "test": 400},
        "seg512": {"train": 1200, "validation": 400, "test": 400},
        "paper": {"train": 800, "test": 400},
        "refuge1_to_refuge2val": {"train": 1200, "test": 400},
    }

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads REFUGE's parts, and the later ones unless the config does without."""
        first, second, third = PARTS
        if self.builder_config.rule == "paper":
            train = [*self.part(tree, first, "train"), *self.part(tree, second, "train")]
            return {"train": train, "test": self.part(tree, third, "test")}
        train = [item for source in PARTS for item in self.part(tree, source, "train")]
        if self.builder_config.rule == "refuge1_to_refuge2val":
            return {"train": train, "test": self._later(tree, "Validation", "test", masks=True)}
        return {
            "train": train,
            "validation": self._later(tree, "Validation", "validation"),
            "test": self._later(tree, "Test", "test"),
        }

    def _later(self, tree: Tree, name: str, split: str, masks: bool = False) -> list[Item]:
        place = tree.folder(name)
        images, _ = by_class(place.folder(*_IMAGES[name]), ".jpg", ".jpeg")
        drawn = None
        if any(map(place.has, _MASKS)):
            drawn, _ = by_class(place.folder(*_MASKS), ".png", ".bmp")
        elif masks:
            place.fail(
                "E_NO_TEST_GT",
                "the later photographs come without masks",
                found=[entry.name for entry in place.entries.values()],
                expected=" or ".join(_MASKS),
                fix="Ask the organizers for them, or prepare medinit_refuge2/paper without them.",
            )
        self.ignored += [
            f"{name}/{path.name}: a template for submissions, not the truth"
            for path in place.files(*_TABLES).values()
        ]
        known = Known(images, drawn, None, None)
        return self.matched(
            place, known, f"refuge2_{'val' if name == 'Validation' else 'test'}", split
        )
