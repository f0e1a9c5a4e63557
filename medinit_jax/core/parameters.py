"""Parameters of a network or an initializer in a folder: safetensors and a JSON file."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import traverse_util

from medinit_jax.core import listing
from medinit_jax.core.errors import UsageError
from medinit_jax.core.workdir import share, write_json

PyTree = Any

PARAMS_FILE = "params.safetensors"
METADATA_FILE = "initializer.json"
# What a folder of parameters is -> the file that describes it.
KINDS = {"initializer": METADATA_FILE, "model": "model.json"}
INITIALIZER_FOLDER = "initializer"


def save_params(
    path: str | os.PathLike[str],
    params: PyTree,
    metadata: Mapping[str, Any],
    kind: str = "initializer",
) -> None:
    """Writes parameters and a JSON sidecar into a new folder.

    Args:
        path: the folder; must not exist.
        params: nested dicts of arrays.
        metadata: a JSON object: configuration, preprocessing, provenance.
        kind: what it is, a key of `KINDS`.

    Raises:
        UsageError: the folder is there already.
    """
    folder = Path(path)
    if folder.exists():
        raise UsageError(f"{folder} is there already; remove it or write to another path.")
    flat = {
        name: np.asarray(leaf, order="C")
        for name, leaf in traverse_util.flatten_dict(params, sep="/").items()
    }
    # A reader sees the whole folder or none of it.
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        safetensors.numpy.save_file(flat, temporary / PARAMS_FILE)
        share(temporary / PARAMS_FILE)
        digest = listing.digest(temporary / PARAMS_FILE)
        write_json(temporary / KINDS[kind], {"metadata": dict(metadata), "params": digest})
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_params(
    path: str | os.PathLike[str], kind: str = "initializer"
) -> tuple[PyTree, dict[str, Any]]:
    """Reads what `save_params` wrote.

    Args:
        path: the folder.
        kind: what it has to be, a key of `KINDS`.

    Returns:
        Nested dicts of NumPy arrays, and the metadata.

    Raises:
        UsageError: no such folder, or a file that was cut short or changed.
    """
    folder = Path(path)
    described = folder / KINDS[kind]
    for file in (described, folder / PARAMS_FILE):
        if not file.is_file():
            raise UsageError(f"{folder} is no {kind}: {file.name} is missing; check the path.")
    try:
        sidecar = json.loads(described.read_text(encoding="utf-8"))
        metadata, digest = sidecar["metadata"], sidecar["params"]
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{described} cannot be read ({error}); fetch the {kind} again."
        ) from error
    found = listing.digest(folder / PARAMS_FILE)
    if found != digest:
        raise UsageError(
            f"{folder / PARAMS_FILE} is not what was saved ({listing.compare(digest, found)}); "
            f"fetch the {kind} again."
        )
    flat = safetensors.numpy.load_file(folder / PARAMS_FILE)
    return traverse_util.unflatten_dict(flat, sep="/"), metadata
