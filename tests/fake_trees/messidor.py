"""A small Messidor: 18 photographs of 60 x 40 pixels in 12 folders of every known arrangement."""

import shutil
from pathlib import Path

import xlwt
from fake_trees.images import LFS_POINTER, cut_short, photograph, save

# {folder: {image: (grade, risk of edema)}}, grades as published, before the errata.
GRADED = {
    "Base11": {
        "20051020_64007_0100_PP": (1, 1),
        "20051020_63936_0100_PP": (3, 0),
        "20051019_00003_0100_PP": (0, 0),
        "20051019_00004_0100_PP": (2, 2),
    },
    "Base13": {"20060523_48477_0100_PP": (2, 2), "20060523_00002_0100_PP": (0, 0)},
    "Base33": {
        "20051202_55582_0400_PP": (1, 0),
        "20051202_54744_0400_PP": (1, 0),
        "20051202_54611_0400_PP": (0, 1),
    },
    "Base12": {"20051020_00012_0100_PP": (0, 0)},
    "Base14": {"20051020_00014_0100_PP": (3, 2)},
    "Base21": {"20051020_00021_0200_PP": (0, 0)},
    "Base22": {"20051020_00022_0200_PP": (1, 0)},
    "Base23": {"20051020_00023_0200_PP": (2, 1)},
    "Base24": {"20051020_00024_0200_PP": (3, 2)},
    "Base31": {"20051020_00031_0400_PP": (0, 0)},
    "Base32": {"20051020_00032_0400_PP": (0, 0)},
    "Base34": {"20051020_00034_0400_PP": (2, 0)},
}
HEADER = (
    "Image name",
    "Ophthalmologic department",
    "Retinopathy grade",
    "Risk of macular edema ",
)


def write_annotation(path: Path, graded: dict, header: tuple[str, ...] = HEADER) -> None:
    """Writes a table as it is distributed: BIFF, numbers as floats, in the sheet Feuil1."""
    book = xlwt.Workbook()
    sheet = book.add_sheet("Feuil1")
    rows = [header, *((f"{stem}.tif", "CHU", *grades) for stem, grades in graded.items())]
    for number, row in enumerate(rows):
        for column, cell in enumerate(row):
            sheet.write(number, column, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(str(path))


def annotation(root: Path, base: str) -> Path:
    """Returns where a folder's table lies: inside, under two spellings, or beside the folder."""
    return {
        "Base12": root / "Base12/Annotation Base12.xls",
        "Base21": root / "Annotation_Base21.xls",
        "Base22": root / "Annotation Base22.xls",
        "Base23": root / "Base23/Base23/Annotation_Base23.xls",
    }.get(base, root / f"{base}/Annotation_{base}.xls")


def make_messidor(root: Path, seed: int = 0, defects: tuple[str, ...] = ()) -> Path:
    """Writes the tree; `defects` are codes of errors that it then causes."""
    for base, graded in GRADED.items():
        folder = root / base / base if base in ("Base13", "Base23") else root / base
        for stem in graded:
            drawn = photograph(f"messidor{seed}{stem}", 60, 40)
            save(folder / f"{stem}.tif", drawn["image"])
        write_annotation(annotation(root, base), graded)
    shutil.copy(
        root / "Base33/20051202_54744_0400_PP.tif", root / "Base33/20051202_55582_0400_PP.tif"
    )
    _damage(root, defects)
    return root


def _damage(root: Path, defects: tuple[str, ...]) -> None:
    image = root / "Base14/20051020_00014_0100_PP.tif"
    table = annotation(root, "Base14")
    if "E_MISSING_FILE" in defects:
        table.unlink()
    if "E_ARCHIVE" in defects:
        shutil.rmtree(root / "Base24")
        (root / "Base24.zip").write_bytes(b"PK")
    if "E_COLUMNS" in defects:
        write_annotation(table, GRADED["Base14"], (*HEADER[:2], "Grade", HEADER[3]))
    if "E_ORPHAN" in defects:
        image.unlink()
    if "E_DECODE" in defects:
        cut_short(image)
    if "E_LFS" in defects:
        image.write_bytes(LFS_POINTER)
    if "E_LABEL_RANGE" in defects:
        write_annotation(table, {image.stem: (4, 2)})
    if "E_MISPLACED" in defects:
        shutil.rmtree(root)
        drawn = photograph("messidor2", 60, 40)
        save(root / "IMAGES/IM000001.JPG", drawn["image"], format="JPEG")
        (root / "messidor_data.csv").write_text("image_id,adjudicated_dr_grade\nIM000001.JPG,0\n")
    if "E_MISSING_ROOT" in defects:
        shutil.rmtree(root)
        root.mkdir()
