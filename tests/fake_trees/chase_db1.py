"""A small CHASE_DB1: both eyes of two training children and of a test child, 100 x 96 pixels."""

import shutil
from pathlib import Path

from fake_trees.drive import make_drive
from fake_trees.images import LFS_POINTER, as_jpeg, cut_short, photograph, save

STEMS = tuple(f"Image_{number}{eye}" for number in ("01", "02", "11") for eye in "LR")


def make_chase_db1(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    for stem in STEMS:
        drawn = photograph(f"chase{seed}{stem}", 100, 96, -1 if stem.endswith("L") else 1)
        save(root / f"{stem}.jpg", drawn["image"], quality=95)
        save(root / f"{stem}_1stHO.png", drawn["vessels"] * 255, "1")
        # Copies hold gray levels near white.
        save(root / f"{stem}_2ndHO.png", drawn["vessels"] * 250, "L")
    _damage(root, defects)
    return root


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    if "E_MISSING_FILE" in defects:
        for path in root.glob("*_1stHO.png"):
            path.unlink()
    if "E_ORPHAN" in defects:
        (root / "Image_02L_1stHO.png").unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root)
        root.mkdir()
        (root / "CHASEDB1.zip").write_bytes(b"PK")
    if "E_DECODE" in defects:
        cut_short(root / "Image_02L.jpg")
    if "E_LFS" in defects:
        (root / "Image_02L_1stHO.png").write_bytes(LFS_POINTER)
    if "E_MASK_VALUES" in defects:
        as_jpeg(root / "Image_02L_1stHO.png")
    if "E_MISPLACED" in defects:
        shutil.rmtree(root)
        make_drive(root)
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
