import dataclasses
import json
import shutil

import numpy as np
import pytest
from fake_trees.dicom import save_dicom
from fake_trees.rsna_ihd import (
    CORRUPT,
    IDS,
    SUBTYPES,
    TEST_IDS,
    WRAPPED,
    head,
    make_rsna_ihd,
    types_of,
)

from medinit_jax.data import dicom, dicom_file
from medinit_jax.data.builders import rsna
from medinit_jax.data.builders.config import Config
from medinit_jax.data.builders.rsna_ihd import WINDOWS, MedinitRsnaIhd, hounsfield, padded
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare
from medinit_jax.data.tasks import make_builder

READABLE = [name for name in IDS if name != CORRUPT]


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_rsna_ihd(tmp_path_factory.mktemp("ihd"))


def prepared(tree, folder, config="full", **options):
    builder = MedinitRsnaIhd(data_dir=folder, config=config, strict_counts=False, **options)
    return builder, prepare(builder, tree, workers=0)


def by_name(builder, *splits):
    sources = [builder.as_data_source(split) for split in splits]
    return {
        source[i]["image_id"].decode(): source[i] for source in sources for i in range(len(source))
    }


def test_labels_patients_and_studies(fake, tmp_path):
    builder, manifest = prepared(fake, tmp_path)
    examples = by_name(builder, "train")
    assert sorted(examples) == READABLE
    for name, example in examples.items():
        number = IDS.index(name)
        kinds = types_of(number)
        assert example["label"] == kinds["any"]
        assert example["labels"].tolist() == [kinds[kind] for kind in SUBTYPES]
        assert example["patient_id"].decode() == f"ID_p{number % 2}"
        assert example["study_id"].decode() == f"ID_s{number % 4}"
        assert example["orig_size"].tolist() == [32, 32]
        assert example["image"].shape == (256, 256, 3)
    assert sum(example["label"] for example in examples.values()) == 4
    unlabelled = by_name(builder, "unlabelled")
    assert sorted(unlabelled) == TEST_IDS
    assert {example["label"] for example in unlabelled.values()} == {-1}
    assert {tuple(example["labels"]) for example in unlabelled.values()} == {(-1,) * 5}
    assert any(CORRUPT in line for line in manifest["ignored"])
    assert "6 rows of stage_2_train.csv" in " ".join(manifest["ignored"])


def test_hounsfield_units_are_those_of_the_files(fake, tmp_path):
    config = Config(name="hu_native", rule="hu full")
    builder, _ = prepared(fake, tmp_path, config)
    examples = by_name(builder, "train")
    for name, example in examples.items():
        hu = head(IDS.index(name))
        # Outside the scan is air; the wrapped group cannot hold less than -1000.
        lowest = -1000 if name == WRAPPED else -1024
        assert example["image"].dtype == np.int16
        np.testing.assert_array_equal(example["image"][..., 0], np.maximum(hu, lowest))


def test_windows_are_lossless_at_the_native_size(fake, tmp_path):
    config = Config(name="native", rule="windows3 full")
    builder, _ = prepared(fake, tmp_path, config)
    for name, example in by_name(builder, "train").items():
        hu = head(IDS.index(name)).astype(float)
        for channel, (center, width) in enumerate(((40, 80), (80, 200), (600, 2800))):
            share = np.clip((hu - (center - width / 2)) / width, 0, 1)
            # The wrapped group is lighter outside the scan: -1000 instead of -1024.
            close = 2 if name == WRAPPED else 0.51
            np.testing.assert_allclose(example["image"][..., channel], share * 255, atol=close)


@pytest.mark.parametrize(
    ("name", "black", "gray", "white"), [("soft", -150, 40, 230), ("stroke", 28, 32, 36)]
)
def test_windows_for_slices_in_hounsfield_units(name, black, gray, white):
    shown = dicom.window(np.array([black, gray, white], np.int16), *WINDOWS[name])
    np.testing.assert_allclose(shown, [0, 0.5, 1])


