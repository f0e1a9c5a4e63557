import csv
import logging

import numpy as np
import openpyxl
import pytest
import tensorflow_datasets as tfds
from fake_trees.dicom import save_dicom
from fake_trees.table import make_table, write_table
from ml_collections import ConfigDict
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.builders.table import MedinitTable, TableConfig
from medinit_jax.data.catalog import open_splits
from medinit_jax.data.decode import decode
from medinit_jax.data.image_table import Columns
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.manifest import sum_labels
from medinit_jax.data.prepare import prepare
from medinit_jax.data.sources import patients_of
from medinit_jax.data.table_source import TableSource


@pytest.fixture
def fake(tmp_path):
    return make_table(tmp_path / "tree")


def table_of(root):
    with (root / "labels.csv").open(newline="", encoding="utf-8-sig") as stream:
        return list(csv.reader(stream, delimiter=";"))


def change(root, row, column, value):
    header, *rows = table_of(root)
    rows[row - 2][header.index(column)] = value
    write_table(root / "labels.csv", header, rows)


def prepared(root, data_dir, workers=0, strict=True, **changes):
    """Returns the builder, its manifest, and {image_id: example with its split}."""
    config = TableConfig(name="mine", columns=Columns(**changes.pop("columns", {})), **changes)
    builder = MedinitTable(data_dir=data_dir, config=config, strict_counts=strict)
    manifest = prepare(builder, root, workers=workers)
    read = tfds.builder_from_directory(builder.data_path)
    examples = {
        example["image_id"].decode(): {**example, "split": split}
        for split in manifest["splits"]
        for example in read.as_data_source(split)
    }
    return read, manifest, examples


def refused(code, root, tmp_path, message, strict=False, **changes):
    with pytest.raises(DatasetLayoutError, match=message) as raised:
        prepared(root, tmp_path / "refused", strict=strict, **changes)
    assert raised.value.code == code
    assert len(str(raised.value).splitlines()) == 4


def test_text_becomes_classes_and_blank_is_unlabelled(fake, tmp_path):
    read, _, examples = prepared(fake, tmp_path / "data", columns={"labels": ("label",)})
    assert read.info.features["label"].names == ["mild", "none", "severe"]
    assert read.info.metadata["classes"] == {"label": ["mild", "none", "severe"]}
    for row in table_of(fake)[1:]:
        stem = row[0].rpartition(".")[0]
        known = {"mild": 0, "none": 1, "severe": 2, "": -1}
        assert examples[stem]["label"] == known[row[1]]
        assert examples[stem]["patient_id"].decode() == stem.rpartition("_")[0]
        assert examples[stem]["eye"] == ("_right" in stem)


def test_pixels_are_those_of_the_files(fake, tmp_path):
    _, _, examples = prepared(fake, tmp_path / "data")
    for name in ("site0/0_left.png", "site0/2_left.gif", "site1/1_left.tif", "site1/1_right.bmp"):
        with Image.open(fake / name) as image:
            np.testing.assert_array_equal(
                examples[name.rpartition(".")[0]]["image"], np.array(image.convert("RGB"))
            )


