import gzip
import shutil

import numpy as np
import pytest
from conftest import ROOT
from fake_trees.images import save
from fake_trees.stare import NUMBERS, make_stare
from PIL import Image

from medinit_jax.data.builders import image_files
from medinit_jax.data.builders.stare import TEST, TRAIN, MedinitStare
from medinit_jax.data.fov import fov_mask
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.prepare import prepare

REAL = ROOT.parent / "shared/data/fundus/STARE"


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    return make_stare(tmp_path_factory.mktemp("stare"))


def checked(root, tmp_path, config="ah"):
    builder = MedinitStare(data_dir=tmp_path, config=config, strict_counts=False)
    return builder, builder.checked_items(builder.locate(root))


def read(path):
    content = path.read_bytes()
    place = path.with_suffix(".unpacked")
    place.write_bytes(gzip.decompress(content) if path.suffix == ".gz" else content)
    with Image.open(place) as image:
        return np.array(image)


def test_the_split_is_ten_and_ten():
    assert len(TRAIN) == len(TEST) == len(set(TRAIN + TEST)) / 2 == 10


@pytest.mark.parametrize("config", ["ah", "vk"])
def test_pixels_and_masks_are_those_of_the_files(fake, tmp_path, config):
    builder = MedinitStare(data_dir=tmp_path, config=config, strict_counts=False)
    prepare(builder, fake, workers=0)
    seen = set()
    for split, numbers in (("train", TRAIN), ("test", TEST)):
        for example in builder.as_data_source(split):
            name = example["image_id"].decode()
            assert name[2:] in numbers
            seen.add(name[2:])
            found = {
                kind: read(next((fake / kind).glob(f"{name}.*")))
                for kind in ("stare-images", "labels-ah", "labels-vk")
            }
            np.testing.assert_array_equal(example["image"], found["stare-images"])
            ah = found["labels-ah"][..., None] // 255
            vk = found["labels-vk"][..., :1] // 255
            first, second = (ah, vk) if config == "ah" else (vk, ah)
            assert vk.sum() > ah.sum()
            np.testing.assert_array_equal(example["mask"], first)
            np.testing.assert_array_equal(example["mask2"][0], second)
            assert set(np.unique(example["fov"])) == {0, 255} and example["fov_found"] == 1
            assert example["fov_source"] == 1  # computed
    assert seen == set(NUMBERS)


def test_each_photograph_is_left_out_once(fake, tmp_path):
    builder = MedinitStare(data_dir=tmp_path, config="loo", strict_counts=False)
    prepare(builder, fake, workers=0)
    folds = {e["image_id"].decode()[2:]: int(e["fold"]) for e in builder.as_data_source("train")}
    assert folds == {n: sorted(TRAIN + TEST).index(n) for n in NUMBERS}


def test_fields_of_view_from_files_are_taken_and_said_to_be(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    field = np.zeros((60, 70), np.uint8)
    field[5:55, 5:65] = 255
    for number in NUMBERS:
        save(root / f"masks/mask_{number}.png", field)
    builder, splits = checked(root, tmp_path)
    example = builder.example(splits["test"][0])
    decoded = builder.info.features["fov"].decode_example_np(example["fov"])
    np.testing.assert_array_equal(decoded[..., 0], field)
    assert example["fov_source"] == "file" and example["fov_found"] == 1
    (root / "masks/mask_0001.png").unlink()
    with pytest.raises(DatasetLayoutError, match="field of view") as raised:
        MedinitStare(data_dir=tmp_path).checked_items(builder.locate(root))
    assert raised.value.code == "E_ORPHAN"


@pytest.mark.parametrize("layout", ["images", "flat", "labels/", "outer"])
def test_other_layouts_are_the_same_dataset(fake, tmp_path, layout):
    _, wanted = checked(fake, tmp_path)
    root = shutil.copytree(fake, tmp_path / "tree" / "STARE").parent
    inner = root / "STARE"
    if layout == "images":
        (inner / "stare-images").rename(inner / "images")
    elif layout == "labels/":
        (inner / "labels").mkdir()
        for name in ("labels-ah", "labels-vk"):
            (inner / name).rename(inner / "labels" / name)
    elif layout == "flat":
        for path in list(inner.glob("*/*")):
            path.rename(inner / path.name)
        for folder in [path for path in inner.iterdir() if path.is_dir()]:
            folder.rmdir()
    _, found = checked(root, tmp_path)
    assert {s: [i.key for i in items] for s, items in found.items()} == {
        s: [i.key for i in items] for s, items in wanted.items()
    }
    assert all("mask2" in item.files for items in found.values() for item in items)


def test_photographs_without_vessels_are_listed(fake, tmp_path):
    root = shutil.copytree(fake, tmp_path / "tree")
    shutil.copy(root / "stare-images/im0001.ppm", root / "stare-images/im0006.ppm")
    builder, splits = checked(root, tmp_path)
    assert sum(map(len, splits.values())) == len(NUMBERS)
    assert builder.ignored == ["im0006.ppm: not one of the 20 with vessels"]


def test_packed_files_unpack_only_so_far(fake, tmp_path, monkeypatch):
    builder, splits = checked(fake, tmp_path)
    item = next(i for s in splits.values() for i in s if i.files["image"].name.endswith(".gz"))
    builder.example(item)
    monkeypatch.setattr(image_files, "_MOST_UNPACKED", 1000)
    with pytest.raises(DatasetLayoutError, match="unpacks to more than") as raised:
        builder.example(item)
    assert raised.value.code == "E_DECODE"


@pytest.mark.skipif(not REAL.exists(), reason="the real STARE is not here")
def test_the_real_download(tmp_path):
    builder = MedinitStare(data_dir=tmp_path)
    manifest = prepare(builder, REAL, workers=0)
    assert manifest["splits"] == {"train": 10, "test": 10} and not manifest["ignored"]
    overlaps = []
    for example in [*builder.as_data_source("train"), *builder.as_data_source("test")]:
        assert example["image"].shape == (605, 700, 3)
        assert 0.04 < example["mask"].mean() < 0.13 and example["mask2"] == []
        assert example["fov_source"] == 0 and 0.65 < (example["fov"] > 0).mean() < 0.85
        computed, found = fov_mask(example["image"], MedinitStare.FIELD_SHARE)
        drawn = example["fov"][..., 0] > 0
        assert found
        overlaps.append((computed & drawn).sum() / (computed | drawn).sum())
    # What is computed where no masks are.
    assert min(overlaps) > 0.95 and np.mean(overlaps) > 0.965
    with pytest.raises(DatasetLayoutError) as raised:
        vk = MedinitStare(data_dir=tmp_path, config="vk")
        vk.checked_items(vk.locate(REAL))
    assert raised.value.code == "E_MISSING_FILE"
