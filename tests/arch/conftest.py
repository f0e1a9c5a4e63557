"""The four networks of the reference implementation, and the place where they lie."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from medinit_jax.arch.deepnets import Architecture

SHARED = Path(os.environ.get("MEDINIT_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
NAMES = ("darts", "vgg", "vit", "cse")


@pytest.fixture(scope="session")
def oracle():
    path = SHARED / "oracles" / "ghn.npz"
    if not path.exists():
        pytest.skip(f"needs the reference values {path}")
    with np.load(path) as arrays:
        return dict(arrays), json.loads(str(arrays["meta_json"]))


@pytest.fixture(params=NAMES)
def oracle_network(request, oracle):
    """(architecture, meta data, arrays without the prefix) of one reference network."""
    arrays, meta = oracle
    name = request.param
    entry = meta["arch"][name]
    prefix = f"arch/{name}/"
    own = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
    return architecture(entry["config"]), entry, own


def architecture(config: dict) -> Architecture:
    """Translates the reference's keyword arguments."""
    config = dict(config)
    genotype = config.pop("genotype")
    assert genotype["normal_concat"] == genotype["reduce_concat"]
    return Architecture(
        normal=tuple((op, state) for op, state in genotype["normal"]),
        reduce=tuple((op, state) for op, state in genotype["reduce"]),
        concat=tuple(genotype["normal_concat"]),
        norm=config.pop("norm") is not None,
        **config,
    )
