"""DICOM files of fake trees."""

import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit


def save_dicom(path: Path, pixels: np.ndarray, jpeg: bytes = b"", **elements) -> None:
    """Saves a gray image; its values are checked as little as those of the real files.

    Args:
        path: Where; its folder is made.
        pixels: (H, W) of 8 or 16 bits.
        jpeg: The same image as JPEG, stored in place of the values.
        **elements: More elements, or other values of those that follow from `pixels`.
    """
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit if jpeg else ExplicitVRLittleEndian
    bits = 8 * pixels.itemsize
    described = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7",
        "SOPInstanceUID": path.stem,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": encapsulate([jpeg]) if jpeg else pixels.tobytes(),
    }
    with warnings.catch_warnings(), pydicom.config.disable_value_validation():
        warnings.simplefilter("ignore")
        for name, value in {**described, **elements}.items():
            setattr(dataset, name, value)
        dataset["PixelData"].VR = "OW" if bits == 16 else "OB"
        dataset["PixelData"].is_undefined_length = bool(jpeg)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
