"""Where the five patches of a photograph lie, what they are called, and whose they are.

A photograph of side S gives four corner patches and a central one, all of the same side. Names are
those of a left eye: patches of a right eye are mirrored, and left and right change places in their
names, so that a name stands for the same region of the retina in both eyes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from medinit_jax.core.errors import UsageError

# The number of a position is its label.
POSITIONS: tuple[str, ...] = ("tl", "tr", "c", "bl", "br")
# The order in which patches are cut and scores are listed.
CUTS: tuple[str, ...] = ("tl", "tr", "bl", "br", "c")
EYES: tuple[str, ...] = ("left", "right")
# What is added to the number of a patient, by the name of the set: EyePACS counts from 1 to 44,351.
OFFSETS: dict[str, int] = {"eyepacs": 0, "oia-odir": 44_352}
# Patients of other sets are counted from here, above all of the two published ones.
OTHERS = 100_000
_MIRRORED = {"tl": "tr", "tr": "tl", "bl": "br", "br": "bl", "c": "c"}
# Without zeros in front: 7 and 07 would be two patients with one number.
_NUMBER = re.compile(r"0|[1-9][0-9]{0,5}")
_NAME = re.compile(r"([^_/\s]+)_([^_/\s]+)_(left|right)_(tl|tr|c|bl|br)")


class PatchName(NamedTuple):
    """What the name of a patch tells.

    Attributes:
        source: Name of the set, as "eyepacs".
        patient: The patient's name within that set.
        eye: "left" or "right".
        position: One of `POSITIONS`.
    """

    source: str
    patient: str
    eye: str
    position: str


def boxes(side: int, crop: int) -> dict[str, tuple[int, int]]:
    """Returns the upper left corner (row, column) of every patch, in the order of `CUTS`.

    Args:
        side: Side of the photograph in pixels.
        crop: Side of a patch.

    Raises:
        UsageError: The patch is larger than the photograph.

    Source: SWCL's code; the margin of the central patch is rounded up where it is odd.
    """
    if not 0 < crop <= side:
        raise UsageError(
            f"Patches of side {crop} cannot be cut from photographs of side {side}; choose 1 to "
            f"{side} pixels."
        )
    far, middle = side - crop, (side - crop + 1) // 2
    corners = {"tl": (0, 0), "tr": (0, far), "bl": (far, 0), "br": (far, far)}
    return {**corners, "c": (middle, middle)}


def named(cut: str, eye: str) -> str:
    """Returns the position that a patch cut from an eye is called by; its own inverse.

    Args:
        cut: Where it was cut, one of `CUTS`.
        eye: "left" or "right".
    """
    return _MIRRORED[cut] if eye == "right" else cut


def cut_patch(image: np.ndarray, crop: int, eye: str, position: str) -> np.ndarray:
    """Returns one patch of an eye, of a right eye mirrored after it was cut.

    Args:
        image: Uint8 (S, S, C).
        crop: Side of the patch in pixels.
        eye: "left" or "right".
        position: Its name, one of `POSITIONS`.

    Returns:
        uint8 (crop, crop, C).

    Raises:
        UsageError: The image is no square.

    Source: SWCL's code. To mirror first would move the central patch by a pixel where the margin
    is odd.
    """
    if image.shape[0] != image.shape[1]:
        raise UsageError(
            f"Patches are cut from square photographs, not from {image.shape[0]} x "
            f"{image.shape[1]} pixels; crop the photograph first."
        )
    top, left = boxes(image.shape[0], crop)[named(position, eye)]
    patch = image[top : top + crop, left : left + crop]
    return np.ascontiguousarray(patch[:, ::-1] if eye == "right" else patch)


def by_position(scores: np.ndarray, eye: str) -> dict[str, float]:
    """Returns the score of every position of an eye.

    Args:
        scores: Float (5,) in the order of `CUTS`, where the patches were cut.
        eye: "left" or "right".
    """
    return {named(cut, eye): float(score) for cut, score in zip(CUTS, scores, strict=True)}


def patch_name(source: str, patient: str, eye: str, position: str) -> str:
    """Returns the name of a patch, as "eyepacs_13_left_tl".

    Raises:
        UsageError: The names of set or patient cannot be part of it.
    """
    name = f"{source}_{patient}_{eye}_{position}"
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} is no name of a patch; name sets and patients without '_', '/' and blanks, "
            f"the eye left or right, and the position {', '.join(POSITIONS)}."
        )
    return name


def parse_name(name: str) -> PatchName:
    """Returns the parts of a patch's name.

    Raises:
        UsageError: It is none.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise UsageError(
            f"{name!r} is no name of a patch; it should be SET_PATIENT_EYE_POSITION, as "
            f"eyepacs_13_left_tl."
        )
    return PatchName(*found.groups())


def patient_numbers(sources: Sequence[str], patients: Sequence[str]) -> np.ndarray:
    """Returns a number for every patient, equal where set and patient are equal, else different.

    Args:
        sources: The set of each.
        patients: The patient's name within its set.

    Returns:
        int32 (n,): EyePACS' own numbers, those of OIA-ODIR plus 44,352, and for patients of other
        sets their place in the sorted names plus 100,000.

    Raises:
        UsageError: A patient of one of the two published sets has no number in its range.

    Source: SWCL's code for the two published sets.
    """
    whose = list(zip(sources, patients, strict=True))
    others = sorted({one for one in whose if one[0] not in OFFSETS})
    known = {one: OTHERS + place for place, one in enumerate(others)}
    limits = {"eyepacs": OFFSETS["oia-odir"], "oia-odir": OTHERS - OFFSETS["oia-odir"]}
    for source, patient in sorted(set(whose) - known.keys()):
        if not _NUMBER.fullmatch(patient) or int(patient) >= limits[source]:
            raise UsageError(
                f"The patient {patient!r} of {source} is no number below {limits[source]}; give "
                f"the set another name than {source} if its patients are others."
            )
        known[source, patient] = int(patient) + OFFSETS[source]
    return np.array([known[one] for one in whose], np.int32)
