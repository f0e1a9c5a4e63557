import numpy as np
import pytest

from medinit_jax.data.phantoms import PHANTOMS, xray


@pytest.fixture(scope="module")
def drawn():
    return [xray.render(seed, 0, 128) for seed in range(200, 264)]


def test_every_phantom_is_called_the_same_way():
    for phantom in PHANTOMS.values():
        example = phantom.render(1, phantom.eyes[0], 48)
        assert example["image"].shape == (48, 48, 3) and example["image"].dtype == np.uint8
        assert phantom.label in example["labels"]
        assert set(phantom.masks) == set(example["masks"])
        assert example["eye"] == phantom.eyes[0] and isinstance(example["patient"], str)


def test_same_seed_gives_the_same_bytes():
    np.testing.assert_array_equal(xray.render(4, 0, 64)["image"], xray.render(4, 0, 64)["image"])


def test_channels_are_equal_and_lungs_are_darker_than_the_spine(drawn):
    for example in drawn:
        image, lungs = example["image"], example["masks"]["lungs"].astype(bool)
        np.testing.assert_array_equal(image[..., 0], image[..., 2])
        assert 0.1 < lungs.mean() < 0.5
        assert image[lungs].mean() + 30 < image[50:70, 60:68].mean()


def test_right_lung_reaches_higher_and_the_heart_lies_left(drawn):
    """The patient's right lies on the image's left; this is what tells mirrored images."""
    image = np.mean([example["image"][..., 0] for example in drawn], axis=0)
    heart = slice(75, 88)
    assert image[heart, 70:95].mean() > image[heart, 33:58].mean() + 15


def test_boxes_exist_exactly_for_opacities_and_lie_in_the_image(drawn):
    kinds = {example["labels"]["class3"] for example in drawn}
    assert kinds == {0, 1, 2}
    for example in drawn:
        assert (len(example["boxes"]) > 0) == example["labels"]["opacity"]
        for x, y, width, height in example["boxes"]:
            assert 0 <= x and x + width <= 128 and 0 <= y and y + height <= 128
            assert width > 4 and height > 4


def test_opacity_brightens_its_box_and_nothing_else():
    bright, elsewhere = [], []
    for seed in range(30):
        healthy = xray.render(seed, 0, 128, finding="normal")
        ill = xray.render(seed, 0, 128, finding="opacity")
        if healthy["labels"]["view"] != ill["labels"]["view"]:
            continue
        change = ill["image"][..., 0].astype(float) - healthy["image"][..., 0]
        inside = np.zeros((128, 128), bool)
        for x, y, width, height in ill["boxes"]:
            inside[int(y) : int(y + height), int(x) : int(x + width)] = True
        bright.append(change[inside].mean())
        elsewhere.append(np.abs(change[:20]).mean())
    assert len(bright) > 10
    assert np.mean(bright) > 8
    assert np.mean(elsewhere) < 4


def test_class_shares():
    classes = [xray.render(seed, 0, 16)["labels"]["class3"] for seed in range(150)]
    share = np.bincount(classes, minlength=3) / 150
    np.testing.assert_allclose(share, (0.33, 0.44, 0.23), atol=0.12)


def test_findings_are_known_without_drawing():
    for seed in range(40):
        example, (kind, count) = xray.render(seed, 0, 32), xray.draw_finding(seed)
        assert xray.CLASSES[example["labels"]["class3"]] == kind
        assert len(example["boxes"]) == count
        assert (1 <= count <= 5) == (kind == "opacity")
