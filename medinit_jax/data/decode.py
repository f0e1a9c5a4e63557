"""From an image file to a square uint8 RGB array."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from medinit_jax.data.fov import circle_crop

Fit = Literal["crop", "pad", "fov"]
# By which a JPEG's sides can be divided, as flags of OpenCV that leave the color open.
_FRACTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class DecodeError(Exception):
    """A file is no image that can be read; the message is the reason."""


def decode(source: Path | bytes, at_least: int = 0, headroom: float = 1.5) -> np.ndarray:
    """Reads one image as RGB.

    The first frame counts, EXIF orientation is applied, gray becomes three equal channels, what is
    transparent becomes black, and gray of more than 8 bits is stretched from its 0.5th to its
    99.5th percentile; of color with 16 bits the upper 8 count.

    Args:
        source: File, or a file's bytes.
        at_least: The shorter side that is needed; JPEGs are decoded at a half, a quarter or an
            eighth of their size as long as they stay `headroom` times as large.
        headroom: 1 is enough for what is sampled once, as `augment.warp` does; of one and a half
            times the average is nearer to the whole image's than a JPEG stores it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DecodeError: The file is no image or is cut short.
    """
    return decode_with_size(source, at_least, headroom)[0]


def decode_with_size(
    source: Path | bytes, at_least: int = 0, headroom: float = 1.5
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads one image as `decode` does.

    Returns:
        uint8 (H, W, 3), and the height and width that the file has without `at_least`.

    Raises:
        DecodeError: The file is no image or is cut short.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    with opened(content) as image:
        width, height = image.size
        orientation = _orientation(image)
        size = (width, height) if orientation >= 5 else (height, width)
        fraction = _fraction(image, at_least * headroom)
        if image.format == "JPEG" and image.mode in ("L", "RGB") and orientation == 1:
            # The same library below Pillow and OpenCV, but twice as fast without Pillow's copies.
            flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION | _FRACTIONS[fraction]
            # What OpenCV refuses, Pillow reads or says why not.
            with contextlib.suppress(cv2.error):
                decoded = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
                if decoded is not None:
                    return decoded, size
        image.draft(image.mode, (width // fraction, height // fraction))
        return _to_rgb(ImageOps.exif_transpose(image) if orientation != 1 else image), size


@contextlib.contextmanager
def opened(source: bytes) -> Iterator[Image.Image]:
    """Opens one image; what goes wrong with it until it is closed is a DecodeError."""
    try:
        with Image.open(io.BytesIO(source)) as image:
            yield image
    except Exception as error:
        # What a damaged file raises depends on the decoder and on the damage: it can be anything.
        reason = str(error).splitlines() or [type(error).__name__]
        raise DecodeError(reason[0]) from error


def _orientation(image: Image.Image) -> int:
    """Returns EXIF's number: 1 is upright, from 5 on width and height are exchanged."""
    return image.getexif().get(ExifTags.Base.Orientation, 1)


def _fraction(image: Image.Image, needed: float) -> int:
    """Returns 1, 2, 4 or 8, by which the sides of a JPEG are divided."""
    if image.format != "JPEG" or not needed:
        return 1
    return max(f for f in _FRACTIONS if f == 1 or min(image.size) >= f * needed)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return to_rgb(np.asarray(image))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.array(image.convert("RGB"))


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Makes uint8 (H, W, 3) of an array.

    Args:
        array: (H, W), (H, W, 1) or (H, W, 3); uint8 is kept, anything else is stretched from its
            0.5th to its 99.5th percentile.

    Returns:
        uint8 (H, W, 3).
    """
    if array.dtype != np.uint8:
        values = array.astype(np.float32)
        low, high = np.percentile(values, (0.5, 99.5)).tolist()
        values = (values - low) * (255 / max(high - low, 1e-6))
        array = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array


def fit_square(image: np.ndarray, size: int, fit: Fit = "crop") -> np.ndarray:
    """Resizes an image to a square without changing its aspect ratio.

    Args:
        image: uint8 (H, W, 3).
        size: Side of the result in pixels.
        fit: "crop": the shorter side becomes `size`, the middle of the longer side stays. "pad":
            the longer side becomes `size`, the rest is black. "fov": the box around the bright
            field of a fundus photograph, padded to a square, becomes the image.

    Returns:
        uint8 (size, size, 3).
    """
    if fit == "fov":
        image = circle_crop(image)
    height, width = image.shape[:2]
    side = min(height, width) if fit == "crop" else max(height, width)
    scale = size / side
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    if new != (width, height):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, new, interpolation=method)
    height, width = image.shape[:2]
    top, left = (max(0, s - size) // 2 for s in (height, width))
    image = image[top : top + size, left : left + size]
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return np.ascontiguousarray(image)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = image
    return square
