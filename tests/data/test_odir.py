"""Diseases and keywords of the ODIR phantom, and what they paint."""

import dataclasses

import numpy as np
import pytest

from medinit_jax.data.phantoms import fundus, odir
from medinit_jax.data.phantoms.cameras import Camera, photographed
from medinit_jax.data.phantoms.fundus_patient import LEFT, RIGHT, draw_labels, draw_patient
from medinit_jax.data.phantoms.fundus_signs import Signs

FIELDS = [field.name for field in dataclasses.fields(Signs)]


@pytest.fixture(scope="module")
def patients():
    return {seed: odir.draw_odir(draw_patient(seed), seed) for seed in range(1500)}


def test_a_patient_has_the_diseases_of_either_eye(patients):
    for patient in patients.values():
        right, left = (patient.eyes[eye].classes for eye in (RIGHT, LEFT))
        assert list(patient.classes[1:]) == [max(p) for p in zip(right[1:], left[1:], strict=True)]
        assert patient.classes[0] == (right[0] and left[0])
        for eye in (right, left):
            assert eye[0] == (not any(eye[1:]))
    assert all(any(p.classes[i] for p in patients.values()) for i in range(8))


def test_keywords_name_the_classes(patients):
    parts = {
        "N": "normal fundus", "D": "retinopathy", "G": "glaucoma", "C": "cataract",
        "A": "macular degeneration", "H": "hypertensive retinopathy", "M": "myopi", "O": "laser",
    }  # fmt: skip
    several = 0
    for seed, patient in patients.items():
        for eye in (RIGHT, LEFT):
            one = patient.eyes[eye]
            if one.keywords == odir.NO_FUNDUS:
                assert not patient.usable
                continue
            words = one.keywords.split("\uff0c")
            several += len(words) > 1
            assert len(words) == sum(one.classes)
            named = [parts[name] for name, on in zip(odir.CLASSES, one.classes, strict=True) if on]
            assert all(any(part in word for word in words) for part in named)
            graded = draw_labels(draw_patient(seed), seed, eye).grade > 0
            assert one.classes[1] == graded
    assert several > 50
    # Three standard errors of one percent among 1,500.
    assert np.mean([not p.usable for p in patients.values()]) == pytest.approx(0.01, abs=0.0078)


@pytest.mark.parametrize("field", FIELDS)
def test_every_sign_changes_the_picture_and_no_label(field):
    patient = dataclasses.replace(draw_patient(3), grade=0)
    plain = fundus.render(3, RIGHT, 96, patient=patient)
    ill = fundus.render(3, RIGHT, 96, patient=patient, signs=Signs(**{field: True}))
    change = np.abs(plain["image"].astype(int) - ill["image"])
    assert change.max() > 20
    assert ill["labels"] == plain["labels"]
    np.testing.assert_array_equal(ill["masks"]["disc_cup"], plain["masks"]["disc_cup"])
    outside = plain["masks"]["fov"] == 0
    border = sum(np.roll(~outside, (i, j), (0, 1)) for i in range(-2, 3) for j in range(-2, 3)) > 0
    assert not change[~border].any()


def test_no_signs_are_no_change():
    plain, none = (fundus.render(4, LEFT, 64, signs=signs)["image"] for signs in (None, Signs()))
    np.testing.assert_array_equal(plain, none)


def test_drusen_lie_around_the_fovea_and_cataract_blurs():
    patient = dataclasses.replace(draw_patient(4), grade=0)
    plain, drusen, cloudy = (
        fundus.render(4, RIGHT, 128, patient=patient, signs=signs)
        for signs in (None, Signs(macular_degeneration=True), Signs(cataract=True))
    )
    bright = drusen["image"].astype(int).sum(-1) - plain["image"].astype(int).sum(-1) > 30
    rows, columns = np.nonzero(bright)
    distance = np.hypot(columns - plain["fovea"][0], rows - plain["fovea"][1]) / 64
    assert len(rows) > 50 and np.percentile(distance, 99) < 1.5 * 0.125 * 45 / 35 * 1.15 + 0.05
    sharp = [np.abs(np.diff(e["image"][40:90, 40:90].astype(int), axis=0)).mean()
             for e in (plain, cloudy)]  # fmt: skip
    assert sharp[1] < 0.8 * sharp[0]


def test_hypertension_narrows_the_arteries():
    patient = draw_patient(2)
    eye = odir.OdirEye((), "", Signs(hypertension=True))
    assert odir.with_signs(patient, eye).artery_ratio == 0.5 < patient.artery_ratio
    assert odir.with_signs(patient, eye._replace(signs=Signs())) == patient


def test_a_camera_changes_no_disease():
    camera = Camera((30.0,), (0.94, 0.98), 0.0, 0.2, centering=(0.8, 1.0), noise=1.5)
    for seed in range(50):
        patient = draw_patient(seed)
        seen = photographed(patient, camera, seed)
        assert seen.field_degrees == 30 and 0.94 <= seen.zoom <= 0.98 and not seen.flat
        assert (seen.grade, seen.glaucoma, seen.macular, seen.tortuosity) == (
            patient.grade, patient.glaucoma, patient.macular, patient.tortuosity,
        )  # fmt: skip
    centered = fundus.render(1, RIGHT, 96, patient=photographed(draw_patient(1), camera, 1))
    columns = np.nonzero(centered["masks"]["disc_cup"])[1]
    assert abs(columns.mean() - 47.5) < 15
