"""Every format that is read, in every kind that comes from cameras and annotation tools."""

import io
import logging
import warnings

import cv2
import numpy as np
import pytest
from fake_trees.images import photograph
from PIL import Image

from medinit_jax.data import decode as decoding
from medinit_jax.data.decode import DecodeError, MaskError, decode, decode_mask, decode_with_size


def colors(height=24, width=40):
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, y * 0 + 90], axis=-1).astype(np.uint8)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "PPM"])
def test_lossless_color(kind):
    np.testing.assert_array_equal(decode(encoded(colors(), kind)), colors())


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"])
def test_compressed_tiff(compression):
    read = decode(encoded(colors(), "TIFF", compression=compression))
    assert np.abs(read.astype(int) - colors()).mean() < (6 if compression == "jpeg" else 1e-9)


def test_jpeg_color_gray_and_progressive():
    for options in ({}, {"progressive": True}, {"subsampling": 0}):
        read = decode(encoded(colors(), "JPEG", quality=95, **options))
        assert np.abs(read.astype(int) - colors()).mean() < 6
    gray = decode(encoded(colors()[..., 0], "JPEG", quality=95))
    assert (gray[..., 0] == gray[..., 2]).all()
    assert np.abs(gray[..., 0].astype(int) - colors()[..., 0]).mean() < 3


def test_cmyk_jpeg():
    image = Image.fromarray(colors()).convert("CMYK")
    read = decode(encoded(image, "JPEG", quality=100, subsampling=0))
    assert np.abs(read.astype(int) - colors()).mean() < 4


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "PPM"])
def test_gray(kind):
    gray = colors()[..., 0]
    np.testing.assert_array_equal(decode(encoded(gray, kind)), np.repeat(gray[..., None], 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP", "PPM"])
def test_one_bit(kind):
    bits = np.indices((24, 40)).sum(0) % 2 == 0
    read = decode(encoded(Image.fromarray(bits), kind))
    np.testing.assert_array_equal(read, np.repeat(bits[..., None] * np.uint8(255), 3, -1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "BMP"])
def test_palette(kind):
    image = Image.new("P", (6, 4))
    image.putdata([i % 3 for i in range(24)])
    image.putpalette([255, 0, 0, 0, 255, 0, 10, 20, 30])
    expected = np.array([[255, 0, 0], [0, 255, 0], [10, 20, 30]], np.uint8)[np.arange(24) % 3]
    np.testing.assert_array_equal(decode(encoded(image, kind)), expected.reshape(4, 6, 3))


def test_transparent_palette_is_black():
    image = Image.new("P", (2, 1))
    image.putdata([0, 1])
    image.putpalette([200, 0, 0, 0, 200, 0])
    for kind, transparency in (("GIF", 0), ("PNG", 0), ("PNG", b"\x00\xff")):
        read = decode(encoded(image, kind, transparency=transparency))
        assert read.tolist() == [[[0, 0, 0], [0, 200, 0]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_gray_are_stretched(kind):
    deep = (1000 + np.arange(1200).reshape(30, 40) * 3).astype(np.uint16)
    read = decode(encoded(Image.fromarray(deep), kind))
    low, high = np.percentile(deep, (0.5, 99.5))
    expected = np.clip((deep - low) * 255 / (high - low), 0, 255)
    assert np.abs(read - expected[..., None]).max() <= 0.51
    assert (read[..., 0] == read[..., 1]).all() and read.dtype == np.uint8


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_sixteen_bits_of_color_keep_the_upper_eight(suffix):
    deep = colors().astype(np.uint16) * 256 + 77
    done, content = cv2.imencode(suffix, deep[..., ::-1])
    assert done
    np.testing.assert_array_equal(decode(content.tobytes()), colors())


def test_big_endian_and_float_tiff():
    deep = np.arange(1200).reshape(30, 40).astype(">u2")
    content = encoded(Image.frombytes("I;16B", (40, 30), deep.tobytes()), "TIFF")
    values = np.arange(1200, dtype=np.float32).reshape(30, 40)
    np.testing.assert_array_equal(decode(content), decode(encoded(values, "TIFF")))
    values[0, 0], values[0, 1] = np.nan, np.inf
    read = decode(encoded(values, "TIFF"))
    assert read[0, 0, 0] == read[0, 1, 0] == 0 and read[-1, -1, 0] == 255
    assert not decode(encoded(values * np.nan, "TIFF")).any()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize(("orientation", "turn"), [(3, 2), (6, 3), (8, 1)])
def test_exif_rotation(kind, orientation, turn):
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = decode(encoded(colors(), kind, exif=exif)).astype(int)
    assert np.abs(read - np.rot90(colors(), turn)).mean() < 8


def test_first_frame_of_what_moves():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "lime", "blue")]
    for kind in ("GIF", "TIFF", "PNG"):
        content = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (decode(content) == [255, 0, 0]).all()


def test_only_known_formats_are_opened():
    # Pillow hands PostScript to Ghostscript.
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(DecodeError, match="cannot identify"):
        decode(content)


def test_size_limits(monkeypatch, tmp_path):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 24 * 40 - 1)
    with pytest.raises(DecodeError, match=r"40 x 24 pixels, more than is read \(959 pixels"):
        decode(encoded(colors(), "PNG"))
    monkeypatch.setattr(decoding, "MAX_SIDE", 39)
    with pytest.raises(DecodeError, match="40 x 2 pixels, more than is read .* 39 a side"):
        decode(encoded(colors(2), "PNG"))
    monkeypatch.setattr(decoding, "MAX_BYTES", 100)
    (tmp_path / "a.png").write_bytes(encoded(colors(), "PNG"))
    with pytest.raises(DecodeError, match="bytes, more than is read .* 100 bytes"):
        decode(tmp_path / "a.png")


def tag_entry(content, tag):
    """Returns where a tag of an uncompressed little-endian TIFF stands."""
    start = int.from_bytes(content[4:8], "little")
    for i in range(int.from_bytes(content[start : start + 2], "little")):
        place = start + 2 + 12 * i
        if int.from_bytes(content[place : place + 2], "little") == tag:
            return place
    raise AssertionError(tag)


def test_what_pillow_says_of_a_tiff_is_a_reason_or_nothing():
    content = bytearray(encoded(colors(), "TIFF", software="scanner of the clinic"))
    place = tag_entry(content, 305)
    content[place + 8 : place + 12] = (1 << 30).to_bytes(4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DecodeError, match="Truncated File Read"):
            decode(bytes(content))
    harmless = bytearray(encoded(colors(), "TIFF"))
    # Two values where one is expected.
    place = tag_entry(harmless, 259)
    harmless[place + 4 : place + 8] = (2).to_bytes(4, "little")
    harmless[place + 8 : place + 12] = (1 | 1 << 16).to_bytes(4, "little")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode(bytes(harmless)), colors())


