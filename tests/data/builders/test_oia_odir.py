import numpy as np
import pytest
from fake_trees.oia_odir import (
    OFF_SITE,
    TRAINING,
    make_odir5k,
    make_oia_odir,
    write_annotation,
)

from medinit_jax.data.builders.image_files import jpeg
from medinit_jax.data.builders.oia_odir import ODD, MedinitOiaOdir
from medinit_jax.data.decode import decode
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

TABLE = "Training Set/Annotation/training annotation (English).xlsx"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_oia_odir(tmp_path_factory.mktemp("odir"))


def read(root, config="default", strict=False):
    builder = MedinitOiaOdir(data_dir=root / "data", config=config, strict_counts=strict)
    splits = builder.checked_items(builder.locate(root))
    items = [item for items in splits.values() for item in items]
    return builder, {item.values["image_id"]: item.values for item in items}


def test_labels_and_pixels(fake, tmp_path):
    builder = MedinitOiaOdir(data_dir=tmp_path, strict_counts=False)
    manifest = prepare(builder, fake, workers=0)
    assert manifest["ignored"] == ["1706: anterior segment image (2 images)"]
    assert manifest["notes"] == ["the two keyword rules agree on 18 of 18 eyes"]
    sources = {split: list(builder.as_data_source(split)) for split in manifest["splits"]}
    by_name = {one["image_id"].decode(): one for part in sources.values() for one in part}
    # By hand from the keywords: N D G C A H M O, eyes of each set.
    assert {
        split: np.sum([one["eye_labels8"] for one in part], axis=0).tolist()
        for split, part in sources.items()
    } == {
        "train": [3, 0, 1, 1, 1, 1, 0, 1],
        "validation": [2, 1, 0, 0, 0, 0, 0, 1],
        "test": [1, 1, 1, 0, 0, 0, 1, 2],
    }
    abnormal = {split: sum(one["abnormal"] for one in part) for split, part in sources.items()}
    assert abnormal == {"train": 5, "validation": 2, "test": 5}
    # The patient's labels are those of both eyes.
    assert by_name["43_left"]["labels8"].tolist() == [0, 0, 1, 0, 1, 0, 0, 1]
    assert by_name["43_left"]["eye_labels8"].tolist() == [0, 0, 0, 0, 1, 0, 0, 1]
    assert by_name["43_right"]["eye_labels8"].tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    left = by_name["4_left"]
    assert left["keywords"].decode() == "lens dust，normal fundus"
    assert (left["age"], left["sex"], left["eye"]) == (53, 1, 0)
    assert (by_name["12_right"]["age"], by_name["12_right"]["sex"]) == (-1, 2)
    assert left["patient_id"] == by_name["4_right"]["patient_id"] == b"odir_4"
    assert {name for name, one in by_name.items() if one["odd"]} == {"2957_left", "2957_right"}
    assert {one["source"] for one in sources["validation"]} == {b"off-site"}
    for name, one in by_name.items():
        (place,) = fake.rglob(f"{name}.jpg")
        # Files are JPEG, and smaller than the config's size: encoded once more, not resized.
        stored = decode(jpeg(decode(place)))
        np.testing.assert_array_equal(one["image"], stored)
        assert one["orig_size"].tolist() == list(stored.shape[:2])


def test_pairs_without_a_fundus_are_left_out_and_listed(fake):
    builder, values = read(fake)
    assert builder.ignored == ["1706: anterior segment image (2 images)"]
    assert "1706_left" not in values and "1706_right" not in values


def test_all_is_one_unlabelled_split(fake, tmp_path):
    builder = MedinitOiaOdir(data_dir=tmp_path, config="all", strict_counts=False)
    assert prepare(builder, fake, workers=0)["splits"] == {"train": 18}
    examples = list(builder.as_data_source("train"))
    assert not {"labels8", "eye_labels8", "keywords"} & examples[0].keys()
    assert sum(one["abnormal"] for one in examples) == 12
    assert {one["source"] for one in examples} == {b"training", b"off-site", b"on-site"}
    assert MedinitOiaOdir(data_dir=tmp_path, config="all").builder_config.shorter == 448


def test_the_rules_are_compared_on_every_eye(tmp_path, caplog):
    root = make_oia_odir(tmp_path)
    builder, _ = read(root)
    assert builder.notes == ["the two keyword rules agree on 18 of 18 eyes"]
    changed = (69, "Female", "abnormal fundus", "Normal fundus", "00000001")
    write_annotation(root / TABLE, {**TRAINING, 0: changed})
    for config, labels in (("default", (0, 0)), ("compat_code", (0, 1))):
        builder, values = read(root, config)
        assert builder.notes == [
            "0_left: normal by the part 'normal fundus' of 'abnormal fundus'",
            "0_right: 'Normal fundus' is abnormal by the authors' code only",
            "the two keyword rules agree on 17 of 18 eyes",
        ]
        assert (values["0_left"]["abnormal"], values["0_right"]["abnormal"]) == labels
    assert "agree on 17 of 18 eyes" in caplog.text and "of 'abnormal fundus'" in caplog.text


