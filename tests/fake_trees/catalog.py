"""The generator of every dataset's fake tree, what it holds, and the defects that it knows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fake_trees.chase_db1 import make_chase_db1
from fake_trees.drive import make_drive
from fake_trees.refuge import make_refuge, make_refuge2
from fake_trees.stare import make_stare


class FakeTree(NamedTuple):
    """A small copy of a dataset's download.

    Attributes:
        make: `make(root, seed, defects)` writes it.
        counts: {config: {split: examples}}.
        defects: Codes of the errors that it can be made to cause.
    """

    make: Callable[..., Path]
    counts: dict[str, dict[str, int]]
    defects: tuple[str, ...]


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

FAKE_TREES = {
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
}