def test_columns_for_everything_and_two_processes(fake, tmp_path):
    columns = {"patient": "person", "eye": "side", "split": "part", "mask": "mask"}
    columns["labels"] = ("edema", "grade")
    read, manifest, examples = prepared(
        fake, tmp_path / "data", 2, columns=columns, mask_levels=(0, 128, 255)
    )
    assert manifest["splits"] == {"test": 4, "train": 4, "validation": 4}
    assert manifest["config"]["columns"]["labels"] == ("edema", "grade")
    assert read.info.metadata["classes"] == {"edema": ["0", "1"], "grade": ["0", "1"]}
    assert {split: counts["labels: grade"] for split, counts in manifest["labels"].items()} == {
        split: {"0": 0, "1": 2, "unlabelled": 2} for split in manifest["splits"]
    }
    assert manifest["labels"]["train"]["labels: edema"] == {"0": 2, "1": 2}
    for number, row in enumerate(table_of(fake)[1:]):
        example = examples[row[0].rpartition(".")[0]]
        assert example["split"] == ("train", "validation", "test")[number // 2 % 3]
        assert example["labels"].tolist() == [number % 2, 1 if number % 2 else -1]
        assert example["patient_id"].decode() == f"p{number // 2}"
        assert example["eye"] == number % 2
        with Image.open(fake / row[-1]) as mask:
            expected = np.array(mask)
        np.testing.assert_array_equal(
            example["mask"][..., 0], np.searchsorted((0, 128, 255), expected)
        )


def test_masks_keep_any_levels_and_reduce_without_new_ones(fake, tmp_path):
    _, _, whole = prepared(fake, tmp_path / "data", columns={"mask": "mask"})
    _, _, small = prepared(fake, tmp_path / "small", columns={"mask": "mask"}, square=16)
    for name, example in whole.items():
        assert set(np.unique(example["mask"])) == {0, 128, 255}
        assert small[name]["mask"].shape == (16, 16, 1)
        assert set(np.unique(small[name]["mask"])) <= {0, 128, 255}


def test_colors_of_a_palette_are_classes(fake, tmp_path):
    classes = np.arange(30 * 40, dtype=np.uint8).reshape(30, 40) % 3
    image = Image.new("P", (40, 30))
    image.putdata(classes.ravel().tolist())
    image.putpalette([0, 0, 0, 200, 10, 10, 10, 200, 10])
    image.save(fake / "masks/0.png")
    _, _, examples = prepared(fake, tmp_path / "data", columns={"mask": "mask"})
    np.testing.assert_array_equal(examples["site0/0_left"]["mask"][..., 0], classes)


def colored(path):
    Image.fromarray(np.arange(3600, dtype=np.uint8).reshape(30, 40, 3)).save(path)


def smaller(path):
    Image.new("L", (20, 30)).save(path)


def smooth(path):
    Image.fromarray((np.arange(1200) % 200).astype(np.uint8).reshape(30, 40)).save(path)


@pytest.mark.parametrize(
    ("damage", "levels", "message"),
    [
        (colored, (), "this has colors"),
        (smaller, (), r"the size \(30, 20\)"),
        (smooth, (), "other gray levels"),
        (smooth, (0, 1), "other gray levels"),
    ],
)
def test_what_is_no_mask(damage, levels, message, fake, tmp_path):
    damage(fake / "masks/0.png")
    changes = {"columns": {"mask": "mask"}, "mask_levels": levels}
    refused("E_MASK_VALUES", fake, tmp_path, message, **changes)


def test_findings_with_a_separator(fake, tmp_path):
    columns = {"labels": ("findings",), "separator": "|"}
    read, manifest, examples = prepared(fake, tmp_path / "data", columns=columns)
    findings = ["Edema", "Exudates", "No finding"]
    total = sum_labels(manifest["labels"].values())
    # A row without a finding tells nothing of any.
    assert total["labels: Edema"] == {"0": 6, "1": 3, "unlabelled": 3}
    assert total["labels: Exudates"] == {"0": 3, "1": 6, "unlabelled": 3}
    assert list(read.info.metadata["classes"]) == findings
    for row in table_of(fake)[1:]:
        cell = row[2].split("|") if row[2] else None
        expected = [-1] * 3 if cell is None else [int(name in cell) for name in findings]
        assert examples[row[0].rpartition(".")[0]]["labels"].tolist() == expected
    columns["classes"] = ("Exudates", "Edema")
    message = "row 5 has findings 'No finding'"
    refused("E_LABEL_RANGE", fake, tmp_path, message, columns=columns)


def test_order_of_classes_can_be_given(fake, tmp_path):
    columns = {"labels": ("label",), "classes": ("none", "mild", "severe")}
    read, _, examples = prepared(fake, tmp_path / "data", columns=columns)
    assert read.info.features["label"].names == ["none", "mild", "severe"]
    assert examples["site0/0_left"]["label"] == 1
    columns["classes"] = ("none", "mild")
    refused("E_LABEL_RANGE", fake, tmp_path, "row 4 has label 'severe'", columns=columns)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("edema", "2.5", "row 4 has edema '2.5'"),
        ("edema", "-3", "row 4 has edema '-3'"),
        ("edema", "90210", "row 4 has edema '90210'"),
        ("edema", "two", "row 4 has edema 'two'"),
        ("label", "7", "row 4 has label '7'"),
        ("label", "Mild", "row 4 has label 'Mild'"),
        ("side", "up", "row 4 has side 'up'"),
        ("part", "", "row 4 has part ''"),
        ("part", "1", "row 4 has part '1'"),
    ],
)
def test_wrong_cells_are_named_by_row(column, value, message, fake, tmp_path):
    change(fake, 4, column, value)
    columns = {"eye": "side", "split": "part", "labels": ("edema", "label")}
    refused("E_LABEL_RANGE", fake, tmp_path, message, columns=columns)


