"""The published weights of Big Transfer (BiT): NumPy archives with names of their own."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from medinit_jax.arch.program import Program
from medinit_jax.core.errors import UsageError
from medinit_jax.models.encoder import body

FINAL_NORM = "norm"
_LEAVES = {"kernel": "kernel", "scale": "gamma", "bias": "beta"}
# Of a residual block: norm and convolution number 1 lie in its part a, and so on.
_PARTS = {"1": "a", "2": "b", "3": "c"}


def read_bit(
    path: str | Path, program: Program, skip_final_norm: bool = False
) -> dict[str, dict[str, np.ndarray]]:
    """Reads the encoder of a BiT network; the head in the file is left alone.

    Args:
        path: Such as BiT-M-R50x1.npz; nothing that the file holds is run.
        program: A BiT network of the file's size, with any head.
        skip_final_norm: Whether the norm before the head starts at 1 and 0 instead, as in SWCL's
            code.

    Returns:
        {module: {leaf: float32}} of all modules but the head's.

    Raises:
        UsageError: There is no such file, it is no such archive, the network is no BiT network, or
            a tensor is missing or has another shape than the network's.

    Source: Kolesnikov et al., Big Transfer (BiT), ECCV 2020.
    """
    path = Path(path)
    held = _arrays(path)
    params: dict[str, dict[str, np.ndarray]] = {}
    for module, leaves in body(program).parameter_shapes().items():
        params[module] = {}
        for leaf, shape in leaves.items():
            if skip_final_norm and module == FINAL_NORM:
                params[module][leaf] = np.full(shape, float(leaf == "scale"), np.float32)
                continue
            name = bit_name(module, leaf)
            if name not in held:
                raise UsageError(
                    f"{path} has no tensor {name!r}, which {module!r} needs; give the .npz file of "
                    "a BiT network of the same depth."
                )
            if held[name].shape != shape:
                raise UsageError(
                    f"In {path} the tensor {name!r} has shape {held[name].shape}, but {module!r} "
                    f"needs {shape}; give the .npz file of a BiT network of the same width."
                )
            params[module][leaf] = held[name].astype(np.float32)
    return params


def bit_name(module: str, leaf: str) -> str:
    """Returns the archive's name of a parameter.

    Args:
        module: Name of the module, as `models.bit` has it.
        leaf: "kernel", "scale" or "bias".

    Raises:
        UsageError: BiT networks have no such module.
    """
    found = re.fullmatch(
        r"stages\.(\d+)\.blocks\.(\d+)\.(?:(norm|conv)([123])|downsample\.conv)", module
    )
    if module == "stem.conv":
        place = "root_block/standardized_conv2d"
    elif module == FINAL_NORM:
        place = "group_norm"
    elif found:
        stage, block, kind, number = found.groups()
        layer = "group_norm" if kind == "norm" else "standardized_conv2d"
        part = _PARTS[number] if number else "a/proj"
        place = f"block{int(stage) + 1}/unit{int(block) + 1:02d}/{part}/{layer}"
    else:
        raise UsageError(
            f"BiT networks have no module {module!r}; choose one, such as resnetv2_50x1_bit."
        )
    return f"resnet/{place}/{_LEAVES[leaf]}"


def _arrays(path: Path) -> Mapping[str, np.ndarray]:
    if not path.is_file():
        raise UsageError(f"There is no file {path}; give the .npz file of a BiT network.")
    try:
        # NumPy leaves a file open that it cannot read, unless it was opened for it.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise UsageError(
            f"{path} is no readable archive of arrays ({str(error).splitlines()[0]}); give the "
            ".npz file of a BiT network."
        ) from error
