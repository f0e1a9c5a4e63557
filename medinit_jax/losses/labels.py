"""Which patches count as alike: the columns of a patch's label that are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError

SCHEMES = {
    "position": ("position",),
    "abnormality": ("abnormality",),
    "patient": ("patient",),
    "position-abnormality": ("position", "abnormality"),
    "position-patient": ("position", "patient"),
    "abnormality-patient": ("abnormality", "patient"),
    "all": ("position", "abnormality", "patient"),
}


def label_columns(scheme: str, position: Any, abnormality: Any, patient: Any) -> np.ndarray:
    """Picks the columns by which a scheme compares patches.

    Two patches are positives of each other if all their columns are equal. The authors pack the
    columns into one integer, which can mix up patients of small sets; columns cannot.

    Args:
        scheme: One of `SCHEMES`.
        position: int (n,), index into `patch_geometry.POSITIONS`.
        abnormality: int (n,), 0 or 1.
        patient: int (n,).

    Returns:
        int32 (n, L).

    Raises:
        UsageError: There is no such scheme, or a number does not fit into 32 bits.

    Source: SWCL (arXiv 2108.02122), section 3.2 and Table III.
    """
    if scheme not in SCHEMES:
        raise UsageError(f"There is no label scheme {scheme!r}; choose from {', '.join(SCHEMES)}.")
    given = {"position": position, "abnormality": abnormality, "patient": patient}
    columns = np.stack([np.asarray(given[name]) for name in SCHEMES[scheme]], axis=1)
    narrow = columns.astype(np.int32)
    if (narrow != columns).any():
        raise UsageError(
            "A label of a patch is no integer of 32 bits; number patients from 0 with "
            "np.unique(patients, return_inverse=True) first."
        )
    return narrow
