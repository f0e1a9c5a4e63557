"""Messidor: 1,200 fundus photographs of three hospitals, graded for two diseases (2008)."""

from __future__ import annotations

import logging
import re
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.builders.base import Builder
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.divisions import stratified_folds
from medinit_jax.data.layout import Tree, normal
from medinit_jax.data.tables import integer, read_table

BASES = tuple(f"Base{site}{part}" for site in (1, 2, 3) for part in (1, 2, 3, 4))
FOLDS = 5
# {(folder, image): (published grade of retinopathy, corrected grade)}; the site's errata of
# 31 August and 24 October 2016.
ERRATA = {
    ("Base11", "20051020_63045_0100_PP"): (3, 0),
    ("Base11", "20051020_63936_0100_PP"): (3, 1),
    ("Base11", "20051020_64007_0100_PP"): (1, 3),
    ("Base13", "20060523_48477_0100_PP"): (2, 3),
}
# {image: the same image under another name}, all in Base33; erratum of 16 August 2017.
DUPLICATES = {
    f"{one}_0400_PP": f"{other}_0400_PP"
    for one, other in (
        ("20051202_41076", "20051202_40508"),
        ("20051202_48287", "20051202_41238"),
        ("20051202_48575", "20051202_41034"),
        ("20051202_48586", "20051202_41260"),
        ("20051202_54547", "20051202_55498"),
        ("20051202_54783", "20051202_55607"),
        ("20051202_55457", "20051202_54530"),
        ("20051202_55484", "20051202_54555"),
        ("20051202_55562", "20051202_54611"),
        ("20051202_55582", "20051202_54744"),
        ("20051202_55626", "20051205_33025"),
        ("20051205_32966", "20051205_35099"),
        ("20051205_32981", "20051205_35110"),
    )
}
# Two of these pairs have different grades in their two copies; erratum of 9 February 2018.
INCONSISTENT = tuple(
    f"{name}_0400_PP"
    for name in ("20051202_54611", "20051202_55562", "20051202_55626", "20051205_33025")
)
_COLUMNS = {
    "image": ("Image name",),
    "grade": ("Retinopathy grade",),
    "dme": ("Risk of macular edema",),
}
_OPTIONAL = {"department": ("Ophthalmologic department",)}
_MESSIDOR2 = re.compile(r"im\d+\.jpe?g|messidor[- ]?2.*\.csv|messidor data\.csv|images\.zip\.\d+")


class _Graded(NamedTuple):
    """An image and its row, the grade corrected."""

    base: str
    stem: str
    path: Any
    published: int
    grade: int
    dme: int
    department: str


