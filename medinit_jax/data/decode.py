"""From an image file to a square uint8 RGB array."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

from medinit_jax.data.fov import circle_crop

Fit = Literal["crop", "pad", "fov"]
_IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
)


class DecodeError(Exception):
    """A file is no image that can be read; the message is the reason."""


def decode(source: Path | bytes, at_least: int = 0, part: int | None = None) -> np.ndarray:
    """Reads one image as RGB.

    DICOM is shown as `dicom.displayed` does, a NIfTI volume as `nifti.read_slice` does. Of other
    formats the first frame counts, EXIF orientation is applied, gray becomes three equal channels,
    what is transparent becomes black, and gray of more than 8 bits is stretched from its 0.5th to
    its 99.5th percentile; of color with 16 bits the upper 8 count.

    Args:
        source: File, or a file's bytes.
        at_least: The shorter side that is needed; large JPEGs are decoded at a fraction of their
            size as long as they stay twice as large.
        part: Which frame of a DICOM file (None: the first), or axial slice of a NIfTI file (None:
            the one in the middle).

    Returns:
        uint8 (H, W, 3).

    Raises:
        DecodeError: The file is no image or is cut short.
    """
    return decode_with_size(source, at_least, part)[0]


def decode_with_size(
    source: Path | bytes, at_least: int = 0, part: int | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads one image as `decode` does.

    Returns:
        uint8 (H, W, 3), and the height and width that the file has without `at_least`.

    Raises:
        DecodeError: The file is no image or is cut short.
    """
    kind = medical_kind(source)
    if kind == "nifti" and isinstance(source, Path):
        from medinit_jax.data.nifti import read_slice

        image = read_slice(source, part)
        return image, image.shape[:2]
    if kind == "dicom":
        from medinit_jax.data.dicom import decode_dicom

        image = decode_dicom(source, part or 0)
        return image, image.shape[:2]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            width, height = image.size
            if at_least:
                image.draft("RGB", (2 * at_least, 2 * at_least))
            upright = ImageOps.exif_transpose(image)
            if upright.size != image.size:
                width, height = height, width
            return _to_rgb(upright), (height, width)
    except Exception as error:
        # What a damaged file raises depends on the decoder and on the damage: it can be anything.
        reason = str(error).splitlines() or [type(error).__name__]
        raise DecodeError(reason[0]) from error


def medical_kind(source: Path | bytes) -> Literal["dicom", "nifti"] | None:
    """Tells DICOM (by content or suffix) and NIfTI (by suffix) from images."""
    if isinstance(source, bytes):
        return "dicom" if source[128:132] == b"DICM" else None
    name = source.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        return "nifti"
    if name.endswith((".dcm", ".dicom", ".ima")):
        return "dicom"
    if source.suffix.lower() in _IMAGE_SUFFIXES or not source.is_file():
        return None
    # The files of a disc from a hospital have numbers for names.
    with source.open("rb") as stream:
        return medical_kind(stream.read(132))


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
