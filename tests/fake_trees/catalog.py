"""The generator of every dataset's fake tree, what it holds, and the defects that it knows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fake_trees.aptos2019 import make_aptos2019
from fake_trees.chase_db1 import make_chase_db1
from fake_trees.drive import make_drive
from fake_trees.eyepacs import make_eyepacs
from fake_trees.idrid import make_idrid
from fake_trees.messidor import make_messidor
from fake_trees.oia_odir import make_oia_odir
from fake_trees.refuge import make_refuge, make_refuge2
from fake_trees.rsna_cxr import make_rsna_cxr
from fake_trees.rsna_ihd import make_rsna_ihd
from fake_trees.stare import make_stare
from fake_trees.table import make_table


class FakeTree(NamedTuple):
    """A small copy of a dataset's download.

    Attributes:
        make: `make(root, seed, defects)` writes it.
        counts: {config: {split: examples}}.
        defects: Codes of the errors that it can be made to cause.
        dark: Ids of photographs that are all black.
    """

    make: Callable[..., Path]
    counts: dict[str, dict[str, int]]
    defects: tuple[str, ...]
    dark: tuple[str, ...] = ()


# Every tree knows these.
COMMON = ("E_MISSING_ROOT", "E_MISSING_FILE", "E_DECODE", "E_LFS")
_REFUGE = (
    "E_ARCHIVE",
    "E_COLUMNS",
    "E_ORPHAN",
    "E_MASK_VALUES",
    "E_LABEL_RANGE",
    "E_MISPLACED",
    "E_NO_TEST_GT",
)

# Trees with a table of labels know these, too.
LABELLED = ("E_ARCHIVE", "E_COLUMNS", "E_LABEL_RANGE", "E_MISPLACED", "E_ORPHAN")

_EYEPACS = {"train": 13, "validation": 2, "test": 6, "sample": 1}

FAKE_TREES = {
    "medinit_aptos2019": FakeTree(
        make_aptos2019,
        {
            "default": {"train": 10, "test": 3},
            "paper": {"train": 8, "test": 2},
            "paper_dedupe": {"train": 8, "test": 2},
        },
        (*COMMON, *LABELLED),
    ),
    "medinit_chase_db1": FakeTree(
        make_chase_db1,
        {
            "first": {"train": 4, "test": 2},
            "bob8": {"train": 4, "test": 2},
            "validation": {"train": 2, "validation": 2, "test": 2},
        },
        (*COMMON, "E_ARCHIVE", "E_ORPHAN", "E_MASK_VALUES", "E_MISPLACED"),
    ),
    "medinit_drive": FakeTree(
        make_drive,
        {
            "default": {"train": 4, "test": 3},
            "validation": {"train": 3, "validation": 1, "test": 3},
            "train_only": {"train": 3, "test": 1},
        },
        (*COMMON, "E_ARCHIVE", "E_ORPHAN", "E_MASK_VALUES", "E_MISPLACED", "E_NO_TEST_GT"),
    ),
    "medinit_messidor": FakeTree(
        make_messidor,
        {"clean": {"train": 17}, "swcl": {"train": 17}, "raw": {"train": 18}},
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_ORPHAN", "E_LABEL_RANGE", "E_MISPLACED"),
    ),
    "medinit_oia_odir": FakeTree(
        make_oia_odir,
        {
            "default": {"train": 8, "validation": 4, "test": 6},
            "all": {"train": 18},
            "odir5k_train": {"train": 8},
            "compat_code": {"train": 8, "validation": 4, "test": 6},
        },
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_ORPHAN", "E_LABEL_RANGE", "E_MISPLACED"),
    ),
    "medinit_eyepacs": FakeTree(
        make_eyepacs,
        {
            **dict.fromkeys(("default", "pretrain448", "cls350", "btgraham300"), _EYEPACS),
            "paper": {"train": 12, "test": 6},
            "all": {"train": 21},
            "gradable": {"train": 11, "validation": 2, "test": 5},
        },
        (*COMMON, *LABELLED),
        dark=("492_right",),
    ),
    "medinit_idrid": FakeTree(
        make_idrid,
        {"grading": {"train": 4, "validation": 1, "test": 3}},
        (*COMMON, *LABELLED),
    ),
    "medinit_refuge": FakeTree(
        make_refuge,
        dict.fromkeys(
            ("default", "seg514", "cls350", "seg512"), {"train": 5, "validation": 3, "test": 3}
        ),
        (*COMMON, *_REFUGE),
    ),
    "medinit_refuge2": FakeTree(
        make_refuge2,
        {
            "default": {"train": 11, "validation": 2, "test": 2},
            "seg512": {"train": 11, "validation": 2, "test": 2},
            "paper": {"train": 8, "test": 3},
        },
        (*COMMON, *_REFUGE),
    ),
    "medinit_stare": FakeTree(
        make_stare,
        {
            "ah": {"train": 4, "test": 3},
            "vk": {"train": 4, "test": 3},
            "loo": {"train": 7},
            "validation": {"train": 3, "validation": 1, "test": 3},
        },
        (*COMMON, "E_ARCHIVE", "E_ORPHAN", "E_MASK_VALUES", "E_MISPLACED"),
    ),
    "medinit_rsna_cxr": FakeTree(
        make_rsna_cxr,
        {
            "patient": {"train": 4, "test": 2, "unlabelled": 2},
            "paper_rows": {"train": 5, "test": 2},
        },
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_LABEL_RANGE", "E_MISPLACED", "E_ORPHAN"),
    ),
    "medinit_rsna_ihd": FakeTree(
        make_rsna_ihd,
        {
            "full": {"train": 9, "unlabelled": 3},
            "paper10": {"train": 7, "test": 2},
            "patient": {"train": 5, "test": 4},
            "brain1_full": {"train": 9, "unlabelled": 3},
        },
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_LABEL_RANGE", "E_MISPLACED", "E_ORPHAN"),
    ),
    "medinit_table": FakeTree(
        make_table,
        {"default": {"train": 8, "validation": 2, "test": 2}},
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_COUNT", "E_LABEL_RANGE", "E_ORPHAN"),
    ),
}