def test_patients_and_groups_stay_together(fake, tmp_path):
    header, *rows = table_of(fake)
    for i, row in enumerate(rows):
        row[header.index("part")] = f"g{i // 4}"
    write_table(fake / "labels.csv", header, rows)
    columns = {"patient": "person", "group": "part"}
    shares = {"shares": (0.34, 0.33, 0.33)}
    _, manifest, examples = prepared(fake, tmp_path / "data", columns=columns, **shares)
    assert manifest["splits"] == {"train": 4, "validation": 4, "test": 4}
    by_group = [
        {examples[row[0].rpartition(".")[0]]["split"] for row in rows[i : i + 4]} for i in (0, 4, 8)
    ]
    assert sorted(map(list, by_group)) == [["test"], ["train"], ["validation"]]
    _, _, other = prepared(fake, tmp_path / "seed", columns=columns, split_seed=4, **shares)
    assert any(other[name]["split"] != examples[name]["split"] for name in other)
    change(fake, 2, "part", "g2")
    refused("E_LABEL_RANGE", fake, tmp_path, "rows 2 and 3 put p0 into two", columns=columns)


def settings(data_dir, name):
    """Returns `config.data` for a prepared set."""
    return ConfigDict(
        {"source": "prepared", "name": name, "data_dir": str(data_dir), "size": 16, "fit": "crop"}
        | {"label": "", "splits": (0.5, 0.25, 0.25), "split_seed": 0, "cache_mb": 64.0}
        | {"path": ""}
    )


def test_training_reads_the_parts_of_the_table(fake, tmp_path):
    prepared(fake, tmp_path / "data", columns={"split": "part", "patient": "person"})
    parts = open_splits(settings(tmp_path / "data", "medinit_table/mine"))
    assert {split: set(patients_of(part)) for split, part in parts.items()} == {
        "train": {"p0", "p3"},
        "val": {"p1", "p4"},
        "test": {"p2", "p5"},
    }


def test_groups_stay_together_in_what_training_holds_out(fake, tmp_path):
    header, *rows = table_of(fake)
    group_of = {f"{row[0].rpartition('.')[0]}": f"g{i // 2 % 4}" for i, row in enumerate(rows)}
    for row, group in zip(rows, group_of.values(), strict=True):
        row[header.index("part")] = group
        # Without a group, these two patients could come apart.
        row[header.index("side")] = "train"
    write_table(fake / "labels.csv", header, rows)
    columns = {"group": "part", "patient": "person", "split": "side"}
    _, _, examples = prepared(fake, tmp_path / "data", columns=columns)
    assert {name: example["group"].decode() for name, example in examples.items()} == group_of
    parts = open_splits(settings(tmp_path / "data", "medinit_table/mine"))
    found = [{part[index]["patient"] for index in range(len(part))} for part in parts.values()]
    assert sorted(group for part in found for group in part) == ["g0", "g1", "g2", "g3"]


SCAN = np.arange(256, dtype=np.uint8).reshape(16, 16)


def scans(root, patients):
    """Writes a table of DICOM files, two for each patient."""
    rows = []
    for number, patient in enumerate(patient for patient in patients for _ in range(2)):
        save_dicom(root / f"{number}.dcm", SCAN, PatientID=patient)
        rows.append([f"{number}.dcm", f"s{number}"])
    write_table(root / "labels.csv", ["image", "study"], rows)
    return root


def test_patients_of_dicom_files_stay_together(tmp_path, caplog):
    root = scans(tmp_path / "tree", [f"PAT{i}" for i in range(10)])
    _, _, examples = prepared(root, tmp_path / "data")
    split_of = {}
    for name, example in examples.items():
        assert example["patient_id"].decode() == f"PAT{int(name) // 2}"
        assert split_of.setdefault(example["patient_id"], example["split"]) == example["split"]
    assert "PatientID" not in caplog.text
    source = TableSource(root, 16)
    assert dict(zip(source.files, patients_of(source), strict=True)) == {
        f"{number}.dcm": f"PAT{number // 2}" for number in range(20)
    }
    # A column counts more.
    _, _, other = prepared(root, tmp_path / "other", columns={"patient": "study"})
    assert {name: example["patient_id"].decode() for name, example in other.items()} == {
        str(number): f"s{number}" for number in range(20)
    }
    # Anonymized files all have one name.
    _, _, hidden = prepared(scans(tmp_path / "anon", ["ANON"] * 5), tmp_path / "hidden")
    assert {example["patient_id"] for example in hidden.values()} == {b""}
    assert "All DICOM files have the same PatientID" in caplog.text


