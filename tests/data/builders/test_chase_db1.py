import shutil

import numpy as np
import pytest
from fake_trees.chase_db1 import STEMS, make_chase_db1
from fake_trees.images import save
from PIL import Image

from medinit_jax.data.builders.chase_db1 import MedinitChaseDb1
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_chase_db1(tmp_path_factory.mktemp("chase"))


def checked(root, tmp_path, config="first"):
    builder = MedinitChaseDb1(data_dir=tmp_path, config=config, strict_counts=False)
    return builder, builder.checked_items(builder.locate(root))


def test_pixels_and_masks_are_those_of_the_files(fake, tmp_path):
    builder = MedinitChaseDb1(data_dir=tmp_path, strict_counts=False)
    prepare(builder, fake, workers=0)
    seen = set()
    for split in ("train", "test"):
        for example in builder.as_data_source(split):
            stem = example["image_id"].decode()
            seen.add(stem)
            with Image.open(fake / f"{stem}.jpg") as image:
                np.testing.assert_array_equal(example["image"], np.array(image))
            with Image.open(fake / f"{stem}_1stHO.png") as mask:
                np.testing.assert_array_equal(example["mask"][..., 0], np.array(mask))
            with Image.open(fake / f"{stem}_2ndHO.png") as mask:
                np.testing.assert_array_equal(example["mask2"][0][..., 0] * 250, np.array(mask))
            assert 0 < example["mask"].mean() < 0.4
            assert example["patient_id"].decode() == stem[6:8]
            assert example["eye"] == (0 if stem.endswith("L") else 1)
            assert example["fov_source"] == 1 and example["fov_found"] == 1
            assert 0.4 < (example["fov"] == 255).mean() < 1
    assert seen == set(STEMS)


def test_where_no_field_is_found_it_is_the_whole_image(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    save(root / "Image_01L.jpg", np.full((96, 100, 3), 90, np.uint8))
    builder, splits = checked(root, tmp_path)
    example = builder.example(splits["train"][0])
    field = builder.info.features["fov"].decode_example_np(example["fov"])
    assert example["fov_found"] == 0 and field.min() == 255


def test_splits_of_all_28_photographs(tmp_path):
    for number in range(1, 15):
        for eye in "LR":
            for end in (".jpg", "_1stHO.png", "_2ndHO.png"):
                (tmp_path / f"Image_{number:02d}{eye}{end}").touch()
    for config, wanted in MedinitChaseDb1.COUNTS.items():
        builder = MedinitChaseDb1(data_dir=tmp_path / "data", config=config)
        splits = builder.checked_items(builder.locate(tmp_path))
        assert {split: len(items) for split, items in splits.items()} == wanted
        keys = [item.key for item in splits["test"]]
        first = {"bob8": "test/Image_05L"}.get(config, "test/Image_11L")
        assert min(keys) == first and max(keys) == "test/Image_14R"
        patients = [{item.values["patient_id"] for item in items} for items in splits.values()]
        assert sum(map(len, patients)) == len(set.union(*patients)) == 14


def test_folders_images_and_masks_are_the_same_dataset(fake, tmp_path):
    _, wanted = checked(fake, tmp_path)
    root = shutil.copytree(fake, tmp_path / "tree")
    for folder, pattern in (("Images", "*.jpg"), ("Masks", "*.png")):
        (root / folder).mkdir()
        for path in list(root.glob(pattern)):
            path.rename(root / folder / path.name)
    _, found = checked(root, tmp_path)
    for split, items in found.items():
        assert [item.key for item in items] == [item.key for item in wanted[split]]
        assert all(set(item.files) == {"image", "mask", "mask2"} for item in items)
    shutil.rmtree(root / "Masks")
    with pytest.raises(DatasetLayoutError) as raised:
        checked(root, tmp_path)
    assert raised.value.code == "E_MISSING_FILE"


def test_stray_levels_of_copies_are_read_by_a_threshold(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    with Image.open(root / "Image_01L_1stHO.png") as mask:
        whole = np.array(mask.convert("L"))
    stray = whole.copy()
    stray.flat[::100] = np.where(stray.flat[::100] > 0, 200, 60)
    save(root / "Image_01L_1stHO.png", stray)
    builder, splits = checked(root, tmp_path)
    example = builder.example(splits["train"][0])
    read = builder.info.features["mask"].decode_example_np(example["mask"])
    np.testing.assert_array_equal(read[..., 0] * 255, whole)
