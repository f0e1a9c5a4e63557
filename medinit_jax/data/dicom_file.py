"""DICOM files: read, checked and decoded to stored values.

Decoding is pydicom's; the compressed transfer syntaxes come with the plugins of the [dicom] extra.
What is declared in a header is compared with the file before anything of that size is allocated.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medinit_jax.core.errors import UsageError
from medinit_jax.data import decoder_process
from medinit_jax.data.codestream import frame_size
from medinit_jax.data.decode import DecodeError

# A mammogram has 15 million samples; a damaged header can declare twelve thousand million.
MAX_SAMPLES = 1 << 27
MAX_FRAMES = 100_000
MAX_BYTES = 1 << 32
_DEFLATED = b"1.2.840.10008.1.2.1.99"
# (0002,0000), the first element of a file that has a preamble.
_GROUP_LENGTH = b"\x02\x00\x00\x00UL"
# A run of the RLE codec makes at most 128 bytes of 2.
_MOST_RLE = 64
# Decoders that end or hang at some damaged images.
_APART = ("gdcm", "pyjpegls")
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def is_dicom(start: bytes) -> bool:
    """Says whether a file's first 132 bytes are those of a DICOM file."""
    return start[128:132] == b"DICM"


def require() -> Any:
    """Returns the module pydicom.

    Raises:
        UsageError: It is not installed.
    """
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError as error:
        raise UsageError(
            "DICOM files need pydicom; pip install medinit_jax[dicom], then start again."
        ) from error
    return pydicom


def read(source: Path | bytes, pixels: bool = True, tags: Sequence[str] | None = None) -> Any:
    """Reads a file, whether or not it has the preamble and the file meta information.

    Args:
        source: File, or a file's bytes.
        pixels: Whether the pixel data is needed; without, only the first bytes are read.
        tags: Keywords of the elements that are needed; None: all.

    Returns:
        A pydicom Dataset, pixel data not decoded.

    Raises:
        DecodeError: It is no DICOM file.
    """
    with reading() as pydicom:
        named = not isinstance(source, bytes)
        stream = open(source, "rb") if named else io.BytesIO(source)
        with stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(0)
            if size > MAX_BYTES:
                raise DecodeError(f"the file has {size} bytes, more than {MAX_BYTES}")
            if size < 8:
                raise DecodeError("the file is empty")
            start = stream.read(4096)
            _check_deflated(stream, start, size)
            stream.seek(0)
            wanted = None if tags is None else [*tags]
            dataset = pydicom.dcmread(
                stream, force=True, stop_before_pixels=not pixels, specific_tags=wanted
            )
        # What is no DICOM file at all can still be taken for elements without a meaning.
        known = is_dicom(start) or dataset.get("SOPClassUID") or "Rows" in dataset
        if not known and tags is None:
            raise DecodeError("it is not a DICOM file")
        if is_dicom(start) and not len(dataset) and tags is None:
            raise DecodeError("it is cut short before its first element")
        return dataset


def header(source: Path | bytes, *tags: str) -> dict[str, str]:
    """Reads elements from the head of a file, without its pixels.

    Args:
        source: File, or a file's bytes.
        *tags: Keywords, as "PatientID".

    Returns:
        {keyword: text}, "" for what is absent.

    Raises:
        DecodeError: It is no DICOM file.
    """
    dataset = read(source, pixels=False, tags=tags)
    return {tag: text(dataset, tag) for tag in tags}


def text(dataset: Any, tag: str) -> str:
    """Returns an element as text, "" if it is absent.

    Raises:
        DecodeError: Its value makes no sense.
    """
    with reading():
        value = dataset.get(tag)
        return "" if value is None else str(value).strip()


def frames(dataset: Any) -> int:
    """Returns the number of frames that a dataset declares."""
    with reading():
        return max(1, integer(dataset, "NumberOfFrames", 1))


