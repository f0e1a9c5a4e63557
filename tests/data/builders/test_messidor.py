from collections import Counter

import numpy as np
import pytest
from fake_trees.messidor import GRADED, annotation, make_messidor, write_annotation
from PIL import Image
from sklearn.model_selection import StratifiedKFold

from medinit_jax.data.builders.messidor import (
    BASES,
    DUPLICATES,
    ERRATA,
    INCONSISTENT,
    MedinitMessidor,
)
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_messidor(tmp_path_factory.mktemp("messidor"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """All 1,200 rows, with empty files."""
    root = tmp_path_factory.mktemp("whole")
    draws = np.random.default_rng(0)
    for base in BASES:
        known = {name: old for (place, name), (old, _) in ERRATA.items() if place == base}
        if base == "Base33":
            known = dict.fromkeys([*DUPLICATES, *DUPLICATES.values()], 2)
        others = [f"20060000_{base[4:]}{n:03d}_0{base[4]}00_PP" for n in range(100 - len(known))]
        graded = {name: (grade, 0) for name, grade in known.items()}
        graded |= {
            name: (int(draws.integers(4)), int(draws.choice(3, p=(0.8, 0.1, 0.1))))
            for name in others
        }
        write_annotation(root / base / f"Annotation_{base}.xls", graded)
        for name in graded:
            (root / base / f"{name}.tif").touch()
    return root


def read(config, root, strict=True):
    builder = MedinitMessidor(data_dir=root / "data", config=config, strict_counts=strict)
    items = builder.checked_items(builder.locate(root))["train"]
    return builder, {item.values["image_id"]: item.values for item in items}


def test_pixels_are_those_of_the_files(fake, tmp_path):
    builder = MedinitMessidor(data_dir=tmp_path, config="raw", strict_counts=False)
    prepare(builder, fake, workers=0)
    for example in builder.as_data_source("train"):
        (place,) = fake.rglob(f"{example['image_id'].decode()}.tif")
        with Image.open(place) as image:
            np.testing.assert_array_equal(example["image"], np.array(image))
        assert example["orig_size"].tolist() == [40, 60]


def test_labels(fake, tmp_path):
    builder = MedinitMessidor(data_dir=tmp_path, strict_counts=False)
    manifest = prepare(builder, fake, workers=0)
    examples = list(builder.as_data_source("train"))
    counted = {name: Counter(int(one[name]) for one in examples) for name in ("dr", "dme")}
    assert counted == {"dr": {0: 7, 1: 3, 2: 3, 3: 4}, "dme": {0: 10, 1: 3, 2: 4}}
    assert Counter(one["source"] for one in examples) == {b"site1": 8, b"site2": 4, b"site3": 5}
    for one in examples:
        assert one["referable"] == (one["dr"] > 1) and one["abnormal"] == (one["dr"] > 0)
        assert one["department"] == b"CHU" and 0 <= one["fold"] < 5
    assert manifest["ignored"] == [
        "20051202_55582_0400_PP: the same image as 20051202_54744_0400_PP"
    ]


def test_errata_are_applied_once(tmp_path):
    root = make_messidor(tmp_path)
    names = {"20051020_64007_0100_PP": 3, "20051020_63936_0100_PP": 1}
    builder, values = read("raw", root, strict=False)
    assert {name: values[name]["dr"] for name in names} == names
    assert "20051020_64007_0100_PP: grade corrected from 1 to 3 (published erratum)" in (
        builder.notes
    )
    before = {name: one["fold_swcl"] for name, one in read("swcl", root, False)[1].items()}
    corrected = {name: (grade, 0) for name, grade in names.items()}
    write_annotation(annotation(root, "Base11"), {**GRADED["Base11"], **corrected})
    # The authors' folds are those of the published grades, whatever the table holds now.
    assert {name: one["fold_swcl"] for name, one in read("swcl", root, False)[1].items()} == before
    builder, values = read("raw", root, strict=False)
    assert {name: values[name]["dr"] for name in names} == names
    assert "20051020_64007_0100_PP: grade was already 3 (published erratum)" in builder.notes
    write_annotation(
        annotation(root, "Base11"), {**GRADED["Base11"], "20051020_64007_0100_PP": (2, 0)}
    )
    with pytest.raises(DatasetLayoutError, match="has grade 2, which the published") as raised:
        read("raw", root, strict=False)
    assert raised.value.code == "E_LABEL_RANGE"


def test_published_numbers_and_what_is_left_out(whole):
    assert len(DUPLICATES) == 13 and len({*DUPLICATES, *DUPLICATES.values()}) == 26
    numbers = "41076 48287 48575 48586 54547 54783 55457 55484 55562 55582 55626".split()
    listed = [f"20051202_{number}" for number in numbers] + ["20051205_32966", "20051205_32981"]
    assert DUPLICATES.keys() == {f"{one}_0400_PP" for one in listed}
    numbers = "40508 41034 41238 41260 54530 54555 54611 54744 55498 55607".split()
    listed = [f"20051202_{number}" for number in numbers]
    listed += ["20051205_33025", "20051205_35099", "20051205_35110"]
    assert {*DUPLICATES.values()} == {f"{one}_0400_PP" for one in listed}
    _, raw = read("raw", whole)
    clean_builder, clean = read("clean", whole)
    swcl_builder, swcl = read("swcl", whole)
    assert (len(raw), len(clean), len(swcl)) == (1200, 1187, 1196)
    assert raw.keys() - clean.keys() == DUPLICATES.keys()
    assert raw.keys() - swcl.keys() == set(INCONSISTENT)
    clean_builder.checked_items(clean_builder.locate(whole))
    assert len(clean_builder.ignored) == 13 and len(swcl_builder.ignored) == 4
    # Both copies of two pairs, 11 pairs stay.
    pairs = [pair for pair in DUPLICATES.items() if {*pair} <= swcl.keys()]
    assert len(pairs) == 11
    for values, kept in ((raw, DUPLICATES.items()), (swcl, pairs)):
        assert all(values[one]["fold"] == values[other]["fold"] for one, other in kept)
        assert all(values[one]["group"] == values[other]["group"] for one, other in kept)
    assert all(one["group"] == name for name, one in clean.items())


def test_folds_are_those_of_scikit_learn(whole):
    _, clean = read("clean", whole)
    names = sorted(clean)
    strata = np.array([3 * clean[name]["referable"] + clean[name]["dme"] for name in names])
    split = StratifiedKFold(5, shuffle=True, random_state=0).split(strata, strata)
    for fold, (_, test) in enumerate(split):
        assert {clean[names[i]]["fold"] for i in test} == {fold}
    # The authors': in the order of the tables, by the grades before the errata.
    builder, swcl = read("swcl", whole)
    published = []
    for base in BASES:
        stems = [place.stem for place in (whole / base).glob("*.tif") if place.stem in swcl]
        known = [name for (place, name) in ERRATA if place == base]
        if base == "Base33":
            known = [n for n in (*DUPLICATES, *DUPLICATES.values()) if n in swcl]
        published += known + sorted(set(stems) - set(known))
    grades = [next((o for (_, n), (o, _) in ERRATA.items() if n == p), None) for p in published]
    grades = [swcl[n]["dr"] if g is None else g for n, g in zip(published, grades, strict=True)]
    assert builder.notes[-1] == "0 of 11 pairs of duplicates are in two folds of fold_swcl"
    split = StratifiedKFold(5).split(np.zeros(1196), grades)
    for fold, (_, test) in enumerate(split):
        assert {swcl[published[i]]["fold_swcl"] for i in test} == {fold}
    assert "fold_swcl" not in clean[names[0]]


def test_duplicates_in_two_of_the_authors_folds_are_told(tmp_path, caplog):
    root = make_messidor(tmp_path)
    one, other = pair = ("20051202_55582_0400_PP", "20051202_54744_0400_PP")
    seen = set()
    for grade in range(4):
        caplog.clear()
        write_annotation(
            annotation(root, "Base33"), {**GRADED["Base33"], one: (grade, 0), other: (0, 0)}
        )
        builder, values = read("swcl", root, strict=False)
        apart = len({values[name]["fold_swcl"] for name in pair}) - 1
        note = f"{apart} of 1 pairs of duplicates are in two folds of fold_swcl"
        told = (
            ", so test results are too good; the feature fold keeps pairs together" if apart else ""
        )
        assert builder.notes[-1] == note + told
        assert (f"medinit_messidor/swcl: {note}{told}." in caplog.text) == bool(apart)
        seen.add(apart)
    assert seen == {0, 1}


def test_an_image_in_two_rows(tmp_path):
    root = make_messidor(tmp_path)
    twice = {**GRADED["Base13"], "20060523_00002_0100_pp": (1, 0)}
    write_annotation(annotation(root, "Base13"), twice)
    with pytest.raises(DatasetLayoutError, match="row 4 has image 20060523_00002_0100_pp again"):
        read("raw", root, strict=False)


@pytest.mark.parametrize("name", ["IM000001.JPG", "IMAGES.zip.001", "messidor-2.csv"])
def test_messidor_2_is_refused_by_name(name, tmp_path):
    (tmp_path / name).touch()
    builder = MedinitMessidor(data_dir=tmp_path / "data")
    with pytest.raises(DatasetLayoutError, match="this is Messidor-2") as raised:
        builder.locate(tmp_path)
    assert raised.value.code == "E_MISPLACED"


def test_images_without_a_grade_are_listed(tmp_path):
    root = make_messidor(tmp_path)
    (root / "Base14/20051020_99999_0100_PP.tif").touch()
    builder, values = read("raw", root, strict=False)
    assert "20051020_99999_0100_PP.tif: no row in Annotation_Base14.xls" in builder.ignored
    assert len(values) == 18
    with pytest.raises(DatasetLayoutError) as raised:
        read("raw", root)
    assert raised.value.code == "E_ORPHAN"
