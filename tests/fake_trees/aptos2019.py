"""A small APTOS 2019: 10 graded photographs, two of them the same, and 3 without grade."""

import hashlib
import shutil
from pathlib import Path

import numpy as np
from fake_trees.images import LFS_POINTER, cut_short, photograph, save

GRADES = (0, 0, 2, 1, 2, 0, 4, 3, 0, 2)
# Places in `names` of the photographs that are the same file; their grades are 1 and 2.
SAME = (3, 4)


def names(part: str, count: int) -> list[str]:
    """Returns names as the real ones: 12 hexadecimal digits."""
    return [hashlib.sha256(f"{part}{i}".encode()).hexdigest()[:12] for i in range(count)]


def make_aptos2019(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    graded, others = names("train", 10), names("test", 3)
    for part, stems in (("train", graded), ("test", others)):
        for number, stem in enumerate(stems):
            width, height = ((80, 60), (64, 64))[number % 2]
            drawn = photograph(f"aptos{seed}{stem}", width, height)["image"]
            save(root / f"{part}_images/{stem}.png", drawn)
    first, second = (root / f"train_images/{graded[number]}.png" for number in SAME)
    shutil.copy(first, second)
    rows = [f"{name},{grade}" for name, grade in zip(graded, GRADES, strict=True)]
    _write(root / "train.csv", ["id_code,diagnosis", *rows])
    _write(root / "test.csv", ["id_code", *others])
    _write(root / "sample_submission.csv", ["id_code,diagnosis", *(f"{n},0" for n in others)])
    _damage(root, graded[0], defects)
    return root


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def _damage(root: Path, name: str, defects: tuple[str, ...]) -> None:
    table, image = root / "train.csv", root / f"train_images/{name}.png"
    if "E_MISSING_FILE" in defects:
        table.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "train_images")
        (root / "train_images.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        table.write_text(table.read_text().replace("diagnosis", "grade"))
    if "E_LABEL_RANGE" in defects:
        table.write_text(table.read_text().replace(f"{name},0", f"{name},"))
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MISPLACED" in defects:
        shutil.rmtree(root)
        # Messidor-2 as it is passed on, with the grades of 2018.
        save(root / "IMAGES/20051020_43808_0100_PP.png", np.zeros((8, 8, 3), np.uint8))
        _write(
            root / "messidor_data.csv",
            ["image_id,adjudicated_dr_grade,adjudicated_dme", "20051020_43808_0100_PP.png,0,0"],
        )
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
