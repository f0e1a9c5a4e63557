"""From an image file to a square uint8 RGB array."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from medinit_jax.data.fov import circle_crop

Fit = Literal["crop", "pad", "fov"]
# Mammograms have up to 35 million pixels; at 50 million, copies with four channels fit in 1 GiB.
MAX_PIXELS = 50_000_000
# A long strip becomes a square of its longer side.
MAX_SIDE = 1 << 14
MAX_BYTES = 1 << 30
# Pillow knows more, among them PostScript, which it hands to another program.
FORMATS = ("JPEG", "PNG", "TIFF", "GIF", "BMP", "PPM", "WEBP", "JPEG2000")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_ONE_LISTENS = threading.Lock()
_IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".webp"}
)


# By which a JPEG's sides can be divided, as flags of OpenCV that leave the color open.
_FRACTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class DecodeError(Exception):
    """A file is no image that can be read; the message is the reason."""


class MaskError(DecodeError):
    """A readable image is no mask; the message is the reason."""


def decode(
    source: Path | bytes, at_least: int = 0, part: int | None = None, headroom: float = 1.5
) -> np.ndarray:
    """Reads one image as RGB.

    DICOM is shown as `dicom.displayed` does, a NIfTI volume as `nifti.read_slice` does. Of other
    formats the first frame counts, EXIF orientation is applied, gray becomes three equal channels,
    what is transparent becomes black, and gray of more than 8 bits is stretched from its 0.5th to
    its 99.5th percentile; of color with 16 bits the upper 8 count.

    Args:
        source: File, or a file's bytes.
        at_least: The shorter side that is needed; JPEGs are decoded at a half, a quarter or an
            eighth of their size as long as they stay `headroom` times as large.
        part: Which frame of a DICOM file (None: the first), or axial slice of a NIfTI file (None:
            the one in the middle).
        headroom: 1 is enough for what is sampled once, as `augment.warp` does; of one and a half
            times the average is nearer to the whole image's than a JPEG stores it.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DecodeError: The file is no image, is damaged or is too large.
    """
    return decode_with_size(source, at_least, part, headroom)[0]


def decode_with_size(
    source: Path | bytes, at_least: int = 0, part: int | None = None, headroom: float = 1.5
) -> tuple[np.ndarray, tuple[int, int]]:
    """Reads one image as `decode` does.

    Returns:
        uint8 (H, W, 3), and the height and width that the file has without `at_least`.

    Raises:
        DecodeError: The file is no image, is damaged or is too large.
    """
    kind = medical_kind(source)
    if kind == "nifti" and isinstance(source, Path):
        from medinit_jax.data.nifti import read_slice

        array = read_slice(source, part)
        return array, array.shape[:2]
    if kind == "dicom":
        from medinit_jax.data.dicom import decode_dicom

        array = decode_dicom(source, part or 0)
        return array, array.shape[:2]
    content = source if isinstance(source, bytes) else _content(source)
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


def decode_mask(source: Path | bytes) -> np.ndarray:
    """Reads the values of a mask, unchanged.

    Gray levels stay what they are, 1 bit becomes 0 and 255, and of a palette the gray levels count,
    or its indices if it has colors.

    Args:
        source: File, or a file's bytes.

    Returns:
        uint8 (H, W).

    Raises:
        DecodeError: The file is no image or is cut short.
        MaskError: It has colors, or values that are not whole numbers from 0 to 255.
    """
    with opened(source) as image:
        image = ImageOps.exif_transpose(image)
        if image.mode == "P":
            palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
            used = [value for _, value in image.getcolors(256) or () if isinstance(value, int)]
            gray = bool((palette[used] == palette[used][:, :1]).all())
            return palette[np.asarray(image), 0].astype(np.uint8) if gray else np.array(image)
        values = np.asarray(image)
        if values.ndim == 3 and values.shape[2] in (2, 4):
            values = values[..., :-1]
        if values.ndim == 3 and (values != values[..., :1]).any():
            raise MaskError("a mask has gray levels or a palette, this has colors")
        values = values[..., 0] if values.ndim == 3 else values
        if values.dtype == bool:
            return values * np.uint8(255)
        if values.min() < 0 or values.max() > 255 or (values != np.floor(values)).any():
            raise MaskError("a mask has whole levels from 0 to 255, this has others")
        return values.astype(np.uint8)


@contextlib.contextmanager
def opened(source: Path | bytes) -> Iterator[Image.Image]:
    """Opens one image; what goes wrong with it until it is closed is a DecodeError.

    Args:
        source: File, or a file's bytes.

    Yields:
        The image, its pixels not yet decoded.

    Raises:
        DecodeError: The file is no image, is damaged, or is larger than `MAX_PIXELS` or `MAX_SIDE`.
    """
    try:
        content = source if isinstance(source, bytes) else _content(source)
        with _open(content) as image:
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
                raise DecodeError(_too_large(f"{width} x {height} pixels"))
            yield image
    except DecodeError:
        raise
    except Image.DecompressionBombError as error:
        raise DecodeError(_too_large("far too many pixels")) from error
    except UnidentifiedImageError as error:
        raise DecodeError("cannot identify the format of an image") from error
    except Exception as error:
        # What a damaged file raises depends on the decoder and on the damage: it can be anything.
        reason = str(error).splitlines() or [type(error).__name__]
        raise DecodeError(reason[0][:300]) from error


def _content(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise DecodeError(_too_large(f"{size} bytes"))
        return path.read_bytes()
    except OSError as error:
        raise DecodeError(str(error)) from error


def _too_large(what: str) -> str:
    return (
        f"the file has or declares {what}, more than is read ({MAX_PIXELS:,} pixels, {MAX_SIDE:,} "
        f"a side, {MAX_BYTES:,} bytes): save it smaller if it is not damaged"
    )


def _open(content: bytes) -> Image.Image:
    """Opens an image; a TIFF whose directory is damaged is refused, though Pillow only warns."""
    if not content.startswith(_TIFF):
        return Image.open(io.BytesIO(content), formats=FORMATS)
    heard: list[str] = []
    # Filters belong to all threads, so one thread listens at a time, to itself.
    with _ONE_LISTENS, warnings.catch_warnings():
        listener, others = threading.get_ident(), warnings.showwarning

        def hear(message, *where, **more) -> None:
            if threading.get_ident() == listener:
                heard.append(str(message))
            else:
                others(message, *where, **more)

        warnings.showwarning = hear
        warnings.filterwarnings("always", module=r"PIL\.")
        image = Image.open(io.BytesIO(content), formats=("TIFF",))
    # Tags of a value too many are common, and harm no pixel.
    damage = [message for message in heard if not message.startswith("Metadata Warning")]
    if damage:
        image.close()
        raise DecodeError(damage[0].splitlines()[0][:300])
    return image


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
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, (0, 0, 0, 255)), rgba)
    return np.array(image.convert("RGB"))


def to_rgb(array: np.ndarray) -> np.ndarray:
    """Makes uint8 (H, W, 3) of an array.

    Args:
        array: (H, W), (H, W, 1) or (H, W, 3); uint8 is kept, anything else is stretched from its
            0.5th to its 99.5th percentile, where NaN and infinity count as its lowest value.

    Returns:
        uint8 (H, W, 3).
    """
    if array.dtype != np.uint8:
        values = array.astype(np.float32)
        known = np.isfinite(values)
        if not known.all():
            values[~known] = values[known].min() if known.any() else 0
        low, high = np.percentile(values, (0.5, 99.5)).tolist()
        # In place: of a large image every copy counts.
        with np.errstate(over="ignore"):
            values -= np.float32(low)
            values *= np.float32(255 / max(high - low, 1e-6))
        array = np.clip(np.rint(values, out=values), 0, 255, out=values).astype(np.uint8)
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
