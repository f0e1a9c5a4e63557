"""One tiny fine-tuning of each kind, shared by the tests of this room."""

import pytest
from tiny_finetune import TINY, tiny

from medinit_jax import finetune


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def tuned(data_dir, tmp_path_factory):
    """Returns {kind: workdir of a finished fine-tuning}."""
    found = {}
    for kind in TINY:
        found[kind] = tmp_path_factory.mktemp(kind) / "run"
        more = ["--config.evaluate.cam_epochs=(1,2)"] if kind == "classification" else []
        finetune.run(tiny(kind, data_dir, *more), found[kind])
    return found
