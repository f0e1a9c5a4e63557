"""An image of a phantom twin before it is drawn, and what a twin is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from medinit_jax.data.phantoms.cameras import Camera
from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT

EYE_NAMES = {RIGHT: "right", LEFT: "left", 0: "unknown"}
SEXES = ("female", "male", "unknown")
_PERSON_STREAM = 23


class Case(NamedTuple):
    """An image that is not drawn yet.

    Attributes:
        seed: Patient number; no two sets have one in common.
        name: Name of the image.
        patient: Name of the patient, "" where the real set has none.
        eye: +1 right, -1 left, 0 no eye.
        number: Slice of the patient, or opacity of the radiograph.
        camera: Who took a fundus photograph.
        source: Name of the part or site.
        fold: Of a cross-validation.
        fold_swcl: Of the cross-validation of Messidor's paper.
    """

    seed: int
    name: str
    patient: str
    eye: int = 0
    number: int = 0
    camera: Camera = Camera()
    source: str = ""
    fold: int = 0
    fold_swcl: int = 0


class Draft(NamedTuple):
    """Cases of one split, and what was left out and why."""

    cases: list[Case]
    left_out: list[str]


@dataclasses.dataclass(frozen=True)
class Twin:
    """The phantom counterpart of a dataset.

    Attributes:
        twin_of: Builder and config of the dataset.
        images: Number of images of each split (of `arrange`'s input, where it adds or drops some).
        patients: Number of patients of each split; images are shared out among them.
        features: Returns the features beside the common ones.
        draw: Draws a case at a size; returns the features but those that all cases have.
        cameras: {split: cameras}, taken in turn.
        arrange: Adds, drops or labels cases of a split, given the seed of its divisions.
        known_patients: Whether the real set tells patients.
        known_eyes: Whether it tells right from left.
        sources: {split: names of the parts}, as `cameras`.
    """

    twin_of: str
    images: Mapping[str, int]
    patients: Mapping[str, int]
    features: Callable[[], dict[str, Any]]
    draw: Callable[[Case, int], dict[str, Any]]
    cameras: Mapping[str, tuple[Camera, ...]] = dataclasses.field(default_factory=dict)
    arrange: Callable[[list[Case], int], Draft] = lambda cases, seed: Draft(cases, [])
    known_patients: bool = True
    known_eyes: bool = True
    sources: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)


def label_of(*names: str) -> tfds.features.ClassLabel:
    """Returns the feature of a label with these classes."""
    return tfds.features.ClassLabel(names=list(names))


def person_of(seed: int) -> dict[str, Any]:
    """Draws age and sex, on which no label depends."""
    rng = np.random.default_rng([seed, _PERSON_STREAM])
    return {"age": int(rng.integers(18, 91)), "sex": SEXES[int(rng.integers(2))]}
