"""A small EyePACS: 13 training, 8 test photographs of 96 x 64 pixels and one sample."""

import shutil
from pathlib import Path

import numpy as np
from fake_trees.images import LFS_POINTER, cut_short, photograph, save

LEVELS = (0, 0, 1, 0, 2, 2, 0, 3, 4, 0, 0, 1, 0)
TEST_LEVELS = (0, 1, 0, 0, 2, 3, 4, 0)
NOT_GRADABLE = ("2_right", "102_left", "492_right")


def make_eyepacs(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    train = [f"{patient}_{eye}" for patient in range(1, 7) for eye in ("left", "right")]
    test = [f"{patient}_{eye}" for patient in range(101, 105) for eye in ("left", "right")]
    places = [("train", name) for name in train] + [("test", name) for name in test]
    for folder, name in [*places, ("sample", "10_left")]:
        eye = -1 if name.endswith("left") else 1
        drawn = photograph(f"eyepacs{seed}{name}", 96, 64, eye)["image"]
        save(root / folder / f"{name}.jpeg", drawn, quality=92)
    train.append("492_right")
    save(root / "train/492_right.jpeg", np.zeros((64, 96, 3), np.uint8))
    labels = [f"{name},{level}" for name, level in zip(train, LEVELS, strict=True)]
    solution = [
        f"{name},{level},{'Public' if name.startswith('101') else 'Private'}"
        for name, level in zip(test, TEST_LEVELS, strict=True)
    ]
    gradable = [f"{name} {int(name not in NOT_GRADABLE)}" for name in sorted(train + test)]
    _write(root / "trainLabels.csv", ["image,level", *labels])
    _write(root / "retinopathy_solution.csv", ["image,level,Usage", *solution])
    _write(root / "eyepacs_gradability_grades.csv", ["image_name gradability", *gradable])
    _damage(root, defects)
    return root


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n")


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    labels, image = root / "trainLabels.csv", root / "train/1_left.jpeg"
    if "E_MISSING_FILE" in defects:
        labels.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "train")
        for part in range(1, 6):
            (root / f"train.zip.00{part}").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        labels.write_text(labels.read_text().replace("level", "severity"))
    if "E_LABEL_RANGE" in defects:
        labels.write_text(labels.read_text().replace("1_left,0", "1_left,5"))
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MISPLACED" in defects:
        # APTOS 2019 in its place.
        for name in ("trainLabels.csv", "retinopathy_solution.csv"):
            (root / name).unlink()
        for part in ("train", "test"):
            shutil.rmtree(root / part)
            save(root / f"{part}_images/000c1434d8d7.png", np.zeros((8, 8, 3), np.uint8))
            _write(root / f"{part}.csv", ["id_code,diagnosis", "000c1434d8d7,2"])
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
