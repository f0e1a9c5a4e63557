"""Boxes, mirroring and names against the reference and by hand."""

import re

import numpy as np
import pytest
from oracles import swcl

from medinit_jax.core.errors import UsageError
from medinit_jax.swcl.patch_geometry import (
    CUTS,
    POSITIONS,
    PatchName,
    boxes,
    by_position,
    cut_patch,
    named,
    parse_name,
    patch_name,
    patient_numbers,
)


def test_boxes_and_names_of_the_reference():
    held = swcl()
    assert list(boxes(28, 14)) == held["cam_patchorder"].tolist()
    np.testing.assert_array_equal(list(boxes(28, 14).values()), held["cam_boxes"])
    flips = [f"{cut}>{named(cut, 'right')}" for cut in CUTS]
    assert flips == held["cam_flipmap"].tolist()
    assert all(named(cut, "left") == cut for cut in CUTS)


def test_boxes_by_hand():
    papers = {"tl": (0, 0), "tr": (0, 224), "bl": (224, 0), "br": (224, 224), "c": (112, 112)}
    assert boxes(448, 224) == papers
    assert boxes(64, 32)["c"] == (16, 16)
    # A margin of 5 is 2.5 on each side: rounded up.
    assert boxes(13, 8) == {"tl": (0, 0), "tr": (0, 5), "bl": (5, 0), "br": (5, 5), "c": (3, 3)}
    assert set(boxes(8, 8).values()) == {(0, 0)}
    assert sorted(CUTS) == sorted(POSITIONS) and POSITIONS.index("c") == 2


@pytest.mark.parametrize(("side", "crop"), [(10, 6), (11, 6), (64, 32)])
def test_a_right_eye_is_cut_and_then_mirrored(side, crop):
    image = np.random.default_rng(side).integers(0, 256, (side, side, 3), np.uint8)
    for position in POSITIONS:
        left = cut_patch(image, crop, "left", position)
        top, column = boxes(side, crop)[position]
        np.testing.assert_array_equal(left, image[top : top + crop, column : column + crop])
        found = cut_patch(image, crop, "right", position)
        mirrored_first = cut_patch(image[:, ::-1], crop, "left", position)
        if position == "c" and (side - crop) % 2:
            # The one case in which the order matters: a pixel below and to the right.
            top, column = boxes(side, crop)["c"]
            below = image[top : top + crop, column : column + crop]
            np.testing.assert_array_equal(found, below[:, ::-1])
            assert (found != mirrored_first).any()
        else:
            np.testing.assert_array_equal(found, mirrored_first)


def test_scores_follow_their_patches():
    scores = np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32)
    assert by_position(scores, "left")["tr"] == np.float32(0.2)
    right = by_position(scores, "right")
    assert [right[cut] for cut in CUTS] == scores[[1, 0, 3, 2, 4]].tolist()


def test_names_come_back():
    assert patch_name("oia-odir", "33", "right", "bl") == "oia-odir_33_right_bl"
    assert parse_name("oia-odir_33_right_bl") == PatchName("oia-odir", "33", "right", "bl")
    for wrong in (("a_b", "1", "left", "c"), ("a", "1/2", "left", "c"), ("a", "1", "both", "c")):
        with pytest.raises(UsageError, match="is no name of a patch; name sets"):
            patch_name(*wrong)
    for wrong in ("eyepacs_1_left", "eyepacs_1_left_x", "1_left_c", ""):
        with pytest.raises(UsageError, match="should be SET_PATIENT_EYE_POSITION"):
            parse_name(wrong)


def test_patients_of_two_sets_never_share_a_number():
    sources = ["eyepacs", "oia-odir", "eyepacs", "mine", "yours", "mine", "oia-odir"]
    patients = ["1", "1", "44351", "1", "1", "0", "33"]
    found = patient_numbers(sources, patients)
    assert found.tolist() == [1, 44353, 44351, 100_001, 100_002, 100_000, 44385]
    assert found.dtype == np.int32
    held = swcl()
    rows = [line.split(",")[1].split("_") for line in str(held["lab_csv"]).split()[1:]]
    numbers = patient_numbers([row[0] for row in rows], [row[1] for row in rows])
    np.testing.assert_array_equal(numbers, held["lab_patient"][:, 0])


@pytest.mark.parametrize("patient", ["44352", "a", "-1", "1.0", "²", "", "07", "1\n"])
def test_patients_without_a_number_of_their_set_are_refused(patient):
    with pytest.raises(
        UsageError, match=f"{re.escape(repr(patient))} of eyepacs is no number below 44352"
    ):
        patient_numbers(["eyepacs"], [patient])
