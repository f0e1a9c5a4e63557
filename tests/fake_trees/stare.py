"""A small STARE: 4 training and 3 test photographs of 70 x 60 pixels, half of them packed."""

import gzip
import shutil
from pathlib import Path

import numpy as np
from fake_trees.drive import make_drive
from fake_trees.images import LFS_POINTER, as_jpeg, cut_short, photograph
from PIL import Image

NUMBERS = ("0001", "0002", "0044", "0139", "0162", "0163", "0324")


def make_stare(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    for place, number in enumerate(NUMBERS):
        drawn = photograph(f"stare{seed}{number}", 70, 60)
        # The first observer draws thicker vessels than the second.
        thick = drawn["vessels"] | np.roll(drawn["vessels"], 1, axis=1)
        packed = place % 2 == 1
        save_ppm(root / f"stare-images/im{number}.ppm", drawn["image"], packed)
        # Real labels are gray; copies hold color.
        save_ppm(root / f"labels-vk/im{number}.vk.ppm", np.dstack([thick * 255] * 3), packed)
        save_ppm(root / f"labels-ah/im{number}.ah.ppm", drawn["vessels"] * 255, packed)
    _damage(root, defects)
    return root


def save_ppm(path: Path, array: np.ndarray, packed: bool) -> None:
    """Saves a .ppm, or a .ppm.gz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, "PPM")
    if packed:
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    if "E_MISSING_FILE" in defects:
        shutil.rmtree(root / "labels-ah")
    if "E_ORPHAN" in defects:
        (root / "labels-ah/im0001.ah.ppm").unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "labels-ah")
        (root / "labels-ah.tar").write_bytes(b"")
    if "E_DECODE" in defects:
        cut_short(root / "stare-images/im0002.ppm.gz")
    if "E_LFS" in defects:
        (root / "stare-images/im0002.ppm.gz").write_bytes(LFS_POINTER)
    if "E_MASK_VALUES" in defects:
        as_jpeg(root / "labels-ah/im0001.ah.ppm")
    if "E_MISPLACED" in defects:
        shutil.rmtree(root)
        make_drive(root)
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
