"""The sides of the comparison of host augmentation do the same work."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from medinit_jax.data.builders.image_files import jpeg, png


@pytest.fixture(scope="module")
def peers():
    folder = str(Path(__file__).parents[2] / "benchmarks")
    sys.path.insert(0, folder)
    import data_peers

    sys.path.remove(folder)
    return data_peers


@pytest.fixture(scope="module")
def example():
    """A bright disc beside the middle, as JPEG and as mask."""
    yy, xx = np.mgrid[:512, :512]
    mask = ((yy - 230) ** 2 + (xx - 280) ** 2 < 90**2).astype(np.uint8)
    image = np.stack([mask * 200, mask * 160, mask * 120 + np.uint8(20)], axis=-1)
    return jpeg(image), png(mask)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ("ours", "ours_full", "albumentations", "pillow"))
def test_sides_give_views_and_pairs(name, peers, example):
    if name == "albumentations" and importlib.util.find_spec(name) is None:
        pytest.skip("albumentations is not installed: benchmarks/data.txt")
    side = peers.SIDES[name]()
    areas, brightness = [], []
    for number in range(40):
        views = side.views(example[0], number)
        assert views.shape == (2, peers.SIZE, peers.SIZE, 3) and views.dtype == np.uint8
        assert (views[0] != views[1]).any()
        image, mask = side.pair(*example, number)
        assert image.shape == (peers.SIZE, peers.SIZE, 3) and image.dtype == np.uint8
        assert mask.shape == (peers.SIZE, peers.SIZE) and set(np.unique(mask)) == {0, 1}
        bright = image[..., 0] > image[..., 0].max() / 2
        # Peers sample masks beside the middle of a pixel, which moves the edge a little.
        assert np.mean(bright != (mask > 0)) < 0.02
        areas.append(mask.mean())
        brightness.append(image[mask > 0].mean() / 160)
    # Zoom 0.8 to 1.2, and brightness and contrast by a fifth each.
    plain = np.pi * 90**2 / 512**2
    assert 0.6 * plain < min(areas) < 0.85 * plain and 1.15 * plain < max(areas) < 1.5 * plain
    assert min(brightness) < 0.9 and max(brightness) > 1.1
