"""DICOM images as a viewer shows them, and as Hounsfield units."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.data.decode import DecodeError, to_rgb
from medinit_jax.data.dicom_file import integer, read, reading, stored


def decode_dicom(source: Path | bytes, frame: int = 0) -> np.ndarray:
    """Reads one frame as a viewer shows it.

    Args:
        source: File, or a file's bytes.
        frame: Which frame of a file with several.

    Returns:
        uint8 RGB (H, W, 3), see `displayed`.

    Raises:
        DecodeError: The file is no image or cannot be read.
    """
    return displayed(read(source), frame)


def displayed(dataset: Any, frame: int = 0) -> np.ndarray:
    """Returns one frame as a viewer shows it.

    Gray goes through the modality LUT or slope and intercept, then through the VOI LUT or the first
    window if there is one; without, 8 bits are kept and more are stretched from the 0.5th to the
    99.5th percentile of what is not padding. Of color with 16 bits the upper 8 count. MONOCHROME1
    is inverted, so that bone is always bright. Overlays are not drawn.

    Args:
        dataset: What `read` returned.
        frame: Which frame.

    Returns:
        uint8 RGB (H, W, 3).

    Raises:
        DecodeError: See `stored`.
    """
    pixels = stored(dataset, frame)
    with reading() as pydicom:
        kind = str(dataset.get("PhotometricInterpretation", ""))
        if kind == "PALETTE COLOR":
            colors = _colors(pydicom, dataset, pixels)
            # Palettes of 8 bits are also stored in words, under a descriptor that says 16.
            return (colors >> (8 if colors.max() > 255 else 0)).astype(np.uint8)
        if pixels.ndim == 3:
            bits = integer(dataset, "BitsStored", 8)
            pixels = pixels >> max(0, bits - 8)
            return _eight_bits(pixels, min(bits, 8))
        gray = _gray(pydicom, dataset, frame, pixels)
        return to_rgb(255 - gray if kind == "MONOCHROME1" else gray)


def hounsfield(dataset: Any, frame: int = 0) -> np.ndarray:
    """Returns one frame of a CT in Hounsfield units: stored value x slope + intercept.

    Returns:
        int16 (H, W), limited to what 16 bits hold.

    Raises:
        DecodeError: The image is colored, or see `stored`.
    """
    pixels = stored(dataset, frame)
    with reading() as pydicom:
        if pixels.ndim != 2:
            raise DecodeError("a color image has no Hounsfield units")
        values = np.rint(_rescaled(pydicom, dataset, frame, pixels))
        return np.clip(values, -(1 << 15), (1 << 15) - 1).astype(np.int16)


def window(hu: np.ndarray, center: float, width: float) -> np.ndarray:
    """Maps the window `center` +- `width` / 2 linearly to 0..1.

    Returns:
        float32 of the same shape.
    """
    low = center - width / 2
    return np.clip((hu.astype(np.float32) - np.float32(low)) / np.float32(width), 0, 1)


def _colors(pydicom: Any, dataset: Any, pixels: np.ndarray) -> np.ndarray:
    """Looks colors up in the palette; (H, W, 3)."""
    if dataset.original_encoding[1] is False:
        # pydicom takes the words of a palette as little endian, whatever the file is.
        dataset = copy.copy(dataset)
        for color in ("Red", "Green", "Blue"):
            name = f"{color}PaletteColorLookupTableData"
            entries = int(dataset[f"{color}PaletteColorLookupTableDescriptor"].value[0]) or 1 << 16
            if name in dataset and len(dataset[name].value) == 2 * entries:
                words = np.frombuffer(dataset[name].value, ">u2").astype("<u2")
                element = copy.copy(dataset[name])
                element.value = words.tobytes()
                dataset[name] = element
    return pydicom.pixels.apply_color_lut(pixels, dataset)[..., :3]


def _gray(pydicom: Any, dataset: Any, frame: int, pixels: np.ndarray) -> np.ndarray:
    """Returns uint8 (H, W), MONOCHROME1 not yet inverted."""
    values = _rescaled(pydicom, dataset, frame, pixels)
    voi = _macro(dataset, frame, "FrameVOILUTSequence")
    if voi.get("VOILUTSequence"):
        looked_up = pydicom.pixels.apply_voi(np.rint(values).astype(np.int64), voi)
        entry = voi.VOILUTSequence[0]
        return _eight_bits(looked_up, int(entry.LUTDescriptor[2]))
    centers, widths = _numbers(voi.get("WindowCenter")), _numbers(voi.get("WindowWidth"))
    if centers and widths and widths[0] > 0:
        function = str(voi.get("VOILUTFunction") or "LINEAR")
        share = _windowed(values, centers[0], widths[0], function)
        return np.rint(share * 255).astype(np.uint8)
    bits = integer(dataset, "BitsStored", 8 * pixels.itemsize)
    if values is pixels and bits <= 8 and pixels.dtype.kind == "u":
        return _eight_bits(pixels, bits)
    return _stretched(values, _kept(dataset, pixels))


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """Applies a window as DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3 define it; float32 0..1."""
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (values.astype(np.float32) - center) / width))
    if function == "LINEAR_EXACT" or width <= 1:
        return window(values, center, width)
    return window(values, center - 0.5, width - 1)


def _rescaled(pydicom: Any, dataset: Any, frame: int, pixels: np.ndarray) -> np.ndarray:
    """Applies modality LUT or slope and intercept; returns `pixels` itself if there are none."""
    if dataset.get("ModalityLUTSequence"):
        return pydicom.pixels.apply_modality_lut(pixels, dataset)
    item = _macro(dataset, frame, "PixelValueTransformationSequence")
    slope = (_numbers(item.get("RescaleSlope")) or [1.0])[0]
    intercept = (_numbers(item.get("RescaleIntercept")) or [0.0])[0]
    if slope == 1 and intercept == 0:
        return pixels
    exact = np.float32 if pixels.itemsize <= 2 else np.float64
    return pixels.astype(exact) * exact(slope) + exact(intercept)


def _macro(dataset: Any, frame: int, sequence: str) -> Any:
    """Returns what holds a frame's values: its functional group, a shared one, or the dataset."""
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for group in (*own[frame : frame + 1], *shared[:1]):
        if group.get(sequence):
            return group[sequence][0]
    return dataset


