"""Cameras and populations of fundus sets: what makes photographs of one set differ from another's.

They are drawn from a stream of their own, so that no label depends on them.
"""

import dataclasses

import numpy as np

from medinit_jax.data.phantoms.fundus_patient import Patient

CAMERA_STREAM = 20


@dataclasses.dataclass(frozen=True)
class Camera:
    """How a set's photographs are taken, and of whom.

    Attributes:
        degrees: Angles of view to choose from.
        zoom: Range of the field's radius relative to half the image side.
        flat: Share of the fields that are cut off at top and bottom.
        pigment: Added to the patients' pigment.
        cast: Added to the relative white balance error of red, green, blue.
        centering: Range of where the field's center lies between fovea (0) and disc (1).
        noise: Relative strength of the noise.
    """

    degrees: tuple[float, ...] = (45.0, 45.0, 50.0, 40.0, 35.0)
    zoom: tuple[float, float] = (0.90, 1.04)
    flat: float = 0.35
    pigment: float = 0.0
    cast: tuple[float, float, float] = (0.0, 0.0, 0.0)
    centering: tuple[float, float] | None = None
    noise: float = 1.0


def photographed(patient: Patient, camera: Camera, seed: int) -> Patient:
    """Returns a patient as this camera shows him; what is wrong with him stays."""
    rng = np.random.default_rng([seed, CAMERA_STREAM])
    red, green, blue = (own + added for own, added in zip(patient.cast, camera.cast, strict=True))
    return dataclasses.replace(
        patient,
        field_degrees=float(rng.choice(camera.degrees)),
        zoom=float(rng.uniform(*camera.zoom)),
        flat=bool(rng.random() < camera.flat),
        pigment=min(1.0, max(0.0, patient.pigment + camera.pigment)),
        cast=(red, green, blue),
        centering=camera.centering,
        noise=camera.noise,
    )
