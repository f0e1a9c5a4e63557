import io

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from medinit_jax.data.decode import DecodeError, decode, decode_with_size
from medinit_jax.data.phantoms import fundus


@pytest.fixture(scope="module")
def photograph():
    """201 x 150 pixels."""
    return np.ascontiguousarray(fundus.render(2, 1, 201)["image"][:, :150])


def encoded(array, kind="JPEG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.array(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"progressive": True},
        {"mode": "L"},
        {"mode": "CMYK"},
        {"kind": "PNG"},
        {"kind": "PNG", "mode": "P"},
    ],
)
def test_pixels_are_those_of_pillow(options, photograph):
    content = encoded(photograph, **options)
    pixels, size = decode_with_size(content)
    assert pixels.dtype == np.uint8 and pixels.flags.writeable
    assert np.abs(pixels.astype(int) - by_pillow(content)).max() <= 1
    assert size == photograph.shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(orientation, photograph):
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(photograph, exif=exif)
    pixels, size = decode_with_size(content)
    assert np.abs(pixels.astype(int) - by_pillow(content)).max() <= 1
    assert size == pixels.shape[:2] == ((150, 201) if orientation >= 5 else (201, 150))
    half, same = decode_with_size(content, at_least=50)
    assert same == size and half.shape[:2] == tuple(-(-side // 2) for side in size)


@pytest.mark.parametrize(
    ("needed", "fraction"),
    [(0, 1), (151, 1), (76, 1), (75, 2), (38, 2), (37, 4), (19, 4), (18, 8), (1, 8)],
)
def test_jpegs_come_at_the_smallest_fraction_that_is_enough(needed, fraction, photograph):
    for mode in ("RGB", "L", "CMYK"):
        pixels = decode(encoded(photograph, mode=mode), needed, headroom=1)
        assert pixels.shape == (-(-201 // fraction), -(-150 // fraction), 3)
    assert decode(encoded(photograph, "PNG"), needed, headroom=1).shape == (201, 150, 3)


def test_half_as_much_again_stays_unless_told_otherwise(photograph):
    content = encoded(photograph)
    assert decode(content, at_least=50).shape == (101, 75, 3)
    assert decode(content, at_least=51).shape == (201, 150, 3)


def test_a_fraction_is_the_mean_of_its_pixels(photograph):
    content = encoded(photograph[:200], quality=95, subsampling=0)
    means = decode(content).reshape(100, 2, 75, 2, 3).mean(axis=(1, 3))
    assert np.abs(decode(content, at_least=50) - means).mean() < 0.6


def test_an_average_of_half_as_much_again_is_nearer_than_jpeg_is():
    image = fundus.render(4, 1, 400)["image"]
    content = encoded(image, quality=90)
    # 200 pixels are one and a half times 133.
    whole, half = (
        cv2.resize(decode(content, n), (133, 133), interpolation=cv2.INTER_AREA) for n in (0, 133)
    )
    stored = decode(encoded(whole, quality=92))
    errors = [np.mean((whole.astype(float) - other) ** 2) for other in (half, stored)]
    assert 0 < errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize("kind", ("JPEG", "PNG"))
@pytest.mark.parametrize("share", (0.0, 0.01, 0.4, 0.99))
def test_files_cut_short_are_refused(kind, share, photograph):
    content = encoded(photograph, kind)
    for at_least in (0, 50):
        with pytest.raises(DecodeError):
            decode(content[: int(share * len(content))], at_least)


def test_no_image_has_no_size():
    with pytest.raises(DecodeError, match="cannot identify"):
        decode_with_size(b"not an image")
