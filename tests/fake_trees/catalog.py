"""The generator of every dataset's fake tree, what it holds, and the defects that it knows."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fake_trees.drive import make_drive
from fake_trees.table import make_table


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

FAKE_TREES = {
    "medinit_drive": FakeTree(
        make_drive,
        {"default": {"train": 4, "test": 3}, "train_only": {"train": 3, "test": 1}},
        (*COMMON, "E_ARCHIVE", "E_ORPHAN", "E_MASK_VALUES", "E_MISPLACED", "E_NO_TEST_GT"),
    ),
    "medinit_table": FakeTree(
        make_table,
        {"default": {"train": 8, "val": 2, "test": 2}},
        (*COMMON, "E_ARCHIVE", "E_COLUMNS", "E_COUNT", "E_LABEL_RANGE", "E_ORPHAN"),
    ),
}