def test_published_numbers_count_the_pairs_left_out(fake, monkeypatch):
    counts = MedinitOiaOdir.COUNTS
    assert sum(counts["default"].values()) == 10_000 and counts["all"] == {"train": 9992}
    assert counts["odir5k_train"] == {"train": 7000}
    small = {
        "default": {"train": 10, "validation": 4, "test": 6},
        "all": {"train": 18},
        "odir5k_train": {"train": 10},
    }
    monkeypatch.setattr(MedinitOiaOdir, "COUNTS", small)
    assert len(read(fake, strict=True)[1]) == len(read(fake, "all", strict=True)[1]) == 18
    assert len(read(fake, "odir5k_train", strict=True)[1]) == 8


def test_the_rerelease_is_the_training_set(fake, tmp_path):
    root = make_odir5k(tmp_path)
    _, original = read(fake, "odir5k_train")
    builder, values = read(root, "odir5k_train")
    assert str(values) == str(original) and builder.ignored[-1].startswith("1706")
    inner = root / "ODIR-5K/ODIR-5K"
    assert str(read(inner, "odir5k_train")[1]) == str(original)
    with pytest.raises(DatasetLayoutError, match="medinit_oia_odir/odir5k_train") as raised:
        read(root)
    assert raised.value.code == "E_MISPLACED"
    # Without the table of patients, the table of eyes; it lacks some patients.
    (inner / "data.xlsx").unlink()
    with pytest.raises(DatasetLayoutError) as raised:
        read(root, "odir5k_train", strict=True)
    assert raised.value.code == "E_ORPHAN"
    builder, some = read(root, "odir5k_train")
    assert original.keys() - some.keys() == {"2957_left", "2957_right"}
    assert "2957_left: no row in full_df.csv" in builder.ignored
    (inner / "Training Images").rename(root / "preprocessed_images")
    assert read(root, "odir5k_train")[1].keys() == some.keys()


def test_an_eye_without_file_leaves_the_other(tmp_path):
    root = make_oia_odir(tmp_path, 0, ("E_ORPHAN",))
    builder, values = read(root)
    assert "43_left: no image" in builder.ignored and "43_right" in values


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ((69, "Female", "", "normal fundus", "00010000"), "row 2 has unusable left keywords"),
        ((69, "Female", "cataract", "，", "00010000"), "row 2 has unusable right keywords"),
        ((69, "Frau", "cataract", "cataract", "00010000"), "row 2 has unusable sex"),
        (("old", "Female", "cataract", "cataract", "00010000"), "row 2 has age 'old'"),
        ((69, "Female", "cataract", "cataract", "00030000"), "row 2 has C 3"),
    ],
)
def test_rows_that_cannot_be_used(row, what, tmp_path):
    root = make_oia_odir(tmp_path)
    write_annotation(root / TABLE, {**TRAINING, 0: row})
    with pytest.raises(DatasetLayoutError, match=what) as raised:
        read(root)
    assert raised.value.code == "E_LABEL_RANGE"


def test_names_that_fit_no_eye_and_rows_that_contradict(tmp_path):
    root = make_odir5k(tmp_path)
    (root / "ODIR-5K/ODIR-5K/data.xlsx").unlink()
    table = root / "full_df.csv"
    lines = table.read_text(encoding="utf-8").splitlines()
    table.write_text("\n".join(lines).replace("4_left.jpg", "4_L.jpg"), encoding="utf-8")
    with pytest.raises(DatasetLayoutError, match="row 4 has unusable image names"):
        read(root, "odir5k_train")
    lines[2] = lines[2].replace("69", "70")
    table.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(DatasetLayoutError, match="row 3 has unusable values, other than"):
        read(root, "odir5k_train")


def test_patients_in_two_sets(tmp_path):
    root = make_oia_odir(tmp_path)
    for eye in ("left", "right"):
        (root / f"Off-site Test Set/Images/43_{eye}.jpg").touch()
    table = "Off-site Test Set/Annotation/off-site test annotation (English).xlsx"
    write_annotation(root / table, {**OFF_SITE, 43: TRAINING[43]})
    with pytest.raises(
        DatasetLayoutError, match="1 patients of Off-site Test Set are in"
    ) as raised:
        read(root)
    assert raised.value.code == "E_MISPLACED" and raised.value.found == ["odir_43"]


def test_odd_photographs():
    assert len(ODD) == 16 and {name.partition("_")[0] for name in ODD} == {
        *(str(number) for number in range(2174, 2183)),
        "2957",
    }
