"""Which patches are alike: equality against the authors' integers, and by hand."""

import csv
import io

import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.losses.labels import SCHEMES, label_columns
from medinit_jax.swcl.patch_geometry import POSITIONS


def equal(columns):
    return (columns[:, None] == columns[None]).all(-1)


def patches(held):
    """Position, abnormality at 0.4 and patient of all left patches, then of all right ones."""
    table = list(csv.DictReader(io.StringIO(str(held["lab_csv"]))))
    found = []
    for side in ("left", "right"):
        for row in table:
            source, patient, _, position = row[f"{side}-patch"].split("_")
            number = int(patient) + (44352 if source == "oia-odir" else 0)
            found.append((POSITIONS.index(position), float(row[f"{side}-score"]) >= 0.4, number))
    return np.array(found).T


@pytest.mark.parametrize("scheme", SCHEMES)
def test_patches_are_equal_where_the_authors_integers_are(scheme):
    held = swcl()
    columns = label_columns(scheme, *patches(held))
    assert columns.dtype == np.int32 and columns.shape == (50, len(SCHEMES[scheme]))
    theirs = held[f"lab_{scheme}"].T.reshape(-1)
    np.testing.assert_array_equal(equal(columns), theirs[:, None] == theirs[None])


def test_numbers_of_positions_and_of_abnormality_are_the_authors():
    held = swcl()
    position, abnormality, _ = patches(held)
    np.testing.assert_array_equal(position, held["lab_mt_pos"].T.reshape(-1))
    np.testing.assert_array_equal(abnormality, held["lab_mt_abn"].T.reshape(-1))


def test_columns_by_hand():
    columns = label_columns("abnormality-patient", [0, 1, 2], [1, 0, 1], [7, 7, 9])
    assert columns.tolist() == [[1, 7], [0, 7], [1, 9]]


def test_patients_of_small_sets_do_not_collide():
    """The authors' patient + pairs * abnormality takes both of these for 6, with 5 pairs."""
    columns = label_columns("abnormality-patient", [0, 0], [0, 1], [6, 1])
    assert equal(columns).tolist() == [[True, False], [False, True]]


def test_errors_say_what_to_do():
    with pytest.raises(UsageError, match="no label scheme 'both'; choose from position, abn"):
        label_columns("both", [0], [0], [0])
    with pytest.raises(UsageError, match="number patients from 0"):
        label_columns("patient", [0], [0], [2**40])
    with pytest.raises(UsageError, match="no integer"):
        label_columns("abnormality", [0], [0.4], [1])
