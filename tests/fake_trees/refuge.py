"""A small REFUGE: 2 + 3 training, 3 validation and 3 test photographs; and REFUGE-2's package."""

import shutil
from pathlib import Path

import numpy as np
import openpyxl
from fake_trees.drive import make_drive
from fake_trees.images import LFS_POINTER, as_jpeg, cut_short, photograph, save

GRAY = np.array([255, 128, 0], np.uint8)
TRAIN = ("g0001", "g0002", "n0001", "n0002", "n0003")
# Name: glaucoma.
VALIDATION = {"V0001": 1, "V0002": 0, "V0003": 0}
TEST = {"T0001": 0, "T0002": 1, "T0003": 0}
_MASKS = "Disc_Cup_Masks"


def fovea(stem: str, width: int) -> tuple[float, float]:
    """Returns what the tables say: x and y in pixels, from 1."""
    return width / 2 + int(stem[1:]) + 0.25, 40.5


def make_refuge(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes REFUGE-1's tree; `defects` are codes of errors that it then causes."""
    truths = ("Annotation-Training400", "REFUGE-Validation400-GT", "REFUGE-Test-GT")
    _write_parts([root] * 3, [root / truth for truth in truths], seed)
    junk = root / "Training400/__MACOSX/._g0001.jpg"
    junk.parent.mkdir()
    junk.write_bytes(b"junk")
    _damage(root, root, root / "REFUGE-Validation400-GT", root / "REFUGE-Test-GT", defects)
    return root


def make_refuge2(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes REFUGE-2's package; `defects` are codes of errors that it then causes."""
    places = [root / f"REFUGE2/Train/REFUGE1-{part}" for part in ("train", "val", "test")]
    _write_parts(places, places, seed)
    for folder, letter in (("Validation/Images", "V"), ("Test/refuge2-test", "T")):
        for number in (1, 2):
            drawn = photograph(f"refuge2{seed}{letter}{number}", 82, 82)
            path = root / f"REFUGE2/{folder}/{letter}{number:04d}.jpg"
            save(path, drawn["image"], quality=90)
    template = "FileName,Glaucoma Risk\nV0001.jpg,0\nV0002.jpg,0\n"
    (root / "REFUGE2/Validation/glaucoma.csv").write_text(template)
    _damage(root, places[0], places[1], places[2], defects)
    return root


def _write_parts(images: list[Path], truths: list[Path], seed: int) -> None:
    for stem in TRAIN:
        folder = "Glaucoma" if stem[0] == "g" else "Non-Glaucoma"
        _write(
            images[0] / f"Training400/{folder}", truths[0] / f"{_MASKS}/{folder}", stem, seed, 106
        )
    rows = [[f"{stem}.jpg", *fovea(stem, 106)] for stem in TRAIN]
    save_xlsx(truths[0] / "Fovea_location.xlsx", [["ImgName", "Fovea_X", "Fovea_Y"], *rows])
    for stem in VALIDATION:
        _write(images[1] / "REFUGE-Validation400", truths[1] / _MASKS, stem, seed, 82)
    rows = [["ID", "ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"], *_rows(VALIDATION)]
    save_xlsx(truths[1] / "Fovea_locations.xlsx", rows)
    for stem, label in TEST.items():
        _write(images[2] / "Test400", truths[2] / _MASKS / "NG"[label], stem, seed, 82)
    rows = [["ID", "ImgName", "Label(Glaucoma=1)", "Fovea_X", "Fovea_Y"], *_rows(TEST)]
    save_xlsx(truths[2] / "Glaucoma_label_and_Fovea_location.xlsx", rows)


def _write(images: Path, masks: Path, stem: str, seed: int, width: int) -> None:
    drawn = photograph(f"refuge{seed}{stem}", width, {106: 103, 82: 82}[width])
    save(images / f"{stem}.jpg", drawn["image"], quality=90)
    save(masks / f"{stem}.bmp", GRAY[drawn["disc_cup"]])


def _rows(labels: dict[str, int]) -> list[list]:
    return [
        [number, f"{stem}.jpg", label, *fovea(stem, 82)]
        for number, (stem, label) in enumerate(labels.items(), start=1)
    ]


def save_xlsx(path: Path, rows: list[list]) -> None:
    """Writes a real table; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)


def _damage(
    root: Path, train: Path, val_truth: Path, test_truth: Path, defects: tuple[str, ...]
) -> None:
    table = val_truth / "Fovea_locations.xlsx"
    rows = [["ID", "ImgName", "Glaucoma Label", "Fovea_X", "Fovea_Y"], *_rows(VALIDATION)]
    image = train / "Training400/Glaucoma/g0001.jpg"
    if "E_MISSING_FILE" in defects:
        table.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root)
        inner = root / "REFUGE2"
        inner.mkdir(parents=True)
        (root / "__MACOSX").mkdir()
        for name in ("Training400", "Validation400", "Validation400-GT", "Test400", "Test-GT"):
            (inner / f"REFUGE-{name}.zip").write_bytes(b"PK")
        (inner / "Annotation-Training400.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        rows[0][2] = "Grade"
        save_xlsx(table, rows)
    if "E_LABEL_RANGE" in defects:
        rows[2][2] = 2
        save_xlsx(table, rows)
    if "E_ORPHAN" in defects:
        (val_truth / _MASKS / "V0002.bmp").unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MASK_VALUES" in defects:
        as_jpeg(val_truth / _MASKS / "V0001.bmp")
    if "E_NO_TEST_GT" in defects:
        shutil.rmtree(test_truth / _MASKS)
        (test_truth / "Glaucoma_label_and_Fovea_location.xlsx").unlink()
    if "E_MISPLACED" in defects:
        shutil.rmtree(root)
        make_drive(root)
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
