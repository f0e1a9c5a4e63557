import pytest

from medinit_jax.data.builders.odir_keywords import (
    eye_classes,
    hidden_normal,
    is_normal,
    is_normal_by_authors,
    keywords,
)


def test_keywords_are_separated_by_commas_of_both_kinds():
    assert keywords(" Lens dust，normal  fundus, ，drusen") == [
        "lens dust",
        "normal fundus",
        "drusen",
    ]


@pytest.mark.parametrize(
    ("text", "ours", "theirs"),
    [
        ("normal fundus", True, True),
        ("lens dust", True, True),
        ("lens dust，normal fundus", True, True),
        ("normal fundus，drusen", True, True),
        ("lens dust，drusen", False, False),
        ("lens dust，low image quality", False, False),
        ("low image quality", False, False),
        ("cataract", False, False),
        ("abnormal fundus", True, True),
        # Where the rules would differ.
        ("Normal Fundus", True, False),
        ("lens dust，lens dust", False, False),
        ("lens dust，", True, False),
    ],
)
def test_normal_or_not(text, ours, theirs):
    assert is_normal(text) is ours
    assert is_normal_by_authors(text) is theirs


def test_keywords_that_hold_normal_fundus_and_more():
    assert hidden_normal("lens dust，Abnormal  fundus") == "abnormal fundus"
    assert hidden_normal("lens dust，normal fundus") == ""


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("normal fundus", "N"),
        ("lens dust", "N"),
        ("lens dust，normal fundus", "N"),
        ("mild nonproliferative retinopathy", "D"),
        ("moderate non proliferative retinopathy，laser spot", "DO"),
        ("severe proliferative diabetic retinopathy", "D"),
        ("suspected glaucoma", "G"),
        ("cataract，glaucoma", "GC"),
        ("dry age-related macular degeneration", "A"),
        ("hypertensive retinopathy，diabetic retinopathy", "DH"),
        ("pathological myopia", "M"),
        ("myopic maculopathy，drusen", "MO"),
        ("macular epiretinal membrane", "O"),
        ("refractive media opacity，lens dust", "O"),
        ("low image quality", ""),
        ("optic disk photographically invisible，cataract", "C"),
        ("abnormal fundus", "N"),
    ],
)
def test_classes_of_an_eye(text, classes):
    assert eye_classes(text) == [int(name in classes) for name in "NDGCAHMO"]
