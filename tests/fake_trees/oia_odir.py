"""A small OIA-ODIR: 5, 2 and 3 patients with both eyes, and the same patients as ODIR-5K."""

import shutil
from pathlib import Path

import openpyxl
from fake_trees.images import LFS_POINTER, cut_short, photograph, save

HEADER = (
    *("ID", "Patient Age", "Patient Sex", "Left-Fundus", "Right-Fundus"),
    *("Left-Diagnostic Keywords", "Right-Diagnostic Keywords"),
    *("N", "D", "G", "C", "A", "H", "M", "O"),
)
# {ID: (age, sex, keywords of the left eye, of the right eye, N D G C A H M O)}
TRAINING = {
    0: (69, "Female", "cataract", "normal fundus", "00010000"),
    4: (53, "Male", "lens dust，normal fundus", "lens dust", "10000000"),
    43: (35, "Male", "wet age-related macular degeneration，drusen", "glaucoma", "00101001"),
    1706: (61, "Female", "anterior segment image", "pathological myopia", "00000010"),
    2957: (47, "Male", "hypertensive retinopathy", "low image quality", "00000100"),
}
OFF_SITE = {
    937: (55, "Female", "normal fundus", "normal fundus", "10000000"),
    967: (63, "Male", "mild nonproliferative retinopathy", "laser spot", "01000001"),
}
ON_SITE = {
    3: (41, "Male", "suspected glaucoma", "normal fundus，lens dust", "00100000"),
    12: ("", "", "myopia retinopathy", "image offset，drusen", "00000011"),
    20: (
        72,
        "Female",
        "proliferative diabetic retinopathy",
        "refractive media opacity",
        "01000001",
    ),
}
_SETS = {
    "Training Set": (TRAINING, "training annotation (English).xlsx"),
    "Off-site Test Set": (OFF_SITE, "off-site test annotation (English).xlsx"),
    "On-site Test Set": (ON_SITE, "on-site test annotation (English).xlsx"),
}


def write_annotation(path: Path, patients: dict, header: tuple[str, ...] = HEADER) -> None:
    """Writes a table of patients."""
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.append(header)
    for row in rows(patients):
        sheet.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def rows(patients: dict) -> list[list]:
    """Returns the cells of a table."""
    return [
        [number, age, sex, f"{number}_left.jpg", f"{number}_right.jpg", left, right]
        + [int(digit) for digit in labels]
        for number, (age, sex, left, right, labels) in patients.items()
    ]


def _write_images(folder: Path, seed: int, patients: dict) -> None:
    for place, number in enumerate(patients):
        for eye, side in (("left", -1), ("right", 1)):
            # Real photographs differ in size and shape, too.
            width, height = ((64, 48), (60, 60), (80, 56))[place % 3]
            drawn = photograph(f"odir{seed}{number}{eye}", width, height, side)
            save(folder / f"{number}_{eye}.jpg", drawn["image"], quality=90)


def make_oia_odir(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    if "E_MISPLACED" in defects:
        return make_odir5k(root, seed)
    for folder, (patients, table) in _SETS.items():
        _write_images(root / folder / "Images", seed, patients)
        write_annotation(root / folder / "Annotation" / table, patients)
    _damage(root, defects)
    return root


def make_odir5k(root: Path, seed: int = 0) -> Path:
    """Writes the re-release: nested folders, tables by patient and by eye, no labels of a test."""
    inner = root / "ODIR-5K/ODIR-5K"
    _write_images(inner / "Training Images", seed, TRAINING)
    _write_images(inner / "Testing Images", seed, OFF_SITE)
    write_annotation(inner / "data.xlsx", TRAINING)
    # One row per eye, without those of some patients; per-eye labels stand in further columns.
    lines = [",".join((*HEADER, "labels", "filename"))]
    for row in rows(TRAINING)[:4]:
        cells = ",".join(str(cell) for cell in row)
        lines += [f"{cells},['X'],{name}" for name in row[3:5]]
    (root / "full_df.csv").write_text("\n".join(lines), encoding="utf-8")
    return root


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    image = root / "Training Set/Images/43_left.jpg"
    table = root / "Training Set/Annotation/training annotation (English).xlsx"
    if "E_MISSING_FILE" in defects:
        shutil.rmtree(root / "On-site Test Set/Annotation")
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "Off-site Test Set")
        (root / "Off-site_Test_Set.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        write_annotation(table, TRAINING, (*HEADER[:5], "Left", "Right", *HEADER[7:]))
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_LABEL_RANGE" in defects:
        write_annotation(table, {**TRAINING, 43: (*TRAINING[43][:4], "00200000")})
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
