"""Patients of the fundus phantom: what their eyes look like and what is wrong with them."""

import dataclasses

import numpy as np

from medinit_jax.data.phantoms.fundus_lesions import Lesions

RIGHT, LEFT = 1, -1
# Streams of `default_rng([seed, stream])`: the patient's, and each eye's for labels, anatomy,
# lesions and optics.
PATIENT_STREAM = 0
EYE_STREAMS = {RIGHT: (1, 3, 5, 9), LEFT: (2, 4, 6, 10)}


@dataclasses.dataclass(frozen=True)
class Patient:
    """What both eyes of a patient share.

    Attributes:
        pigment: 0 pale orange to 1 dark brown.
        field_degrees: Camera angle; structures grow as the field shrinks.
        zoom: Radius of the field relative to half the image side.
        flat: Whether top and bottom of the field are cut off.
        vessel_width: Relative vessel width.
        tortuosity: Relative amplitude of vessel bends.
        artery_ratio: Width of an artery relative to its vein.
        cast: Relative white balance error of red, green, blue.
        saturation: 1 full color, 0 gray.
        grade: Diabetic retinopathy grade 0 to 4 before the eyes differ.
        glaucoma: Whether both eyes have glaucoma.
        macular: Whether exudates gather around the fovea.
        centering: Range of where the field's center lies between fovea (0) and disc (1); None as
            usual.
        noise: Relative strength of the camera's noise.
    """

    pigment: float
    field_degrees: float
    zoom: float
    flat: bool
    vessel_width: float
    tortuosity: float
    artery_ratio: float
    cast: tuple[float, float, float]
    saturation: float
    grade: int
    glaucoma: bool
    macular: bool
    centering: tuple[float, float] | None = None
    noise: float = 1.0


@dataclasses.dataclass(frozen=True)
class EyeLabels:
    """What is true of one eye before it is drawn.

    Attributes:
        grade: Diabetic retinopathy grade 0 to 4.
        glaucoma: Whether the eye has glaucoma.
        vcdr: Vertical cup-to-disc ratio.
        lesions: Lesion counts.
    """

    grade: int
    glaucoma: bool
    vcdr: float
    lesions: Lesions


def draw_patient(seed: int) -> Patient:
    """Draws the patient with the given seed."""
    rng = np.random.default_rng([seed, PATIENT_STREAM])
    red, green, blue = rng.normal(0, 0.028, 3).tolist()
    return Patient(
        pigment=float(rng.beta(2.0, 2.0)),
        field_degrees=float(rng.choice((45.0, 45.0, 50.0, 40.0, 35.0))),
        zoom=float(rng.uniform(0.90, 1.04)),
        flat=bool(rng.random() < 0.35),
        vessel_width=float(rng.uniform(0.85, 1.2)),
        tortuosity=float(rng.uniform(0.6, 1.5)),
        artery_ratio=float(rng.uniform(0.66, 0.85)),
        cast=(red, green, blue),
        saturation=float(rng.uniform(0.55, 1.0)),
        grade=int(rng.choice(5, p=(0.46, 0.14, 0.22, 0.10, 0.08))),
        glaucoma=bool(rng.random() < 0.2),
        macular=bool(rng.random() < 0.55),
    )


def draw_labels(patient: Patient, seed: int, eye: int) -> EyeLabels:
    """Draws grade, lesion counts and cup-to-disc ratio of one eye of a patient."""
    rng = np.random.default_rng([seed, EYE_STREAMS[eye][0]])
    grade = patient.grade
    differs, step = rng.random() < 0.3, int(rng.choice((-1, 1)))
    if grade and differs:
        grade = min(4, max(0, grade + step))
    normal_ratio = min(0.68, max(0.20, float(rng.normal(0.44, 0.10))))
    glaucoma_ratio = min(0.92, max(0.50, float(rng.normal(0.72, 0.09))))
    vcdr = glaucoma_ratio if patient.glaucoma else normal_ratio
    return EyeLabels(grade, patient.glaucoma, vcdr, draw_lesion_counts(rng, grade))


def draw_lesion_counts(rng: np.random.Generator, grade: int) -> Lesions:
    """Draws lesion counts within the ranges of an ICDR-like grade."""
    ranges = {
        0: ((0, 0), (0, 0), (0, 0), (0, 0)),
        1: ((1, 5), (0, 0), (0, 0), (0, 0)),
        2: ((4, 14), (1, 8), (0, 2), (0, 2)),
        3: ((12, 29), (28, 54), (0, 3), (1, 4)),
        4: ((5, 24), (4, 34), (0, 3), (0, 3)),
    }[grade]
    counts = [int(rng.integers(low, high + 1)) for low, high in ranges]
    return Lesions(*counts, neovessels=grade == 4)