def test_masks_keep_their_values(caplog):
    levels = (np.arange(1200) % 5).astype(np.uint8).reshape(30, 40)
    for kind in ("PNG", "TIFF", "GIF", "BMP"):
        np.testing.assert_array_equal(decode_mask(encoded(levels, kind)), levels)
    np.testing.assert_array_equal(decode_mask(encoded(levels.astype(np.uint16), "PNG")), levels)
    three = np.repeat(levels[..., None], 3, -1)
    np.testing.assert_array_equal(decode_mask(encoded(three, "PNG")), levels)
    clear = np.concatenate([three, three[..., :1] * 0], axis=-1)
    np.testing.assert_array_equal(decode_mask(encoded(clear, "PNG")), levels)
    np.testing.assert_array_equal(decode_mask(encoded(levels > 2, "PNG")), (levels > 2) * 255)
    for bad in (colors(), levels.astype(np.uint16) + 300, levels + np.float32(0.5)):
        with pytest.raises(MaskError, match="a mask has"):
            decode_mask(encoded(bad, "TIFF" if bad.dtype == np.float32 else "PNG"))
    with pytest.raises(DecodeError, match="cannot identify"):
        decode_mask(b"nothing")
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def photograph_jpeg(width, height, orientation=1):
    image = Image.fromarray(photograph("decode", width, height)["image"])
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


def test_size_is_that_of_the_file_however_small_it_is_decoded():
    content = photograph_jpeg(1200, 800)
    whole, size = decode_with_size(content)
    assert size == (800, 1200) == whole.shape[:2]
    np.testing.assert_array_equal(decode(content), whole)
    small, size = decode_with_size(content, 100)
    assert size == (800, 1200) and small.shape == (200, 300, 3)
    blocks = whole.reshape(200, 4, 300, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - blocks).mean() < 3


def test_a_picture_on_its_side():
    for at_least in (0, 100):
        image, size = decode_with_size(photograph_jpeg(1200, 800, orientation=6), at_least)
        assert size == (1200, 800) and image.shape[0] > image.shape[1]
    _, size = decode_with_size(photograph_jpeg(1200, 800, orientation=3))
    assert size == (800, 1200)


def test_half_a_file_is_refused():
    content = photograph_jpeg(120, 80)
    with pytest.raises(DecodeError):
        decode_with_size(content[: len(content) // 2])
