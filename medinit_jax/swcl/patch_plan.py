"""Which photographs become pairs of patches, and in which order they are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.patch_geometry import CUTS, EYES

# Patients whose patches are listed position by position: both eyes of them were one batch of 32.
_TOGETHER = 16
# Patients of a part, which is written whole or not at all; 640 patches, 60 MB of PNG files.
PART = 4 * _TOGETHER


class Eye(NamedTuple):
    """A photograph before it is opened.

    Attributes:
        source: Name of its set, as "eyepacs" or "oia-odir".
        patient: The patient's name within the set.
        eye: "left" or "right".
        index: Its number in the source of images.
        label: 0 normal, 1 abnormal, -1 unknown.
        trusted: Whether it is from a labelled set: one that is normal has no lesions then, whatever
            the labeler sees. Other labels are only stored.
    """

    source: str
    patient: str
    eye: str
    index: int
    label: int = -1
    trusted: bool = True

    @property
    def known(self) -> int:
        """The label of a photograph of a labelled set, else -1."""
        return self.label if self.trusted else -1


class Plan(NamedTuple):
    """What is written.

    Attributes:
        pairs: Left and right eye of every patient, in the order of the left eyes.
        unpaired: The eyes of patients with one eye; they are left out.
    """

    pairs: tuple[tuple[Eye, Eye], ...]
    unpaired: tuple[Eye, ...]

    @property
    def parts(self) -> list[tuple[tuple[Eye, Eye], ...]]:
        """The pairs in parts of `PART` patients."""
        return [self.pairs[start : start + PART] for start in range(0, len(self.pairs), PART)]

    def digest(self) -> str:
        """Returns a sha256 of everything in it."""
        return hashlib.sha256(repr(tuple(self)).encode()).hexdigest()

    def left_out(self) -> list[str]:
        """Returns a line for every patient with one eye."""
        return [f"{one.source} {one.patient}: only the {one.eye} eye" for one in self.unpaired]


def plan_pairs(eyes: Sequence[Eye]) -> Plan:
    """Joins the two eyes of every patient.

    Args:
        eyes: All photographs, in any order.

    Raises:
        UsageError: Two photographs show the same eye, a label is none, or no patient has both
            eyes.
    """
    patients: dict[tuple[str, str], dict[str, Eye]] = {}
    for one in eyes:
        if one.eye not in EYES or one.label not in (-1, 0, 1):
            raise UsageError(
                f"Photograph {one.index} of {one.source} has the eye {one.eye!r} and the label "
                f"{one.label}; the eye should be left or right, the label 0, 1 or -1 (unknown)."
            )
        other = patients.setdefault((one.source, one.patient), {}).setdefault(one.eye, one)
        if other is not one:
            raise UsageError(
                f"Photographs {other.index} and {one.index} of {one.source} both show the "
                f"{one.eye} eye of patient {one.patient}; leave one of them out."
            )
    pairs, unpaired = [], []
    for one in eyes:
        both = patients[one.source, one.patient]
        if len(both) == 1:
            unpaired.append(one)
        elif one.eye == "left":
            pairs.append((one, both["right"]))
    if not pairs:
        raise UsageError(
            f"None of {len(unpaired)} photographs has one of the patient's other eye, so there are "
            f"no pairs of patches; take a set that names eyes and patients."
        )
    return Plan(tuple(pairs), tuple(unpaired))


def places(patients: int) -> Iterator[tuple[int, str]]:
    """Yields (number of the patient, position) of the patches of a part, in the table's order.

    Args:
        patients: Number of patients in the part.

    Source: SWCL's code: within batches of 32 photographs by position, then by patient.
    """
    for start in range(0, patients, _TOGETHER):
        for position in CUTS:
            for number in range(start, min(start + _TOGETHER, patients)):
                yield number, position
