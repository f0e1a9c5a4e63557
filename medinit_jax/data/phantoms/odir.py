"""Patients of the ODIR phantom: diseases of both eyes, and the keywords that a doctor writes."""

import dataclasses
from typing import NamedTuple

import numpy as np

from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT, Patient, draw_labels
from medinit_jax.data.phantoms.fundus_signs import NARROW_ARTERIES, Signs

# Normal, diabetes, glaucoma, cataract, macular degeneration, hypertension, myopia, other.
CLASSES = ("N", "D", "G", "C", "A", "H", "M", "O")
NO_FUNDUS = "anterior segment image"
# The tables separate keywords by this full-width comma, U+FF0C.
COMMA = "\uff0c"
_STREAM = 22
# Share of the patients, then of the eyes of these patients.
_SHARES = {"C": 0.10, "A": 0.06, "H": 0.06, "M": 0.07, "O": 0.06}
_EYE_SHARE = 0.75
_NO_FUNDUS_SHARE = 0.01
_FIELDS = {
    "C": "cataract",
    "A": "macular_degeneration",
    "H": "hypertension",
    "M": "myopia",
    "O": "laser",
}
_WORDS = {
    "G": "glaucoma",
    "C": "cataract",
    "A": "dry age-related macular degeneration",
    "H": "hypertensive retinopathy",
    "M": "pathological myopia",
    "O": "laser spot",
}
_GRADES = (
    "normal fundus",
    "mild nonproliferative retinopathy",
    "moderate nonproliferative retinopathy",
    "severe nonproliferative retinopathy",
    "proliferative diabetic retinopathy",
)


class OdirEye(NamedTuple):
    """One eye.

    Attributes:
        classes: 0 or 1 for each of `CLASSES`.
        keywords: Text of the table.
        signs: What to paint.
    """

    classes: tuple[int, ...]
    keywords: str
    signs: Signs


class OdirPatient(NamedTuple):
    """Both eyes of a patient.

    Attributes:
        eyes: By `RIGHT` and `LEFT`.
        classes: 0 or 1 for each of `CLASSES`: diseases of either eye, N if there are none.
        usable: False if one of the photographs shows no fundus.
    """

    eyes: dict[int, OdirEye]
    classes: tuple[int, ...]
    usable: bool


def draw_odir(patient: Patient, seed: int) -> OdirPatient:
    """Draws the diseases of a patient's eyes."""
    rng = np.random.default_rng([seed, _STREAM])
    ill = [name for name, share in _SHARES.items() if rng.random() < share]
    eyes = {}
    for eye in (RIGHT, LEFT):
        found = [name for name in ill if rng.random() < _EYE_SHARE]
        grade = draw_labels(patient, seed, eye).grade
        words = [_GRADES[grade]] if grade else []
        words += [_WORDS["G"]] if patient.glaucoma else []
        words += [_WORDS[name] for name in found]
        named = {*found, *("D" if grade else ""), *("G" if patient.glaucoma else "")}
        eyes[eye] = OdirEye(
            tuple(int(name in (named or {"N"})) for name in CLASSES),
            COMMA.join(words or [_GRADES[0]]),
            Signs(**{_FIELDS[name]: True for name in found}),
        )
    either = [max(pair) for pair in zip(*(one.classes for one in eyes.values()), strict=True)]
    either[0] = int(not any(either[1:]))
    usable = rng.random() >= _NO_FUNDUS_SHARE
    if not usable:
        eyes[RIGHT] = eyes[RIGHT]._replace(keywords=NO_FUNDUS)
    return OdirPatient(eyes, tuple(either), usable)


def with_signs(patient: Patient, eye: OdirEye) -> Patient:
    """Returns the patient as this eye needs him: hypertension narrows the arteries."""
    if not eye.signs.hypertension:
        return patient
    return dataclasses.replace(patient, artery_ratio=NARROW_ARTERIES)
