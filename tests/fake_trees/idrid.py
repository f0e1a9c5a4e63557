"""A small part B of IDRiD: 5 training and 3 test photographs of 107 x 71 pixels."""

import shutil
from pathlib import Path

from fake_trees.images import LFS_POINTER, cut_short, photograph, save

# Retinopathy and risk of macular edema.
TRAIN = ((3, 2), (0, 0), (2, 1), (4, 2), (1, 0))
TEST = ((4, 0), (0, 0), (2, 2))
# As in copies of the real tables: a blank behind the last header, then columns without one.
HEADER = "Image name,Retinopathy grade,Risk of macular edema " + "," * 9
PART = "B. Disease Grading"


def make_idrid(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    top = root / PART
    for letter, folder, name, grades in (
        ("a", "Training Set", "Training", TRAIN),
        ("b", "Testing Set", "Testing", TEST),
    ):
        rows = [HEADER]
        # Numbers begin at 1 in both parts.
        for number, (dr, dme) in enumerate(grades, start=1):
            stem = f"IDRiD_{number:03d}"
            drawn = photograph(f"idrid{seed}{name}{stem}", 107, 71)["image"]
            place = top / f"1. Original Images/{letter}. {folder}/{stem}.jpg"
            save(place, drawn, quality=92)
            rows.append(f"{stem} ,{dr},{dme}{',' * 9}")
        rows.append("," * 11)
        table = top / f"2. Groundtruths/{letter}. IDRiD_Disease Grading_{name} Labels.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("\n".join(rows) + "\n")
    _damage(root, defects)
    return root


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    images, tables = root / PART / "1. Original Images", root / PART / "2. Groundtruths"
    table = tables / "a. IDRiD_Disease Grading_Training Labels.csv"
    image = images / "a. Training Set/IDRiD_001.jpg"
    if "E_MISSING_FILE" in defects:
        table.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / PART)
        (root / f"{PART}.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        table.write_text(table.read_text().replace("Risk of macular edema", "DME"))
    if "E_LABEL_RANGE" in defects:
        table.write_text(table.read_text().replace("IDRiD_001 ,3,2", "IDRiD_001 ,3,3"))
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MISPLACED" in defects:
        # Part C, which has folders of the same names.
        (root / PART).rename(root / "C. Localization")
        tables = root / "C. Localization/2. Groundtruths"
        (tables / "1. Optic Disc Center Location").mkdir()
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
