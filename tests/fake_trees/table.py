"""A user's own data: 12 images of all kinds in two folders, and a table."""

import csv
import shutil
from pathlib import Path

import numpy as np
from fake_trees.images import LFS_POINTER, cut_short, photograph, save

SUFFIXES = ("png", "jpg", "tif", "bmp", "gif", "ppm")


def make_table(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    header = ["image", "label", "findings", "edema", "grade", "person", "side", "part", "mask"]
    rows = []
    for number in range(12):
        patient, eye = divmod(number, 2)
        side, suffix = ("left", "right")[eye], SUFFIXES[number % len(SUFFIXES)]
        drawn = photograph(f"table{seed}{number}", 40, 30, (-1, 1)[eye])
        name = f"site{patient % 2}/{patient}_{side}.{suffix}"
        save(root / name, drawn["image"])
        levels = drawn["fov"] * np.uint8(128) + drawn["vessels"] * np.uint8(127)
        save(root / f"masks/{number}.png", levels)
        label = ("mild", "none", "severe", "")[number % 4]
        findings = ("Edema|Exudates", "Exudates", "", "No finding")[number % 4]
        rows.append(
            [name, label, findings, number % 2, "1.0" if eye else "nan"]
            + [f"p{patient}", "LR"[eye], ("train", "Validation", "test")[patient % 3]]
            + [f"masks/{number}.png"]
        )
    _damage(root, header, rows, defects)
    return root


def write_table(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        csv.writer(stream, delimiter=";").writerows([header, *rows])


def _damage(root: Path, header: list[str], rows: list[list], defects: tuple[str, ...]) -> None:
    image = root / rows[0][0]
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_LABEL_RANGE" in defects:
        rows[3][1] = 4
    if "E_COLUMNS" in defects:
        header[1] = "diagnosis"
    if "E_COUNT" in defects:
        del rows[2:]
    if "E_ARCHIVE" in defects:
        (root / "labels.zip").write_bytes(b"PK")
    elif "E_MISSING_FILE" not in defects:
        write_table(root / "labels.csv", header, rows)
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
