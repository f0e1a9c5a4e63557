import io
import tempfile

import cv2
import numpy as np
import pytest
from etils import epath
from fake_trees.images import LFS_POINTER, cut_short
from PIL import Image
from tensorflow_datasets.core.utils import gcs_utils

from medinit_jax.data.builders import BUILDERS
from medinit_jax.data.builders.base import Builder, refuse_many_skipped
from medinit_jax.data.builders.config import Config, Item
from medinit_jax.data.layout import DatasetLayoutError
from medinit_jax.data.phantoms import fundus


class Photographs(Builder, skip_registration=True):
    """Images alone."""

    MANUAL_DOWNLOAD_INSTRUCTIONS = "None."
    BUILDER_CONFIGS = [
        Config(name="whole"),
        Config(name="shorter", shorter=100),
        Config(name="square", square=96),
    ]

    def features(self):
        return {}


@pytest.fixture
def photograph(tmp_path):
    """A JPEG of 300 x 400 pixels."""
    image = cv2.resize(fundus.render(3, 1, 300)["image"], (400, 300))
    place = epath.Path(tmp_path / "photograph.jpg")
    Image.fromarray(image).save(place, quality=92)
    return place


def item(place):
    return Item("train/photograph", {"image": place}, {})


def pixels(encoded):
    with Image.open(io.BytesIO(encoded)) as image:
        return np.array(image).astype(int)


@pytest.mark.parametrize(
    ("config", "shape"),
    [("whole", (300, 400)), ("shorter", (100, 133)), ("square", (96, 96))],
)
def test_a_file_is_stored_like_its_image(config, shape, photograph, tmp_path):
    builder = Photographs(data_dir=tmp_path, config=config)
    stored = builder.example(item(photograph))
    slow = builder.stored_image(builder.read_image(photograph), photograph)
    assert stored["orig_size"].tolist() == slow["orig_size"].tolist() == [300, 400]
    fast, slow = pixels(stored["image"]), pixels(slow["image"])
    assert fast.shape == slow.shape == (*shape, 3)
    if config == "whole":
        np.testing.assert_array_equal(fast, slow)
    else:
        # What decoding at a half adds is less than what JPEG loses anyway.
        exact = builder.resized(builder.read_image(photograph))
        assert np.mean((fast - exact) ** 2) < 1.5 * np.mean((slow - exact) ** 2)


def test_turned_photographs_have_their_upright_size(photograph, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photograph) as image:
        image.load()
        image.save(photograph, exif=exif)
    stored = Photographs(data_dir=tmp_path, config="shorter").example(item(photograph))
    assert stored["orig_size"].tolist() == [400, 300]
    assert pixels(stored["image"]).shape == (133, 100, 3)


def test_too_many_unreadable_files_are_named_up_to_ten():
    reasons = [f"photographs: {number}.jpg cannot be read (cut)" for number in range(12)]
    refuse_many_skipped("photographs", "/here", reasons, 12_000)
    with pytest.raises(DatasetLayoutError) as raised:
        refuse_many_skipped("photographs", "/here", reasons, 11_999)
    first = ", ".join(f"{number}.jpg cannot be read (cut)" for number in range(10))
    _, where, found, _ = str(raised.value).splitlines()
    assert where == "  in /here" and f"found {first} and 2 more; expected" in found


@pytest.mark.parametrize("name", BUILDERS)
def test_licenses_have_an_address(name, tmp_path):
    builder = BUILDERS[name](data_dir=tmp_path)
    text = builder.info.redistribution_info.license
    assert text.startswith(builder.LICENSE)
    assert name == "medinit_table" or "https://" in text.removeprefix(builder.LICENSE)


def test_unreadable_files_say_so(photograph, tmp_path):
    builder = Photographs(data_dir=tmp_path, config="shorter")
    cut_short(photograph)
    with pytest.raises(DatasetLayoutError) as raised:
        builder.example(item(photograph))
    assert raised.value.code == "E_DECODE"
    photograph.write_bytes(LFS_POINTER)
    with pytest.raises(DatasetLayoutError) as raised:
        builder.example(item(photograph))
    assert raised.value.code == "E_LFS"


@pytest.mark.parametrize("name", BUILDERS)
def test_nobody_is_asked_for_a_set_and_no_folder_is_left(name, tmp_path, monkeypatch):
    def asked(*names):
        raise AssertionError(f"Google is asked for {names}")

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(gcs_utils, "gcs_dataset_info_files", asked)
    BUILDERS[name](data_dir=tmp_path / "data")
    assert not list(temporary.iterdir())