def test_frames_that_are_not_read_are_noted(tmp_path, caplog):
    root = scans(tmp_path / "tree", [f"PAT{i}" for i in range(10)])
    frames = {"NumberOfFrames": 12, "PixelData": SCAN.tobytes() * 12}
    save_dicom(root / "7.dcm", SCAN, PatientID="PAT3", **frames)
    with caplog.at_level(logging.WARNING):
        _, manifest, _ = prepared(root, tmp_path / "data")
    assert manifest["notes"] == ["7.dcm: the first of 12 frames is taken"]
    assert "1 DICOM files have several frames" in caplog.text
    assert TableSource(root, 16).first_frames == manifest["notes"]


def test_too_few_patients_for_a_part(fake, tmp_path):
    refused("E_COUNT", fake, tmp_path, "6 patients .* validation", shares=(0.98, 0.01, 0.01))
    _, manifest, _ = prepared(fake, tmp_path / "data", shares=(0.5, 0.0, 0.5))
    assert manifest["splits"] == {"train": 6, "test": 6}


def test_repeated_rows_orphans_and_files_without_row_are_listed(fake, tmp_path, caplog):
    header, *rows = table_of(fake)
    rows.append(rows[0])
    rows.append(["nowhere.png", *rows[1][1:]])
    rows.append(["", *rows[1][1:]])
    del rows[4]
    write_table(fake / "labels.csv", header, rows)
    message = "2 of 13 have no image .E_ORPHAN"
    refused("E_ORPHAN", fake, tmp_path, message, strict=True, columns={"mask": "mask"})
    with caplog.at_level(logging.WARNING):
        _, manifest, _ = prepared(fake, tmp_path / "d", strict=False, columns={"mask": "mask"})
    assert manifest["ignored"] == [
        "row 14 (nowhere.png): no image",
        "row 15 (blank): no image",
        "row 13: says the same as row 2",
        "masks/4.png: in no row",
        "site0/2_left.gif: in no row",
    ]
    assert "2 files are left out" in caplog.text
    rows[11] = [rows[0][0], "severe", *rows[0][2:]]
    write_table(fake / "labels.csv", header, rows)
    columns = {"labels": ("label",)}
    refused("E_LABEL_RANGE", fake, tmp_path, "rows 2 and 13 say different", columns=columns)


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/secret.png", "C:\\secret.png", "a/../../b"]
)
def test_images_outside_the_folder_are_refused(name, fake, tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "secret.png")
    change(fake, 2, "image", name)
    refused("E_ORPHAN", fake, tmp_path, "not inside the folder")


def test_links_out_of_the_folder_are_not_followed(fake, tmp_path):
    (fake / "site0/0_left.png").rename(tmp_path / "secret.png")
    (fake / "site0/0_left.png").symlink_to(tmp_path / "secret.png")
    (fake / "loop").symlink_to(fake)
    _, manifest, examples = prepared(fake, tmp_path / "data", strict=False)
    assert len(examples) == 11 and "row 2 (site0/0_left.png): no image" in manifest["ignored"]
    assert manifest["links_not_followed"] == [str(fake / "site0/0_left.png")]


def test_names_without_suffix_of_other_case_or_absolute(fake, tmp_path):
    change(fake, 2, "image", "site0/0_left")
    change(fake, 3, "image", "Site0\\0_RIGHT.jpg")
    change(fake, 4, "image", str((fake / "site1/1_left.tif").resolve()))
    assert len(prepared(fake, tmp_path / "data")[2]) == 12
    (fake / "site0/0_left.bmp").write_bytes((fake / "site0/0_left.png").read_bytes())
    refused("E_ORPHAN", fake, tmp_path, "which several files may be")
    change(fake, 2, "image", "site0/0_left.png")
    header, *rows = table_of(fake)
    write_table(fake / "labels.csv", header, [*rows, ["site0/0_left.bmp", *rows[0][1:]]])
    examples = prepared(fake, tmp_path / "both")[2]
    assert {"site0/0_left.png", "site0/0_left.bmp"} <= set(examples)


def test_excel_the_table_itself_and_another_root(fake, tmp_path):
    header, *rows = table_of(fake)
    book = openpyxl.Workbook()
    book.active.append(header)
    for row in rows:
        cells = [*row]
        cells[0] = row[0].removeprefix("site0/")
        cells[3] = int(row[3])
        cells[4] = None if row[4] == "nan" else 1.0
        if row[0].startswith("site0/"):
            book.active.append(cells)
    book.save(fake / "site0.xlsx")
    refused("E_MISSING_FILE", fake, tmp_path, "not clear which table")
    columns = {"root": "site0", "labels": ("grade",)}
    shares = {"shares": (1.0, 0.0, 0.0)}
    _, _, examples = prepared(fake / "site0.xlsx", tmp_path / "data", columns=columns, **shares)
    assert {name: int(example["label"]) for name, example in examples.items()} == {
        f"{patient}_{side}": label
        for patient in (0, 2, 4)
        for side, label in (("left", -1), ("right", 1))
    }
    named = {"table": "site0.xlsx", "columns": {"root": "site0"}, **shares}
    assert len(prepared(fake, tmp_path / "named", **named)[2]) == 6
    for root in ("..", "/etc", "nowhere"):
        refused(
            "E_MISSING_FILE",
            fake,
            tmp_path,
            "is missing",
            table="labels.csv",
            columns={"root": root},
        )


