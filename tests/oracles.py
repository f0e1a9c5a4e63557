"""Arrays that the papers' own code produced, where they lie beside the project."""

import os
from pathlib import Path

import numpy as np
import pytest

SHARED = Path(os.environ.get("MEDINIT_SHARED", Path(__file__).resolve().parents[2] / "shared"))
_FILE = SHARED / "oracles" / "swcl.npz"


def swcl():
    """Returns the arrays of SWCL's code, or skips the test where they are absent."""
    if not _FILE.is_file():
        pytest.skip("the reference arrays lie beside the project's own checkout only")
    with np.load(_FILE, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}
