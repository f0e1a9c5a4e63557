"""A small DRIVE: 4 training and 3 test photographs of 57 x 58 pixels."""

import shutil
from pathlib import Path

from fake_trees.images import LFS_POINTER, as_jpeg, cut_short, photograph, save


def make_drive(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    for part, numbers, name in (
        ("training", range(21, 25), "training"),
        ("test", range(1, 4), "test"),
    ):
        for number in numbers:
            stem = f"{number:02d}"
            drawn = photograph(f"drive{seed}{stem}", 57, 58)
            folder = root / part
            save(folder / "images" / f"{stem}_{name}.tif", drawn["image"])
            # Real copies hold both kinds: gray levels, and indices of a palette.
            mode = "P" if number % 2 else "L"
            save(folder / "1st_manual" / f"{stem}_manual1.gif", drawn["vessels"] * 255, mode)
            save(folder / "mask" / f"{stem}_{name}_mask.gif", drawn["fov"] * 255, mode)
            if part == "test":
                save(folder / "2nd_manual" / f"{stem}_manual2.gif", drawn["vessels"] * 255, "L")
    _damage(root, defects)
    return root


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    image = root / "training/images/21_training.tif"
    if "E_NO_TEST_GT" in defects:
        shutil.rmtree(root / "test/1st_manual")
    if "E_MISSING_FILE" in defects:
        shutil.rmtree(root / "training/1st_manual")
    if "E_ORPHAN" in defects:
        (root / "training/1st_manual/22_manual1.gif").unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "training/images")
        (root / "training/images.zip").write_bytes(b"PK")
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MASK_VALUES" in defects:
        as_jpeg(root / "training/1st_manual/21_manual1.gif")
    if "E_MISPLACED" in defects:
        for place in (root / "training/mask").iterdir():
            number = place.name[:2]
            shutil.copy(root / f"training/1st_manual/{number}_manual1.gif", place)
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
