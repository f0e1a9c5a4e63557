import numpy as np
import pytest
import tensorflow_datasets as tfds
from conftest import ROOT
from fake_trees.drive import make_drive
from PIL import Image

from medinit_jax.data.builders.drive import MedinitDrive
from medinit_jax.data.layout import DatasetLayoutError, Tree
from medinit_jax.data.prepare import prepare

REAL = ROOT.parent / "shared/data/fundus/DRIVE"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_drive(tmp_path_factory.mktemp("drive"))


def test_pixels_and_masks_are_those_of_the_files(fake, tmp_path):
    builder = MedinitDrive(data_dir=tmp_path, strict_counts=False)
    prepare(builder, fake, workers=0)
    source = builder.as_data_source("test")
    for index in range(3):
        example = source[index]
        number = example["image_id"].decode()
        with Image.open(fake / f"test/images/{number}_test.tif") as image:
            np.testing.assert_array_equal(example["image"], np.array(image))
        with Image.open(fake / f"test/1st_manual/{number}_manual1.gif") as mask:
            vessels = np.array(mask.convert("L"))[..., None] // 255
        np.testing.assert_array_equal(example["mask"], vessels)
        assert 0 < example["mask"].mean() < 0.5 < (example["fov"] == 255).mean()
        (second,) = example["mask2"]
        np.testing.assert_array_equal(second, vessels)
    assert builder.as_data_source("train")[0]["mask2"] == []


def test_same_records_as_tfds_writes(fake, tmp_path):
    ours = MedinitDrive(data_dir=tmp_path / "ours", strict_counts=False)
    prepare(ours, fake, workers=0)
    theirs = MedinitDrive(data_dir=tmp_path / "theirs", strict_counts=False)
    theirs.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(fake)))
    for split in ("train", "test"):
        pairs = zip(ours.as_data_source(split), theirs.as_data_source(split), strict=True)
        for one, other in pairs:
            assert one["image_id"] == other["image_id"]
            np.testing.assert_array_equal(one["image"], other["image"])


@pytest.mark.skipif(not REAL.exists(), reason="the real DRIVE is not here")
def test_the_real_download(tmp_path):
    builder = MedinitDrive(data_dir=tmp_path)
    splits = builder.checked_items(builder.locate(REAL))
    assert {split: len(items) for split, items in splits.items()} == {"train": 20, "test": 20}
    example = builder.example(next(i for i in splits["test"] if i.key == "test/01"))
    mask, field = (
        builder.info.features[name].decode_example_np(example[name]) for name in ("mask", "fov")
    )
    assert mask.shape == (584, 565, 1) and 0.05 < mask.mean() < 0.15
    assert 0.6 < (field > 0).mean() < 0.8 and len(example["mask2"]) == 1


def test_validation_holds_back_what_train_only_tests(fake, tmp_path):
    held = {}
    for config, split in (("validation", "validation"), ("train_only", "test")):
        builder = MedinitDrive(data_dir=tmp_path, config=config, strict_counts=False)
        splits = builder.checked_items(builder.locate(fake))
        held[config] = [item.values["image_id"] for item in splits[split]]
    assert held["validation"] == held["train_only"]


def test_train_only_needs_no_test_vessels(tmp_path):
    root = make_drive(tmp_path / "tree", defects=("E_NO_TEST_GT",))
    (root / "test/1st_manual").mkdir()
    with pytest.raises(DatasetLayoutError) as raised:
        MedinitDrive(data_dir=tmp_path).checked_items(Tree("medinit_drive", root))
    assert raised.value.code == "E_NO_TEST_GT"
    builder = MedinitDrive(data_dir=tmp_path, config="train_only", strict_counts=False)
    splits = builder.checked_items(builder.locate(root))
    assert {split: len(items) for split, items in splits.items()} == {"train": 3, "test": 1}
