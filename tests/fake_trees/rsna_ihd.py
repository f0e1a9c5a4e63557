"""A small RSNA-IHD: 10 slices of 2 patients, one of them cut short, and 3 without labels."""

import shutil
from pathlib import Path

import numpy as np
from fake_trees.dicom import save_dicom
from fake_trees.images import LFS_POINTER, cut_short

SUBTYPES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural")
# Sixth in the order of names, as the real one lies among the others.
CORRUPT = "ID_6431af929"
IDS = [f"ID_{number:x}0a1b2c3d" for number in range(1, 6)] + [CORRUPT]
IDS += [f"ID_{number:x}0a1b2c3d" for number in range(7, 11)]
TEST_IDS = [f"ID_{number:x}0f1e2d3c" for number in range(11, 14)]
# Unsigned 12 bits with a wrong intercept.
WRAPPED = IDS[2]


def head(seed: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Draws a slice in Hounsfield units: air, skull, brain and blood; outside the scan -2000."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    y, x = (y - height / 2) / (height / 2), (x - width / 2) / (width / 2)
    radius = np.hypot(x, y)
    hu = np.full((height, width), -1000)
    hu[radius > 0.98] = -2000
    hu[radius < 0.8] = 1000
    hu[radius < 0.7] = rng.integers(25, 45, (height, width))[radius < 0.7]
    center = rng.uniform(-0.3, 0.3, 2)
    hu[np.hypot(x - center[0], y - center[1]) < 0.2] = 70
    return hu.astype(np.int16)


def types_of(number: int) -> dict[str, int]:
    """Returns the labels of slice `number`: every third bleeds."""
    kinds = {kind: int(number % 3 == 0 and number % 5 == i) for i, kind in enumerate(SUBTYPES)}
    return {**kinds, "any": max(kinds.values())}


def make_rsna_ihd(root: Path, seed: int = 0, defects: tuple[str, ...] = (), stage: int = 2) -> Path:
    """Writes the tree of a stage; `defects` are codes of errors that it then causes."""
    train, test = root / f"stage_{stage}_train", root / f"stage_{stage}_test"
    if stage == 1:
        train, test = root / "stage_1_train_images", root / "stage_1_test_images"
    for number, name in enumerate(IDS):
        # Two patients with two studies each.
        _save(train / f"{name}.dcm", seed + number, f"ID_p{number % 2}", f"ID_s{number % 4}")
    for number, name in enumerate(TEST_IDS):
        _save(test / f"{name}.dcm", seed + 50 + number, "ID_p9", f"ID_t{number}")
    corrupt = train / f"{CORRUPT}.dcm"
    cut_short(corrupt)
    rows = [
        f"{name}_{kind},{value}"
        for number, name in enumerate(IDS)
        for kind, value in types_of(number).items()
    ]
    # One image is in the real table twice, too.
    table = root / f"stage_{stage}_train.csv"
    table.write_text("\n".join(["ID,Label", *rows, *rows[:6]]) + "\n")
    sample = [f"{name}_{kind},0.5" for name in TEST_IDS for kind in (*SUBTYPES, "any")]
    (root / f"stage_{stage}_sample_submission.csv").write_text(
        "\n".join(["ID,Label", *sample]) + "\n"
    )
    _damage(root, train, table, defects)
    return root


def _save(path: Path, seed: int, patient: str, study: str) -> None:
    hu = head(seed)
    stored, elements = hu + 1024, {"RescaleIntercept": "-1024"}
    if path.stem == WRAPPED:
        # What `(value + 1000) mod 4096 - 1000` brings back; nothing lies below -1000 here.
        stored = (np.maximum(hu, -1000) % 4096).astype(np.uint16)
        elements = {"RescaleIntercept": "0", "BitsStored": 12, "HighBit": 11}
    save_dicom(
        path,
        stored.astype(np.uint16 if path.stem == WRAPPED else np.int16),
        PatientID=patient,
        StudyInstanceUID=study,
        RescaleSlope="1",
        WindowCenter=["40", "80"],
        WindowWidth=["80", "200"],
        **elements,
    )


def _damage(root: Path, train: Path, table: Path, defects: tuple[str, ...]) -> None:
    image = train / f"{IDS[0]}.dcm"
    text = table.read_text()
    if "E_MISSING_FILE" in defects:
        table.unlink()
    if "E_ARCHIVE" in defects:
        table.unlink()
        (root / f"{table.name}.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        table.write_text(text.replace("ID,Label", "ID,Value"))
    if "E_LABEL_RANGE" in defects:
        # A repeated row that contradicts the first.
        table.write_text(text + f"{IDS[1]}_any,{1 - types_of(1)['any']}\n")
    if "E_ORPHAN" in defects:
        (train / f"{IDS[3]}.dcm").unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_MISPLACED" in defects:
        # The chest radiographs of the year before.
        shutil.rmtree(root)
        root.mkdir()
        (root / "stage_2_train_labels.csv").write_text("patientId,x,y,width,height,Target\n")
        (root / "stage_2_detailed_class_info.csv").write_text("patientId,class\n")
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
