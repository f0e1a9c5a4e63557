import io

import numpy as np
import pytest
from PIL import Image

from medinit_jax.core.errors import UsageError
from medinit_jax.data.augment import Augmentation
from medinit_jax.data.decode import decode
from medinit_jax.data.paired import PairAugmentation, augment_pair

STILL = PairAugmentation(Augmentation(), brightness=0, contrast=0)
MOVING = PairAugmentation(brightness=0, contrast=0)


def rng(seed=0):
    return np.random.default_rng(seed)


def disc(height=128, width=128):
    yy, xx = np.mgrid[:height, :width]
    inside = ((yy - 0.4 * height) ** 2 + (xx - 0.6 * width) ** 2) < (0.2 * height) ** 2
    mask = inside.astype(np.uint8)
    return np.repeat(mask[..., None] * np.uint8(255), 3, axis=-1), mask


def test_no_ranges_change_nothing():
    image = rng(1).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    mask = rng(2).integers(0, 3, (48, 48), dtype=np.uint8)
    moved, label = augment_pair(image, mask, STILL, 48, rng())
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_array_equal(label, mask)


@pytest.mark.parametrize("shape", ((128, 128), (127, 131), (512, 511)))
@pytest.mark.parametrize("fraction", (1, 2, 4))
def test_the_mask_follows_the_image(shape, fraction):
    """Also where the image was reduced on its way: decoded at a fraction, or halved."""
    image, mask = disc(*shape)
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    reduced = decode(buffer.getvalue(), at_least=min(shape) // fraction, headroom=1)
    assert reduced.shape[0] == -(-shape[0] // fraction)
    for seed in range(10):
        moved, label = augment_pair(reduced, mask, MOVING, 96, rng(seed))
        assert moved.shape == (96, 96, 3) and label.shape == (96, 96)
        assert set(np.unique(label)) == {0, 1}
        bright = moved[..., 0] > 127
        # Middles, to a tenth of a pixel: a shift by half a source pixel would be more.
        for axis in (0, 1):
            middles = [np.argwhere(where)[:, axis].mean() for where in (bright, label > 0)]
            assert middles[0] == pytest.approx(middles[1], abs=0.12)
        assert np.mean(bright != (label > 0)) < 0.01


def test_light_changes_the_image_alone():
    image, mask = disc()
    image = image // 2 + 40
    ranges = PairAugmentation(Augmentation(), brightness=0.2, contrast=0.2)
    means = []
    for seed in range(200):
        moved, label = augment_pair(image, mask, ranges, 128, rng(seed))
        np.testing.assert_array_equal(label, mask)
        means.append(moved.mean() / image.mean())
    assert 0.79 < min(means) < 0.83 and 1.17 < max(means) < 1.21


def test_draws_depend_on_the_seed_alone():
    image, mask = disc()
    results = [augment_pair(image, mask, PairAugmentation(), 64, rng(s)) for s in (3, 3, 4)]
    for first, again, other in zip(*results, strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()


def test_several_masks_move_alike():
    image, mask = disc()
    stacked = np.stack([mask, 3 * mask], axis=-1)
    _, alone = augment_pair(image, mask, MOVING, 64, rng(1))
    _, both = augment_pair(image, stacked, MOVING, 64, rng(1))
    np.testing.assert_array_equal(both, np.stack([alone, 3 * alone], axis=-1))


def test_sizes_that_do_not_fit_are_refused():
    image, mask = disc()
    with pytest.raises(UsageError, match="does not fit a mask"):
        augment_pair(image[:100], mask, STILL, 64, rng())