def stored(dataset: Any, frame: int = 0) -> np.ndarray:
    """Decodes one frame's stored values; color comes as RGB.

    Returns:
        (H, W), or (H, W, 3) for color, in the file's integer or float type.

    Raises:
        DecodeError: There is no image, its size does not fit the file, or no decoder reads it.
    """
    with reading() as pydicom:
        syntax = _transfer_syntax(pydicom, dataset)
        _check_sizes(pydicom, dataset, frame, syntax)
        try:
            decoder = pydicom.pixels.get_decoder(syntax)
        except NotImplementedError:
            raise DecodeError(f"no decoder knows the transfer syntax {syntax.name}") from None
        if syntax.is_encapsulated and not decoder.is_available:
            raise DecodeError(f"{syntax.name} needs a decoder: pip install medinit_jax[dicom]")
        options = pydicom.pixels.utils.as_pixel_options(dataset)
        array, kind = _decoded(pydicom, decoder, dataset, frame, options)
        if array.ndim == 3 and (array.shape[2] != 3 or kind != "RGB"):
            raise DecodeError(f"colors of the kind {kind} are not read")
        return array


def _decoded(
    pydicom: Any, decoder: Any, dataset: Any, frame: int, options: dict[str, Any]
) -> tuple[np.ndarray, str]:
    """Decodes with the first plugin that can, gdcm only where there is no other.

    Returns:
        The array and its photometric interpretation.
    """
    plugins: list[str] = [*decoder.available_plugins] if decoder.is_encapsulated else [""]
    if len(plugins) > 1:
        plugins = [plugin for plugin in plugins if plugin != "gdcm"]
    for plugin in plugins:
        try:
            if plugin in _APART:
                plain = {
                    name: str(one) if isinstance(one, str) else int(one)
                    for name, one in options.items()
                    if isinstance(one, (int, str))
                }
                encoded, plain["number_of_frames"] = _encoded(pydicom, dataset, frame), 1
                return decoder_process.decode(encoded, str(decoder.UID), plugin, plain)
            array, found = decoder.as_array(dataset, index=frame, decoding_plugin=plugin, **options)
            return array, str(found["photometric_interpretation"])
        except Exception:
            if plugin == plugins[-1]:
                raise
    raise AssertionError("a decoder without a plugin")


def _encoded(pydicom: Any, dataset: Any, frame: int) -> bytes:
    """Returns the compressed bytes of one frame."""
    offsets = None
    if dataset.get("ExtendedOffsetTable"):
        offsets = dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths
    count = max(1, integer(dataset, "NumberOfFrames", 1))
    return pydicom.encaps.get_frame(
        dataset.PixelData, frame, number_of_frames=count, extended_offsets=offsets
    )


def _transfer_syntax(pydicom: Any, dataset: Any) -> Any:
    """Returns the transfer syntax, that of the encoding where the file does not name one."""
    meta = getattr(dataset, "file_meta", None)
    syntax = meta.get("TransferSyntaxUID") if meta is not None else None
    if not syntax:
        implicit, little = dataset.original_encoding
        name = "ImplicitVRLittleEndian" if implicit else "ExplicitVRLittleEndian"
        syntax = getattr(pydicom.uid, name if little else "ExplicitVRBigEndian")
        dataset.ensure_file_meta()
        dataset.file_meta.TransferSyntaxUID = syntax
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise DecodeError(f"no decoder knows the transfer syntax {syntax}")
    return syntax


