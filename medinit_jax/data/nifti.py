"""NIfTI volumes (.nii, .nii.gz) as slices; read by nibabel.

A volume is turned to the patient's axes first, so that slices of all files look alike, as on a
viewer: axial ones with the front up and the patient's right on the left.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data.decode import DecodeError, to_rgb

AXIAL = 2
MAX_VOXELS = 1 << 28
# Deflate makes at most 1032 bytes of one.
_MOST_GZIP = 1032


def slices(path: Path, axis: int = AXIAL) -> int:
    """Returns the number of slices along an axis of the patient: 0 sagittal, 1 coronal, 2 axial.

    Only the header is read.

    Raises:
        DecodeError: It is no NIfTI file, or it is shorter than its header says.
    """
    _, shape, order, _ = _reading(_header, path)
    return shape[order[axis]]


def read_slice(path: Path, number: int | None = None, axis: int = AXIAL) -> np.ndarray:
    """Reads one slice.

    The whole volume is stretched from its 0.5th to its 99.5th percentile. Of a series the first
    volume counts. The last volumes stay in memory, so slices are best read in order.

    Args:
        path: The volume.
        number: Which slice, counted from the patient's left, back or feet; None: the middle.
        axis: 0 sagittal, 1 coronal, 2 axial.

    Returns:
        uint8 (H, W, 3).

    Raises:
        DecodeError: It cannot be read.
    """
    volume = _reading(lambda place: _volume(place, place.stat().st_mtime_ns), path)
    count = volume.shape[axis]
    place = count // 2 if number is None else number
    if not 0 <= place < count:
        raise DecodeError(f"there is no slice {place}, only {count}")
    # The volume's axes lead to the left, back and feet, so the other two are columns and rows.
    return to_rgb(np.ascontiguousarray(np.take(volume, count - 1 - place, axis).T))


def _reading(read: Callable[[Path], Any], path: Path) -> Any:
    try:
        return read(path)
    except DecodeError:
        raise
    except Exception as error:
        # What a damaged volume raises depends on nibabel and on the damage.
        raise DecodeError(" ".join(str(error).split())[:300] or type(error).__name__) from error


def _nibabel() -> Any:
    try:
        import nibabel
    except ImportError as error:
        raise UsageError(
            "NIfTI files need nibabel; pip install medinit_jax[dicom], then start again."
        ) from error
    return nibabel


def _header(path: Path) -> tuple[Any, tuple[int, ...], list[int], list[float]]:
    """Reads and checks a header.

    Returns:
        The image; its first three sizes; which of its axes is which of the patient's; and for each
        of the patient's axes 1 if the image's leads to the right, front or head, -1 if not.
    """
    nibabel = _nibabel()
    image = nibabel.load(path)
    size, dtype = path.stat().st_size, image.get_data_dtype()
    if dtype.names or dtype.kind == "c":
        raise DecodeError(f"a volume of {dtype} is not read, only of numbers")
    sizes = [int(side) for side in image.shape]
    shape = (*sizes, 1, 1, 1)[:3]
    packed = path.name.lower().endswith(".gz")
    most = _MOST_GZIP * size if packed else size - int(image.dataobj.offset)
    if not 0 < math.prod(shape) <= MAX_VOXELS:
        raise DecodeError(f"a volume of {' x '.join(map(str, shape))} is out of range")
    if math.prod(sizes) * dtype.itemsize > most:
        raise DecodeError(f"it is cut short: {size} bytes for {math.prod(sizes)} voxels of {dtype}")
    if np.isfinite(image.affine).all():
        axes, signs = nibabel.io_orientation(image.affine).T.tolist()
        if sorted(axes) == [0, 1, 2]:
            order = [axes.index(axis) for axis in range(3)]
            return image, shape, order, [signs[place] for place in order]
    return image, shape, [0, 1, 2], [1.0, 1.0, 1.0]


@functools.lru_cache(maxsize=2)
def _volume(path: Path, changed: int) -> np.ndarray:
    """Returns uint8 voxels with axes to the patient's left, back and feet, stretched."""
    del changed
    image, shape, order, signs = _header(path)
    first = (slice(None),) * min(3, len(image.shape)) + (0,) * (len(image.shape) - 3)
    values = np.asarray(image.dataobj[first], dtype=np.float32).reshape(shape).transpose(order)
    values = values[tuple(slice(None, None, -1 if sign > 0 else 1) for sign in signs)]
    values = np.nan_to_num(values, posinf=0, neginf=0)
    low, high = np.percentile(values, (0.5, 99.5)).tolist()
    share = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return np.rint(share * 255).astype(np.uint8)