def test_the_other_views(fake, tmp_path):
    builder, _ = prepared(fake, tmp_path / "hu", "hu_paper10")
    example = builder.as_data_source("train")[0]
    assert example["image"].shape == (256, 256, 1) and example["image"].dtype == np.int16
    assert example["image"].min() == -1024
    # Enlarged, edges overshoot the skull's 1000 HU a little, but never the limits.
    assert 900 < example["image"].max() < 1700
    builder, _ = prepared(fake, tmp_path / "brain", "brain1_patient")
    image = builder.as_data_source("train")[0]["image"].astype(int)
    assert np.ptp(image, axis=-1).max() <= 2
    names = {f"{view}{rule}" for view in ("", "hu_", "brain1_") for rule in MedinitRsnaIhd.COUNTS}
    assert names | {"patient", "hu_patient", "brain1_patient"} == set(
        MedinitRsnaIhd.builder_configs
    )
    assert all(config.square == 256 for config in MedinitRsnaIhd.BUILDER_CONFIGS)


def test_other_sizes(fake, tmp_path):
    builder = make_builder("medinit_rsna_ihd/full_64px", tmp_path, strict_counts=False)
    manifest = prepare(builder, fake, workers=0)
    assert manifest["splits"] == {"train": 9, "unlabelled": 3}
    assert {one["image"].shape for one in by_name(builder, "train").values()} == {(64, 64, 3)}
    strict = make_builder("medinit_rsna_ihd/full_64px", tmp_path / "strict")
    with pytest.raises(DatasetLayoutError, match="10 images; expected 752803"):
        strict.checked_items(strict.locate(fake))


def test_divisions(fake, tmp_path, monkeypatch):
    def split(config):
        builder = MedinitRsnaIhd(data_dir=tmp_path, config=config, strict_counts=False)
        splits = builder.items(builder.locate(fake))
        return {name: [item.values["image_id"] for item in part] for name, part in splits.items()}

    paper = split("paper10")
    order = np.random.Generator(np.random.PCG64(0)).permutation(9)
    assert paper["train"] == sorted(READABLE[i] for i in order[:7])
    assert paper["test"] == sorted(READABLE[i] for i in order[7:])
    assert split("hu_paper10") == paper
    monkeypatch.setattr("medinit_jax.data.builders.rsna_ihd.PAPER_IMAGES", 5)
    assert sorted(sum(split("paper10").values(), [])) == sorted(READABLE[i] for i in order[:5])
    patients = split("patient")
    sides = [{IDS.index(name) % 2 for name in part} for part in patients.values()]
    assert sorted(map(len, sides)) == [1, 1] and sides[0] != sides[1]
    # Processes find the same.
    monkeypatch.setattr(rsna, "_FEW_FILES", 0)
    assert split("patient") == patients


def test_shared_patients_of_the_papers_division_are_told(fake, tmp_path, caplog):
    _, manifest = prepared(fake, tmp_path, "paper10")
    order = np.random.Generator(np.random.PCG64(0)).permutation(9)
    train, test = ({IDS.index(READABLE[i]) % 2 for i in part} for part in (order[:7], order[7:]))
    shared = len(train & test)
    (note,) = manifest["notes"]
    assert shared and note.startswith(f"{shared} patients are in train and in test")
    assert "too good; medinit_rsna_ihd/patient has no such leak" in note
    assert f"medinit_rsna_ihd/paper10: {note}." in caplog.text
    _, manifest = prepared(fake, tmp_path, "patient")
    assert manifest["notes"] == []


@pytest.mark.parametrize("config", ["full", "paper10"])
def test_stage_1_alone_is_refused_even_when_any_count_will_do(config, tmp_path):
    tree = make_rsna_ihd(tmp_path / "tree", stage=1)
    with pytest.raises(DatasetLayoutError, match="looks like stage 1 of RSNA-IHD") as raised:
        prepared(tree, tmp_path / "data", config)
    assert raised.value.code == "E_MISPLACED"
    # Beside stage 2 it does not matter.
    both = make_rsna_ihd(tree)
    _, manifest = prepared(both, tmp_path / "data")
    assert manifest["splits"] == {"train": 9, "unlabelled": 3}


def test_stage_2_under_the_older_names_of_its_folders(tmp_path):
    tree = make_rsna_ihd(tmp_path / "tree")
    for part in ("train", "test"):
        (tree / f"stage_2_{part}").rename(tree / f"stage_2_{part}_images")
    _, manifest = prepared(tree, tmp_path / "data")
    assert manifest["splits"] == {"train": 9, "unlabelled": 3}