def _check_sizes(pydicom: Any, dataset: Any, frame: int, syntax: Any) -> None:
    """Raises DecodeError unless the declared size is possible and the file is large enough."""
    element = next((name for name in _PIXELS if name in dataset), None)
    if element is None:
        kind = getattr(dataset.get("SOPClassUID"), "name", None) or "of an unknown kind"
        raise DecodeError(f"it holds no image ({kind})")
    height, width = (integer(dataset, name, 0) for name in ("Rows", "Columns"))
    samples = integer(dataset, "SamplesPerPixel", 1)
    bits = integer(dataset, "BitsAllocated", 0)
    count = max(1, integer(dataset, "NumberOfFrames", 1))
    if not 0 < height * width * samples <= MAX_SAMPLES:
        raise DecodeError(f"a frame of {height} x {width} x {samples} is out of range")
    if not 0 <= frame < count or count > MAX_FRAMES:
        raise DecodeError(f"there is no frame {frame}, or more than {MAX_FRAMES}: {count} declared")
    data = dataset[element].value or b""
    length = len(data)
    needed = -(-count * height * width * samples * bits // 8)
    if not syntax.is_encapsulated:
        if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
            needed = needed * 2 // 3
        if length < needed:
            raise DecodeError(f"the pixel data is cut short: {length} of {needed} bytes")
        return
    if count > length // 8:
        raise DecodeError(f"{count} frames are declared in {length} bytes")
    if syntax == pydicom.uid.RLELossless:
        if needed > _MOST_RLE * length:
            raise DecodeError(f"{length} bytes of RLE are too few for {needed} bytes of pixels")
        return
    inside = frame_size(_encoded(pydicom, dataset, frame))
    if inside is not None and inside != (height, width):
        raise DecodeError(
            f"the header declares {height} x {width}, the compressed image is "
            f"{inside[0]} x {inside[1]}"
        )


def _check_deflated(stream: Any, start: bytes, size: int) -> None:
    """Raises DecodeError if a deflated dataset becomes larger than a file may be."""
    if not is_dicom(start) or _DEFLATED not in start:
        return
    if start[132:138] != _GROUP_LENGTH:
        raise DecodeError("a deflated file needs the length of its file meta information")
    stream.seek(144 + int.from_bytes(start[140:144], "little"))
    packed, total = stream.read(), 0
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    while packed and not inflater.eof:
        total += len(inflater.decompress(packed, 1 << 24))
        packed = inflater.unconsumed_tail
        if total > min(MAX_BYTES, max(1 << 28, 64 * size)):
            raise DecodeError(f"{size} compressed bytes become more than {total}")


def integer(dataset: Any, name: str, default: int) -> int:
    """Returns a whole number, `default` if it is absent or empty."""
    value = dataset.get(name)
    if value is None or value == "":
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise DecodeError(f"{name} is {value!r}, not a whole number") from None


@contextlib.contextmanager
def reading() -> Iterator[Any]:
    """Yields pydicom, silenced; whatever goes wrong inside becomes a DecodeError."""
    try:
        pydicom = require()
        with _quiet(pydicom):
            yield pydicom
    except DecodeError:
        raise
    except Exception as error:
        # What a damaged file raises depends on the element, the decoder and the damage.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DecodeError(reason[:300]) from error


_lock = threading.Lock()
_readers = 0
_undo = contextlib.ExitStack()


@contextlib.contextmanager
def _quiet(pydicom: Any) -> Iterator[None]:
    """Takes values as they are and warns of nothing, until the last thread that reads is done.

    Files of several sets hold names where UIDs belong; pydicom would warn at each of them.
    """
    global _readers, _undo
    with _lock:
        if not _readers:
            _undo = _silence(pydicom)
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if not _readers:
                _undo.close()


def _silence(pydicom: Any) -> contextlib.ExitStack:
    settings, log = pydicom.config.settings, logging.getLogger("pydicom")
    undo = contextlib.ExitStack()
    undo.callback(setattr, settings, "reading_validation_mode", settings.reading_validation_mode)
    undo.callback(setattr, log, "propagate", log.propagate)
    handler = logging.NullHandler()
    undo.callback(log.removeHandler, handler)
    undo.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore")
    settings.reading_validation_mode = pydicom.config.IGNORE
    log.addHandler(handler)
    log.propagate = False
    return undo
