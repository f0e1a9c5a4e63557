import logging
import pickle
import runpy

import numpy as np
import pytest
from conftest import ROOT
from fake_trees.table import make_table
from PIL import Image

from medinit_jax.core.config import read_command_line
from medinit_jax.core.errors import UsageError
from medinit_jax.data.catalog import batch_options, open_splits
from medinit_jax.data.image_table import Columns
from medinit_jax.data.pipeline import BatchSource
from medinit_jax.data.sources import patients_of, split_by_patient
from medinit_jax.data.table_source import TableSource

CONFIG = ROOT / "configs" / "hyper.py"
GET_CONFIG = runpy.run_path(str(CONFIG))["get_config"]


@pytest.fixture
def fake(tmp_path):
    return make_table(tmp_path / "tree")


def data(path, table=None, **changes):
    """Returns `config.data` of the experiment for a table."""
    settings = GET_CONFIG("folder").data
    settings.update({"source": "table", "path": str(path), "size": 16, "splits": (0.5, 0.25, 0.25)})
    settings.update({"table": table or {}, "batch": 4, **changes})
    return settings


def test_images_labels_eyes_and_patients(fake):
    source = TableSource(fake / "labels.csv", 16, columns=Columns(labels=("label",)))
    assert len(source) == 12 and source.classes == ("mild", "none", "severe")
    by_file = {file: source[i] for i, file in enumerate(source.files)}
    example = by_file["site1/1_left.tif"]
    assert example["image"].shape == (16, 16, 3) and example["image"].dtype == np.uint8
    assert (example["eye"], example["patient"], example["label"]) == (-1, "site1/1", 2)
    assert by_file["site1/1_right.bmp"]["label"] == -1
    assert patients_of(source) == [by_file[file]["patient"] for file in source.files]
    described = source.describe()
    assert described["unlabelled"] == 3 and described["classes"] == ["mild", "none", "severe"]
    assert described["ignored"] == [f"masks/{i}.png: in no row" for i in sorted(range(12), key=str)]
    again = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(again[3]["image"], source[3]["image"])


def test_all_of_an_image_with_its_mask(fake):
    columns = Columns(labels=("findings",), separator="|", mask="mask")
    source = TableSource(fake, 16, columns=columns, label="Exudates")
    full = source.full(0)
    assert full["image"].shape == (30, 40, 3) and full["mask"].shape == (30, 40)
    assert full["labels"] == {"Edema": 1, "Exudates": 1, "No finding": 0}
    assert set(np.unique(full["mask"])) == {0, 128, 255}
    assert {int(source[i]["label"]) for i in range(12)} == {-1, 0, 1}


def test_without_labels(fake):
    source = TableSource(fake, 16)
    assert "label" not in source[0] and source.classes == ()


def test_divided_by_patient_with_the_seed(fake):
    splits = open_splits(data(fake / "labels.csv", {"labels": "label", "patient": "person"}))
    assert [len(part) for part in splits.values()] == [6, 2, 4]
    names = [{part[i]["patient"] for i in range(len(part))} for part in splits.values()]
    assert sorted(set.union(*names)) == [f"p{i}" for i in range(6)]
    assert sum(map(len, names)) == 6
    source = TableSource(fake, 16, columns=Columns(patient="person"))
    expected = split_by_patient(source, (0.5, 0.25, 0.25), 0)
    assert [len(part) for part in expected] == [6, 2, 4]
    assert names[1] == {source[int(i)]["patient"] for i in expected[1]}


def test_splits_of_the_table(fake):
    settings = {"labels": "label", "classes": "none, mild, severe", "split": "part"}
    splits = open_splits(data(fake / "labels.csv", settings))
    assert [len(part) for part in splits.values()] == [4, 4, 4]
    assert {splits["train"][i]["patient"] for i in range(4)} == {"site0/0", "site1/3"}
    batch = BatchSource(splits["train"], batch_options(data("x"), seed=0))[0]
    assert set(batch["label"].tolist()) <= {-1, 0, 1, 2}
    table = (fake / "labels.csv").read_text(encoding="utf-8-sig")
    (fake / "labels.csv").write_text(table.replace("Validation", "extra"))
    with pytest.raises(UsageError, match=r"split 'val' \(part has: extra, test, train\)"):
        open_splits(data(fake / "labels.csv", settings))
    assert set(open_splits(data(fake / "labels.csv", settings), ("train", "test"))) == {
        "train",
        "test",
    }


def test_columns_from_the_command_line(fake):
    flags = {"path": fake / "labels.csv", "table.labels": "edema,grade", "label": "grade"}
    flags |= {"table.split": "part", "size": 16, "table.root": "."}
    arguments = [f"--config.data.{name}={value}" for name, value in flags.items()]
    config = read_command_line(["test", f"--config={CONFIG}:folder", *arguments]).config
    assert config.data.source == "files"
    splits = open_splits(config.data)
    assert {split: len(part) for split, part in splits.items()} == {"train": 4, "val": 4, "test": 4}
    assert {splits["val"][i]["label"] for i in range(4)} == {-1, 1}
    with pytest.raises(UsageError, match="no key 'data.table.labl'; did you mean"):
        read_command_line(["test", f"--config={CONFIG}:folder", "--config.data.table.labl=a"])


@pytest.mark.parametrize(
    ("table", "changes", "message"),
    [
        ({"labels": "edema,grade"}, {}, "set data.label to the one to learn: edema, grade"),
        ({"labels": "edema,grade"}, {"label": "age"}, "no label 'age'; set data.label to one of"),
        ({"image": "file"}, {}, r"no column is named file \[E_COLUMNS\]"),
        ({"root": "site0"}, {}, "None of the 12 rows .* data.table.root"),
        ({}, {"splits": (0.98, 0.01, 0.01)}, "too few for a val part"),
    ],
)
def test_what_is_wrong_is_named(table, changes, message, fake):
    with pytest.raises(UsageError, match=message):
        open_splits(data(fake / "labels.csv", table, **changes))


def test_what_is_no_table(fake):
    with pytest.raises(UsageError, match="does not exist; set data.path"):
        TableSource(fake / "none.csv", 8)
    with pytest.raises(UsageError, match="is no .csv"):
        TableSource(fake / "masks/0.png", 8)


def test_rows_without_image_are_said_and_damaged_images_refused(fake, caplog):
    (fake / "site0/0_left.png").unlink()
    with caplog.at_level(logging.WARNING):
        source = TableSource(fake, 8)
    assert len(source) == 11 and source.ignored[0] == "row 2 (site0/0_left.png): no image"
    assert "13 rows or files are left out" in caplog.text
    place = fake / "site1/1_left.tif"
    place.write_bytes(place.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"1 of 11 files .* site1/1_left\.tif"):
        TableSource(fake, 8)


def test_checksum_follows_the_table_and_the_images(fake):
    first = TableSource(fake, 8).describe()
    Image.new("RGB", (9, 9)).save(fake / "site1/1_right.bmp")
    second = TableSource(fake, 8).describe()
    with (fake / "labels.csv").open("a") as stream:
        stream.write("\n")
    third = TableSource(fake, 8).describe()
    assert first["sha256"] != second["sha256"] == third["sha256"]
    assert first["table_sha256"] == second["table_sha256"] != third["table_sha256"]