def test_patient_in_two_splits_of_the_table_is_said(fake, tmp_path, caplog):
    change(fake, 2, "part", "test")
    with caplog.at_level(logging.WARNING):
        prepared(fake, tmp_path / "data", columns={"split": "part"})
    assert "puts 1 patients or groups into more than one split, among them site0/0" in caplog.text


def test_a_column_without_labels_is_refused(fake, tmp_path):
    header, *rows = table_of(fake)
    write_table(fake / "labels.csv", header, [[row[0], "nan", *row[2:]] for row in rows])
    refused("E_LABEL_RANGE", fake, tmp_path, "no row has a label", columns={"labels": ("label",)})
    columns = {"labels": ("label", "findings"), "separator": "|"}
    refused("E_COLUMNS", fake, tmp_path, "needs one label column", columns=columns)


def test_other_columns_under_the_same_name_are_not_taken_for_the_same(fake, tmp_path):
    prepared(fake, tmp_path / "data")
    prepared(fake, tmp_path / "data")
    with pytest.raises(UsageError, match="give these options a name of their own"):
        prepared(fake, tmp_path / "data", columns={"labels": ("label",)})


@pytest.fixture
def volumes(tmp_path):
    """Two volumes, 6 and 2 slices, and a table."""
    nibabel = pytest.importorskip("nibabel")
    root = tmp_path / "volumes"
    root.mkdir()
    voxels = np.arange(20 * 24 * 6, dtype=np.int16).reshape(20, 24, 6)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), root / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(voxels[..., :2], np.eye(4)), root / "b.nii")
    write_table(root / "labels.csv", ["image", "label"], [["a.nii.gz", "x"], ["b", "y"]])
    return root


@pytest.mark.parametrize("workers", [0, 2])
def test_every_slice_of_a_volume_is_an_image(volumes, tmp_path, workers):
    columns, shares = {"labels": ("label",)}, (0.5, 0.0, 0.5)
    _, manifest, examples = prepared(
        volumes, tmp_path / "data", workers, columns=columns, shares=shares
    )
    names = [f"a#{number:03d}" for number in range(6)] + ["b#000", "b#001"]
    assert sorted(examples) == names and sorted(manifest["splits"].values()) == [2, 6]
    source = TableSource(volumes / "labels.csv", 16, columns=Columns(labels=("label",)))
    assert len(source) == len(names)
    for index, name in enumerate(names):
        example, image = examples[name], decode(volumes / source.files[index], 0, int(name[2:]))
        np.testing.assert_array_equal(example["image"], image)
        assert example["label"] == source[index]["label"] == "ab".index(name[0])
        assert example["orig_size"].tolist() == [24, 20]
    assert len({example["split"] for name, example in examples.items() if name[0] == "a"}) == 1


def test_volumes_that_cannot_be_read(volumes, tmp_path, monkeypatch):
    columns = {"labels": ("label",)}
    whole = (volumes / "b.nii").read_bytes()
    (volumes / "b.nii").write_bytes(whole[:400])
    message, shares = r"b\.nii cannot be read .it is cut short", (0.5, 0.0, 0.5)
    refused("E_DECODE", volumes, tmp_path, message, columns=columns, shares=shares)
    monkeypatch.setattr("medinit_jax.data.builders.base.MAX_SKIPPED", 0.2)
    config = TableConfig(name="mine", columns=Columns(**columns), shares=shares)
    builder = MedinitTable(data_dir=tmp_path / "skip", config=config, on_corrupt="skip")
    manifest = prepare(builder, volumes, workers=0)
    assert [one["key"].partition("/")[2] for one in manifest["skipped"]] == ["b#000"]
    assert sum(manifest["splits"].values()) == 6


def test_masks_of_volumes_are_refused_before_anything_is_read(volumes, tmp_path):
    write_table(volumes / "labels.csv", ["image", "mask"], [["a.nii.gz", "b.nii"]])
    message = "row 2 has a volume with a mask, which is not read"
    columns, shares = {"mask": "mask"}, (1.0, 0.0, 0.0)
    refused("E_MASK_VALUES", volumes, tmp_path, message, columns=columns, shares=shares)