def _kept(dataset: Any, pixels: np.ndarray) -> np.ndarray | None:
    """Returns where pixels are no padding; None if all count."""
    padding = _numbers(dataset.get("PixelPaddingValue"))
    if not padding:
        return None
    limit = _numbers(dataset.get("PixelPaddingRangeLimit")) or padding
    kept = (pixels < min(padding[0], limit[0])) | (pixels > max(padding[0], limit[0]))
    return kept if kept.any() else None


def _stretched(values: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    values = values.astype(np.float32) if values.itemsize <= 2 else values.astype(np.float64)
    finite = np.isfinite(values)
    if not finite.all():
        values, kept = np.where(finite, values, 0), finite if kept is None else kept & finite
    counted = values if kept is None or not kept.any() else values[kept]
    low, high = np.percentile(counted, (0.5, 99.5)).tolist()
    share = (values - low) / max(high - low, 1e-6)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Scales 0 .. 2^bits - 1 to uint8; exact for 8 bits."""
    if bits == 8 and values.dtype == np.uint8:
        return values
    share = values.astype(np.float64) / ((1 << bits) - 1)
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _numbers(value: Any) -> list[float]:
    """Returns the numbers of an element that may be absent, empty, single or multiple."""
    if value is None or value == "":
        return []
    single = isinstance(value, str) or not hasattr(value, "__iter__")
    numbers = [float(one) for one in ([value] if single else value)]
    if not np.isfinite(numbers).all():
        raise DecodeError(f"the header holds {value!r} where numbers belong")
    return numbers