def test_published_numbers():
    counts = MedinitRsnaIhd.COUNTS
    assert counts["full"] == {"train": 752802, "unlabelled": 121232}
    assert counts["paper10"] == {"train": 60224, "test": 15056}
    assert sum(counts["full"].values()) + 1 == 874035


def test_any_that_contradicts_its_kinds_is_counted(tmp_path, caplog):
    tree = make_rsna_ihd(tmp_path / "tree")
    table = tree / "stage_2_train.csv"
    table.write_text(table.read_text().replace(f"{IDS[1]}_any,0", f"{IDS[1]}_any,1"))
    _, manifest = prepared(tree, tmp_path / "data")
    assert any(line.startswith("1 images") for line in manifest["ignored"])
    assert "any is not the maximum" in caplog.text


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        (f"{IDS[1]}_any,0", f"{IDS[1]}_any,2", "_any,2"),
        (f"{IDS[1]}_any,0", f"{IDS[1]}_all,0", "_all,0"),
        (f"{IDS[1]}_any,0", f"{IDS[1]}_any,", "_any,"),
        (f"{IDS[1]}_any,0", f"{IDS[1]}_any", "1 cells"),
        (f"{IDS[1]}_any,0\n", "", f"lack any of {IDS[1]}"),
    ],
)
def test_rows_that_are_no_labels(tmp_path, old, new, found):
    tree = make_rsna_ihd(tmp_path / "tree")
    table = tree / "stage_2_train.csv"
    table.write_text(table.read_text().replace(old, new))
    with pytest.raises(DatasetLayoutError, match=found) as raised:
        prepared(tree, tmp_path / "data")
    assert raised.value.code == "E_LABEL_RANGE"


def test_a_table_that_is_no_table(tmp_path):
    tree = make_rsna_ihd(tmp_path / "tree")
    table = tree / "stage_2_train.csv"
    for content, code in ((b"ID,Label\n\xff\xfe,0\n", "E_DECODE"), (b"<html>login", "E_LFS")):
        table.write_bytes(content)
        with pytest.raises(DatasetLayoutError) as raised:
            prepared(tree, tmp_path / "data")
        assert raised.value.code == code


def test_unreadable_heads_when_dividing_by_patient(tmp_path):
    tree = make_rsna_ihd(tmp_path / "tree", defects=("E_LFS",))
    with pytest.raises(DatasetLayoutError) as raised:
        prepared(tree, tmp_path / "data", "patient")
    assert raised.value.code == "E_LFS"
    builder = MedinitRsnaIhd(
        data_dir=tmp_path, config="patient", strict_counts=False, on_corrupt="skip"
    )
    splits = builder.items(builder.locate(tree))
    assert sum(map(len, splits.values())) == 9


def test_shapes_that_are_not_square_are_padded_with_air(tmp_path):
    hu = head(5, 20, 33)
    square = padded(hu)
    assert square.shape == (33, 33) and square.dtype == np.int16
    np.testing.assert_array_equal(square[6:26], hu)
    assert (square[:6] == -1024).all() and (square[26:] == -1024).all()
    assert padded(head(5, 33, 20)).shape == (33, 33)
    # Only unsigned files of 12 bits with an impossible intercept are unwrapped.
    raw = np.full((4, 4), 3200, np.uint16)
    for intercept, value in (("-1024", 2176), ("-100", 3071), ("-99", -896), ("0", -896)):
        path = tmp_path / f"{intercept}.dcm"
        save_dicom(path, raw, BitsStored=12, HighBit=11, RescaleIntercept=intercept)
        assert hounsfield(dicom_file.read(path)).tolist() == [[value] * 4] * 4
    save_dicom(path, raw, RescaleIntercept="2000")
    assert (hounsfield(dicom_file.read(path)) == 3071).all()


def test_restarts_from_what_is_there(fake, tmp_path):
    builder, manifest = prepared(fake, tmp_path)
    again, same = prepared(fake, tmp_path)
    assert json.dumps(same) == json.dumps(manifest)
    assert dataclasses.asdict(again.builder_config) == manifest["config"]
    shutil.rmtree(builder.data_path)
