import io

import numpy as np
import pytest
from fake_trees.images import photograph
from PIL import Image

from medinit_jax.data.decode import DecodeError, decode, decode_with_size


def encoded(width, height, orientation=1):
    image = Image.fromarray(photograph("decode", width, height)["image"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_size_is_that_of_the_file_however_small_it_is_decoded():
    content = encoded(1200, 800)
    whole, size = decode_with_size(content)
    assert size == (800, 1200) == whole.shape[:2]
    np.testing.assert_array_equal(decode(content), whole)
    small, size = decode_with_size(content, 100)
    assert size == (800, 1200) and small.shape == (200, 300, 3)
    blocks = whole.reshape(200, 4, 300, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).mean() < 3


def test_a_picture_on_its_side():
    for at_least in (0, 100):
        image, size = decode_with_size(encoded(1200, 800, orientation=6), at_least)
        assert size == (1200, 800) and image.shape[0] > image.shape[1]
    _, size = decode_with_size(encoded(1200, 800, orientation=3))
    assert size == (800, 1200)


def test_half_a_file_is_refused():
    content = encoded(120, 80)
    with pytest.raises(DecodeError):
        decode_with_size(content[: len(content) // 2])