class MedinitMessidor(Builder):
    """Messidor: retinopathy in 4 grades and risk of macular edema in 3, with folds.

    Grades of retinopathy: 0 nothing; 1 up to 5 microaneurysms; 2 up to 14, or up to 4 hemorrhages;
    3 more, or new vessels. Risk of edema: 0 no hard exudates; 1 more than a disc diameter away from
    the macula; 2 nearer. The published errata are always applied.
    """

    HOMEPAGE = "https://www.adcis.net/en/third-party/messidor/"
    LICENSE = "Form and agreement on the site; research and education only, no redistribution."
    CITATION = "Decenciere et al., Feedback on a publicly distributed image database, 2014."
    SIZE = "several GB"
    EXPECTED = "Base11/ to Base34/ (12 folders), each with its .tif and Annotation_Base<nn>.xls"
    MARKERS = tuple((base,) for base in BASES)
    MANUAL_DOWNLOAD_INSTRUCTIONS = f"Download Messidor from {HOMEPAGE}; {EXPECTED}."
    BUILDER_CONFIGS = [
        Config(
            name="clean",
            description="1,187 images: one of each of the 13 published pairs of duplicates is out.",
            shorter=512,
        ),
        Config(
            name="swcl",
            description="1,196 images, as in the SWCL paper: the two pairs of duplicates with "
            "different grades are out; `fold_swcl` are the authors' folds.",
            shorter=350,
            rule="swcl",
        ),
        Config(name="raw", description="All 1,200 images, in full size.", rule="raw"),
    ]
    COUNTS = {"clean": {"train": 1187}, "swcl": {"train": 1196}, "raw": {"train": 1200}}

    def features(self) -> dict[str, Any]:
        """Returns grades, folds, site and the group of images that show the same eye."""
        features: dict[str, Any] = {
            "dr": tfds.features.ClassLabel(names=[f"grade{grade}" for grade in range(4)]),
            "referable": tfds.features.ClassLabel(names=["nonreferable", "referable"]),
            "abnormal": tfds.features.ClassLabel(names=["normal", "abnormal"]),
            "dme": tfds.features.ClassLabel(names=[f"risk{risk}" for risk in range(3)]),
            "fold": tfds.features.Scalar(dtype=np.int64),
            "group": tfds.features.Text(),
            "source": tfds.features.Text(),
            "department": tfds.features.Text(),
        }
        if self.builder_config.rule == "swcl":
            features["fold_swcl"] = tfds.features.Scalar(dtype=np.int64)
        return features

    def recognize(self, tree: Tree) -> str | None:
        """Refuses Messidor-2, which has other images and grades."""
        place = tree.find("IMAGES")
        names = list(tree.entries)
        if place is not None and place.is_dir():
            names += tree.folder("IMAGES").entries
        known = [name for name in names if _MESSIDOR2.fullmatch(name)]
        if known:
            tree.fail(
                "E_MISPLACED",
                "this is Messidor-2, another dataset",
                found=known,
                expected=self.EXPECTED,
                fix=f"Take the original Messidor, 12 archives, from {self.HOMEPAGE}",
            )
        return super().recognize(tree)

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Reads the 12 folders, corrects grades, leaves the config's duplicates out."""
        graded = [one for base in BASES for one in self._base(tree, base)]
        left_out = {
            "": {one: f"the same image as {other}" for one, other in DUPLICATES.items()},
            "swcl": dict.fromkeys(INCONSISTENT, "its two copies are graded differently"),
            "raw": {},
        }[self.builder_config.rule]
        self.ignored += [
            f"{one.stem}: {left_out[one.stem]}" for one in graded if one.stem in left_out
        ]
        kept = [one for one in graded if one.stem not in left_out]
        extra = {}
        if self.builder_config.rule == "swcl":
            # In the order of the tables, by the published grade, not shuffled.
            folds = stratified_folds([one.published for one in kept], FOLDS, None)
            extra = {one.stem: int(fold) for one, fold in zip(kept, folds, strict=True)}
            pairs = [pair for pair in DUPLICATES.items() if extra.keys() >= {*pair}]
            self.note_leak(
                sum(extra[one] != extra[other] for one, other in pairs),
                f"of {len(pairs)} pairs of duplicates are in two folds of fold_swcl",
                "the feature fold keeps pairs together",
            )
        kept.sort(key=lambda one: one.stem)
        groups = [DUPLICATES.get(one.stem, one.stem) for one in kept]
        strata = [(one.grade > 1, one.dme) for one in kept]
        folds = stratified_folds(strata, FOLDS, self.builder_config.split_seed, groups)
        items = []
        for one, group, fold in zip(kept, groups, folds, strict=True):
            values = {
                "image_id": one.stem,
                "patient_id": "",
                "eye": "unknown",
                "dr": one.grade,
                "referable": int(one.grade > 1),
                "abnormal": int(one.grade > 0),
                "dme": one.dme,
                "fold": int(fold),
                "group": group,
                "source": f"site{one.base[4]}",
                "department": one.department,
            }
            if extra:
                values["fold_swcl"] = extra[one.stem]
            items.append(Item(f"train/{one.stem}", {"image": one.path}, values))
        return {"train": items}

    def _base(self, tree: Tree, base: str) -> list[_Graded]:
        """Returns what a folder holds, in the order of its table."""
        table = f"Annotation_{base}.xls"
        folder = tree.folder(base)
        # Some unpackers make a folder for the archive and one for its content.
        folder = folder.folder(base) if folder.has(base) else folder
        path = tree.file(f"{base}/{table}", f"{base}/{base}/{table}", table)
        images = {normal(stem): place for stem, place in folder.files(".tif", ".tiff").items()}
        rows = {}
        for row in read_table(tree, path, _COLUMNS, _OPTIONAL):
            stem = str(row["image"]).rpartition(".")[0] or str(row["image"])
            if not stem or normal(stem) in rows:
                tree.fail(
                    "E_LABEL_RANGE",
                    f"row {row['row']} has {'image ' + stem + ' again' if stem else 'no image'}",
                    path=path,
                    found=[repr(row["image"])],
                    expected="every image in one row",
                    fix="Delete the row, or download the table again.",
                )
            rows[normal(stem)] = (stem, row)
        missing = [stem for name, (stem, _) in rows.items() if name not in images]
        self.refuse_orphans(tree, missing, len(rows), "image")
        unknown = [place.name for name, place in images.items() if name not in rows]
        self.refuse_orphans(tree, unknown, len(images), f"row in {path.name}")
        graded = []
        for name, (stem, row) in rows.items():
            if name not in images:
                continue
            found = integer(tree, path, row, "grade", range(4))
            published, grade = self._corrected(tree, path, base, stem, found)
            dme = integer(tree, path, row, "dme", range(3))
            department = str(row["department"])
            graded.append(_Graded(base, stem, images[name], published, grade, dme, department))
        return graded

    def _corrected(
        self, tree: Tree, path: Any, base: str, stem: str, found: int
    ) -> tuple[int, int]:
        """Returns the published and the corrected grade of an image."""
        if (base, stem) not in ERRATA:
            return found, found
        old, new = ERRATA[base, stem]
        if found not in (old, new):
            tree.fail(
                "E_LABEL_RANGE",
                f"{stem} has grade {found}, which the published erratum does not know",
                path=path,
                found=[found],
                expected=f"{old}, or {new} where it was corrected",
                fix="Download the table again.",
            )
        how = f"corrected from {old} to {new}" if found == old else f"was already {new}"
        self.notes.append(f"{stem}: grade {how} (published erratum)")
        logging.info("%s", self.notes[-1])
        return old, new
