"""A small RSNA-CXR: 6 radiographs of 64 x 64 pixels with 7 rows of labels, and 2 without labels."""

import io
import shutil
from pathlib import Path

import numpy as np
from fake_trees.dicom import save_dicom
from fake_trees.images import LFS_POINTER, cut_short
from PIL import Image

from medinit_jax.data.phantoms import xray

CLASSES = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
# Class, boxes (x, y, width, height in pixels) and how the pixels are stored.
PATIENTS = {
    "0004cfab-14fd": (0, (), "jpeg"),
    "000db696-cf54": (1, (), "jpeg"),
    "000fe35a-2649": (2, ((10.5, 20.0, 12.0, 16.0), (40.0, 30.0, 30.0, 8.0)), "jpeg"),
    "00436515-870c": (0, (), "jpeg"),
    "0100515c-5204": (2, ((5.0, 8.0, 10.0, 20.0),), "raw"),
    "0a0f91dc-6015": (0, (), "deep"),
}
TEST_PATIENTS = ("c1e73a4e-7afe", "c1ec035b-377b")


def radiograph(seed: int) -> np.ndarray:
    """Draws a chest: uint8 (64, 64)."""
    return xray.render(seed, size=64)["image"][..., 0]


def make_rsna_cxr(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    labels, classes = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for number, (name, (label, boxes, kind)) in enumerate(PATIENTS.items()):
        _save(root / "stage_2_train_images" / f"{name}.dcm", seed + number, kind)
        rows = [f"{name},{','.join(map(str, box))},1" for box in boxes] or [f"{name},,,,,0"]
        labels += rows
        # The second table has a row per box, too.
        classes += [f"{name},{CLASSES[label]}"] * len(rows)
    for number, name in enumerate(TEST_PATIENTS):
        _save(root / "stage_2_test_images" / f"{name}.dcm", seed + 20 + number, "jpeg")
    tables = root / "stage_2_train_labels.csv", root / "stage_2_detailed_class_info.csv"
    for table, rows in zip(tables, (labels, classes), strict=True):
        table.write_text("\n".join(rows) + "\n")
    _damage(root, defects)
    return root


def _save(path: Path, seed: int, kind: str) -> None:
    pixels, elements = radiograph(seed), {}
    buffer = io.BytesIO()
    if kind == "jpeg":
        Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    if kind == "deep":
        pixels = (255 - pixels).astype(np.uint16) * 256
        elements = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": "1"}
        elements["RescaleIntercept"] = "0"
    save_dicom(
        path,
        pixels,
        buffer.getvalue(),
        PatientID=path.stem,
        PatientAge=str(20 + seed % 50),
        PatientSex="FM"[seed % 2],
        ViewPosition=("PA", "AP")[seed % 2],
        **elements,
    )


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    images = [root / "stage_2_train_images" / f"{name}.dcm" for name in PATIENTS]
    table, classes = root / "stage_2_train_labels.csv", root / "stage_2_detailed_class_info.csv"
    text = table.read_text()
    if "E_MISSING_FILE" in defects:
        classes.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "stage_2_train_images")
        (root / "stage_2_train_images.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        table.write_text(text.replace("Target", "Label"))
    if "E_LABEL_RANGE" in defects:
        # The two rows of one patient name different classes.
        name = list(PATIENTS)[2]
        classes.write_text(classes.read_text() + f"{name},{CLASSES[0]}\n")
    if "E_ORPHAN" in defects:
        images[0].unlink()
    if "E_DECODE" in defects:
        cut_short(images[4])
    if "E_LFS" in defects:
        images[0].write_bytes(LFS_POINTER)
    if "E_MISPLACED" in defects:
        # The head CTs of the year after.
        for place in (table, classes):
            place.unlink()
        (root / "stage_2_train.csv").write_text("ID,Label\n")
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
