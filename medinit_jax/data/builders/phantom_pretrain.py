"""Phantoms for pretraining: as many patients of one split as one likes, with all their labels."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.builders.drawn import Drawn
from medinit_jax.data.builders.image_files import png
from medinit_jax.data.builders.phantom_case import EYE_NAMES, label_of
from medinit_jax.data.builders.phantom_twins import EDEMA_RISKS, GRADES
from medinit_jax.data.layout import Tree
from medinit_jax.data.phantoms import PHANTOMS, ct, xray

# Patients of different splits are different: their seeds come from disjoint ranges.
FIRST_SEED = {"train": 0, "val": 1_000_000_000, "test": 2_000_000_000}
MAX_PATIENTS = 1_000_000_000
_SIZES = range(16, 4097)
_NAME = re.compile(r"(?P<phantom>[a-z]+)_(?P<size>\d+)px_(?P<split>[a-z]+)_(?P<patients>\d+)")
_MODALITY = {"fundus": "fundus", "ct": "CT", "xray": "X-ray"}


@dataclasses.dataclass(kw_only=True)
class PretrainConfig(Config):
    """Which patients are drawn, and how large; `pretrain_config` makes one.

    Attributes:
        phantom: Key of `PHANTOMS`.
        size: Side of the images in pixels.
        split: "train", "val" or "test".
        patients: Number of patients.
    """

    phantom: str
    size: int
    split: str
    patients: int


def pretrain_config(phantom: str, size: int, split: str, patients: int) -> PretrainConfig:
    """Returns the config of a set, see `PretrainConfig`.

    Raises:
        UsageError: Unknown phantom or split, or a number out of range.
    """
    if phantom not in PHANTOMS:
        raise UsageError(
            f"There is no phantom {phantom!r}; set data.name to one of: {', '.join(PHANTOMS)}."
        )
    if split not in FIRST_SEED:
        raise UsageError(f"There is no split {split!r}; use one of: {', '.join(FIRST_SEED)}.")
    if not 0 < patients <= MAX_PATIENTS:
        raise UsageError(
            f"{patients} patients in data.patients.{split} make no set; choose 1 to {MAX_PATIENTS}."
        )
    if size not in _SIZES:
        raise UsageError(
            f"Phantoms have sizes from {_SIZES[0]} to {_SIZES[-1]} pixels, not {size}; "
            f"change data.render_size."
        )
    return PretrainConfig(
        name=f"{phantom}_{size}px_{split}_{patients}",
        description=f"{patients} patients of the {phantom} phantom for {split}, {size} pixels.",
        phantom=phantom,
        size=size,
        split=split,
        patients=patients,
    )


class MedinitPhantomPretrain(Drawn):
    """Drawn images with known labels for pretraining; they show no patient.

    A config is one split, named after phantom, size, split and number of patients; any other size
    and number makes one too. Patients of different splits are different.
    """

    BUILDER_CONFIGS = [pretrain_config(phantom, 64, "train", 2000) for phantom in PHANTOMS]

    @classmethod
    def config_named(cls, name: str, data_dir: epath.PathLike) -> PretrainConfig | None:
        """Returns the config of a name such as "fundus_64px_train_2000"; None if it is none."""
        del data_dir
        match = _NAME.fullmatch(name)
        if match is None:
            return None
        numbers = int(match["size"]), match["split"], int(match["patients"])
        return pretrain_config(match["phantom"], *numbers)

    @property
    def modality(self) -> str:
        """What is drawn: "fundus", "CT" or "X-ray"."""
        return _MODALITY[self.builder_config.phantom]

    def features(self) -> dict[str, Any]:
        """Returns all labels of the phantom."""
        return _LABELS[self.builder_config.phantom]()

    def published(self, tree: Tree | None = None) -> Mapping[str, int]:
        """Returns the number of images, which follows from the config."""
        del tree
        config = self.builder_config
        images = config.patients * len(PHANTOMS[config.phantom].eyes)
        return {config.split: images}

    def items(self, tree: Tree) -> dict[str, list[Item]]:
        """Names every image of every patient."""
        config = self.builder_config
        first = FIRST_SEED[config.split]
        items = []
        for seed in range(first, first + config.patients):
            for eye in PHANTOMS[config.phantom].eyes:
                suffix = f"_{EYE_NAMES[eye]}" if eye else ""
                name = f"{config.phantom}-{seed}{suffix}"
                items.append(Item(f"{config.split}/{name}", {}, {"seed": seed, "eye": eye}))
        return {config.split: items}

    def example(self, item: Item) -> dict[str, Any]:
        """Draws one item."""
        config, eye = self.builder_config, item.values["eye"]
        drawn = PHANTOMS[config.phantom].render(item.values["seed"], eye, config.size)
        return {
            "image": png(drawn["image"], fast=True),
            "image_id": item.key.partition("/")[2],
            "patient_id": drawn["patient"],
            "eye": EYE_NAMES[eye],
            "orig_size": np.array((config.size, config.size), np.int32),
            **drawn["labels"],
        }


def _fundus_labels() -> dict[str, Any]:
    sign = label_of("absent", "present")
    counts = ("exudates_drawn", "microaneurysms", "hemorrhages", "exudates", "cotton_wool")
    return {
        "grade": label_of(*GRADES),
        "any_dr": label_of("no_dr", "dr"),
        "glaucoma": label_of("normal", "glaucoma"),
        "vcdr": tfds.features.Scalar(np.float32),
        "messidor": label_of(*(f"grade{grade}" for grade in range(4))),
        "dme": label_of(*EDEMA_RISKS),
        "preretinal": sign,
        "neovessels": sign,
        **{name: tfds.features.Scalar(np.int64) for name in counts},
    }


def _xray_labels() -> dict[str, Any]:
    return {
        "opacity": label_of("no_opacity", "opacity"),
        "class3": label_of(*xray.CLASSES),
        "view": label_of("AP", "PA"),
    }


def _ct_labels() -> dict[str, Any]:
    return {name: label_of("absent", "present") for name in ("any", *ct.TYPES)}


_LABELS = {"fundus": _fundus_labels, "xray": _xray_labels, "ct": _ct_labels}
